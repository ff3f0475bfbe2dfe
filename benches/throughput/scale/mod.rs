//! Isolation and scale on one machine: thousands of subscriptions, receivers that fail, a long backlog, idleness.
//!
//! Every measurement has a server and one helper of its own. The helper is receiver and driver at once, so that one
//! clock times both ends; what is compared are phases of the same run.

mod backlog;
pub(crate) mod fleet;
mod idle;
mod isolation;
pub(crate) mod order;
mod refusing;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::de::DeserializeOwned;

use self::order::{Order, Place};
use crate::Part;
use crate::helper::Helper;
use crate::measure::quantile;
use crate::process::{self, Memory};
use crate::protocol::{self, Command, MAX_GROUPS, Paced, Seen};
use crate::report::Figures;
use crate::server::{DATA, Server};

/// Between the end of one phase and the start of the next: what is still under way ends.
const SETTLE: Duration = Duration::from_secs(1);

/// What a measurement runs on.
pub(crate) struct Ground<'a> {
    pub(crate) program: &'a Path,
    pub(crate) directory: PathBuf,
    pub(crate) arguments: &'a [String],
    /// A tenth of everything.
    pub(crate) quick: bool,
}

/// Runs one of the measurements; what went wrong is added to `faults`.
pub(crate) fn measure(
    part: Part,
    ground: &Ground<'_>,
    faults: &mut Vec<String>,
) -> anyhow::Result<Figures> {
    fs::create_dir_all(&ground.directory)?;
    let mut stage = Stage::new(ground)?;
    let figures = match part {
        Part::Isolation => isolation::measure(&mut stage)?,
        Part::Refusing => refusing::measure(&mut stage)?,
        Part::Backlog => backlog::measure(&mut stage)?,
        Part::Idle => idle::measure(&mut stage)?,
        Part::One
        | Part::Five
        | Part::Latency
        | Part::Groups
        | Part::Nodes
        | Part::HeldOpen
        | Part::Lookups => Figures::new(),
    };
    let found = std::mem::take(&mut stage.faults);
    drop(stage);
    if found.is_empty() {
        fs::remove_dir_all(&ground.directory)?;
    }
    faults.extend(found);
    Ok(figures)
}

/// A server with its helper.
struct Stage<'a> {
    ground: &'a Ground<'a>,
    helper: Helper,
    server: Option<Server>,
    faults: Vec<String>,
    /// The number of the next contact.
    next: u32,
    began: Instant,
}

impl<'a> Stage<'a> {
    fn new(ground: &'a Ground<'a>) -> anyhow::Result<Self> {
        let mut helper = Helper::start()?;
        let server = start(ground, &mut helper)?;
        let began = Instant::now();
        Ok(Self { ground, helper, server: Some(server), faults: Vec::new(), next: 0, began })
    }

    /// A tenth of this in a quick run.
    fn size(&self, full: u32) -> u32 {
        if self.ground.quick { full / 10 } else { full }
    }

    fn tell(&self, text: &str) {
        eprintln!("[{:5.1} s]   {text}", self.began.elapsed().as_secs_f64());
    }

    fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_ref().context("no server")
    }

    fn at(&self) -> anyhow::Result<Place> {
        let (address, admin_token) = self.server()?.admin()?;
        Ok(Place { address, admin_token })
    }

    fn data(&self) -> PathBuf {
        self.ground.directory.join(DATA)
    }

    fn order<T: DeserializeOwned>(&mut self, order: Order) -> anyhow::Result<T> {
        self.helper.ask(&Command::Fleet(order))
    }

    fn found(&mut self, services: usize, apps: usize) -> anyhow::Result<f64> {
        self.tell(&format!("creating {services} services of {apps} apps"));
        let at = self.at()?;
        self.order(Order::Found { at, services, apps })
    }

    fn subscribe(
        &mut self,
        services: Range<usize>,
        apps: Range<usize>,
        urls: Vec<String>,
    ) -> anyhow::Result<f64> {
        let count = services.len() * apps.len();
        let what = if urls.is_empty() { "unsubscribing" } else { "subscribing" };
        self.tell(&format!("{what} {count} apps"));
        let at = self.at()?;
        self.order(Order::Subscribe { at, services, apps, urls })
    }

    /// Creates at a fixed rate in the first services by turns; `awaited` subscriptions of each group per create.
    fn pace(
        &mut self,
        services: usize,
        per_second: u32,
        seconds: u32,
        awaited: [f64; MAX_GROUPS],
    ) -> anyhow::Result<Paced> {
        let count = per_second * seconds;
        let first = self.next;
        self.next += count;
        self.tell(&format!("{count} creates, {per_second} a second"));
        let at = self.at()?;
        let awaited = awaited.map(|share| rounded(share * f64::from(count)));
        let order = Order::Pace { at, services, per_second, count, first, awaited };
        let paced: Paced = self.order(order)?;
        if let Some(failure) = &paced.failure {
            self.faults.push(format!("{} requests failed, first: {failure}", paced.failed));
        }
        for (group, (awaited, arrived)) in awaited.iter().zip(&paced.notified_ms).enumerate() {
            if arrived.len() < *awaited {
                let arrived = arrived.len();
                self.faults.push(format!("group {group}: {arrived} of {awaited} arrived in time"));
            }
        }
        Ok(paced)
    }

    /// Creates contacts in batches and edits each so often.
    fn fill(&mut self, service: usize, contacts: u32, edits: u8) -> anyhow::Result<f64> {
        let first = self.next;
        self.next += contacts;
        let at = self.at()?;
        self.order(Order::Fill { at, service, first, contacts, edits })
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        process::memory(self.server()?.pid())
    }

    /// Stops the server in order, or kills it, and starts it again. Gives the time until it was ready.
    fn restart(&mut self, crash: bool) -> anyhow::Result<f64> {
        self.tell(if crash {
            "killing the server, starting it again"
        } else {
            "restarting the server"
        });
        let server = self.server.take().context("no server")?;
        if crash {
            server.crash();
        } else {
            server.stop()?;
        }
        let server = start(self.ground, &mut self.helper)?;
        let ready = server.ready.as_secs_f64();
        self.server = Some(server);
        Ok(ready)
    }

    /// Waits until so many notifications have arrived at the first subscriptions, or nothing more does.
    fn wait(&mut self, notifications: u64, subscriptions: usize) -> anyhow::Result<Seen> {
        let patience_ms = 10_000;
        self.helper.ask(&Command::Await { notifications, subscriptions, patience_ms })
    }

    fn check(
        &mut self,
        expected: Vec<Vec<protocol::Range>>,
        repeated_max: u64,
    ) -> anyhow::Result<()> {
        let seen: Seen = self.helper.ask(&Command::Check { expected })?;
        let clean = [seen.out_of_order, seen.malformed, seen.wrong] == [0; 3];
        if !clean || seen.repeated > repeated_max {
            let log = self.server()?.log();
            self.faults.push(format!("the receivers saw {seen:?}; the server's log: {log}"));
        }
        Ok(())
    }

    fn meter(&self) -> anyhow::Result<Meter> {
        Ok(Meter {
            server: process::cpu_seconds(self.server()?.pid())?,
            helper: process::cpu_seconds(self.helper.pid())?,
            machine: process::machine_cpu_seconds()?,
            began: Instant::now(),
        })
    }

    /// CPU seconds of the server since then, and the share of the machine that others used, in percent.
    fn spent(&self, since: &Meter) -> anyhow::Result<(f64, f64)> {
        let now = self.meter()?;
        let server = now.server - since.server;
        let ours = server + now.helper - since.helper;
        let others = (now.machine - since.machine - ours).max(0.0);
        let cores = u32::try_from(process::cores())?;
        let all = since.began.elapsed().as_secs_f64() * f64::from(cores);
        Ok((server, others / all * 100.0))
    }
}

/// CPU time at a moment.
struct Meter {
    server: f64,
    helper: f64,
    machine: f64,
    began: Instant,
}

fn start(ground: &Ground<'_>, helper: &mut Helper) -> anyhow::Result<Server> {
    Server::start(ground.program, &ground.directory, ground.arguments, helper)
}

fn url(port: u16, group: usize, manner: &str) -> String {
    format!("http://127.0.0.1:{port}/{{app}}/{group}{manner}")
}

fn range(first: u32, count: u32, version: u8) -> protocol::Range {
    protocol::Range { first, count, version }
}

fn p99(paced: &Paced, group: usize) -> f64 {
    quantile(&paced.notified_ms[group], 0.99)
}

fn p50(paced: &Paced, group: usize) -> f64 {
    quantile(&paced.notified_ms[group], 0.5)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of one run, which are whole up to the rounding of a share"
)]
fn rounded(number: f64) -> usize {
    number.round() as usize
}
