//! 10,000 subscriptions, of which 10 % hang, refuse connections or answer 500.

use super::{SETTLE, Stage, p50, p99, range, url};
use crate::report::Figures;

/// Apps of each service; the last of each is the bad one.
const APPS: usize = 10;
const HEALTHY: usize = APPS - 1;

/// Events a second over all services, so 800 deliveries: a third of what two cores can bear.
const PER_SECOND: u32 = 80;
/// The same while connections are opened and bad receivers are found out.
const PER_SECOND_BEFORE: u32 = 160;
const SECONDS: u32 = 25;

pub(super) fn measure(stage: &mut Stage<'_>) -> anyhow::Result<Figures> {
    let services = stage.size(1000);
    let every = usize::try_from(services)?;
    let awaited = [HEALTHY as f64, 0.0, 0.0, 0.0];
    let ports: Vec<u16> = stage.order(super::Order::Listen { receivers: 2 })?;
    let [good, closing] = [ports[0], ports[1]];
    let mut setup = stage.found(every, APPS)?;
    setup += stage.subscribe(0..every, 0..HEALTHY, vec![url(good, 0, "")])?;

    let before = services / PER_SECOND_BEFORE + 1;
    let seconds = stage.size(SECONDS * 10) / 10;
    stage.pace(every, PER_SECOND_BEFORE, before, awaited)?;
    std::thread::sleep(SETTLE);
    let meter = stage.meter()?;
    let first = stage.pace(every, PER_SECOND, seconds, awaited)?;
    let (first_cpu, first_others) = stage.spent(&meter)?;

    let bad = vec![url(good, 1, "/hang"), url(good, 1, "/fail"), url(closing, 1, "")];
    setup += stage.subscribe(0..every, HEALTHY..APPS, bad)?;
    stage.order::<()>(super::Order::Misbehave { now: true })?;
    stage.order::<()>(super::Order::Close { receiver: 1 })?;
    stage.pace(every, PER_SECOND_BEFORE, before, awaited)?;
    let meter = stage.meter()?;
    let with = stage.pace(every, PER_SECOND, seconds, awaited)?;
    let (with_cpu, with_others) = stage.spent(&meter)?;
    let memory = stage.memory()?;

    stage.subscribe(0..every, HEALTHY..APPS, Vec::new())?;
    std::thread::sleep(SETTLE);
    let meter = stage.meter()?;
    let second = stage.pace(every, PER_SECOND, seconds, awaited)?;
    let (_, second_others) = stage.spent(&meter)?;
    let all = range(0, stage.next, 1);
    stage.check(vec![vec![all]; HEALTHY], 0)?;
    let p99_without = f64::midpoint(p99(&first, 0), p99(&second, 0));
    let p50_without = f64::midpoint(p50(&first, 0), p50(&second, 0));
    let deliveries = f64::from(PER_SECOND * seconds) * HEALTHY as f64;
    Ok(Figures::from([
        ("isolation_setup_s", setup),
        ("isolation_p50_without_ms", p50_without),
        ("isolation_p50_with_ms", p50(&with, 0)),
        ("isolation_p99_first_ms", p99(&first, 0)),
        ("isolation_p99_second_ms", p99(&second, 0)),
        ("isolation_p99_with_ms", p99(&with, 0)),
        ("isolation_ratio", p99(&with, 0) / p99_without),
        ("isolation_cpu_without", first_cpu / deliveries * 1000.0),
        ("isolation_cpu_with", with_cpu / deliveries * 1000.0),
        ("isolation_hwm", memory.highest),
        ("isolation_others", first_others.max(with_others).max(second_others)),
    ]))
}
