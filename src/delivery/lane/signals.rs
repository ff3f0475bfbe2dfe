//! What a lane is told and what it asks for: the whole of its contact with the world.

use crate::delivery::outcome::Outcome;
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

/// An unbroken row of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailingRow {
    /// When the first of them ended.
    pub since: Moment,
    /// How many there are.
    pub attempts: u32,
}

/// A held delivery, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldDelivery {
    /// Its event.
    pub sequence: u64,
    /// The event's contact.
    pub contact: ContactId,
    /// Steps of the schedule used up.
    pub retries_used: u32,
    /// Attempts made.
    pub attempts: u32,
    /// When it may start.
    pub due: Moment,
}

/// Durable progress that a lane starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The generation of the subscription.
    pub generation: u64,
    /// The head of the service's log as far as known.
    pub head: u64,
    /// Everything up to it is finished or held.
    pub cursor: u64,
    /// Finished events above the cursor.
    pub done: Vec<u64>,
    /// Held deliveries by sequence.
    pub held: Vec<HeldDelivery>,
    /// The unbroken row of failures it is in.
    pub failing: Option<FailingRow>,
}

/// What happened to a lane.
#[derive(Debug)]
pub enum Input<'a> {
    /// The service's log has grown to here.
    Head(u64),
    /// Events that directly follow `after`, in order.
    Loaded {
        /// The number that the load was asked after.
        after: u64,
        /// Sequence and contact of each.
        events: &'a [(u64, ContactId)],
    },
    /// An attempt ended.
    Ended {
        /// The contact, which has no other attempt in flight.
        contact: ContactId,
        /// What the answer means.
        outcome: Outcome,
        /// Whether the lane keeps the permit; not when other lanes wait for one.
        keep_permit: bool,
    },
    /// A record is durable.
    Recorded {
        /// Which.
        number: u64,
    },
    /// A record was not stored.
    NotRecorded {
        /// Which.
        number: u64,
        /// Whether the generation is over; else the store failed and the outcome is unknown.
        superseded: bool,
    },
    /// Permits for this many more attempts.
    Granted(usize),
    /// How many deliveries it may hold from now on; those that it holds stay.
    HeldMax(usize),
    /// Memory is short: forget what can be loaded again.
    Unload,
    /// Time passed.
    Tick,
    /// The stored subscription changed: start nothing until [`Input::Restart`].
    Halt,
    /// The log may have lost its end, and its numbers come again for other events: the same, and nothing counts of what was
    /// heard and sent.
    WentBack,
    /// A halted lane is to send events again (replay, redeliver): what began before does not count, not even a 2xx.
    SendAgain,
    /// The server stops: start nothing any more, but record what ends.
    Drain,
    /// Go on from here; only after the result of a record that was under way. Attempts in flight go on as attempts of their generation.
    Restart(Progress),
}

/// What a lane wants recorded in one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names the record in [`Input::Recorded`].
    pub number: u64,
    /// The generation it belongs to.
    pub generation: u64,
    /// The new cursor.
    pub cursor: u64,
    /// Finished events above it.
    pub done: Vec<u64>,
    /// Held deliveries to write.
    pub hold: Vec<HeldDelivery>,
    /// Held deliveries to remove: they are finished.
    pub release: Vec<u64>,
    /// Exhausted deliveries: sequence, contact, attempts.
    pub exhaust: Vec<(u64, ContactId, u32)>,
    /// The unbroken row of failures.
    pub failing: Option<FailingRow>,
    /// Disables the subscription with this reason.
    pub disable: Option<&'static str>,
}

/// What the engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start this attempt.
    Start {
        /// The event.
        sequence: u64,
        /// Its contact.
        contact: ContactId,
        /// Which attempt of the event it is, from 1.
        attempt: u32,
    },
    /// Load at most `limit` events after this number.
    Load {
        /// The last number already loaded.
        after: u64,
        /// How many at most.
        limit: u32,
    },
    /// Record this.
    Record(Plan),
}
/// How a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Sending, or nothing to send.
    Active,
    /// The receiver asked for a pause.
    Paused,
    /// The circuit is open, or too many deliveries are held.
    Failing,
}
