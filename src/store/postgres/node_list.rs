//! The nodes on a database, for people: who is there, since when, and which shards each of them has.

use std::time::Duration;

use tokio_postgres::Row;
use uuid::Uuid;

use super::change::{Stop, column, time};
use super::session::{Session, query};
use crate::domain::shard::Shard;
use crate::store::Error;
use crate::store::rows::NodeRow;

/// Ages are those of the database's own clock.
const SQL: &str = "SELECT n.node, n.name, n.version, (extract(epoch FROM n.started_at) * 1000)::bigint, \
     (extract(epoch FROM clock_timestamp() - n.seen_at) * 1000)::bigint, \
     ARRAY(SELECT s.shard FROM shards s WHERE s.node = n.node ORDER BY s.shard) \
     FROM nodes n ORDER BY n.started_at, n.node";

pub(super) async fn list_nodes<S: Session>(session: &S) -> Result<Vec<NodeRow>, Stop> {
    let rows = query(session, SQL, &[]).await?;
    Ok(rows.iter().map(node_of).collect::<Result<_, _>>()?)
}

fn node_of(row: &Row) -> Result<NodeRow, Error> {
    let ago: i64 = column(row, 4)?;
    let shards: Vec<i16> = column(row, 5)?;
    Ok(NodeRow {
        id: Some(column::<Uuid>(row, 0)?.to_string()),
        name: column(row, 1)?,
        version: column(row, 2)?,
        since: Some(time(row, 3)?),
        renewed_ago: Some(Duration::from_millis(u64::try_from(ago).unwrap_or_default())),
        shards: shards.into_iter().filter_map(Shard::from_number).collect(),
    })
}
