//! One receiver that answers 500 for three contacts in ten, for good.

use std::time::Instant;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};

use super::order::Order;
use super::{SETTLE, Stage, p50, p99, url};
use crate::contact;
use crate::measure::count;
use crate::report::Figures;

/// Contacts whose creates come at once while the receiver refuses; a second time to reach the limit of held ones.
const CONTACTS: u32 = 20_000;

const PER_SECOND: u32 = 100;
const SECONDS: u32 = 25;

/// Rows that refused events leave behind.
struct Rows {
    held: f64,
    failed_attempts: f64,
    exhausted: f64,
}

pub(super) fn measure(stage: &mut Stage<'_>) -> anyhow::Result<Figures> {
    let ports: Vec<u16> = stage.order(Order::Listen { receivers: 1 })?;
    stage.found(1, 1)?;
    stage.subscribe(0..1, 0..1, vec![url(ports[0], 0, "/refuse")])?;
    stage.pace(1, PER_SECOND, 2, [1.0, 0.0, 0.0, 0.0])?;
    let without = stage.pace(1, PER_SECOND, SECONDS, [1.0, 0.0, 0.0, 0.0])?;

    stage.order::<()>(Order::Misbehave { now: true })?;
    let contacts = stage.size(CONTACTS);
    let before = stage.wait(0, 1)?.notifications[0];
    stage.tell(&format!("{contacts} creates at once, of which 30 % are refused"));
    let began = Instant::now();
    stage.fill(0, contacts, 0)?;
    let all = before + accepted(stage.next - contacts, contacts);
    let seen = stage.wait(all, 1)?;
    let burst = count(seen.notifications[0] - before) / began.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let events = PER_SECOND * SECONDS;
    let share = count(accepted(stage.next, events)) / f64::from(events);
    let with = stage.pace(1, PER_SECOND, SECONDS, [share, 0.0, 0.0, 0.0])?;
    let rows = rows(stage)?;
    let memory = stage.memory()?;

    stage.tell("the same again, beyond what may be held");
    stage.fill(0, contacts, 0)?;
    let last = stage.wait(u64::MAX, 1)?;
    let beyond = self::rows(stage)?;
    let clean = [last.repeated, last.out_of_order, last.malformed] == [0; 3];
    if !clean || seen.notifications[0] < all {
        stage.faults.push(format!("the receiver saw {seen:?} and then {last:?}"));
    }
    Ok(Figures::from([
        ("refusing_burst_per_s", burst),
        ("refusing_p50_without_ms", p50(&without, 0)),
        ("refusing_p50_with_ms", p50(&with, 0)),
        ("refusing_p99_without_ms", p99(&without, 0)),
        ("refusing_p99_with_ms", p99(&with, 0)),
        ("refusing_ratio", p99(&with, 0) / p99(&without, 0)),
        ("refusing_held", rows.held),
        ("refusing_failed_attempts", rows.failed_attempts),
        ("refusing_exhausted", rows.exhausted),
        ("refusing_hwm", memory.highest),
        ("refusing_beyond_held", beyond.held),
        ("refusing_beyond_attempts", beyond.failed_attempts),
        ("refusing_beyond_hwm", stage.memory()?.highest),
    ]))
}

/// How many of these contacts the receiver accepts.
fn accepted(first: u32, contacts: u32) -> u64 {
    let numbers = first..first + contacts;
    numbers.filter(|number| !contact::is_refused(*number)).count() as u64
}

/// Counts rows in the file of the running server.
fn rows(stage: &Stage<'_>) -> anyhow::Result<Rows> {
    let path = stage.data().join("rollcall.db");
    let store = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let rows = |table: &str| {
        let query = format!("SELECT count(*) FROM {table}");
        let rows = store.query_row(&query, [], |row| row.get::<_, f64>(0));
        rows.with_context(|| format!("cannot count {table}"))
    };
    Ok(Rows {
        held: rows("held")?,
        failed_attempts: rows("failed_attempts")?,
        exhausted: rows("exhausted")?,
    })
}
