//! Everything after the commit: from an event in the log to delivered or exhausted.

pub mod challenge;
mod driver;
pub mod engine;
pub mod lane;
pub mod outcome;
mod recent;
pub mod retry;
pub mod sender;
pub mod signing;
#[cfg(test)]
mod simulation;
mod slots;
pub mod target_guard;
