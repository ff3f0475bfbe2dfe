//! The measurements, one function each.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::helper::Helper;
use crate::process::{self, Memory};
use crate::protocol::{Command, Drive, Driven, Listening, Pace, Paced, Range, Seen, Target, Work};
use crate::report::Figures;
use crate::server::{self, Server};

/// How long nothing may arrive before what is missing counts as lost: longer than the first retry.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a repetition may take to show after a restart.
const AFTERMATH: Duration = Duration::from_millis(500);

/// How long things run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) warm: Duration,
    pub(crate) bare: Duration,
    pub(crate) one: Duration,
    pub(crate) life: Duration,
    pub(crate) five: Duration,
    pub(crate) paced: Duration,
}

impl Times {
    pub(crate) const FULL: Self = Self {
        warm: Duration::from_secs(1),
        bare: Duration::from_secs(5),
        one: Duration::from_secs(10),
        life: Duration::from_secs(3),
        five: Duration::from_secs(10),
        paced: Duration::from_secs(20),
    };
    pub(crate) const QUICK: Self = Self {
        warm: Duration::from_millis(300),
        bare: Duration::from_secs(1),
        one: Duration::from_secs(2),
        life: Duration::from_millis(500),
        five: Duration::from_secs(2),
        paced: Duration::from_secs(4),
    };
}

/// What all measurements share.
pub(crate) struct Bench {
    pub(crate) times: Times,
    pub(crate) threads: usize,
    pub(crate) connections: usize,
    pub(crate) per_second: u32,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: PathBuf,
    /// What went wrong; empty after a good run.
    pub(crate) faults: Vec<String>,
    driver: Helper,
    receiver: Helper,
    port: u16,
    servers: u32,
}

/// Contacts that were changed on one server, and how far.
#[derive(Default)]
struct Changed {
    ranges: Vec<Range>,
    next: u32,
    events: u64,
}

/// One run of the driver with everything delivered.
struct Load {
    events: f64,
    accepting: f64,
    delivering: f64,
    server: f64,
    driver: f64,
    receiver: f64,
    /// The share of the machine that something else used meanwhile.
    others: f64,
    /// At the last answer.
    memory: Memory,
}

impl Bench {
    pub(crate) fn new(
        times: Times,
        threads: usize,
        connections: usize,
        per_second: u32,
        arguments: Vec<String>,
        directory: PathBuf,
    ) -> anyhow::Result<Self> {
        let mut receiver = Helper::start()?;
        let Listening { port } = receiver.ask(&Command::Listen { threads })?;
        Ok(Self {
            times,
            threads,
            connections,
            per_second,
            arguments,
            directory,
            faults: Vec::new(),
            driver: Helper::start()?,
            receiver,
            port,
            servers: 0,
        })
    }

    /// What this machine can do: the driver straight to the receiver.
    pub(crate) fn bare(&mut self) -> anyhow::Result<Figures> {
        let target = Target {
            address: format!("127.0.0.1:{}", self.port),
            path: "/bare".to_owned(),
            token: "rct_00000000000000000000000000000000".to_owned(),
        };
        let (per_s, cpu) = self.straight(&target, Work::Bare)?;
        let (pooled_per_s, pooled_cpu) = self.straight(&target, Work::Pooled)?;
        Ok(Figures::from([
            ("bare_per_s", per_s),
            ("bare_cpu", cpu),
            ("pooled_per_s", pooled_per_s),
            ("pooled_cpu", pooled_cpu),
        ]))
    }

    /// Requests per second straight to the receiver, and CPU seconds of both ends per 1,000 of them.
    fn straight(&mut self, target: &Target, work: Work) -> anyhow::Result<(f64, f64)> {
        self.drive(target, work, self.times.warm, 0)?;
        let before = self.helpers_cpu()?;
        let driven = self.drive(target, work, self.times.bare, 0)?;
        let cpu = self.helpers_cpu()?;
        let requests = f64::from(driven.finished);
        let spent = cpu.0 - before.0 + cpu.1 - before.1;
        Ok((requests / driven.elapsed_s, spent / requests * 1000.0))
    }

    /// One subscriber: creates, then whole lives of contacts, then a restart on the same directory.
    pub(crate) fn one(&mut self, program: &Path, bare: f64) -> anyhow::Result<Figures> {
        let (server, directory) = self.fresh(program, 1)?;
        let ready = server.ready;
        let mut changed = Changed::default();
        self.load(&server, &mut changed, Work::Create, self.times.warm, 1)?;
        let load = self.load(&server, &mut changed, Work::Create, self.times.one, 1)?;
        let delivered = load.events / load.delivering;
        let mut figures = Figures::from([
            ("one_accepted_per_s", load.events / load.accepting),
            ("one_delivered_per_s", delivered),
            ("one_share", delivered / bare * 100.0),
            ("one_drain_ms", (load.delivering - load.accepting) * 1000.0),
            ("one_cpu", load.per_thousand(load.server)),
            ("one_cpu_driver", load.per_thousand(load.driver)),
            ("one_cpu_receiver", load.per_thousand(load.receiver)),
            ("one_others", load.others * 100.0),
            ("one_rss", load.memory.resident),
            ("one_hwm", load.memory.highest),
            ("one_pss", load.memory.proportional),
            ("ready_empty_s", ready.as_secs_f64()),
        ]);
        let load = self.load(&server, &mut changed, Work::Life, self.times.life, 1)?;
        figures.insert("life_per_s", load.events / load.delivering);
        figures.insert("life_cpu", load.per_thousand(load.server));
        self.check("one subscriber", &changed, 1)?;

        let stopped = server.stop()?;
        figures.insert("stop_s", stopped.as_secs_f64());
        let bytes = process::directory_bytes(&directory.join(server::DATA))?;
        figures.insert("store_bytes", count(bytes) / count(changed.events));
        let server = Server::start(program, &directory, &self.arguments, &mut self.receiver)?;
        figures.insert("ready_after_s", server.ready.as_secs_f64());
        std::thread::sleep(AFTERMATH);
        self.check("one subscriber, after the restart", &changed, 1)?;
        drop(server);
        self.forget(&directory)?;
        Ok(figures)
    }

    /// Five subscribers to the same service.
    pub(crate) fn five(&mut self, program: &Path, bare: f64) -> anyhow::Result<Figures> {
        let subscriptions = 5;
        let (server, directory) = self.fresh(program, subscriptions)?;
        let mut changed = Changed::default();
        self.load(&server, &mut changed, Work::Create, self.times.warm, subscriptions)?;
        let load =
            self.load(&server, &mut changed, Work::Create, self.times.five, subscriptions)?;
        self.check("five subscribers", &changed, subscriptions)?;
        let deliveries = load.events * 5.0;
        drop(server);
        self.forget(&directory)?;
        Ok(Figures::from([
            ("five_accepted_per_s", load.events / load.accepting),
            ("five_delivered_per_s", deliveries / load.delivering),
            ("five_share", deliveries / load.delivering / bare * 100.0),
            ("five_drain_ms", (load.delivering - load.accepting) * 1000.0),
            ("five_cpu", load.server / deliveries * 1000.0),
            ("five_others", load.others * 100.0),
            ("five_hwm", load.memory.highest),
            ("five_pss", load.memory.proportional),
        ]))
    }

    /// A low rate on a server of its own; driver and receiver in one process, so that one clock serves both.
    pub(crate) fn latency(&mut self, program: &Path) -> anyhow::Result<Figures> {
        let mut both = Helper::start()?;
        let Listening { port } = both.ask(&Command::Listen { threads: 1 })?;
        let directory = self.next_directory()?;
        let server = Server::start(program, &directory, &self.arguments, &mut both)?;
        server.subscribe(1, port)?;
        let target = server.target()?;
        // The first requests open connections and fill caches.
        let warm_up = Drive {
            targets: vec![target.clone()],
            work: Work::Create,
            threads: 1,
            connections: 4,
            run_ms: milliseconds(self.times.warm)?,
            first: 0,
        };
        let driven: Driven = both.ask(&Command::Drive(warm_up))?;
        let seen: Seen = both.ask(&Command::Await {
            notifications: driven.finished.into(),
            subscriptions: 1,
            patience_ms: milliseconds(PATIENCE)?,
        })?;
        ensure!(seen.notifications == [u64::from(driven.finished)], "latency: {seen:?}");
        std::thread::sleep(AFTERMATH);
        let count = self.per_second * u32::try_from(self.times.paced.as_secs())?;
        let paced: Paced = both.ask(&Command::Pace(Pace {
            targets: vec![target],
            connections: self.connections,
            per_second: self.per_second,
            count,
            first: driven.finished,
            awaited: [usize::try_from(count)?, 0, 0, 0],
        }))?;
        let memory = process::memory(server.pid())?;
        if let Some(failure) = &paced.failure {
            self.faults
                .push(format!("latency: {} requests failed, first: {failure}", paced.failed));
        }
        let changed = Changed {
            ranges: vec![range(0, driven.finished + count, 1)],
            next: 0,
            events: u64::from(driven.finished + count),
        };
        let seen: Seen = both.ask(&Command::Check { expected: vec![changed.ranges.clone()] })?;
        self.judge("latency", &seen, &changed);
        drop(server);
        self.forget(&directory)?;
        let notified = |share| quantile(&paced.notified_ms[0], share);
        Ok(Figures::from([
            ("notified_p50_ms", notified(0.5)),
            ("notified_p99_ms", notified(0.99)),
            ("notified_p999_ms", notified(0.999)),
            ("notified_max_ms", notified(1.0)),
            ("answered_p50_ms", quantile(&paced.answered_ms, 0.5)),
            ("answered_p99_ms", quantile(&paced.answered_ms, 0.99)),
            ("late_max_ms", paced.late_ms),
            ("idle_rss", memory.resident),
        ]))
    }

    /// A server in an empty directory with these many subscriptions, and a receiver that remembers nothing.
    fn fresh(&mut self, program: &Path, subscriptions: usize) -> anyhow::Result<(Server, PathBuf)> {
        self.receiver.ask::<()>(&Command::Reset)?;
        let directory = self.next_directory()?;
        let server = Server::start(program, &directory, &self.arguments, &mut self.receiver)?;
        server.subscribe(subscriptions, self.port)?;
        Ok((server, directory))
    }

    fn next_directory(&mut self) -> anyhow::Result<PathBuf> {
        self.servers += 1;
        let directory = self.directory.join(self.servers.to_string());
        fs::create_dir(&directory)?;
        Ok(directory)
    }

    /// Removes a server's directory, unless its log may explain a fault.
    fn forget(&self, directory: &Path) -> anyhow::Result<()> {
        if self.faults.is_empty() {
            fs::remove_dir_all(directory)?;
        }
        Ok(())
    }

    /// Drives for a time and waits until all of it was delivered.
    fn load(
        &mut self,
        server: &Server,
        changed: &mut Changed,
        work: Work,
        time: Duration,
        subscriptions: usize,
    ) -> anyhow::Result<Load> {
        let target = server.target()?;
        let before = (process::cpu_seconds(server.pid())?, self.helpers_cpu()?);
        let machine = process::machine_cpu_seconds()?;
        let began = Instant::now();
        let driven = self.drive(&target, work, time, changed.next)?;
        let memory = process::memory(server.pid())?;
        ensure!(driven.finished > 0, "nothing was accepted: {}", server.log());
        let versions = u8::try_from(work.events())?;
        changed.ranges.push(range(changed.next, driven.finished, versions));
        changed.next += driven.finished;
        let events = u64::from(driven.finished) * work.events();
        changed.events += events;
        let seen: Seen = self.receiver.ask(&Command::Await {
            notifications: changed.events,
            subscriptions,
            patience_ms: milliseconds(PATIENCE)?,
        })?;
        let delivering = began.elapsed().as_secs_f64();
        let helpers = self.helpers_cpu()?;
        let machine = process::machine_cpu_seconds()? - machine;
        let server_cpu = process::cpu_seconds(server.pid())?;
        let (server_cpu, driver, receiver) =
            (server_cpu - before.0, helpers.0 - before.1.0, helpers.1 - before.1.1);
        let others = (machine - server_cpu - driver - receiver).max(0.0);
        if seen.notifications.iter().any(|count| *count < changed.events) {
            let log = server.log();
            self.faults.push(format!(
                "of {} events only {:?} were delivered; the server's log: {log}",
                changed.events, seen.notifications
            ));
        }
        Ok(Load {
            events: count(events),
            accepting: driven.elapsed_s,
            delivering,
            server: server_cpu,
            driver,
            receiver,
            others: others / delivering / count(process::cores() as u64),
            memory,
        })
    }

    fn drive(
        &mut self,
        target: &Target,
        work: Work,
        time: Duration,
        first: u32,
    ) -> anyhow::Result<Driven> {
        let driven: Driven = self.driver.ask(&Command::Drive(Drive {
            targets: vec![target.clone()],
            work,
            threads: self.threads,
            connections: self.connections,
            run_ms: milliseconds(time)?,
            first,
        }))?;
        if let Some(failure) = &driven.failure {
            let failed = driven.failed;
            self.faults.push(format!("{work:?}: {failed} requests failed, first: {failure}"));
        }
        Ok(driven)
    }

    /// CPU seconds of driver and receiver.
    fn helpers_cpu(&self) -> anyhow::Result<(f64, f64)> {
        let driver = process::cpu_seconds(self.driver.pid())?;
        Ok((driver, process::cpu_seconds(self.receiver.pid())?))
    }

    /// Nothing lost, nothing twice, each contact in order.
    fn check(&mut self, what: &str, changed: &Changed, subscriptions: usize) -> anyhow::Result<()> {
        let seen: Seen = self
            .receiver
            .ask(&Command::Check { expected: vec![changed.ranges.clone(); subscriptions] })?;
        self.judge(what, &seen, changed);
        Ok(())
    }

    fn judge(&mut self, what: &str, seen: &Seen, changed: &Changed) {
        let counts = seen.notifications.iter().all(|count| *count == changed.events);
        let clean = [seen.repeated, seen.out_of_order, seen.malformed, seen.wrong] == [0; 4];
        if !counts || !clean || seen.highest_sequence != changed.events {
            let events = changed.events;
            self.faults.push(format!("{what}: {events} events, but the receiver saw {seen:?}"));
        }
    }
}

impl Load {
    fn per_thousand(&self, seconds: f64) -> f64 {
        seconds / self.events * 1000.0
    }
}

/// How long a write of 4 KiB with `fdatasync` takes in a directory, in milliseconds: p50 and p99.
pub(crate) fn sync_ms(directory: &Path) -> anyhow::Result<(f64, f64)> {
    let path = directory.join("sync");
    let mut file = File::create(&path)?;
    let mut taken = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        taken.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    fs::remove_file(path)?;
    taken.sort_by(f64::total_cmp);
    Ok((quantile(&taken, 0.5), quantile(&taken, 0.99)))
}

fn range(first: u32, count: u32, version: u8) -> Range {
    Range { first, count, version }
}

/// The smallest figure that at least this share of all does not exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank among some thousand figures"
)]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^53")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}

pub(crate) fn milliseconds(time: Duration) -> anyhow::Result<u64> {
    u64::try_from(time.as_millis()).context("too long")
}
