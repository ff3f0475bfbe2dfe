//! One program for every fuzz target: which one it feeds says the environment. `run.sh` starts it.
//!
//! The targets are functions of the library (`src/fuzzing.rs`), so that `make test` runs the same ones without this program.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rollcall::fuzzing::{Check, find_target};

static CHECK: LazyLock<Check> = LazyLock::new(|| {
    let name = std::env::var("ROLLCALL_FUZZ_TARGET").unwrap_or_default();
    find_target(&name).unwrap_or_else(|| panic!("no fuzz target is called {name:?}")).check
});

fuzz_target!(|bytes: &[u8]| CHECK(bytes));
