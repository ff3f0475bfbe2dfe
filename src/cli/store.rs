//! `rollcall store copy`: everything from one store to another, while no server runs on either.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use clap::{Args, Subcommand};

use super::output;
use super::table::table;
use crate::app::{self, CopyOutcome, CopyPhase, CopyProgress};

/// The commands about stores.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Copy everything from one store to another, compare both, and seal the source; no server may run on either. A copy
    /// that was broken off goes on when the same command is given again.
    Copy(CopyArgs),
}

#[derive(Args)]
pub(super) struct CopyArgs {
    /// From where: a data directory, or `postgres://…`.
    #[arg(long, value_name = "STORE", env = "ROLLCALL_COPY_FROM", hide_env_values = true)]
    from: String,
    /// To where: an empty data directory or database, or the one of a copy that was broken off.
    #[arg(long, value_name = "STORE", env = "ROLLCALL_COPY_TO", hide_env_values = true)]
    to: String,
    /// Print what was copied as JSON.
    #[arg(long)]
    json: bool,
}

impl std::fmt::Debug for CopyArgs {
    /// A URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyArgs").field("json", &self.json).finish_non_exhaustive()
    }
}

/// Runs the command.
pub(super) async fn run(command: StoreCommand) -> anyhow::Result<()> {
    let StoreCommand::Copy(CopyArgs { from, to, json }) = command;
    let mut shown = Shown::new();
    let copied = app::copy_store(&from, &to, &mut |progress| shown.show(progress)).await;
    shown.end();
    let copied = copied?;
    let (tables, said) = match &copied.outcome {
        CopyOutcome::Copied(tables) => (
            tables.as_slice(),
            "counts and checksums of both sides are equal; the source is sealed",
        ),
        CopyOutcome::EndedBefore => {
            (&[][..], "this copy had ended before, nothing was done; the source is sealed")
        }
    };
    if json {
        let tables: Vec<_> = tables
            .iter()
            .map(
                |it| serde_json::json!({"table": it.table, "rows": it.rows, "sha256": it.checksum}),
            )
            .collect();
        let ended_before = copied.outcome == CopyOutcome::EndedBefore;
        let done = serde_json::json!({"tables": tables, "endedBefore": ended_before});
        output::print(&done.to_string())?;
    } else if !tables.is_empty() {
        let row = |it: &app::Copied| {
            let start = it.checksum.get(..16).unwrap_or_default();
            vec![it.table.to_owned(), it.rows.to_string(), start.to_owned()]
        };
        let rows: Vec<_> = tables.iter().map(row).collect();
        output::print(&table(&["table", "rows", "sha256"], &rows))?;
    }
    output::complain(&format!("{said}, start servers on the target only\n{}", copied.next));
    Ok(())
}

/// Progress on one line of a terminal, or on a line for each tenth elsewhere.
struct Shown {
    /// When this phase began, with how many rows.
    began: (Instant, u64),
    terminal: bool,
    last: Option<(CopyPhase, u64)>,
    open: bool,
}

impl Shown {
    fn new() -> Self {
        Self {
            began: (Instant::now(), 0),
            terminal: std::io::stderr().is_terminal(),
            last: None,
            open: false,
        }
    }

    fn show(&mut self, progress: CopyProgress) {
        let CopyProgress { phase, table: name, done, rows } = progress;
        if self.last.is_none_or(|(before, _)| before != phase) {
            self.began = (Instant::now(), done);
        }
        let percent = (done * 100).checked_div(rows).unwrap_or(100).min(100);
        let what = match phase {
            CopyPhase::Copying => "copying",
            CopyPhase::Comparing => "comparing",
        };
        let (since, before) = self.began;
        let milliseconds = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let rate = done.saturating_sub(before) * 1000 / milliseconds.max(1);
        let line = format!("{what} {percent:3} %, {done} of {rows} rows, {rate} rows/s, {name}");
        if self.terminal {
            // What cannot be shown is left out.
            drop(write!(std::io::stderr(), "\r\x1b[2K{line}"));
            self.open = true;
        } else if self.last.is_none_or(|(before, tenth)| (before, tenth) != (phase, percent / 10)) {
            output::complain(&line);
        }
        self.last = Some((phase, percent / 10));
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            drop(writeln!(std::io::stderr()));
        }
    }
}
