//! A helper process: receiver or driver, so that the CPU time of each can be told from that of the server.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ledger::Ledger;
use crate::protocol::{Command, Listening, Seen};
use crate::receiver::Receiver;
use crate::scale::fleet::Fleet;
use crate::{LIFETIME, driver};

/// The argument that makes this program a helper.
pub(crate) const ROLE: &str = "--helper";

/// How often the receiver looks whether all has arrived.
const LOOK: Duration = Duration::from_millis(2);

/// Servers that must not outlive the parent of this process. Descriptors, not numbers that may be used again.
type Guarded = Arc<Mutex<Vec<OwnedFd>>>;

/// Does what the parent says until it says no more.
pub(crate) fn run() -> anyhow::Result<()> {
    let guarded = Guarded::default();
    let last = guarded.clone();
    std::thread::spawn(move || {
        std::thread::sleep(LIFETIME);
        end(&last);
        std::process::exit(1);
    });
    let ledger = Arc::new(Ledger::new());
    let mut fleet = Fleet::default();
    for line in std::io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?)?;
        let answer =
            obey(command, &ledger, &guarded, &mut fleet).map_err(|error| format!("{error:#}"));
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        writeln!(out)?;
        out.flush()?;
    }
    end(&guarded);
    Ok(())
}

fn end(guarded: &Guarded) {
    let servers = guarded.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default();
    for server in servers {
        // It has usually ended long ago, and then there is nothing to end.
        pidfd_send_signal(server, Signal::KILL).ok();
    }
}

fn obey(
    command: Command,
    ledger: &Arc<Ledger>,
    guarded: &Guarded,
    fleet: &mut Fleet,
) -> anyhow::Result<serde_json::Value> {
    let answer = match command {
        Command::Listen { threads } => {
            let port = Receiver::start(0, threads, ledger)?.port;
            serde_json::to_value(Listening { port })
        }
        Command::Guard { pid } => {
            let pid = Pid::from_raw(pid).context("not a process id")?;
            let server = pidfd_open(pid, PidfdFlags::empty())?;
            if let Ok(mut kept) = guarded.lock() {
                kept.push(server);
            }
            serde_json::to_value(())
        }
        Command::Drive(drive) => serde_json::to_value(driver::drive(drive)?),
        Command::Pace(pace) => serde_json::to_value(driver::pace(&pace, ledger)?),
        Command::Fleet(order) => return fleet.obey(order, ledger),
        Command::Await { notifications, subscriptions, patience_ms } => {
            let patience = Duration::from_millis(patience_ms);
            serde_json::to_value(arrived(ledger, notifications, subscriptions, patience))
        }
        Command::Check { expected } => serde_json::to_value(ledger.check(&expected)),
        Command::Reset => {
            ledger.reset();
            serde_json::to_value(())
        }
    };
    Ok(answer?)
}

/// Waits until all has arrived, or nothing more arrives for a while.
fn arrived(ledger: &Ledger, wanted: u64, subscriptions: usize, patience: Duration) -> Seen {
    let mut newest = 0;
    let mut since = Instant::now();
    loop {
        let seen = ledger.seen(subscriptions);
        let sum = seen.notifications.iter().sum();
        if sum != newest {
            newest = sum;
            since = Instant::now();
        }
        let all = seen.notifications.iter().all(|count| *count >= wanted);
        if all || since.elapsed() > patience {
            return seen;
        }
        std::thread::sleep(LOOK);
    }
}

/// The parent's end of a helper.
pub(crate) struct Helper {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Helper {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Process::new(std::env::current_exe()?)
            .arg(ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let from = child.stdout.take().context("no standard output")?;
        Ok(Self { to: child.stdin.take(), from: BufReader::new(from), child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives a command and waits for its answer.
    pub(crate) fn ask<T: DeserializeOwned>(
        &mut self,
        command: &impl Serialize,
    ) -> anyhow::Result<T> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        self.to.as_mut().context("closed")?.write_all(&line)?;
        let mut answer = String::new();
        self.from.read_line(&mut answer)?;
        let answer: Result<T, String> =
            serde_json::from_str(&answer).context("a helper process ended")?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.to.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
