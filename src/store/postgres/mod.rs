//! The back end of many nodes: one PostgreSQL, one writer connection per node, a pool of readers.
//!
//! The same rows as the embedded store. A commit that returned is durable as far as the server promises it
//! (`synchronous_commit`, synchronous replication).

mod audit;
mod change;
mod commands;
mod connect;
mod contacts;
mod deliveries;
mod events;
mod migrate;
mod ownership;
mod progress;
mod reader;
mod retention;
mod secrets;
mod session;
mod subscriptions;
mod tenancy;
#[cfg(test)]
mod test_database;
#[cfg(test)]
mod test_stage;
mod upkeep;

use crate::store::Error;

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
