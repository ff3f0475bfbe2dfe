//! A PostgreSQL as one side of a copy. An advisory lock keeps every node away: each writer holds it shared.

use futures_util::pin_mut;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::connect::Target;
use super::{migrate, unavailable};
use crate::store::Error;
use crate::store::copy::Mark;
use crate::store::copy::tables::{Kind, Table, Value};

/// The advisory lock that writers hold shared and a copy holds alone: any number that nobody else uses here.
pub(super) const NODES_LOCK: i64 = 0x526f_6c6c_6e6f_6465;

const FIND_MARK: &str = "SELECT convert_from(value, 'UTF8') FROM meta WHERE name = 'copy'";

/// Lets a writer in unless a copy is under way, for as long as its connection lives, and refuses a store that was copied
/// away or is not filled yet.
pub(super) async fn enter(client: &Client) -> Result<(), Error> {
    let failed = |error: tokio_postgres::Error| unavailable(&error);
    let row = client
        .query_one("SELECT pg_try_advisory_lock_shared($1)", &[&NODES_LOCK])
        .await
        .map_err(failed)?;
    if !row.get::<_, bool>(0) {
        return Err(Error::Unavailable("the store is being copied".to_owned()));
    }
    check_mark(client).await
}

/// Refuses a store that was copied away or is not filled yet.
pub(super) async fn check_mark(client: &Client) -> Result<(), Error> {
    let mark = client.query_opt(FIND_MARK, &[]).await.map_err(|error| unavailable(&error))?;
    Mark::check(mark.map(|row| row.get::<_, String>(0)).as_deref())
}

/// Keeps every node away for as long as this connection lives, or until [`leave`], and brings the tables forward.
pub(super) async fn enter_alone(client: &mut Client) -> Result<(), Error> {
    let failed = |error: tokio_postgres::Error| unavailable(&error);
    // Before the tables are brought forward under the nodes of an earlier version.
    let row = client
        .query_one("SELECT pg_try_advisory_lock($1)", &[&NODES_LOCK])
        .await
        .map_err(failed)?;
    if !row.get::<_, bool>(0) {
        return Err(Error::Unavailable(
            "a node or another copy uses the database: stop every node first".to_owned(),
        ));
    }
    migrate::migrate(client).await?;
    // Millions of rows take their time.
    client.batch_execute("SET statement_timeout = 0").await.map_err(failed)?;
    // One whose writer has lost its connection for a moment does not hold the lock.
    let alive = "SELECT name FROM nodes WHERE seen_at > now() - interval '10 seconds' LIMIT 1";
    if let Some(row) = client.query_opt(alive, &[]).await.map_err(failed)? {
        return Err(Error::Unavailable(format!(
            "node {} was alive within the last 10 seconds: stop every node first",
            row.get::<_, String>(0)
        )));
    }
    Ok(())
}

/// Gives up the lock of [`enter_alone`], which a session that ends by itself keeps a moment longer.
pub(super) async fn leave(client: &Client) {
    unlock(client, "SELECT pg_advisory_unlock($1)").await;
}

/// Gives up the lock of [`enter`].
pub(super) async fn leave_shared(client: &Client) {
    unlock(client, "SELECT pg_advisory_unlock_shared($1)").await;
}

async fn unlock(client: &Client, sql: &str) {
    let unlocked = client.execute(sql, &[&NODES_LOCK]).await;
    if let Err(error) = unlocked {
        tracing::debug!(error = super::why(&error), "lock left to the end of the session");
    }
}

/// Where the rows of a table are: those of services in two tables, behind a view.
fn place_of(table: &Table) -> &'static str {
    if table.name == "services" { "service_states" } else { table.name }
}

/// A PostgreSQL that no node uses.
pub struct PostgresSide {
    client: Client,
    place: String,
}

impl std::fmt::Debug for PostgresSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSide").field("place", &self.place).finish_non_exhaustive()
    }
}

impl PostgresSide {
    /// Opens the store in this database, making its tables when they are not there.
    ///
    /// # Errors
    ///
    /// A node uses it, or it cannot be opened.
    pub async fn open(target: &Target) -> Result<Self, Error> {
        let mut client = target.connect_plain().await?;
        enter_alone(&mut client).await?;
        Ok(Self { client, place: target.place() })
    }

    /// Lets nodes in again.
    pub(in crate::store) async fn close(self) {
        leave(&self.client).await;
    }

    pub(in crate::store) fn place(&self) -> &str {
        &self.place
    }

    pub(in crate::store) async fn mark(&self) -> Result<Option<String>, Error> {
        let row =
            self.client.query_opt(FIND_MARK, &[]).await.map_err(|error| unavailable(&error))?;
        Ok(row.map(|row| row.get(0)))
    }

    pub(in crate::store) async fn set_mark(&self, mark: &str) -> Result<(), Error> {
        self.client
            .execute(
                "INSERT INTO meta (name, value) VALUES ('copy', $1) \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                &[&mark.as_bytes()],
            )
            .await
            .map(drop)
            .map_err(|error| unavailable(&error))
    }

    pub(in crate::store) async fn count(&self, table: &Table) -> Result<u64, Error> {
        let sql = format!("SELECT count(*) FROM {}", place_of(table));
        let row = self.client.query_one(&sql, &[]).await.map_err(|error| unavailable(&error))?;
        super::change::uint(&row, 0)
    }

    pub(in crate::store) async fn last_key(
        &self,
        table: &Table,
    ) -> Result<Option<Vec<Value>>, Error> {
        let descending = table.key_names().replace(',', " DESC,");
        let sql = format!(
            "SELECT {} FROM {} ORDER BY {descending} DESC LIMIT 1",
            table.key_names(),
            place_of(table)
        );
        let row = self.client.query_opt(&sql, &[]).await.map_err(|error| unavailable(&error))?;
        row.map(|row| values_of(&row, &table.columns[..table.key])).transpose()
    }

    pub(in crate::store) async fn read(
        &self,
        table: &Table,
        after: Option<&[Value]>,
        limit: usize,
    ) -> Result<Vec<Vec<Value>>, Error> {
        let (names, key) = (table.names(), table.key_names());
        let filter = match after {
            None => String::new(),
            Some(_) => {
                let places: Vec<_> = (1..=table.key).map(|at| format!("${at}")).collect();
                format!("WHERE ({key}) > ({})", places.join(", "))
            }
        };
        let sql = format!(
            "SELECT {names} FROM {} {filter} ORDER BY {key} LIMIT {limit}",
            place_of(table)
        );
        let params = params_of(after.unwrap_or_default(), table)?;
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|it| &**it as _).collect();
        let rows = self.client.query(&sql, &params).await.map_err(|error| unavailable(&error))?;
        rows.iter().map(|row| values_of(row, table.columns)).collect()
    }

    pub(in crate::store) async fn write(
        &mut self,
        table: &Table,
        rows: &[Vec<Value>],
    ) -> Result<(), Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        let types: Vec<Type> = table.columns.iter().map(|(_, kind)| type_of(*kind)).collect();
        let sql =
            format!("COPY {} ({}) FROM STDIN (FORMAT binary)", place_of(table), table.names());
        let tx = self.client.transaction().await.map_err(failed)?;
        let sink = tx.copy_in(&sql).await.map_err(failed)?;
        let writer = BinaryCopyInWriter::new(sink, &types);
        pin_mut!(writer);
        for row in rows {
            let params = params_of(row, table)?;
            let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|it| &**it as _).collect();
            writer.as_mut().write(&params).await.map_err(failed)?;
        }
        writer.finish().await.map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    pub(in crate::store) async fn server_audit(&self) -> Result<u64, Error> {
        let sql = "SELECT count FROM counts WHERE name = 'server_audit'";
        let row = self.client.query_one(sql, &[]).await.map_err(|error| unavailable(&error))?;
        super::change::uint(&row, 0)
    }

    /// Tells the planner what is in the tables.
    pub(in crate::store) async fn settle(&self) -> Result<(), Error> {
        self.client.batch_execute("ANALYZE").await.map_err(|error| unavailable(&error))
    }

    /// The ends of the audit logs, and the tickets.
    pub(in crate::store) async fn finish(&mut self, server_audit: u64) -> Result<(), Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        let tx = self.client.transaction().await.map_err(failed)?;
        tx.execute(
            "UPDATE counts SET count = $1 WHERE name = 'server_audit'",
            &[&super::change::int(server_audit)],
        )
        .await
        .map_err(failed)?;
        tx.batch_execute(
            "UPDATE rolls r SET audit_at = coalesce((SELECT at FROM audit a WHERE a.service = r.service \
             ORDER BY first DESC LIMIT 1), 0); \
             UPDATE counts SET count = coalesce((SELECT max(at) FROM audit \
             WHERE service = '00000000-0000-0000-0000-000000000000'), 0) WHERE name = 'server_audit_at'; \
             SELECT setval('subscription_tickets', (SELECT greatest(max(ticket), 1) FROM subscriptions))",
        )
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }
}

#[cfg(test)]
impl PostgresSide {
    pub(in crate::store) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(in crate::store) async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

fn type_of(kind: Kind) -> Type {
    match kind {
        Kind::Id => Type::UUID,
        Kind::Bytes => Type::BYTEA,
        Kind::Long => Type::INT8,
        Kind::Int => Type::INT4,
        Kind::Small => Type::INT2,
        Kind::Flag => Type::BOOL,
        Kind::Text => Type::TEXT,
    }
}

fn params_of(values: &[Value], table: &Table) -> Result<Vec<Box<dyn ToSql + Sync + Send>>, Error> {
    values
        .iter()
        .zip(table.columns)
        .map(|(value, (name, kind))| {
            param_of(value, *kind).ok_or_else(|| {
                Error::Internal(format!(
                    "{}.{name} holds what its column does not take",
                    table.name
                ))
            })
        })
        .collect()
}

fn param_of(value: &Value, kind: Kind) -> Option<Box<dyn ToSql + Sync + Send>> {
    Some(match (kind, value) {
        (Kind::Id, Value::Null) => Box::new(None::<Uuid>),
        (Kind::Id, Value::Bytes(bytes)) => Box::new(Uuid::from_slice(bytes).ok()?),
        (Kind::Bytes, Value::Null) => Box::new(None::<Vec<u8>>),
        (Kind::Bytes, Value::Bytes(bytes)) => Box::new(bytes.clone()),
        (Kind::Long, Value::Null) => Box::new(None::<i64>),
        (Kind::Long, Value::Number(number)) => Box::new(*number),
        (Kind::Int, Value::Null) => Box::new(None::<i32>),
        (Kind::Int, Value::Number(number)) => Box::new(i32::try_from(*number).ok()?),
        (Kind::Small, Value::Null) => Box::new(None::<i16>),
        (Kind::Small, Value::Number(number)) => Box::new(i16::try_from(*number).ok()?),
        (Kind::Flag, Value::Number(number @ (0 | 1))) => Box::new(*number == 1),
        (Kind::Text, Value::Null) => Box::new(None::<String>),
        (Kind::Text, Value::Text(text)) => Box::new(text.clone()),
        _ => return None,
    })
}

fn values_of(row: &Row, columns: &[(&'static str, Kind)]) -> Result<Vec<Value>, Error> {
    let value = |(at, (_, kind)): (usize, &(&'static str, Kind))| {
        let value = match kind {
            Kind::Id => {
                row.try_get::<_, Option<Uuid>>(at)?.map(|it| Value::Bytes(it.as_bytes().to_vec()))
            }
            Kind::Bytes => row.try_get::<_, Option<Vec<u8>>>(at)?.map(Value::Bytes),
            Kind::Long => row.try_get::<_, Option<i64>>(at)?.map(Value::Number),
            Kind::Int => row.try_get::<_, Option<i32>>(at)?.map(|it| Value::Number(it.into())),
            Kind::Small => row.try_get::<_, Option<i16>>(at)?.map(|it| Value::Number(it.into())),
            Kind::Flag => row.try_get::<_, Option<bool>>(at)?.map(|it| Value::Number(it.into())),
            Kind::Text => row.try_get::<_, Option<String>>(at)?.map(Value::Text),
        };
        Ok(value.unwrap_or(Value::Null))
    };
    let values: Result<Vec<_>, _> = columns.iter().enumerate().map(value).collect();
    values.map_err(|error: tokio_postgres::Error| unavailable(&error))
}
