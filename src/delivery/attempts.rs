//! Attempts as tasks: a task makes one attempt after the other, as long as the end of one starts the next.
//!
//! `driver.rs` launches one for each attempt that starts by anything but the end of another. Under load the tasks of a
//! lane therefore go on: nothing is spawned, and their timer is set once for many attempts. Whatever happens to an
//! attempt once its task runs, its lane is stepped, or its contact would stay busy for ever.
//!
//! Where several nodes share the sending, an attempt is aborted when its term of the node's lease is over or its shard is
//! lost. What such an attempt seems to have ended with says nothing of the receiver.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;

use super::driver::LaneDriver;
use super::outcome::Outcome;
use super::sender::{Answer, Attempt, AttemptTimer, Line};
use super::target_guard::Step;
use crate::domain::event::Event;
use crate::domain::id::ContactId;
use crate::domain::lease::Term;
use crate::domain::subscription::StoredSecret;
use crate::store::rows::FailedAttempt;

/// An attempt that a lane has started.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) contact: ContactId,
    pub(super) sequence: u64,
    /// Which attempt of the event it is, from 1.
    pub(super) number: u32,
    /// The event, where it is loaded.
    pub(super) event: Option<Arc<Event>>,
    /// None when the rules for targets have changed since the URL was verified.
    pub(super) line: Option<Arc<Line>>,
    pub(super) secrets: Arc<[StoredSecret]>,
    /// In which it may be made.
    pub(super) term: Term,
    /// How often its lane was lost when it began.
    pub(super) losses: u16,
}

/// Makes this attempt, and those that follow from its end.
pub(super) async fn run(lane: Arc<LaneDriver>, first: Starting) {
    let stopping = lane.shared().stopping.clone();
    let mut stopped = pin!(stopping.cancelled());
    let mut timer = AttemptTimer::default();
    let mut next = Some(first);
    while let Some(starting) = next {
        let mut ending = Ending::new(&lane, &starting);
        let (term, losses) = (starting.term.clone(), starting.losses);
        tokio::select! {
            biased;
            // First of all: an attempt whose time is over must not even try another connection.
            () = over(&lane, &term, losses) => ending.aborted = true,
            answer = attempt(&lane, starting, &mut timer) => ending.answer = answer,
            // The server stops, and nobody is to be told any more.
            () = &mut stopped => {
                ending.told = true;
                return;
            }
        }
        // A success is one, whenever it came. Anything else may be what refused writes and closed connections look like.
        let delivered =
            ending.answer.as_ref().is_some_and(|answer| answer.outcome == Outcome::Delivered);
        ending.aborted |= !delivered && term.is_over();
        ending.aborted |= !term.is_forever() && lane.losses() != losses;
        // One that found nothing to send because the server stops has not failed.
        if ending.answer.is_none() && stopping.is_cancelled() {
            ending.told = true;
            return;
        }
        next = ending.end();
    }
}

/// Waits until an attempt may not go on: its term is over, or its shard lost.
async fn over(lane: &LaneDriver, term: &Term, losses: u16) {
    if term.is_forever() {
        return pending().await;
    }
    let mut lost = lane.shared().watch_losses();
    let mut ended = pin!(term.clone().over());
    while lane.losses() == losses {
        tokio::select! {
            () = &mut ended => return,
            changed = lost.changed() => if changed.is_err() { return },
        }
    }
}

async fn attempt(
    lane: &LaneDriver,
    starting: Starting,
    timer: &mut AttemptTimer,
) -> Option<Answer> {
    let Starting { sequence, number, event, line, secrets, .. } = starting;
    let event = match event {
        Some(event) => event,
        None => find_event(lane, sequence).await?,
    };
    let line = line?;
    let id = event.id.to_string();
    let attempt = Attempt {
        id: &id,
        body: Bytes::from(event.notification()),
        secrets: &secrets,
        sequence: Some(sequence),
        contact_version: Some(event.contact_version),
        number: Some(number),
    };
    let answer = lane.shared().sender.attempt(&line, attempt, timer).await;
    tracing::debug!(
        service.id = %lane.key.0, app.id = %lane.key.1, event.sequence = sequence,
        attempt.number = number, outcome = ?answer.outcome, status = answer.status,
        step = answer.step.name(), "attempt ended"
    );
    Some(answer)
}

/// An event that is not loaded, from the log; `None` when it was removed, or there is nothing to wait for.
async fn find_event(lane: &LaneDriver, sequence: u64) -> Option<Arc<Event>> {
    loop {
        match lane.shared().store.read.list_events(lane.key.0, sequence - 1, 1).await {
            Ok(events) => {
                let found = events.into_iter().find(|event| event.sequence == sequence);
                return found.map(Arc::new);
            }
            Err(error) => tracing::warn!(error = %error, "event not read, trying again"),
        }
        if lane.wait_or_stop().await {
            return None;
        }
    }
}

/// Steps the lane when an attempt ends, however it ends: one that panicked must not leave its contact busy.
struct Ending {
    lane: Arc<LaneDriver>,
    contact: ContactId,
    sequence: u64,
    number: u32,
    /// `None` when nothing could be sent.
    answer: Option<Answer>,
    /// Whether it was not to be finished.
    aborted: bool,
    /// Whether the lane knows, or need not know.
    told: bool,
}

impl Ending {
    fn new(lane: &Arc<LaneDriver>, starting: &Starting) -> Self {
        let Starting { contact, sequence, number, .. } = *starting;
        let lane = Arc::clone(lane);
        Self { lane, contact, sequence, number, answer: None, aborted: false, told: false }
    }

    /// Steps the lane; gives the attempt that follows.
    fn end(mut self) -> Option<Starting> {
        self.tell()
    }

    fn tell(&mut self) -> Option<Starting> {
        self.told = true;
        if self.aborted {
            self.lane.abort_attempt(self.contact);
            return None;
        }
        let outcome = self.answer.as_ref().map_or(Outcome::Failed, |answer| answer.outcome);
        let failed =
            matches!(outcome, Outcome::Failed | Outcome::Gone).then(|| self.failed_attempt());
        self.lane.end_attempt(self.contact, outcome, failed)
    }

    fn failed_attempt(&mut self) -> FailedAttempt {
        let answer = self.answer.take();
        FailedAttempt {
            sequence: self.sequence,
            attempt: self.number,
            at: self.lane.shared().clock.now(),
            status: answer.as_ref().and_then(|answer| answer.status),
            step: answer.as_ref().map_or(Step::Local, |answer| answer.step).name().to_owned(),
            answer: answer.map_or_else(Vec::new, |answer| answer.answer_start.into()),
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let next = self.tell();
        self.lane.launch(next);
    }
}
