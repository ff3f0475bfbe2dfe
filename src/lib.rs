//! Rollcall keeps an organisation's roll of staff contacts and calls every system that must know when it changes.
//!
//! The modules stand in reading order: what the system talks about, where it is kept, who changes it, and how
//! a change gets out. `ARCHITECTURE.md` is the map; `tests/architecture.rs` holds who may import whom.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod directory;
pub mod domain;
pub mod feed;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod store;
pub mod subscriptions;
