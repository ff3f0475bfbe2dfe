//! `rollcall admin-token`: what to do when the admin token is lost.

use anyhow::Context;
use clap::Subcommand;

use super::dev_credentials::{DataDir, DevCredentials};
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
    // First of all, so that it is not lost when something fails below.
    let printed = output::print(token.reveal());
    // `rollcall dev` takes its token from there, and gives it to the server as a setting, which wins.
    if let Some(mut credentials) = DevCredentials::find(&data_dir) {
        token.reveal().clone_into(&mut credentials.admin_token);
        credentials.store(&data_dir)?;
    }
    printed?;
    output::complain(
        "this is the new admin token, shown only this once; the old one no longer works",
    );
    Ok(())
}
