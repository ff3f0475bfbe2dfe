//! A receiver that comes back after a long absence with 1,000,000 events owed.
//!
//! Latency is measured at two others: one of the same service, one of another. Both get an event 50 times a second:
//! without a backlog, with one whose receiver is away, and while it is drained.

use std::time::Instant;

use super::order::Order;
use super::{SETTLE, Stage, p50, p99, range, url};
use crate::measure::{count, quantile};
use crate::protocol::{Driven, Paced, Range, Seen};
use crate::report::Figures;

/// Contacts of the backlog, each with one create and one edit.
const CONTACTS: u32 = 500_000;

/// Creates a second, in the two services by turns.
const PER_SECOND: u32 = 100;
const SECONDS: u32 = 20;

/// How long the normal rate is measured.
const NORMAL_MS: u64 = 10_000;

/// The most that a crash may repeat.
const REPEATED_MAX: u64 = 256;

/// What the three receivers must have got: the one with the backlog, the one of the same service, the other.
type Expected = [Vec<Range>; 3];

pub(super) fn measure(stage: &mut Stage<'_>) -> anyhow::Result<Figures> {
    let mut expected = Expected::default();
    let ports: Vec<u16> = stage.order(Order::Listen { receivers: 2 })?;
    let [good, away] = [ports[0], ports[1]];
    stage.found(2, 3)?;
    stage.subscribe(0..1, 0..1, vec![url(away, 1, "")])?;
    let normal = normal(stage, &mut expected)?;
    let same = vec![url(good, 2, "")];
    stage.subscribe(0..1, 1..2, same.clone())?;
    stage.subscribe(1..2, 2..3, vec![url(good, 3, "")])?;
    stage.pace(2, PER_SECOND, 2, [0.0, 0.5, 0.5, 0.5]).map(|_| note(stage, 2, &mut expected))?;
    let without = paced(stage, &mut expected, 0.5)?;

    // The other one of the same service would get the backlog too, and its set-up would take twice as long.
    stage.subscribe(0..1, 1..2, Vec::new())?;
    stage.order::<()>(Order::Close { receiver: 1 })?;
    let contacts = stage.size(CONTACTS);
    stage.tell(&format!("{} events while the receiver is away", contacts * 2));
    expected[0].push(range(stage.next, contacts, 2));
    let fill = stage.fill(0, contacts, 1)?;
    stage.subscribe(0..1, 1..2, same)?;
    std::thread::sleep(SETTLE);
    let filled = stage.memory()?;
    let aside = paced(stage, &mut expected, 0.0)?;
    let ready_stop = stage.restart(false)?;
    std::thread::sleep(SETTLE);
    let stopped = stage.memory()?;
    let ready_crash = stage.restart(true)?;
    std::thread::sleep(SETTLE);

    // After each start the writer reads once which extension numbers of a service are taken: shown, but not mixed in.
    let first = stage.pace(2, PER_SECOND, 2, [0.0, 0.0, 0.5, 0.5])?;
    note(stage, 2, &mut expected);

    stage.order::<()>(Order::Open { receiver: 1 })?;
    let before = stage.wait(0, 1)?.notifications[0];
    let meter = stage.meter()?;
    let began = Instant::now();
    stage.subscribe(0..1, 0..1, vec![url(away, 1, "")])?;
    let draining = paced(stage, &mut expected, 0.0)?;
    let all: u64 = expected[0].iter().map(|r| u64::from(r.count) * u64::from(r.version)).sum();
    let after = stage.wait(all, 1)?.notifications[0];
    let taken = began.elapsed().as_secs_f64();
    let (cpu, others) = stage.spent(&meter)?;
    let drained = stage.memory()?;
    stage.check(expected.to_vec(), REPEATED_MAX)?;
    let rate = count(after - before) / taken;
    let ratio = |with: &Paced, group| p99(with, group) / p99(&without, group);
    Ok(Figures::from([
        ("backlog_events", f64::from(contacts * 2)),
        ("backlog_fill_s", fill),
        ("backlog_normal_per_s", normal),
        ("backlog_filled_hwm", filled.highest),
        ("backlog_restart_hwm", stopped.highest),
        ("backlog_drain_hwm", drained.highest),
        ("backlog_ready_s", ready_stop),
        ("backlog_ready_crash_s", ready_crash),
        ("backlog_first_ms", quantile(&first.answered_ms, 1.0)),
        ("backlog_drain_per_s", rate),
        ("backlog_drain_share", rate / normal * 100.0),
        ("backlog_drain_cpu", cpu / count(after - before) * 1000.0),
        ("backlog_other_p50_ms", p50(&without, 3)),
        ("backlog_other_p50_draining_ms", p50(&draining, 3)),
        ("backlog_answered_draining_ms", quantile(&draining.answered_ms, 0.99)),
        ("backlog_other_p99_ms", p99(&without, 3)),
        ("backlog_other_aside", ratio(&aside, 3)),
        ("backlog_other_draining", ratio(&draining, 3)),
        ("backlog_same_p99_ms", p99(&without, 2)),
        ("backlog_same_aside", ratio(&aside, 2)),
        ("backlog_same_draining", ratio(&draining, 2)),
        ("backlog_others", others),
    ]))
}

/// Deliveries a second while creates come as fast as they are accepted.
fn normal(stage: &mut Stage<'_>, expected: &mut Expected) -> anyhow::Result<f64> {
    stage.tell("the normal rate");
    let at = stage.at()?;
    let began = Instant::now();
    let first = stage.next;
    let driven: Driven = stage.order(Order::Drive { at, service: 0, run_ms: NORMAL_MS, first })?;
    let Seen { notifications, .. } = stage.wait(driven.finished.into(), 1)?;
    expected[0].push(range(first, driven.finished, 1));
    stage.next += driven.finished;
    stage.faults.extend(driven.failure);
    Ok(count(notifications[0]) / began.elapsed().as_secs_f64())
}

/// `live`: the share of creates whose notification the receiver with the backlog gets at once.
fn paced(stage: &mut Stage<'_>, expected: &mut Expected, live: f64) -> anyhow::Result<Paced> {
    let paced = stage.pace(2, PER_SECOND, SECONDS, [0.0, live, 0.5, 0.5])?;
    note(stage, SECONDS, expected);
    Ok(paced)
}

/// Notes who must get what was just created: the services took turns.
fn note(stage: &Stage<'_>, seconds: u32, expected: &mut Expected) {
    let [backlog, same, other] = expected;
    let first = stage.next - PER_SECOND * seconds;
    for number in first..stage.next {
        if (number - first).is_multiple_of(2) {
            backlog.push(range(number, 1, 1));
            same.push(range(number, 1, 1));
        } else {
            other.push(range(number, 1, 1));
        }
    }
}
