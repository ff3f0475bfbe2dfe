//! 100,000 subscriptions to which nothing happens.

use std::time::Duration;

use super::{Stage, url};
use crate::report::Figures;

/// Apps of each service.
const APPS: usize = 10;

/// How long idleness is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// Until connections of the set-up are closed as idle and what was written is checkpointed.
const QUIET: Duration = Duration::from_secs(35);

pub(super) fn measure(stage: &mut Stage<'_>) -> anyhow::Result<Figures> {
    let services = usize::try_from(stage.size(10_000))?;
    let ports: Vec<u16> = stage.order(super::Order::Listen { receivers: 1 })?;
    let (empty_cpu, _) = idle(stage)?;
    let empty = stage.memory()?;
    let setup = stage.found(services, APPS)?
        + stage.subscribe(0..services, 0..APPS, vec![url(ports[0], 0, "")])?;
    stage.tell("letting connections grow idle");
    std::thread::sleep(QUIET);
    let (cpu, others) = idle(stage)?;
    let after_setup = stage.memory()?;
    let ready = stage.restart(false)?;
    let (cpu_again, others_again) = idle(stage)?;
    let restarted = stage.memory()?;
    let ready_crash = stage.restart(true)?;
    stage.check(Vec::new(), 0)?;
    Ok(Figures::from([
        ("idle_setup_s", setup),
        ("idle_empty_rss", empty.resident),
        ("idle_setup_rss", after_setup.resident),
        ("idle_restart_rss", restarted.resident),
        ("idle_restart_hwm", restarted.highest),
        ("idle_empty_cpu", empty_cpu),
        ("idle_cpu", cpu),
        ("idle_cpu_restarted", cpu_again),
        ("idle_cpu_more", cpu.max(cpu_again) - empty_cpu),
        ("idle_ready_s", ready),
        ("idle_ready_crash_s", ready_crash),
        ("idle_others", others.max(others_again)),
    ]))
}

/// CPU seconds of the server while nothing happens, and what others used.
fn idle(stage: &Stage<'_>) -> anyhow::Result<(f64, f64)> {
    stage.tell(&format!("doing nothing for {} s", WATCHED.as_secs()));
    let meter = stage.meter()?;
    std::thread::sleep(WATCHED);
    stage.spent(&meter)
}
