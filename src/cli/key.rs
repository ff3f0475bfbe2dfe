//! `rollcall key`: the key that seals signing secrets at rest.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::dev_credentials::DataDir;
use super::output;
use super::store_setting::{StoreSetting, remedy};
use crate::app::{self, ChangedKey};

/// The commands about the key.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Put a new key into the key file of a data directory and seal every signing secret with it; no server may run
    /// on it. Where the key is a setting, put a new one in front of it instead and restart; with several nodes on one
    /// PostgreSQL put it behind the earlier one on all of them first.
    Rotate {
        #[command(flatten)]
        data_dir: DataDir,
        #[command(flatten)]
        store: StoreSetting,
        #[command(flatten)]
        setting: KeySetting,
    },
    /// Give every app whose signing secret does not open a new one, because the key is lost for good or the secret is
    /// damaged; no server may run on the data directory, or on the PostgreSQL. Receivers must then be given their new
    /// secrets.
    Reset {
        #[command(flatten)]
        data_dir: DataDir,
        #[command(flatten)]
        store: StoreSetting,
        #[command(flatten)]
        setting: KeySetting,
        /// Do it; without this only the number of those secrets is said.
        #[arg(long)]
        yes: bool,
    },
    /// Print a new key for the settings `secret_key` and `secret_key_file`.
    Generate,
}

/// The settings that hold the key, as the server has them.
#[derive(Debug, Args)]
pub(super) struct KeySetting {
    /// The setting `secret_key`, from the environment only.
    #[arg(long, env = "ROLLCALL_SECRET_KEY", hide_env_values = true, hide = true)]
    secret_key: Option<String>,
    /// The setting `secret_key_file`, when the server has it.
    #[arg(long, env = "ROLLCALL_SECRET_KEY_FILE", value_name = "PATH")]
    secret_key_file: Option<PathBuf>,
}

impl KeySetting {
    /// The text of the keys, if they are a setting.
    fn text(&self) -> anyhow::Result<Option<String>> {
        if let Some(path) =
            self.secret_key_file.as_ref().filter(|path| !path.as_os_str().is_empty())
        {
            let text = std::fs::read_to_string(path);
            return text.map(Some).with_context(|| format!("cannot read {}", path.display()));
        }
        Ok(self.secret_key.clone().filter(|text| !text.trim().is_empty()))
    }
}

/// A node that seals with the new key before the others have it makes secrets that they cannot open.
const ROTATE_INSTEAD: &str = "there the key is the setting secret_key of every node. Make a new one with `rollcall key generate`, \
     put it behind the earlier one on one node after the other, restarting each; then in front of it in the same way; then \
     take the earlier one away";

/// Runs the command.
pub(super) async fn run(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Rotate { data_dir, store, setting } => {
            store.require_embedded(ROTATE_INSTEAD)?;
            if setting.text()?.is_some() {
                bail!(
                    "the key is a setting: put a new one, from `rollcall key generate`, in front of it and restart"
                );
            }
            let data_dir = data_dir.path();
            output::complain(
                "sealing every signing secret with a new key, and writing the database anew",
            );
            let changed = app::rotate_key(&data_dir).await.with_context(|| {
                let data_dir = data_dir.display();
                format!("cannot rotate the key in {data_dir}; stop the server and check the path")
            })?;
            let ChangedKey { key, secrets } = changed;
            output::print(&format!("key {key}: {secrets} signing secrets sealed"))?;
            output::complain("the earlier key is gone from secret.key; keep a copy of the new one");
        }
        KeyCommand::Reset { data_dir, store, setting, yes } => {
            let store = store.closed_store(&data_dir)?;
            let keys = setting.text()?;
            let failed = || format!("cannot reset secrets in {store}; {}", remedy(&store));
            let lost =
                app::count_lost_secrets(&store, keys.as_deref()).await.with_context(failed)?;
            if !yes && lost > 0 {
                bail!(
                    "{lost} signing secrets do not open with the keys at hand and would be lost for good; \
                     put the right key back (one that stands in the configuration file is given here by --secret-key-file), \
                     or repeat with --yes to replace them"
                );
            }
            let changed =
                app::replace_lost_secrets(&store, keys.as_deref()).await.with_context(failed)?;
            let ChangedKey { key, secrets } = changed;
            output::print(&format!(
                "key {key}: {secrets} apps with a new signing secret in {store}"
            ))?;
            output::complain(
                "each receiver needs the new secret of its app: GET .../staff-contact-event-sub/secret",
            );
        }
        KeyCommand::Generate => output::print(&app::make_key()?)?,
    }
    Ok(())
}
