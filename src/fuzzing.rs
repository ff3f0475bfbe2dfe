//! The fuzz targets: every parser that sees bytes from outside, with what must hold of whatever it accepts.
//!
//! Only tests and the fuzzer's program (`fuzz/`) have this module. What a target checks stands in the `fuzz_checks.rs` of
//! the part whose parsers it feeds; here they have their names. The seeds of a target lie in `fuzz/corpus/` below its
//! name. `make fuzz` follows the coverage for minutes; `make test` runs the seeds and thousands of variations of them.

use crate::{api, cli, delivery, domain, http};

/// Feeds one input to its parsers; panics when a property does not hold.
pub type Check = fn(&[u8]);

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name, also of its folder of seeds.
    pub name: &'static str,
    /// What is run for each input.
    pub check: Check,
}

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target { name: "connection", check: http::fuzz_checks::check_connection },
    Target { name: "contact", check: check_contact },
    Target { name: "heads", check: http::fuzz_checks::check_heads },
    Target { name: "json", check: check_json },
    Target { name: "notification", check: cli::fuzz_checks::check_notification },
    Target { name: "receiver", check: delivery::fuzz_checks::check_receiver },
    Target { name: "request", check: check_request },
    Target { name: "url", check: delivery::fuzz_checks::check_url },
];

/// The target of this name.
#[must_use]
pub fn find_target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The bodies of requests that change contacts, alone and in a batch.
fn check_contact(bytes: &[u8]) {
    domain::fuzz_checks::check_contact(bytes);
    api::fuzz_checks::check_batch(bytes);
}

/// Every other reader of JSON.
fn check_json(bytes: &[u8]) {
    domain::fuzz_checks::check_json(bytes);
    api::fuzz_checks::check_bodies(bytes);
    cli::fuzz_checks::check_order(bytes);
    delivery::fuzz_checks::check_challenge(bytes);
}

/// The texts of a request besides its body: target, query, headers.
fn check_request(bytes: &[u8]) {
    domain::fuzz_checks::check_texts(bytes);
    http::fuzz_checks::check_headers(bytes);
    api::fuzz_checks::check_target(bytes);
}

#[cfg(test)]
#[path = "fuzzing_tests.rs"]
mod tests;
