//! The back end of many nodes: one PostgreSQL, one writer connection per node, a pool of readers.
//!
//! The same rows as the embedded store. A commit that returned is durable as far as the server promises it
//! (`synchronous_commit`, synchronous replication).

mod audit;
mod change;
mod commands;
mod conditions;
mod connect;
mod contacts;
pub mod copying;
mod deliveries;
mod era;
mod events;
mod group;
mod hint_text;
mod hints;
mod membership;
mod migrate;
mod node_list;
mod nodes;
mod numbers;
mod overlay;
mod ownership;
mod progress;
mod reader;
mod request_levels;
mod resetting;
mod retention;
mod secrets;
mod session;
mod statements;
mod subscriptions;
mod tenancy;
#[cfg(test)]
pub(super) mod test_database;
#[cfg(test)]
mod test_stage;
mod upkeep;
mod writer;
mod writes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Object;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use self::conditions::Conditions;
use self::connect::Readers;
pub use self::connect::Target;
use self::hints::Hints;
pub use self::nodes::Drain;
use self::nodes::{Keeper, Keeping};
use self::ownership::Ownership;
use self::reader::{Broken, Reader};
pub use self::request_levels::RequestLevels;
pub use self::resetting::Unused;
use self::upkeep::Upkeep;
use self::writer::Writer;
use super::keyring::Keyring;
use super::queue::{Queue, Tickets, Write};
use super::retention::Retention;
use super::{Answer, Commit, Error, Read, Store};
use crate::domain::clock::Clock;
use crate::domain::lease::Lease;
use crate::domain::shard::{Shard, shard_of};

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
    /// What people call this node.
    pub node_name: String,
}

/// An open PostgreSQL store: dropping it without [`Self::close`] loses nothing that was acknowledged.
#[derive(Debug)]
pub struct Postgres {
    /// Reads and writes.
    pub store: Store,
    writer: std::thread::JoinHandle<()>,
    upkeep: tokio::task::JoinHandle<()>,
    queue: Arc<Queue>,
    ownership: Arc<Ownership>,
    stop: CancellationToken,
    target: Target,
    clock: Arc<dyn Clock>,
    node_name: String,
    /// Keeps a copy away until the keeper does.
    entered: Option<Client>,
    hints: Option<Hints>,
    keeper: Option<Keeper>,
}

impl Postgres {
    /// Opens the store in this database, making its tables when they are not there.
    ///
    /// # Errors
    ///
    /// The database cannot be reached, its schema is newer than this program, or a secret needs a key that is not there.
    pub async fn open(target: &Target, options: Options) -> Result<Self, Error> {
        let Options { clock, retention, keys, node_name } = options;
        let mut client = target.connect_plain().await?;
        migrate::migrate(&mut client).await?;
        copying::enter(&client).await?;
        let queue = Arc::new(Queue::default());
        let ownership = Arc::new(Ownership::default());
        era::enter(&mut client, &ownership, &queue).await?;
        secrets::prepare(&mut client, &keys).await?;
        let readers = Readers::new(target, &ownership)?;
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
        let upkeep = tokio::spawn(keep_up(
            Upkeep::new(retention),
            readers.clone(),
            Arc::clone(&queue),
            Arc::clone(&ownership),
            Arc::clone(&clock),
            stop.clone(),
        ));
        let conditions = Arc::new(Conditions(readers.clone()));
        let tickets = Arc::new(SharedTickets(readers));
        let write = Write::new(Arc::clone(&queue), 0).with_tickets(tickets);
        let read: Arc<dyn Read> = reader;
        Ok(Self {
            store: Store { read, write, conditions: Some(conditions) },
            writer,
            upkeep,
            queue,
            ownership,
            stop,
            target: target.clone(),
            clock,
            node_name,
            entered: Some(client),
            hints: None,
            keeper: None,
        })
    }

    /// The lease of this node: everything that is sent for a subscription is sent under it.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.ownership.lease().clone()
    }

    /// The way to the request levels that all nodes share.
    #[must_use]
    pub fn request_levels(&self) -> RequestLevels {
        RequestLevels::new(self.target.clone())
    }

    /// Becomes a node: takes shards and hears of the others' commits from now on, and tells who listens to the store.
    /// `drain` is called when a shard is handed over.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start_node(&mut self, drain: Drain) -> Result<(), Error> {
        self.hints = Some(Hints::start(hints::Settings {
            target: self.target.clone(),
            queue: Arc::clone(&self.queue),
            ownership: Arc::clone(&self.ownership),
        })?);
        self.keeper = Some(Keeper::start(Keeping {
            target: self.target.clone(),
            name: self.node_name.clone(),
            queue: Arc::clone(&self.queue),
            clock: Arc::clone(&self.clock),
            ownership: Arc::clone(&self.ownership),
            entered: self.entered.take(),
            drain,
        })?);
        Ok(())
    }

    /// Whether the writer, the keeper of the node and its ears live.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        !self.writer.is_finished()
            && self.keeper.as_ref().is_none_or(Keeper::is_running)
            && self.hints.as_ref().is_none_or(Hints::is_running)
    }

    /// Lets nothing more in, finishes what waits, and closes the connections.
    pub async fn close(self) {
        self.stop.cancel();
        drop(self.upkeep.await);
        if let Some(hints) = self.hints {
            hints.stop().await;
        }
        if let Some(client) = self.entered {
            copying::leave_shared(&client).await;
        }
        let (keeper, queue, writer) = (self.keeper, self.queue, self.writer);
        let joined = tokio::task::spawn_blocking(move || {
            // What was recorded last is written before others may go on from it.
            queue.close();
            let joined = writer.join();
            if let Some(keeper) = keeper {
                keeper.stop();
            }
            joined
        })
        .await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("store writer panicked");
        }
    }
}

/// Removes what is no longer needed, on the node that has the first shard.
async fn keep_up(
    mut upkeep: Upkeep,
    readers: Readers,
    queue: Arc<Queue>,
    ownership: Arc<Ownership>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let first = Shard::all().next();
    let mut wait = UPKEEP_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = UPKEEP_EVERY;
        if first.is_none_or(|first| ownership.epoch(first).is_none()) {
            continue;
        }
        let slice = async {
            let client = readers.get().await?;
            let slice = upkeep.run_slice(&client, clock.now()).await;
            slice.map_err(|stop| {
                // It may be in the middle of a transaction.
                drop(Object::take(client));
                Error::from(stop)
            })
        };
        match slice.await {
            Ok(slice) => {
                if !slice.subscriptions.is_empty() {
                    let subscriptions = slice.subscriptions;
                    let counted: BTreeSet<Shard> =
                        subscriptions.iter().map(|(_, app)| shard_of(*app)).collect();
                    let counted = counted.into_iter().collect();
                    queue.tell(&Commit { subscriptions, counted, ..Commit::default() });
                }
                if slice.removed {
                    wait = UPKEEP_PAUSE;
                }
            }
            Err(error) => tracing::debug!(error = %error, "upkeep failed, trying again"),
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
        // The driver's own texts, and those of the connection: refused, closed, the certificate.
        None => match std::error::Error::source(error) {
            Some(source) => format!("PostgreSQL: {error}: {source}"),
            None => format!("PostgreSQL: {error}"),
        },
    }
}

/// A failed read: the store is away, or may be back in a moment.
fn unavailable(error: &tokio_postgres::Error) -> Error {
    Error::Unavailable(why(error))
}

#[cfg(test)]
#[path = "lock_order_tests.rs"]
mod lock_order_tests;
#[cfg(test)]
#[path = "steps_tests.rs"]
mod steps_tests;
#[cfg(test)]
#[path = "postgres_tests.rs"]
mod tests;
