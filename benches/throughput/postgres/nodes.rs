//! One, two and three nodes on the same PostgreSQL: throughput, latency, and what both cost in CPU time.
//!
//! Driver, nodes, PostgreSQL and receiver share one machine. So more nodes are not faster here than one; what can be
//! learned is what each part costs for an event, and what it costs that a change comes in on another node than the one
//! that sends it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::runtime::Runtime;

use super::cluster::Cluster;
use super::{database, server};
use crate::helper::Helper;
use crate::measure::{count, milliseconds, quantile};
use crate::process;
use crate::protocol::{Command, Drive, Driven, Listening, Pace, Paced, Range, Seen, Work};
use crate::report::{Figures, NODE_KEYS};

/// How long nothing may arrive before what is missing counts as lost: longer than the first retry.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a repetition may take to show.
const AFTERMATH: Duration = Duration::from_millis(500);
/// Connections of the driver, over all nodes.
const CONNECTIONS: usize = 64;
/// Creates per second while latency is measured.
const PER_SECOND: u32 = 100;

/// How long things run.
struct Times {
    warm: Duration,
    load: Duration,
    life: Duration,
    paced: u32,
}

/// What a run shares.
pub(super) struct Run<'a> {
    pub(super) runtime: &'a Runtime,
    program: &'a Path,
    directory: &'a Path,
    times: Times,
    driver: Helper,
    receiver: Helper,
    port: u16,
    faults: &'a mut Vec<String>,
}

/// Contacts of one cluster that must have arrived at one receiver, and the next number.
#[derive(Default)]
pub(super) struct Changed {
    ranges: Vec<Range>,
    next: u32,
    events: u64,
}

/// All rows.
pub(super) fn measure(
    program: &Path,
    directory: &Path,
    quick: bool,
    faults: &mut Vec<String>,
) -> anyhow::Result<Figures> {
    let runtime = Runtime::new()?;
    let mut run = Run::start(&runtime, program, directory, quick, faults)?;
    let mut figures = Figures::new();
    for (services, keys) in [1, 3].into_iter().zip(NODE_KEYS.chunks(3)) {
        for (nodes, keys) in (1..).zip(keys) {
            figures.extend(keys.iter().copied().zip(run.one(nodes, services)?));
        }
    }
    Ok(figures)
}

impl<'a> Run<'a> {
    /// Starts the driver and the receiver.
    pub(super) fn start(
        runtime: &'a Runtime,
        program: &'a Path,
        directory: &'a Path,
        quick: bool,
        faults: &'a mut Vec<String>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let seconds = |full, quick_one| Duration::from_millis(if quick { quick_one } else { full });
        let times = Times {
            warm: seconds(1_500, 300),
            load: seconds(10_000, 2_000),
            life: seconds(3_000, 500),
            paced: if quick { 3 } else { 20 },
        };
        let mut receiver = Helper::start()?;
        let Listening { port } = receiver.ask(&Command::Listen { threads: 1 })?;
        let driver = Helper::start()?;
        Ok(Self { runtime, program, directory, times, driver, receiver, port, faults })
    }

    /// Starts so many nodes on an empty database, with services that have one subscriber each.
    pub(super) fn nodes(
        &mut self,
        nodes: usize,
        services: usize,
        name: &str,
    ) -> anyhow::Result<(Cluster<'a>, String)> {
        self.receiver.ask::<()>(&Command::Reset)?;
        let url = self.runtime.block_on(database(&server()?, name))?;
        let directory = self.directory.join(name);
        std::fs::create_dir_all(&directory)?;
        let (runtime, program, guard) = (self.runtime, self.program, &mut self.receiver);
        let mut cluster = Cluster::start(runtime, program, &directory, &url, nodes, guard)?;
        cluster.found(services, self.port)?;
        Ok((cluster, url))
    }

    /// One row for so many nodes and services, in the order of [`NODE_KEYS`].
    fn one(&mut self, nodes: usize, services: usize) -> anyhow::Result<[f64; 10]> {
        let what = format!("{nodes} nodes, {services} services");
        let (cluster, _) = self.nodes(nodes, services, &format!("nodes_{nodes}_{services}"))?;
        let mut changed = Changed::default();
        self.load(&cluster, &mut changed, Work::Create, self.times.warm)?;
        let before = (cluster.used()?, process::machine_cpu_seconds()?, self.helpers_cpu()?);
        let load = self.load(&cluster, &mut changed, Work::Create, self.times.load)?;
        let (after, helpers) = (cluster.used()?, self.helpers_cpu()?);
        let (of_nodes, of_postgres) =
            (after.nodes - before.0.nodes, after.postgres - before.0.postgres);
        let machine = process::machine_cpu_seconds()? - before.1;
        let others = (machine - of_nodes - of_postgres - (helpers - before.2)).max(0.0);
        let life = self.load(&cluster, &mut changed, Work::Life, self.times.life)?;
        self.check(&what, &changed)?;
        let memory = cluster.memory()?;
        let paced = self.latency(&cluster, changed.next, &what)?;
        cluster.stop()?;
        let per_thousand = |of: f64| of / load.events * 1000.0;
        Ok([
            load.events / load.accepting,
            load.events / load.delivering,
            life.events / life.delivering,
            quantile(&paced.notified_ms[0], 0.5),
            quantile(&paced.notified_ms[0], 0.99),
            per_thousand(of_nodes),
            per_thousand(of_postgres),
            (after.log_bytes - before.0.log_bytes) / load.events,
            memory,
            others / load.delivering / count(process::cores() as u64) * 100.0,
        ])
    }

    /// Drives for a time and waits until all of it was delivered.
    pub(super) fn load(
        &mut self,
        cluster: &Cluster<'_>,
        changed: &mut Changed,
        work: Work,
        time: Duration,
    ) -> anyhow::Result<Load> {
        let began = Instant::now();
        let driven = drive(&mut self.driver, cluster, work, time, changed.next)?;
        if let Some(failure) = driven.failure {
            let failed = driven.failed;
            self.faults.push(format!("{work:?}: {failed} requests failed, first: {failure}"));
        }
        ensure!(driven.finished > 0, "nothing was accepted");
        changed.add(driven.finished, work)?;
        let seen: Seen = self.receiver.ask(&Command::Await {
            notifications: changed.events,
            subscriptions: 1,
            patience_ms: milliseconds(PATIENCE)?,
        })?;
        let delivering = began.elapsed().as_secs_f64();
        if seen.notifications != [changed.events] {
            let (events, seen) = (changed.events, seen.notifications);
            self.faults.push(format!("{work:?}: of {events} events {seen:?} were delivered"));
        }
        let events = f64::from(driven.finished) * count(work.events());
        Ok(Load { events, accepting: driven.elapsed_s, delivering })
    }

    /// A low rate; driver and receiver in one process, so that one clock serves both.
    fn latency(&mut self, cluster: &Cluster<'_>, first: u32, what: &str) -> anyhow::Result<Paced> {
        let mut both = Helper::start()?;
        let Listening { port } = both.ask(&Command::Listen { threads: 1 })?;
        cluster.subscribe(port)?;
        let mut changed = Changed { next: first, ..Changed::default() };
        let driven = drive(&mut both, cluster, Work::Create, self.times.warm, first)?;
        changed.add(driven.finished, Work::Create)?;
        let arrived: Seen = both.ask(&Command::Await {
            notifications: changed.events,
            subscriptions: 1,
            patience_ms: milliseconds(PATIENCE)?,
        })?;
        ensure!(arrived.notifications == [changed.events], "{what}, latency: {arrived:?}");
        std::thread::sleep(AFTERMATH);
        let count = PER_SECOND * self.times.paced;
        let paced: Paced = both.ask(&Command::Pace(Pace {
            targets: cluster.targets(),
            connections: CONNECTIONS,
            per_second: PER_SECOND,
            count,
            first: changed.next,
            awaited: [usize::try_from(count)?, 0, 0, 0],
        }))?;
        if let Some(failure) = &paced.failure {
            let failed = paced.failed;
            self.faults.push(format!("{what}, latency: {failed} failed, first: {failure}"));
        }
        changed.add(count, Work::Create)?;
        std::thread::sleep(AFTERMATH);
        let seen: Seen = both.ask(&Command::Check { expected: vec![changed.ranges] })?;
        self.judge(&format!("{what}, latency"), &seen, changed.events);
        Ok(paced)
    }

    /// What the receiver has seen, after everything was delivered.
    pub(super) fn check(&mut self, what: &str, changed: &Changed) -> anyhow::Result<()> {
        std::thread::sleep(AFTERMATH);
        let seen = self.receiver.ask(&Command::Check { expected: vec![changed.ranges.clone()] })?;
        self.judge(what, &seen, changed.events);
        Ok(())
    }

    /// Nothing lost, nothing twice, each contact in order.
    fn judge(&mut self, what: &str, seen: &Seen, events: u64) {
        let clean = [seen.repeated, seen.out_of_order, seen.malformed, seen.wrong] == [0; 4];
        if seen.notifications != [events] || !clean {
            self.faults.push(format!("{what}: {events} events, but the receiver saw {seen:?}"));
        }
    }

    /// CPU seconds of driver and receiver.
    fn helpers_cpu(&self) -> anyhow::Result<f64> {
        Ok(process::cpu_seconds(self.driver.pid())? + process::cpu_seconds(self.receiver.pid())?)
    }
}

/// One run of the driver with everything delivered.
pub(super) struct Load {
    pub(super) events: f64,
    accepting: f64,
    pub(super) delivering: f64,
}

impl Changed {
    fn add(&mut self, contacts: u32, work: Work) -> anyhow::Result<()> {
        let version = u8::try_from(work.events())?;
        self.ranges.push(Range { first: self.next, count: contacts, version });
        self.next += contacts;
        self.events += u64::from(contacts) * work.events();
        Ok(())
    }
}

fn drive(
    driver: &mut Helper,
    cluster: &Cluster<'_>,
    work: Work,
    time: Duration,
    first: u32,
) -> anyhow::Result<Driven> {
    driver.ask(&Command::Drive(Drive {
        targets: cluster.targets(),
        work,
        threads: 1,
        connections: CONNECTIONS,
        run_ms: milliseconds(time)?,
        first,
    }))
}
