//! Where a subscription stands, as far as single deliveries follow from it; and what becomes of it when events that it
//! still owed are removed, or are to be sent again.

use super::Error;
use super::rows::DeliveryState;
use crate::domain::contact::FieldError;
use crate::domain::subscription::{Enabled, HELD_MAX};

/// Rows that one redelivery may add: the event, and the newest finished one of its contact.
const REDELIVERED_MAX: u64 = 2;

/// Progress of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) enabled: Enabled,
    /// Everything up to it is finished or held.
    pub(super) cursor: u64,
    /// Finished events above the cursor, in order.
    pub(super) done: Vec<u64>,
    /// Events up to it were never owed.
    pub(super) since: u64,
}

/// Numbers from the first to the last one, both included.
pub(super) type Range = (u64, u64);

/// What is left of a subscription after the removal of old events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) cursor: u64,
    pub(super) done: Vec<u64>,
    /// What it never got.
    pub(super) missing: Option<Range>,
}

impl Standing {
    /// Refuses to send again for a subscription that does not send.
    pub(super) fn check_sends(&self) -> Result<(), Error> {
        if self.enabled == Enabled::Yes {
            return Ok(());
        }
        let rule = "must be true: enable the subscription first";
        Err(Error::Refused(FieldError::new("enabled", rule)))
    }

    /// Whether an event is finished, unless there is a held row of it.
    pub(super) fn finished(&self, sequence: u64) -> bool {
        sequence <= self.cursor || self.done.binary_search(&sequence).is_ok()
    }

    /// The state of a delivery of which there is no row.
    pub(super) fn state_of(&self, sequence: u64) -> DeliveryState {
        if sequence <= self.since {
            DeliveryState::NotOwed
        } else if self.finished(sequence) {
            DeliveryState::Delivered
        } else {
            DeliveryState::Pending
        }
    }

    /// Sets it back, so that everything after this number is sent again. It never passes what is owed.
    pub(super) fn set_back(&mut self, after: u64) {
        self.done.retain(|done| *done <= after);
        if after < self.cursor {
            self.cursor = after;
            self.done.clear();
        }
    }

    /// Moves it beyond events that were removed: those up to `floor`, among them held and exhausted ones in the range
    /// `kept`. `None` when nothing changes.
    pub(super) fn moved_beyond(&self, floor: u64, kept: Option<Range>) -> Option<Moved> {
        let mut missing = kept;
        let mut owed =
            (self.cursor + 1..=floor).filter(|number| self.done.binary_search(number).is_err());
        if let Some(first) = owed.next() {
            missing = joined(missing, Some((first, owed.next_back().unwrap_or(first))));
        }
        if missing.is_none() && self.cursor >= floor {
            return None;
        }
        let mut cursor = self.cursor.max(floor);
        let above = self.done.partition_point(|number| *number <= cursor);
        let mut done = &self.done[above..];
        while let [first, rest @ ..] = done
            && *first == cursor + 1
        {
            (cursor, done) = (*first, rest);
        }
        Some(Moved { cursor, done: done.to_vec(), missing })
    }
}

/// Refuses one more redelivery when so many deliveries are held.
pub(super) fn check_room(held: u64) -> Result<(), Error> {
    if held + REDELIVERED_MAX <= HELD_MAX as u64 {
        return Ok(());
    }
    let rule = format!("must be below {HELD_MAX} to send more again, is {held}");
    Err(Error::Refused(FieldError::new("held", rule)))
}

/// Refuses a replay after a number that the log does not have.
pub(super) fn check_in_log(after: u64, head: u64) -> Result<u64, Error> {
    if after <= head {
        return Ok(after);
    }
    let rule = format!("must be at most the newest number, {head}");
    Err(Error::Refused(FieldError::new("after", rule)))
}

/// The range of everything in both.
pub(super) fn joined(one: Option<Range>, other: Option<Range>) -> Option<Range> {
    match (one, other) {
        (Some((from, to)), Some((first, last))) => Some((from.min(first), to.max(last))),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::{Moved, Standing, joined};
    use crate::domain::subscription::Enabled;
    use crate::store::rows::DeliveryState;

    fn standing(cursor: u64, done: &[u64]) -> Standing {
        Standing { enabled: Enabled::Yes, cursor, done: done.to_vec(), since: 2 }
    }

    #[test]
    fn what_was_removed_and_owed_is_missing() {
        let moved =
            |cursor, done: &[u64], missing| Some(Moved { cursor, done: done.to_vec(), missing });

        assert_eq!(standing(10, &[12]).moved_beyond(10, None), None);
        assert_eq!(
            standing(10, &[12]).moved_beyond(9, Some((3, 4))),
            moved(10, &[12], Some((3, 4)))
        );
        assert_eq!(standing(4, &[]).moved_beyond(7, None), moved(7, &[], Some((5, 7))));
        assert_eq!(
            standing(4, &[5, 7, 8, 11]).moved_beyond(7, None),
            moved(8, &[11], Some((6, 6)))
        );
        assert_eq!(standing(4, &[5, 6, 7, 8]).moved_beyond(6, None), moved(8, &[], None));
        assert_eq!(standing(4, &[]).moved_beyond(6, Some((1, 3))), moved(6, &[], Some((1, 6))));
        assert_eq!(joined(Some((3, 4)), Some((1, 2))), Some((1, 4)));
    }

    #[test]
    fn a_replay_never_passes_what_is_owed() {
        let mut back = standing(5, &[7, 9]);
        back.set_back(8);
        assert_eq!(back, standing(5, &[7]));
        back.set_back(3);
        assert_eq!(back, standing(3, &[]));
    }

    #[test]
    fn a_delivery_without_a_row_is_pending_until_it_is_finished() {
        let states = [1, 3, 4, 5].map(|sequence| standing(3, &[5]).state_of(sequence));
        use DeliveryState::{Delivered, NotOwed, Pending};
        assert_eq!(states, [NotOwed, Delivered, Pending, Delivered]);
    }
}
