//! `rollcall admin-token`: what to do when the admin token is lost.

use anyhow::Context;
use clap::Subcommand;

use super::dev_credentials::DataDir;
use super::output;
use crate::app;

/// The commands about the admin token.
#[derive(Debug, Subcommand)]
pub(super) enum AdminTokenCommand {
    /// Give a data directory a new admin token, printed once; no server may run on it.
    Reset {
        #[command(flatten)]
        data_dir: DataDir,
    },
}

/// Runs the command.
pub(super) async fn run(command: AdminTokenCommand) -> anyhow::Result<()> {
    let AdminTokenCommand::Reset { data_dir } = command;
    let data_dir = data_dir.path();
    let token = app::reset_admin_token(&data_dir).await.with_context(|| {
        let data_dir = data_dir.display();
        format!("cannot reset the admin token in {data_dir}; stop the server and check the path")
    })?;
    output::print(token.reveal())?;
    output::complain(
        "this is the new admin token, shown only this once; the old one no longer works",
    );
    Ok(())
}
