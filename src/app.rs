//! Composition: opens the store, starts the parts, binds the listener, stops everything in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Settings;
use crate::domain::tenancy::Token;

/// A server that accepts requests.
#[derive(Debug)]
pub struct Running {
    /// Where it listens; the real port when 0 was asked for.
    pub address: SocketAddr,
    /// The data directory, absolute.
    pub data_dir: PathBuf,
    /// The admin token, only when this start made it.
    pub new_admin_token: Option<Token>,
}

/// Opens the store, starts the engine and binds the listener.
///
/// # Errors
///
/// The data directory is in use or not writable, the store cannot be opened, or the address cannot be bound.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    anyhow::bail!("not written yet: {settings:?}")
}

impl Running {
    /// Stops accepting, finishes what is in flight within `grace`, records it and closes the store.
    pub async fn stop(self, grace: Duration) {
        tokio::time::sleep(grace).await;
    }

    /// Returns when the server failed by itself, with the reason.
    pub async fn failed(&self) -> anyhow::Error {
        std::future::pending().await
    }
}

/// Gives an existing data directory a new admin token while no server runs on it.
///
/// # Errors
///
/// There is no store in the directory, or a server holds it.
pub fn reset_admin_token(data_dir: &Path) -> anyhow::Result<Token> {
    anyhow::bail!("not written yet: {}", data_dir.display())
}
