//! Drives lanes: loads events, starts attempts, batches results, shares slots.

use crate::domain::id::{AppId, ServiceId};

/// How the lane of an enabled subscription is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Sending, or nothing to send.
    Active,
    /// The receiver asked for a pause.
    Paused,
    /// The circuit is open, or too many deliveries are held.
    Failing,
}

/// The running engine.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// How a lane is doing; `None` when there is none.
    #[must_use]
    pub fn lane_state(&self, _service: ServiceId, _app: AppId) -> Option<LaneState> {
        None
    }
}
