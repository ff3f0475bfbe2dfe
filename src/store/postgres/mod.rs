//! The back end of many nodes: one PostgreSQL, one writer connection per node, a pool of readers.
//!
//! The same rows as the embedded store. A commit that returned is durable as far as the server promises it
//! (`synchronous_commit`, synchronous replication).

mod audit;
mod change;
mod commands;
mod connect;
mod contacts;
pub mod copying;
mod deliveries;
mod events;
mod group;
mod hint_text;
mod hints;
mod membership;
mod migrate;
mod nodes;
mod overlay;
mod ownership;
mod progress;
mod reader;
mod secrets;
mod session;
mod statements;
mod subscriptions;
mod tenancy;
#[cfg(test)]
mod test_database;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::connect::Readers;
pub use self::connect::Target;
use self::ownership::Ownership;
use self::reader::{Broken, Reader};
use self::writer::Writer;
use super::keyring::Keyring;
use super::queue::{Queue, Tickets, Write};
use super::sqlite::retention::Retention;
use super::{Answer, Commit, Error, Read, Store};
use crate::domain::clock::Clock;
use crate::domain::shard::Shard;

/// Time between two slices of upkeep while there is nothing to remove.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);
/// Shortest pause between two slices.
const UPKEEP_PAUSE: Duration = Duration::from_millis(5);

/// What a node needs besides the address.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the time is read.
    pub clock: Arc<dyn Clock>,
    /// How long things are kept.
    pub retention: Retention,
    /// The keys of signing secrets; every node needs the same.
    pub keys: Keyring,
}

/// An open PostgreSQL store: dropping it without [`Self::close`] loses nothing that was acknowledged.
#[derive(Debug)]
pub struct Postgres {
    /// Reads and writes.
    pub store: Store,
    writer: std::thread::JoinHandle<()>,
    queue: Arc<Queue>,
    ownership: Arc<Ownership>,
    stop: CancellationToken,
}

impl Postgres {
    /// Opens the store in this database, making its tables when they are not there.
    ///
    /// # Errors
    ///
    /// The database cannot be reached, its schema is newer than this program, or a secret needs a key that is not there.
    pub async fn open(target: &Target, options: Options) -> Result<Self, Error> {
        let Options { clock, retention, keys } = options;
        let mut client = target.connect_plain().await?;
        migrate::migrate(&mut client).await?;
        copying::enter(&client).await?;
        secrets::prepare(&mut client, &keys).await?;
        drop(client);
        let readers = Readers::new(target)?;
        let queue = Arc::new(Queue::default());
        let ownership = Arc::new(Ownership::default());
        let broken = Broken::default();
        let reader = Arc::new(Reader::new(
            readers.clone(),
            keys.clone(),
            Arc::clone(&ownership),
            Arc::clone(&broken),
        ));
        let writer = Writer::new(
            target.clone(),
            Arc::clone(&queue),
            Arc::clone(&clock),
            keys,
            Arc::clone(&ownership),
            broken,
        );
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Unavailable(format!("cannot start the writer: {error}")))?;
        let stop = CancellationToken::new();
        let write =
            Write::new(Arc::clone(&queue), 0).with_tickets(Arc::new(SharedTickets(readers)));
        let read: Arc<dyn Read> = reader;
        Ok(Self { store: Store { read, write }, writer, queue, ownership, stop })
    }

    /// Whether the writer lives.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        !self.writer.is_finished()
    }

    /// Lets nothing more in, finishes what waits, and closes the connections.
    pub async fn close(self) {
        self.stop.cancel();
        self.queue.close();
        let joined = tokio::task::spawn_blocking(move || self.writer.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("store writer panicked");
        }
    }
}

/// The numbers that all nodes share.
#[derive(Debug)]
struct SharedTickets(Readers);

impl Tickets for SharedTickets {
    fn take(&self) -> Answer<'_, u64> {
        Box::pin(async move {
            let client = self.0.get().await?;
            let statement = client
                .prepare_cached("SELECT nextval('subscription_tickets')")
                .await
                .map_err(|error| unavailable(&error))?;
            let row =
                client.query_one(&statement, &[]).await.map_err(|error| unavailable(&error))?;
            change::uint(&row, 0)
        })
    }
}

/// Why a statement failed, without what it was about: PostgreSQL's details name values of rows.
fn why(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("PostgreSQL: {} ({})", db.message(), db.code().code()),
        // The driver's own texts: connection closed, timeout, type mismatch.
        None => format!("PostgreSQL: {error}"),
    }
}

/// A failed read: the store is away, or may be back in a moment.
fn unavailable(error: &tokio_postgres::Error) -> Error {
    Error::Unavailable(why(error))
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod steps_tests;
#[cfg(test)]
#[path = "postgres_tests.rs"]
mod tests;
