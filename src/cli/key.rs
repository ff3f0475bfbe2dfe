//! `rollcall key`: the key that seals signing secrets at rest.

use anyhow::Context;
use clap::Subcommand;

use super::dev_credentials::DataDir;
use super::output;
use crate::app;

/// The commands about the key.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Put a new key into the key file of a data directory and seal every signing secret with it; no server may run
    /// on it. Where the key is a setting, put a new one in front of it instead and restart.
    Rotate {
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// Give every app whose signing secret cannot be opened a new one, because the key is lost for good; no server may
    /// run on the data directory. Receivers must then be given their new secrets.
    Reset {
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// Print a new key for the settings `secret_key` and `secret_key_file`.
    Generate,
}

/// Runs the command.
pub(super) async fn run(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Rotate { data_dir } => {
            let data_dir = data_dir.path();
            output::complain(
                "sealing every signing secret with a new key, and writing the database anew",
            );
            let changed = app::rotate_key(&data_dir).await.with_context(|| {
                format!(
                    "cannot rotate the key in {}; stop the server and check the path",
                    data_dir.display()
                )
            })?;
            output::print(&format!(
                "key {}: {} signing secrets sealed",
                changed.key, changed.secrets
            ))?;
            output::complain("the earlier key is gone from secret.key; keep a copy of the new one");
        }
        KeyCommand::Reset { data_dir } => {
            let data_dir = data_dir.path();
            let changed = app::replace_lost_secrets(&data_dir).await.with_context(|| {
                format!(
                    "cannot reset secrets in {}; stop the server and check the path",
                    data_dir.display()
                )
            })?;
            output::print(&format!(
                "key {}: {} apps with a new signing secret",
                changed.key, changed.secrets
            ))?;
            output::complain(
                "each receiver needs the new secret of its app: GET .../staff-contact-event-sub/secret",
            );
        }
        KeyCommand::Generate => output::print(&app::make_key()?)?,
    }
    Ok(())
}
