//! `dev.json`: what `rollcall dev` made, kept in the data directory for the next start and the other commands.
//!
//! Holds tokens in the clear, on purpose and only for development; the file is readable by its owner alone.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};

/// Its name in the data directory.
const FILE_NAME: &str = "dev.json";

/// Where the data directory is unless said otherwise.
const DATA_DIR_DEFAULT: &str = "./rollcall-data";

/// Which data directory a command is about that has no settings.
#[derive(Debug, Default, Args)]
pub(super) struct DataDir {
    /// The data directory of the server; `rollcall dev` leaves its credentials there [default: ./rollcall-data].
    #[arg(
        long = "data-dir",
        env = "ROLLCALL_DATA_DIR",
        hide_env_values = true,
        value_name = "PATH"
    )]
    given: Option<OsString>,
}

impl DataDir {
    /// Whether it was named, and not left to the default.
    pub(super) fn is_given(&self) -> bool {
        self.given.as_ref().is_some_and(|path| !path.is_empty())
    }

    /// The directory; an empty variable is as good as none.
    pub(super) fn path(&self) -> PathBuf {
        let given = self.given.as_deref().filter(|path| !path.is_empty());
        given.map_or_else(|| PathBuf::from(DATA_DIR_DEFAULT), PathBuf::from)
    }
}

/// Where the development server is, and everything that opens it.
#[derive(Clone, Default, Deserialize, Serialize)]
pub(super) struct DevCredentials {
    /// The server, without a slash at the end.
    #[serde(rename = "baseURL")]
    pub(super) base_url: String,
    /// The admin token.
    #[serde(rename = "adminToken")]
    pub(super) admin_token: String,
    /// The service "Demo".
    #[serde(rename = "serviceId")]
    pub(super) service_id: String,
    /// The app "Demo app".
    #[serde(rename = "appID")]
    pub(super) app_id: String,
    /// Its token, with all scopes.
    #[serde(rename = "appToken")]
    pub(super) app_token: String,
    /// The data directory, absolute.
    #[serde(rename = "dataDir")]
    pub(super) data_dir: PathBuf,
}

impl DevCredentials {
    /// Reads them from a data directory; none when the file is missing or is something else.
    pub(super) fn find(data_dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(Self::path(data_dir)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Where they are kept in a data directory.
    pub(super) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE_NAME)
    }

    /// Writes them, whole or not at all, readable by the owner only.
    pub(super) fn store(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = Self::path(data_dir);
        let fresh = data_dir.join("dev.json.new");
        let write = || -> std::io::Result<()> {
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                // A leftover could have another mode, which opening would not change.
                _ => {}
            }
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
