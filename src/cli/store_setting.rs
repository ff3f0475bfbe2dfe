//! The setting `store`, for commands that work on a store while no server runs on it.
//!
//! They read no configuration file. When the environment says that everything is in a PostgreSQL, those that work on
//! data directories only say what to do there in place of complaining about a directory that nobody uses.

use std::ffi::OsString;

use anyhow::{Context, anyhow, bail};
use clap::Args;

use super::dev_credentials::DataDir;
use crate::app::ClosedStore;

/// Where the server keeps everything, as far as the command line and the environment say.
#[derive(Args)]
pub(super) struct StoreSetting {
    /// The setting `store`, when everything is in a PostgreSQL: `postgres://…`. A flag can be seen in the list of
    /// processes, so prefer the file for a password.
    #[arg(long, env = "ROLLCALL_STORE", hide_env_values = true, value_name = "URL")]
    store: Option<OsString>,
    /// The setting `store_file`.
    #[arg(long, env = "ROLLCALL_STORE_FILE", hide_env_values = true, value_name = "PATH")]
    store_file: Option<OsString>,
}

impl std::fmt::Debug for StoreSetting {
    /// Whether only: the URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreSetting").field("embedded", &self.is_embedded()).finish()
    }
}

impl StoreSetting {
    fn is_embedded(&self) -> bool {
        let is_set = |text: &Option<OsString>| text.as_ref().is_some_and(|text| !text.is_empty());
        let is_embedded = |text: &OsString| text == "embedded";
        (!is_set(&self.store) || self.store.as_ref().is_some_and(is_embedded))
            && !is_set(&self.store_file)
    }

    /// Which store, of a server that is stopped.
    ///
    /// # Errors
    ///
    /// The file cannot be read, both settings are there, or a data directory is named too.
    pub(super) fn closed_store(&self, data_dir: &DataDir) -> anyhow::Result<ClosedStore> {
        if self.is_embedded() {
            return Ok(ClosedStore::DataDir(data_dir.path()));
        }
        if data_dir.is_given() {
            bail!(
                "both a data directory and a PostgreSQL are named: leave out --data-dir and ROLLCALL_DATA_DIR, or --store, \
                 ROLLCALL_STORE and ROLLCALL_STORE_FILE"
            );
        }
        let is_set = |text: &&OsString| !text.is_empty();
        match (self.store.as_ref().filter(is_set), self.store_file.as_ref().filter(is_set)) {
            (Some(_), Some(_)) => bail!("store and store_file are both set: leave one of them out"),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                ClosedStore::postgres(text.trim_end())
            }
            (store, None) => {
                let text = store.and_then(|text| text.to_str());
                let text = text.ok_or_else(|| anyhow!("store must be a connection URL"))?;
                ClosedStore::postgres(text)
            }
        }
    }

    /// # Errors
    ///
    /// The store is a PostgreSQL; the error says what to do `instead`.
    pub(super) fn require_embedded(&self, instead: &str) -> anyhow::Result<()> {
        if self.is_embedded() {
            return Ok(());
        }
        let name = if self.store_file.is_some() { "store_file" } else { "store" };
        bail!(
            "the setting {name} names a PostgreSQL, and this command works on a data directory: {instead} (docs/operations.md, \
             Several nodes on PostgreSQL). If the data directory is meant, leave {name} out of the environment"
        )
    }
}

/// What to look at when something cannot be done to a store.
pub(super) const fn remedy(store: &ClosedStore) -> &'static str {
    match store {
        ClosedStore::DataDir(_) => "stop the server and check the path",
        ClosedStore::Postgres(_) => "stop every node and check the connection URL",
    }
}

#[cfg(test)]
mod tests {
    use super::StoreSetting;

    fn refusal(store: Option<&str>, file: Option<&str>) -> Option<String> {
        let setting =
            StoreSetting { store: store.map(Into::into), store_file: file.map(Into::into) };
        assert!(!format!("{setting:?}").contains("hunter2"));
        setting.require_embedded("do that").err().map(|error| error.to_string())
    }

    #[test]
    fn postgresql_is_told_from_the_embedded_store_without_showing_it() {
        for store in [None, Some(""), Some("embedded")] {
            assert_eq!(refusal(store, None), None);
            assert_eq!(refusal(store, Some("")), None);
        }

        let text = refusal(Some("postgres://u:hunter2@h/d"), None).unwrap();
        assert!(text.contains("store names") && text.contains("do that"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(refusal(None, Some("/run/url")).unwrap().contains("store_file names"));
    }
}
