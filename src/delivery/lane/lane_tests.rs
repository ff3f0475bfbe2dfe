//! Single rules of the lane, each as a short story. The simulation runs all of them against each other.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Effect, FailingRow, HELD_MAX, HeldDelivery, Input, Lane, LaneState, Plan, Progress,
    REASON_FAILING, REASON_GONE, Settings,
};
use crate::delivery::outcome::Outcome;
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

const PAUSE: Outcome = Outcome::Pause { after: Some(Duration::from_secs(10)) };

/// A lane with a log; it has every permit and records at once unless told otherwise.
struct Story {
    lane: Lane,
    now: Moment,
    log: Vec<u8>,
    started: Vec<(u64, u32)>,
    plans: Vec<Plan>,
    durable: bool,
}

fn contact(number: u8) -> ContactId {
    ContactId::from_bytes([number; 16])
}

impl Story {
    fn new(progress: Progress) -> Self {
        let settings = Settings {
            retry_schedule: vec![Duration::from_secs(5), Duration::from_secs(30)],
            max_in_flight: 4,
        };
        let mut story = Self {
            lane: Lane::new(Arc::new(settings), 1),
            now: Moment(0),
            log: Vec::new(),
            started: Vec::new(),
            plans: Vec::new(),
            durable: true,
        };
        story.step(Input::Restart(Progress { generation: 1, ..progress }));
        story
    }

    /// Commits an event of each of these contacts.
    fn commit(&mut self, contacts: &[u8]) {
        self.log.extend(contacts);
        self.step(Input::Head(self.log.len() as u64));
    }

    fn step(&mut self, input: Input<'_>) {
        let mut effects = Vec::new();
        self.lane.step(self.now, input, &mut effects);
        self.lane.step(self.now, Input::Granted(self.lane.wanted(self.now)), &mut effects);
        while let Some(effect) = (!effects.is_empty()).then(|| effects.remove(0)) {
            match effect {
                Effect::Start { sequence, attempt, .. } => self.started.push((sequence, attempt)),
                Effect::Load { after, .. } => {
                    let events: Vec<_> = (after + 1..)
                        .zip(self.log.iter().skip(usize::try_from(after).unwrap()))
                        .map(|(sequence, number)| (sequence, contact(*number)))
                        .collect();
                    let loaded = Input::Loaded { after, events: &events };
                    self.lane.step(self.now, loaded, &mut effects);
                }
                Effect::Record(plan) => {
                    let number = plan.number;
                    self.plans.push(plan);
                    if self.durable {
                        self.lane.step(self.now, Input::Recorded { number }, &mut effects);
                    }
                }
            }
            let wanted = self.lane.wanted(self.now);
            self.lane.step(self.now, Input::Granted(wanted), &mut effects);
        }
        self.lane.take_surplus();
    }

    fn end(&mut self, number: u8, outcome: Outcome) {
        let contact = contact(number);
        self.step(Input::Ended { contact, outcome, keep_permit: true });
    }

    /// Lets this much time pass and gives what was started meanwhile.
    fn wait(&mut self, wait: Duration) -> Vec<(u64, u32)> {
        self.started.clear();
        self.now = self.now.plus(wait);
        self.step(Input::Tick);
        self.started.clone()
    }

    fn last_hold(&self) -> HeldDelivery {
        let plans = self.plans.iter().rev();
        *plans.flat_map(|plan| plan.hold.last()).next().expect("something was held")
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn events_of_a_contact_wait_for_durability_and_others_overtake() {
    let mut story = Story::new(Progress::default());
    story.durable = false;

    story.commit(&[1, 1, 2]);
    story.end(1, Outcome::Delivered);

    assert_eq!(story.started, [(1, 1), (3, 1)]);
    story.durable = true;
    story.step(Input::Recorded { number: 1 });
    assert_eq!(story.started, [(1, 1), (3, 1), (2, 1)]);
}

#[test]
fn after_the_log_went_back_nothing_stands_in_for_another_event_of_the_same_number() {
    let mut story = Story::new(Progress::default());
    story.durable = false;
    story.commit(&[1, 2, 3]);
    // Delivered and not recorded, and on its way.
    story.end(1, Outcome::Delivered);
    story.started.clear();

    story.step(Input::WentBack);
    story.log.clear();
    story.end(2, Outcome::Delivered);
    story.durable = true;
    story.step(Input::Restart(Progress { generation: 1, ..Progress::default() }));
    story.commit(&[1, 2, 2]);
    assert_eq!(story.started, [], "the attempt of before is still on its way");
    story.end(3, Outcome::Delivered);
    story.end(1, Outcome::Delivered);
    story.end(2, Outcome::Delivered);
    story.end(2, Outcome::Delivered);

    assert_eq!(story.started, [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn first_failure_uses_up_no_retry_and_the_next_does_only_after_others_succeeded() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1]);

    story.end(1, Outcome::Failed);
    assert_eq!((story.last_hold().retries_used, story.last_hold().attempts), (0, 1));
    assert_eq!(story.wait(seconds(2)), [(1, 2)]);
    story.end(1, Outcome::Failed);
    assert_eq!(story.last_hold().retries_used, 0);

    story.commit(&[2]);
    story.end(2, Outcome::Delivered);
    assert_eq!(story.wait(seconds(2)), [(1, 3)]);
    story.end(1, Outcome::Failed);

    let held = story.last_hold();
    assert_eq!((held.retries_used, held.attempts), (1, 3));
    let wait = held.due.since(story.now);
    assert!((seconds(4)..=seconds(6)).contains(&wait), "{wait:?}");
}

#[test]
fn an_event_is_exhausted_after_the_last_retry_and_the_contact_goes_on() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1, 1]);
    story.end(1, Outcome::Failed);

    for other in 2..5 {
        story.commit(&[other]);
        story.end(other, Outcome::Delivered);
        story.wait(seconds(60));
        story.end(1, Outcome::Failed);
    }

    let last = story.plans.last().unwrap();
    assert_eq!(last.exhaust, [(1, contact(1), 4)]);
    assert_eq!(last.release, [1]);
    assert_eq!(story.started.last(), Some(&(2, 1)));
}

#[test]
fn circuit_opens_after_three_failures_of_a_lone_event_and_closes_on_a_success() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1]);
    story.end(1, Outcome::Failed);
    story.wait(seconds(2));
    story.end(1, Outcome::Failed);
    assert_eq!(story.lane.state(story.now), LaneState::Active);
    story.wait(seconds(2));
    story.end(1, Outcome::Failed);

    assert_eq!(story.lane.state(story.now), LaneState::Failing);
    story.commit(&[2, 3]);
    assert_eq!(story.wait(seconds(2)).len(), 1);
    let probed = story.log[usize::try_from(story.started[0].0 - 1).unwrap()];
    story.end(probed, Outcome::Delivered);
    assert_eq!(story.lane.state(story.now), LaneState::Active);
}

#[test]
fn probes_go_round_the_contacts() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1, 2, 3]);
    let mut probed = Vec::new();
    for _ in 0..12 {
        for number in 1..=3 {
            story.end(number, Outcome::Failed);
        }
        probed.extend(story.wait(seconds(400)));
    }

    let last: Vec<u64> = probed.iter().rev().take(3).map(|(sequence, _)| *sequence).collect();
    assert!((1..=3).all(|sequence| last.contains(&sequence)), "{probed:?}");
}

#[test]
fn what_was_on_its_way_when_the_circuit_opened_puts_off_no_probe() {
    let mut story = Story::new(Progress::default());
    story.commit(&(1..=40).collect::<Vec<u8>>());
    for number in 1..=6 {
        story.end(number, Outcome::Delivered);
    }
    assert_eq!(story.lane.in_flight(), 4);
    story.now = story.now.plus(seconds(1));
    while let Some((&contact, _)) = story.lane.flights.first_key_value() {
        story.end(contact.as_bytes()[0], Outcome::Failed);
    }

    assert_eq!(story.lane.state(story.now), LaneState::Failing);
    let wake = story.lane.next_wake(story.now).unwrap();
    assert!(wake <= story.now.plus(Duration::from_millis(1_200)), "{wake:?} {:?}", story.now);
}

#[test]
fn without_a_permit_nothing_is_loaded() {
    let mut story = Story::new(Progress::default());
    let mut effects = Vec::new();

    story.lane.step(story.now, Input::Head(3), &mut effects);

    assert_eq!((effects.len(), story.lane.wanted(story.now)), (0, 1));
    story.lane.step(story.now, Input::Granted(1), &mut effects);
    assert!(matches!(effects[..], [Effect::Load { after: 0, .. }]), "{effects:?}");
    assert_eq!(story.lane.wanted(story.now), 0);
}

#[test]
fn an_open_circuit_unloads_all_but_a_handful_and_delivers_everything_once_closed() {
    let mut story = Story::new(Progress::default());
    let contacts: Vec<u8> = (1..=200).collect();
    story.commit(&contacts);
    assert_eq!(story.lane.window_len(), 200);

    for number in 1..=5 {
        story.end(number, Outcome::Failed);
    }

    assert_eq!(story.lane.state(story.now), LaneState::Failing);
    assert_eq!(story.lane.window_len(), 16);
    for _ in 0..300 {
        story.wait(seconds(2));
        while let Some((&contact, _)) = story.lane.flights.first_key_value() {
            story.end(contact.as_bytes()[0], Outcome::Delivered);
        }
    }
    assert_eq!(story.plans.last().map(|plan| plan.cursor), Some(200), "{:?}", story.lane);
}

#[test]
fn unloading_forgets_what_can_be_loaded_again_and_nothing_else() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1, 2, 3, 4, 5, 6, 1, 2]);
    story.end(1, Outcome::Delivered);
    story.end(2, Outcome::Failed);
    let in_flight = story.lane.in_flight();

    story.lane.step(story.now, Input::Unload, &mut Vec::new());

    let left: Vec<(u64, bool)> =
        story.lane.owed.iter().map(|(at, owed)| (*at, owed.held)).collect();
    assert_eq!((in_flight, left), (2, vec![(2, true), (3, false), (4, false)]));
    assert_eq!((story.lane.in_flight(), story.lane.loaded_to()), (2, 4));
}

#[test]
fn a_lower_limit_of_all_lanes_stops_the_cursor_and_a_higher_one_lets_it_go_on() {
    let mut story = Story::new(Progress::default());
    story.step(Input::HeldMax(0));
    story.commit(&[1]);

    story.end(1, Outcome::Failed);
    assert_eq!((story.lane.held(), story.lane.cursor), (0, 0));

    story.step(Input::HeldMax(HELD_MAX));
    story.wait(seconds(2));
    story.end(1, Outcome::Delivered);
    assert_eq!(story.lane.cursor, 1);
}

#[test]
fn a_pause_stops_the_lane_and_uses_up_nothing() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1, 2]);

    story.end(1, PAUSE);

    assert_eq!(story.lane.state(story.now), LaneState::Paused);
    assert_eq!(story.wait(seconds(9)), []);
    assert_eq!(story.lane.next_wake(story.now), Some(Moment(10_000)));
    assert_eq!(story.wait(seconds(1)), [(1, 2)]);
    assert!(story.plans.iter().all(|plan| plan.hold.is_empty()));
}

#[test]
fn a_pause_for_one_event_only_is_that_events_fault() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1]);
    story.end(1, PAUSE);
    story.wait(seconds(10));
    story.commit(&[2]);
    story.end(1, PAUSE);
    story.wait(seconds(10));
    story.end(1, Outcome::Failed);
    story.end(2, Outcome::Delivered);
    story.wait(seconds(10));

    story.end(1, PAUSE);

    assert_eq!(story.last_hold().retries_used, 1);
    assert_eq!(story.lane.state(story.now), LaneState::Active);
}

#[test]
fn gone_disables_and_starts_nothing_more() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1, 2, 3]);

    story.end(1, Outcome::Gone);

    assert_eq!(story.plans.last().unwrap().disable, Some(REASON_GONE));
    assert_eq!(story.started.len(), 1);
    assert_eq!(story.wait(seconds(1_000)), []);
}

#[test]
fn five_days_and_a_hundred_failures_disable_and_a_success_clears_the_row() {
    let check = |age_days: u64, attempts: u32, disabled: bool| {
        let since = Moment(0).minus(Duration::from_hours(24 * age_days));
        let failing = Some(FailingRow { since, attempts });
        let mut story = Story::new(Progress { failing, ..Progress::default() });
        story.commit(&[1]);
        story.end(1, Outcome::Failed);
        let reason = story.plans.last().unwrap().disable;
        assert_eq!(reason == Some(REASON_FAILING), disabled, "{age_days} days, {attempts}");
        if !disabled {
            story.wait(seconds(2));
            story.end(1, Outcome::Delivered);
            assert_eq!(story.plans.last().unwrap().failing, None);
        }
    };

    check(5, 99, true);
    check(5, 98, false);
    check(4, 5_000, false);
}

#[test]
fn held_deliveries_are_limited_and_then_the_cursor_stops() {
    let held = (1..=HELD_MAX as u64 - 1).map(|sequence| HeldDelivery {
        sequence,
        contact: contact(9),
        retries_used: 1,
        attempts: 1,
        due: Moment(1_000_000),
    });
    let cursor = HELD_MAX as u64 - 1;
    let mut story = Story::new(Progress { cursor, held: held.collect(), ..Progress::default() });
    story.log = vec![9; HELD_MAX - 1];

    story.commit(&[1, 2]);
    story.end(1, Outcome::Failed);
    story.end(2, Outcome::Failed);

    assert_eq!(story.lane.state(story.now), LaneState::Failing);
    let last = story.plans.last().unwrap();
    assert_eq!(last.cursor, HELD_MAX as u64);
    let rows: usize = story.plans.iter().map(|plan| plan.hold.len()).sum();
    assert_eq!(rows, 1);
}

#[test]
fn a_slow_attempt_is_set_aside_when_the_window_is_full() {
    let mut story = Story::new(Progress::default());
    story.commit(&[2]);
    story.end(2, Outcome::Delivered);
    story.commit(&[1]);
    for _ in 0..40 {
        story.commit(&[2; 50]);
        for _ in 0..50 {
            story.end(2, Outcome::Delivered);
        }
    }

    let last = story.plans.last().unwrap();
    assert!(story.plans.iter().flat_map(|plan| &plan.hold).all(|held| held.sequence == 2));
    assert_eq!(last.cursor, 2_002);
    story.end(1, Outcome::Delivered);
    assert_eq!(story.plans.last().unwrap().release, [2]);
}

#[test]
fn an_old_success_counts_in_the_new_generation_and_an_old_failure_does_not() {
    let mut story = Story::new(Progress::default());
    story.commit(&[1, 1, 2]);
    story.end(2, Outcome::Delivered);
    story.started.clear();
    story.step(Input::Halt);
    let progress = Progress { generation: 2, head: 3, done: vec![3], ..Progress::default() };
    story.step(Input::Restart(progress));
    assert_eq!(story.started, []);

    story.end(1, Outcome::Delivered);
    assert_eq!(story.started, [(2, 1)]);

    story.step(Input::Halt);
    let progress =
        Progress { generation: 3, head: 3, cursor: 1, done: vec![3], ..Progress::default() };
    story.step(Input::Restart(progress));
    story.end(1, Outcome::Failed);
    assert_eq!(story.started, [(2, 1), (2, 1)]);
    assert!(story.plans.iter().all(|plan| plan.hold.is_empty()));
}

/// A receiver that refuses this share of all contacts, in percent, and takes the others at once. Gives when the last of
/// those was delivered.
fn last_taken(refused: u64, contacts: u64) -> Moment {
    let id = |number: u64| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        ContactId::from_bytes(bytes)
    };
    let refuses = |number: u64| (number * 7_919) % 100 < refused;
    let mut lane = Lane::new(Arc::new(Settings::default()), 1);
    let mut now = Moment(0);
    let mut inputs = std::collections::VecDeque::new();
    let (mut effects, mut flying) = (Vec::new(), std::collections::VecDeque::new());
    lane.step(now, Input::Restart(Progress { generation: 1, ..Progress::default() }), &mut effects);
    lane.step(now, Input::Head(contacts), &mut effects);
    let mut missing = (1..=contacts).filter(|number| !refuses(*number)).count();
    for _ in 0..2_000_000 {
        let wanted = lane.wanted(now);
        lane.take_surplus();
        lane.step(now, Input::Granted(wanted), &mut effects);
        for effect in effects.drain(..) {
            inputs.push_back(effect);
        }
        match inputs.pop_front() {
            Some(Effect::Start { sequence, .. }) => flying.push_back(sequence),
            Some(Effect::Load { after, limit }) => {
                let last = contacts.min(after + u64::from(limit));
                let events: Vec<_> = (after + 1..=last).map(|n| (n, id(n))).collect();
                lane.step(now, Input::Loaded { after, events: &events }, &mut effects);
            }
            Some(Effect::Record(plan)) => {
                lane.step(now, Input::Recorded { number: plan.number }, &mut effects);
            }
            None => match flying.pop_front() {
                Some(sequence) => {
                    now = now.plus(Duration::from_millis(1));
                    let outcome =
                        if refuses(sequence) { Outcome::Failed } else { Outcome::Delivered };
                    missing -= usize::from(!refuses(sequence));
                    let contact = id(sequence);
                    let ended = Input::Ended { contact, outcome, keep_permit: true };
                    lane.step(now, ended, &mut effects);
                    if missing == 0 {
                        return now;
                    }
                }
                None => {
                    let wake = lane.next_wake(now);
                    now = wake.unwrap_or_else(|| panic!("nothing to wait for: {missing} missing"));
                    lane.step(now, Input::Tick, &mut effects);
                }
            },
        }
    }
    panic!("{missing} are missing after {now:?}")
}

#[test]
fn contacts_that_are_taken_do_not_wait_for_those_that_are_refused() {
    for (refused, minutes) in [(0, 1), (30, 1), (50, 1), (70, 1), (80, 5), (90, 15)] {
        let taken = last_taken(refused, 3_000);
        assert!(taken.0 < minutes * 60_000, "{refused} % refused: {taken:?}");
    }
}
