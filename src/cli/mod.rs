//! The command line: one file per command, and what the commands share.
//!
//! `serve` and `dev` run the server, `listen` is a receiver for developers, the others are clients of the HTTP API.
//! Settings flags come from the table in `config`. Errors are printed once, here, with what to do next.

mod admin_token;
mod app;
mod audit;
mod client;
mod config;
mod connection;
mod deliveries;
mod dev;
mod dev_credentials;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz_checks;
mod key;
mod listen;
mod listen_answer;
mod listen_receiver;
mod log;
mod nodes;
mod ordered;
mod output;
mod serve;
mod service;
mod settings_flags;
mod staff;
mod staff_fields;
mod store;
mod store_setting;
mod subscription;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::runtime::{self, Runtime};

use crate::config::fault::Faults;

const EXIT_CODES: &str = "\
Exit codes:
  0    done, or stopped in order by a signal
  1    failed: the server refused, cannot be reached, or could not run
  2    wrong usage, or faults in the configuration
  130, 143  ended at once by a second SIGINT or SIGTERM

Without --token the commands that call a server use the credentials that
`rollcall dev` left in dev.json, and only towards that server. They look for it
in --data-dir, else ROLLCALL_DATA_DIR, else ./rollcall-data.";

/// How long the end waits for blocking work that is left over. A server has closed its store by then, so this is at
/// most a read, for example of a file on a mount that hangs. More makes such an end slower, less helps nobody.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);

/// Keeps the roll of staff contacts and calls every system that must know when it changes.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT.
    Serve(serve::ServeArgs),
    /// Run a server for development: local receivers, no rate limits, a service and an app ready to use.
    Dev(dev::DevArgs),
    /// Run a receiver that prints notifications, and subscribe it.
    Listen(listen::ListenArgs),
    /// List the event log of a service, or follow it (`AppToken`).
    Events(events::EventsArgs),
    /// Create, list and delete services (admin token).
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Create, list and delete apps of a service, rotate their tokens (admin token).
    #[command(subcommand)]
    App(app::AppCommand),
    /// List, show, create, edit and delete staff contacts (`AppToken`).
    #[command(subcommand)]
    Staff(staff::StaffCommand),
    /// Show, set and verify the subscription of an app, rotate its secret (`AppToken`).
    #[command(subcommand)]
    Subscription(subscription::SubscriptionCommand),
    /// List and show what failed, send one event again (`AppToken`).
    #[command(subcommand)]
    Deliveries(deliveries::DeliveriesCommand),
    /// Send everything since a time or a number again (`AppToken`).
    Replay(deliveries::ReplayArgs),
    /// List who changed what, when and from where (admin token).
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// List the servers that share a PostgreSQL, and who sends for which shards (admin token).
    Nodes(nodes::NodesArgs),
    /// Rotate the stored admin token, or replace a lost one while no server runs.
    #[command(subcommand)]
    AdminToken(admin_token::AdminTokenCommand),
    /// Replace the key that seals signing secrets, while no server runs.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Copy everything to another store, while no server runs.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Check and show settings.
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// Runs the command that the process arguments name.
#[must_use]
pub fn run() -> ExitCode {
    run_with(std::env::args_os())
}

/// Runs the command that these arguments name; the first is the program's name.
pub fn run_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell when not even the usage can be printed.
            drop(error.print());
            return exit_code(error.exit_code());
        }
    };
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&anyhow::Error::new(error).context("cannot start threads")),
    };
    match run_to_end(runtime, Box::pin(run_command(cli.command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Runs this, and does not wait long for blocking work that it leaves behind.
fn run_to_end<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(BLOCKING_GRACE);
    ended
}

async fn run_command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Listen(args) => listen::run(args).await,
        Command::Events(args) => events::run(args).await,
        Command::Service(command) => service::run(command).await,
        Command::App(command) => app::run(command).await,
        Command::Staff(command) => staff::run(command).await,
        Command::Subscription(command) => subscription::run(command).await,
        Command::Deliveries(command) => deliveries::run(command).await,
        Command::Replay(args) => deliveries::replay(args).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Nodes(args) => nodes::run(args).await,
        Command::AdminToken(command) => admin_token::run(command).await,
        Command::Key(command) => key::run(command).await,
        Command::Store(command) => store::run(command).await,
        Command::Config(command) => config::run(command),
    }
}

/// What was asked for cannot be meant; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn report(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<output::Closed>().is_some() {
        return ExitCode::SUCCESS;
    }
    output::complain(&format!("error: {error:#}"));
    let usage = error.is::<Usage>() || error.is::<Faults>();
    if usage { ExitCode::from(2) } else { ExitCode::from(1) }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory, Parser};
    use tokio::runtime::Builder;

    use super::{Cli, run_to_end};

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn blocking_work_that_never_ends_does_not_hold_up_the_end() {
        let runtime = Builder::new_multi_thread().build().unwrap();
        let (release, held) = std::sync::mpsc::sync_channel::<()>(1);

        let ended = run_to_end(runtime, async {
            drop(tokio::task::spawn_blocking(move || held.recv()));
            7
        });

        assert_eq!(ended, 7);
        drop(release);
    }

    /// Calls this with each command and its path.
    fn for_each_command(command: &mut Command, path: &str, look: &mut impl FnMut(&str, &str)) {
        let path = format!("{path} {}", command.get_name());
        look(&path, &command.render_help().to_string());
        for below in command.get_subcommands_mut() {
            for_each_command(below, &path, look);
        }
    }

    #[test]
    fn help_says_which_values_are_taken() {
        let mut helps = String::new();
        for_each_command(&mut Cli::command(), "", &mut |path, help| {
            helps.push_str(help);
            let only_named = |line: &&str| {
                line.split_once("The field ").is_some_and(|(_, said)| !said.contains(' '))
            };
            assert_eq!(help.lines().find(only_named), None, "{path}");
        });

        for said in ["--overlap <0>", "Only 0: the old token", "Print every setting as a page"] {
            assert!(helps.contains(said), "{said}");
        }
    }

    #[test]
    fn every_command_of_the_readme_is_accepted() {
        for line in [
            "rollcall serve --listen 0.0.0.0:80 --allow-http --allow-targets= --config a.toml",
            "rollcall serve --allow-http false --retry-schedule 1s,2s",
            "rollcall dev --json --listen 127.0.0.1:0",
            "rollcall listen --port 0 --fail-rate 0.5 --status 503 --delay 200ms --no-subscribe",
            "rollcall listen --app app_1 --token rct_1 --json",
            "rollcall service create Acme",
            "rollcall service delete srv_1 --token t --url http://h",
            "rollcall app create CRM --service srv_1 --scopes events,directory:read",
            "rollcall app rotate-token app_1 --service srv_1 --overlap 0",
            "rollcall staff list --name ana --limit 5 --offset 10",
            "rollcall staff create --first-name A --last-name B --email a@b.c --phone +4412345",
            "rollcall staff edit sc_1 --job-title Lead --unset role --unset phone --if-match 3",
            "rollcall subscription set --target https://x.example --enabled false",
            "rollcall deliveries list --state held --after 7 --limit 5 --json",
            "rollcall deliveries show 7",
            "rollcall deliveries redeliver 7",
            "rollcall replay --since 2026-11-23T12:00:00Z",
            "rollcall replay --after 7 --json",
            "rollcall subscription verify --json",
            "rollcall subscription rotate-secret --app app_1 --token t",
            "rollcall events",
            "rollcall events --after 7 --limit 500 --follow --json",
            "rollcall app list",
            "rollcall listen --keep",
            "rollcall admin-token reset --data-dir d",
            "rollcall admin-token reset",
            "rollcall admin-token rotate --overlap 0",
            "rollcall admin-token list --json",
            "rollcall audit list",
            "rollcall audit list --service srv_1 --after 7 --since 2026-11-23T12:00:00Z --action replay --json",
            "rollcall nodes --json",
            "rollcall config show --effective --max-in-flight 3",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "rollcall",
            "rollcall serve --no-such-flag",
            "rollcall serve --max-in-flight",
            "rollcall listen --keep --no-subscribe",
            "rollcall deliveries list --state delivered",
            "rollcall replay",
            "rollcall replay --since 2026-11-23T12:00:00Z --after 7",
            "rollcall listen --fail-rate 1.01",
            "rollcall listen --status 99",
            "rollcall listen --path hook",
            "rollcall listen --secret whsec_x",
            "rollcall staff create --first-name A",
            "rollcall subscription set --enabled true",
            "rollcall events --limit 0",
            "rollcall events --limit 501",
            "rollcall events --after -1",
            "rollcall admin-token rotate --overlap 1",
            "rollcall audit list --limit 501",
            "rollcall app create CRM --service s --scopes events,all",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
