//! The setting `store`, for commands that work on the files of a data directory while no server runs on it.
//!
//! They read no configuration file. When the environment says that everything is in a PostgreSQL, they say what to do
//! there in place of complaining about a directory that nobody uses.

use std::ffi::OsString;

use anyhow::bail;
use clap::Args;

/// Where the server keeps everything, as far as the command line and the environment say.
#[derive(Args)]
pub(super) struct StoreSetting {
    /// The setting `store`.
    #[arg(long, env = "ROLLCALL_STORE", hide_env_values = true, hide = true)]
    store: Option<OsString>,
    /// The setting `store_file`.
    #[arg(long, env = "ROLLCALL_STORE_FILE", hide_env_values = true, hide = true)]
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
