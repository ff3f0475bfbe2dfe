//! What the system talks about: identifiers, tenants, staff contacts, events, subscriptions, who changed what.
//!
//! Pure decisions and types. Nothing here does I/O, awaits, reads a clock or logs; time and
//! random numbers come in as arguments, so that every rule can be tested by itself. Two files are seams for the parts
//! above: `clock.rs` has the machine's clock, and the end of a lease can be awaited.

pub mod audit;
pub mod clock;
pub mod contact;
pub mod contact_json;
pub mod contact_rules;
pub mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz_checks;
pub mod id;
pub mod lease;
pub mod network;
pub mod page;
pub mod shard;
pub mod strict_json;
pub mod subscription;
pub mod tenancy;
