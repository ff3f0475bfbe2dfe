//! Progress of subscriptions: recorded by the engine in every group, read back at start.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::change::{Change, Stop, column, int, time, uint, uint32};
use super::secrets;
use super::session::{Session, execute, query, query_opt, stream};
use super::subscriptions::{COLUMNS, JOINED, failing_of, subscription_of};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::shard::{SHARDS, Shard, shard_of};
use crate::store::Error;
use crate::store::keyring::Keyring;
use crate::store::rows::{HeldRow, LaneRow, bitmap_of};

/// The columns that [`held_of`] reads, as the first ones of a query.
const HELD: &str = "sequence, contact, retries_used, attempts, due_at";

fn lane_of(row: &Row, epoch: u64) -> Result<LaneRow, Error> {
    Ok(LaneRow {
        subscription: subscription_of(row)?,
        secrets: Vec::new(),
        cursor: uint(row, 8)?,
        bitmap: column(row, 9)?,
        failing: failing_of(row)?,
        held: Vec::new(),
        epoch,
    })
}

fn held_of(row: &Row) -> Result<HeldRow, Error> {
    Ok(HeldRow {
        sequence: uint(row, 0)?,
        contact: ContactId::from_uuid(column(row, 1)?),
        retries_used: uint32(row, 2)?,
        attempts: uint32(row, 3)?,
        due_at: time(row, 4)?,
    })
}

/// One lane of a shard that this node has under `epoch`. In a transaction of one state.
pub(super) async fn find_lane<S: Session>(
    session: &S,
    keys: &Keyring,
    service: ServiceId,
    app: AppId,
    epoch: u64,
) -> Result<Option<LaneRow>, Stop> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {JOINED} JOIN services v ON v.service = s.service \
         WHERE s.service = $1 AND s.app = $2 AND s.enabled = 1 AND NOT v.hidden"
    );
    let key: [&(dyn ToSql + Sync); 2] = [&service.uuid(), &app.uuid()];
    let Some(row) = query_opt(session, &sql, &key).await? else {
        return Ok(None);
    };
    let mut lane = lane_of(&row, epoch)?;
    // With their ends, also those that have expired: the lane knows the time of each attempt.
    let ever = Timestamp::default();
    lane.secrets = secrets::list_signing_secrets(session, keys, service, app, ever).await?;
    let sql = format!("SELECT {HELD} FROM held WHERE service = $1 AND app = $2 ORDER BY sequence");
    let held = query(session, &sql, &key).await?;
    lane.held = held.iter().map(held_of).collect::<Result<_, _>>()?;
    Ok(Some(lane))
}

/// All enabled subscriptions of these shards in three ordered passes that are merged by key, not a query for each. In
/// a transaction of one state.
pub(super) async fn list_lanes<S: Session>(
    session: &S,
    keys: &Keyring,
    epochs: &BTreeMap<Shard, u64>,
) -> Result<Vec<LaneRow>, Stop> {
    let shards: Vec<i32> = epochs.keys().map(|shard| i32::from(shard.number())).collect();
    // As `shard_of` has it.
    let of_shards = |app: &str| format!("get_byte(uuid_send({app}), 15) % {SHARDS} = ANY($1)");
    let mut lanes: Vec<LaneRow> = Vec::new();
    let enabled = format!(
        "SELECT {COLUMNS} FROM {JOINED} JOIN services v ON v.service = s.service \
         WHERE s.enabled = 1 AND NOT v.hidden AND {} ORDER BY s.service, s.app",
        of_shards("s.app")
    );
    each_row(session, &enabled, &shards, |row| {
        let app = AppId::from_uuid(column(row, 1)?);
        if let Some(epoch) = epochs.get(&shard_of(app)) {
            lanes.push(lane_of(row, *epoch)?);
        }
        Ok(())
    })
    .await?;
    let held = format!(
        "SELECT {HELD}, service, app FROM held WHERE {} ORDER BY service, app, sequence",
        of_shards("app")
    );
    each_row(session, &held, &shards, |row| {
        if let Some(lane) = lane_at(&mut lanes, row, 5)? {
            lane.held.push(held_of(row)?);
        }
        Ok(())
    })
    .await?;
    let sealed = format!(
        "SELECT {} FROM app_secrets WHERE {} ORDER BY service, app, number DESC",
        secrets::COLUMNS,
        of_shards("app")
    );
    each_row(session, &sealed, &shards, |row| {
        if let Some(lane) = lane_at(&mut lanes, row, 0)? {
            lane.secrets.push(secrets::secret_of(keys, row)?);
        }
        Ok(())
    })
    .await?;
    Ok(lanes)
}

/// The lane of the service and app in two columns of a row.
fn lane_at<'a>(
    lanes: &'a mut [LaneRow],
    row: &Row,
    at: usize,
) -> Result<Option<&'a mut LaneRow>, Error> {
    let key = (ServiceId::from_uuid(column(row, at)?), AppId::from_uuid(column(row, at + 1)?));
    let found = lanes.binary_search_by_key(&key, |l| (l.subscription.service, l.subscription.app));
    Ok(found.ok().and_then(|at| lanes.get_mut(at)))
}

/// Reads rows of these shards as they arrive: all of them at once could be more than memory has.
async fn each_row<S: Session>(
    session: &S,
    sql: &str,
    shards: &Vec<i32>,
    mut each: impl FnMut(&Row) -> Result<(), Error>,
) -> Result<(), Stop> {
    let mut rows = pin!(stream(session, sql, &[shards]).await?);
    while let Some(row) = rows.try_next().await? {
        each(&row)?;
    }
    Ok(())
}

/// Locks the row of a subscription's progress, if there is one, until the end of the transaction. Behind the service's
/// row, and before anything of the subscription is read: what a statement reads that had to wait for a lock is older.
pub(super) async fn lock(change: &Change<'_>, service: ServiceId, app: AppId) -> Result<(), Stop> {
    let sql = "SELECT 1 FROM progress WHERE service = $1 AND app = $2 FOR UPDATE";
    change.query(sql, &[&service.uuid(), &app.uuid()]).await?;
    Ok(())
}

/// Moves a subscription to this place and begins a generation of it.
pub(super) async fn set<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
    cursor: u64,
    done: &[u64],
) -> Result<(), tokio_postgres::Error> {
    let sql = "UPDATE progress SET generation = generation + 1, cursor = $3, bitmap = $4 \
         WHERE service = $1 AND app = $2";
    let bitmap = bitmap_of(cursor, done);
    execute(session, sql, &[&service.uuid(), &app.uuid(), &int(cursor), &bitmap]).await?;
    Ok(())
}
