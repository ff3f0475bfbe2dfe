//! `rollcall serve`: the server, until a signal ends it.
//!
//! Also what `dev` shares with it: waiting for signals, the orderly stop, and the abrupt one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::settings_flags::SettingsFlags;
use super::{log, output};
use crate::app::{self, Running};
use crate::config;

/// How long attempts and requests under way may take after the first signal. Longer than this, and
/// orchestrators kill the process; shorter, and more attempts are made twice.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);

/// The arguments of `rollcall serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: SettingsFlags,
}

/// Runs the command.
pub(super) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config::Loaded { settings, shown, .. } = config::load(&args.settings.sources(false))?;
    log::install(&settings);
    let is_written = |(name, _, source): &(&str, String, config::Source)| {
        *name == "data_dir" && *source != config::Source::Default
    };
    if matches!(settings.store, config::Store::Postgres(_)) && shown.iter().any(is_written) {
        tracing::warn!("data_dir is not used: store names a PostgreSQL, and everything is there");
    }
    let own_token = settings.admin_token.is_some();
    let signals = Signals::of_server()?;
    let running = start(settings).await?;
    let printed = print_welcome(&running, own_token);
    wait(running, signals, printed).await
}

/// Starts the server and says what to do when it cannot.
pub(super) async fn start(settings: config::Settings) -> anyhow::Result<Running> {
    let listen = settings.listen;
    let place = match settings.store {
        config::Store::Embedded => format!("the data directory {}", settings.data_dir.display()),
        config::Store::Postgres(_) => "PostgreSQL".to_owned(),
    };
    Box::pin(app::start(settings)).await.map_err(|error| {
        let hint = if is_address_in_use(&error) { ADDRESS_HINT } else { "" };
        anyhow!("cannot start on {listen} with {place}: {error:#}{hint}")
    })
}

const ADDRESS_HINT: &str = "\nhint: choose another port with --listen; --listen 127.0.0.1:0 takes any free one. \
     A second server needs a --data-dir of its own too, or --store with a PostgreSQL for both";

fn is_address_in_use(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref())
        .any(|cause: &std::io::Error| cause.kind() == std::io::ErrorKind::AddrInUse)
}

/// Waits for a signal to stop or a failure, then stops in order. When `printed` says that the welcome could not be
/// written, stops at once.
pub(super) async fn wait(
    running: Running,
    mut signals: Signals,
    printed: anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ended = match printed {
        Ok(()) => tokio::select! {
            _ = signals.next_with_hangup(|| running.read_files_again()) => Ok(()),
            error = running.failed() => Err(error.context("the server failed")),
        },
        Err(error) => Err(error),
    };
    tokio::select! {
        () = Box::pin(running.stop(STOP_GRACE)) => ended,
        code = signals.next() => std::process::exit(code),
    }
}

/// The base URL under which this machine reaches a server that listens here.
pub(super) fn base_url(scheme: &str, address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("{scheme}://{}", SocketAddr::new(ip, address.port()))
}

fn print_welcome(running: &Running, own_token: bool) -> anyhow::Result<()> {
    let url = base_url(running.scheme(), running.address);
    let mut text = format!("rollcall listens on {url}\n{}", running.place);
    if let Some(token) = &running.new_admin_token {
        text.push_str(&format!(
            "\n\nadmin token, shown only this once: {token}\n\nnext, make a service and an app:\n  \
             export ROLLCALL_URL={url} ROLLCALL_TOKEN={token}\n  \
             rollcall service create \"My organisation\"\n  \
             rollcall app create CRM --service <serviceId> --scopes events,directory:read,directory:write",
            token = token.reveal()
        ));
    } else if own_token {
        text.push_str("\nadmin token: the one in the settings");
    }
    output::print(&text)
}

/// SIGINT and SIGTERM, and for a server SIGHUP.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// From here on SIGINT and SIGTERM no longer end the process by themselves.
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// As [`Self::new`], and SIGHUP, at which files are read again; also where there are none, so that whoever sends
    /// it to all servers ends none of them.
    fn of_server() -> anyhow::Result<Self> {
        Ok(Self { hangup: Some(listen(SignalKind::hangup())?), ..Self::new()? })
    }

    /// As [`Self::of_server`] where there are files to read again; a server for development without them ends with its
    /// terminal.
    pub(super) fn of_development(settings: &config::Settings) -> anyhow::Result<Self> {
        let has_files = settings.tls.is_some() || settings.admin_token_file.is_some();
        if has_files { Self::of_server() } else { Self::new() }
    }

    /// Waits for the next SIGINT or SIGTERM; gives the exit code of a process that it ends.
    pub(super) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }

    /// As [`Self::next`]; calls `read_again` at each SIGHUP before that.
    pub(super) async fn next_with_hangup(&mut self, read_again: impl Fn()) -> i32 {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return 130,
                _ = self.terminate.recv() => return 143,
                () = received(self.hangup.as_mut()) => read_again(),
            }
        }
    }
}

fn listen(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// Waits for this signal; forever, if there is none.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
