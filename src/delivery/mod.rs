//! Everything after the commit: from an event in the log to delivered or exhausted.

pub mod challenge;
pub mod engine;
pub mod outcome;
pub mod sender;
pub mod signing;
pub mod target_guard;
