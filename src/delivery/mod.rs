//! Everything after the commit: from an event in the log to delivered or exhausted.
//!
//! The life of a delivery, one event on its way to one subscription. No row is written for it as long as nothing
//! fails; where it stands follows from the cursor and the bitmap of its subscription.
//!
//! | State | Becomes | When |
//! |---|---|---|
//! | owed, above the cursor | in flight | its contact has nothing earlier owed, and the lane has a slot |
//! | in flight | finished | the receiver answered 2xx |
//! | in flight | held | it failed, or it is slow and the window is full |
//! | in flight | owed | the receiver asked for a pause (429, or 503 with `Retry-After`) |
//! | held | in flight | its time has come, and the circuit is closed or picks it as a probe |
//! | held | exhausted | its last retry failed by its own fault |
//! | any | dropped | the app unsubscribes |
//!
//! Finished and exhausted become true with the commit that records them; only then does the contact's next event
//! start. [`lane`] decides, [`engine`] carries out, [`sender`] makes the attempts.

mod attempts;
mod budget;
pub mod challenge;
mod driver;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz_checks;
pub mod lane;
mod loading;
pub mod outcome;
mod recent;
pub mod retry;
pub mod sender;
pub mod signing;
#[cfg(test)]
mod simulation;
mod slots;
pub mod target_guard;
