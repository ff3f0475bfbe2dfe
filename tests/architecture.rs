//! Holds the import table and the places of external crates. Reads `src` as text, with the standard library alone.
//!
//! A wish to import upwards means that the code is in the wrong place; a new row or entry here is a decision.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom, from the bottom to the top. Nobody imports a later row.
const IMPORTS: [(&str, &[&str]); 14] = [
    ("domain", &[]),
    ("store", &["domain"]),
    ("directory", &["domain", "store"]),
    ("delivery", &["domain", "store"]),
    // Challenges are sent by the sender, and the state of a subscription is known to its lane.
    ("subscriptions", &["domain", "store", "delivery"]),
    ("feed", &["domain", "store"]),
    ("http", &["domain", "store"]),
    ("api", &["domain", "store", "directory", "subscriptions", "feed", "http"]),
    // For the `Settings` of each part, and the types in them.
    ("config", &["domain", "store", "directory", "delivery", "subscriptions", "http", "api"]),
    (
        "app",
        &[
            "domain",
            "store",
            "directory",
            "delivery",
            "subscriptions",
            "feed",
            "http",
            "api",
            "config",
        ],
    ),
    // `listen` is a receiver: it verifies with the signatures of `delivery`.
    ("cli", &["domain", "delivery", "config", "app"]),
    // The table of fuzz targets, for tests and the fuzzer only: each part checks its own parsers.
    ("fuzzing", &["domain", "delivery", "http", "api", "cli"]),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Where an external crate may be used: path prefixes below `src`.
const PLACES: [(&str, &[&str]); 20] = [
    ("rusqlite", &["store/sqlite/"]),
    ("tokio_postgres", &["store/postgres/"]),
    ("deadpool_postgres", &["store/postgres/"]),
    ("tokio_postgres_rustls", &["store/postgres/connect.rs"]),
    ("aws_lc_rs", &["store/keyring.rs", "http/tls.rs"]),
    ("hickory_resolver", &["delivery/resolver.rs"]),
    // Outbound: the sender and its private parts, and the command line's client. Inbound: the listener of the
    // server and that of `rollcall listen`.
    (
        "hyper",
        &[
            "delivery/sender.rs",
            "delivery/body.rs",
            "delivery/client.rs",
            "delivery/fuzz_checks.rs",
            "http/listener.rs",
            "http/connection.rs",
            "cli/client.rs",
            "cli/listen_receiver.rs",
        ],
    ),
    (
        "hyper_util",
        &[
            "delivery/client.rs",
            "delivery/fuzz_checks.rs",
            "delivery/line.rs",
            "delivery/stream.rs",
            "http/listener.rs",
            "cli/client.rs",
            "cli/listen_receiver.rs",
        ],
    ),
    (
        "tokio_rustls",
        &[
            "delivery/sender.rs",
            "delivery/connector.rs",
            "delivery/stream.rs",
            "http/tls.rs",
            "cli/client.rs",
        ],
    ),
    // `line.rs` names who is called, `client.rs` hands the name on.
    (
        "rustls",
        &[
            "delivery/sender.rs",
            "delivery/client.rs",
            "delivery/connector.rs",
            "delivery/line.rs",
            "http/tls.rs",
            "store/postgres/connect.rs",
            "cli/client.rs",
        ],
    ),
    (
        "rustls_platform_verifier",
        &["delivery/connector.rs", "store/postgres/connect.rs", "cli/client.rs"],
    ),
    ("axum", &["http/", "api/", "app.rs"]),
    ("matchit", &["api/router.rs"]),
    // The listener takes the API as a service, the outbound client its connector.
    ("tower", &["http/", "api/router.rs", "app.rs", "delivery/client.rs"]),
    ("governor", &["http/limits.rs"]),
    ("memchr", &["http/head_scan.rs"]),
    ("clap", &["cli/"]),
    ("toml", &["config/"]),
    // `config` checks that a filter can be read before the log is installed.
    ("tracing_subscriber", &["cli/log.rs", "config/parse.rs"]),
    ("anyhow", &["main.rs", "app.rs", "cli/"]),
];

/// Names that say nothing about what is in the file.
const CATCH_ALL: [&str; 9] =
    ["util", "utils", "common", "misc", "types", "manager", "base", "helpers", "shared"];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| {
        if line.trim_start().starts_with("//") { String::new() } else { line.to_owned() }
    };
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// What stands right behind each `word` that is a whole path or the start of one.
fn behind<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(word).filter_map(move |(at, _)| {
        // `::word` is an absolute path, `other::word` is somebody else's.
        let before = text[..at].strip_suffix("::").unwrap_or(&text[..at]);
        let inside = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '>');
        (!inside).then(|| &text[at + word.len()..])
    })
}

fn first_segment(path: &str) -> &str {
    let path = path.trim_start();
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    &path[..end]
}

/// The modules that a file names behind `crate::`, brace lists included.
fn imported_modules(code: &str) -> Vec<&str> {
    let mut modules = Vec::new();
    for rest in behind(code, "crate::") {
        let Some(list) = rest.trim_start().strip_prefix('{') else {
            modules.push(first_segment(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                _ if start && !c.is_whitespace() => {
                    modules.push(first_segment(&list[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    modules
}

fn check_file(name: &str, text: &str, violations: &mut Vec<String>) {
    let code = without_comments(text);
    let module = name.split(['/', '.']).next().unwrap();
    let mut violated =
        |rule: String, remedy: &str| violations.push(format!("{name}: {rule}: {remedy}"));
    let is_test = name.ends_with("_tests.rs") || name.contains("_test_");
    // Tests in a file of their own may put parts together, as app.rs does.
    let row = if is_test { "app" } else { module };
    match IMPORTS.iter().find(|(name, _)| *name == row) {
        None => violated(format!("module {module} has no row"), "place it in the table on purpose"),
        Some((_, allowed)) => {
            for other in imported_modules(&code) {
                if other != module && !allowed.contains(&other) {
                    violated(
                        format!("imports crate::{other}"),
                        "move the code down, or hand in what it needs from app.rs",
                    );
                }
            }
        }
    }
    for (external, places) in PLACES {
        let used = behind(&code, external).any(|rest| rest.starts_with("::"));
        if used && !is_test && !places.iter().any(|place| name.starts_with(place)) {
            violated(format!("uses {external}"), &format!("it belongs to {}", places.join(", ")));
        }
    }
    if code.contains("super::super") {
        violated("super::super".to_owned(), "write the path from crate::");
    }
    if behind(&code, "crate").any(|rest| rest.starts_with(" as ")) {
        violated("crate as".to_owned(), "it hides imports: write crate::");
    }
    if name == "lib.rs" && code.contains("pub use") {
        violated("re-export".to_owned(), "it hides imports: name the module where the item lives");
    }
    if !text.starts_with("//!") {
        violated("no //! header".to_owned(), "say in two lines what the file is for");
    }
    let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
    if CATCH_ALL.contains(&stem) {
        violated("catch-all name".to_owned(), "put each item where its noun lives");
    }
}

#[test]
fn every_file_keeps_to_the_import_table() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    files.sort();
    let mut violations = Vec::new();

    for path in &files {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
        check_file(name, &fs::read_to_string(path).unwrap(), &mut violations);
    }

    assert!(files.len() > 20, "found only {} files", files.len());
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn table_points_one_way() {
    for (at, (module, allowed)) in IMPORTS.iter().enumerate() {
        for other in *allowed {
            let row = IMPORTS.iter().position(|(name, _)| name == other);
            assert!(
                row.is_some_and(|row| row < at),
                "{module} may import {other}, which is not above it"
            );
        }
    }
}

#[test]
fn violations_are_seen() {
    let refused = |name: &str, code: &str, rule: &str| {
        let mut violations = Vec::new();
        check_file(name, &format!("//! X.\n{code}"), &mut violations);
        assert!(violations.iter().any(|v| v.contains(rule)), "{code}: {violations:?}");
    };
    refused("domain/a.rs", "use crate::store::Read;", "imports crate::store");
    refused(
        "domain/a.rs",
        "use crate::{\n  domain::b,\n  store::{c, d},\n};",
        "imports crate::store",
    );
    refused("store/a.rs", "pub(in crate::cli) fn f() {}", "imports crate::cli");
    refused("attic/a.rs", "", "has no row");
    refused("domain/a.rs", "fn f(c: &rusqlite::Connection) {}", "uses rusqlite");
    refused("api/a.rs", "use ::hyper::body;", "uses hyper");
    refused("domain/a.rs", "use super::super::b;", "super::super");
    refused("lib.rs", "pub use domain::id;", "re-export");
    refused("domain/utils.rs", "", "catch-all name");

    let mut violations = Vec::new();
    let code =
        "//! X.\n// use crate::store\nuse crate::domain::{id, page};\nuse crate::http::hyper::x;";
    check_file("http/a.rs", code, &mut violations);
    check_file("store/sqlite/a.rs", "//! X.\nuse rusqlite::Row;", &mut violations);
    check_file("api/a_tests.rs", "//! X.\nuse crate::delivery::engine;", &mut violations);
    assert!(violations.is_empty(), "{violations:?}");
}
