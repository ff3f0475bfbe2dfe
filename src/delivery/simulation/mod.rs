//! Seeded worlds that run the lane, unchanged, against a model store and a model receiver (tests only).
//!
//! A seed is drawn into a story, a list of steps: events are committed, attempts end, records become durable or are
//! lost in a crash, the app subscribes anew, wants events again, time passes. After every step the promises of the
//! engine are checked against what the world knows. At the end all faults stop, and everything owed must be
//! delivered. A story that breaks a promise is made short, printed, and kept in `stories.rs`.

mod checks;
mod model_store;
mod seeds;
mod shrink;
mod steps;
mod stories;
mod world;
