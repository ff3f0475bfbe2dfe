//! How lanes are doing, for the other nodes: a row for each that is not simply active.

use uuid::Uuid;

use super::change::int;
use super::connect::Readers;
use super::session::execute;
use super::unavailable;
use crate::store::rows::{ConditionRow, LaneCondition};
use crate::store::{Answer, ShareConditions};

/// Writes what changed, on one of the reading connections.
#[derive(Debug)]
pub(super) struct Conditions(pub(super) Readers);

impl ShareConditions for Conditions {
    fn write(&self, rows: Vec<ConditionRow>) -> Answer<'_, ()> {
        Box::pin(async move {
            let client = self.0.get().await?;
            let (told, over): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row| row.condition.is_some());
            // Only what was written under this epoch: another node may have the lane by now.
            for (rows, sql) in [
                (
                    over,
                    "DELETE FROM lane_conditions c \
                     USING unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::smallint[]) \
                     AS k (service, app, epoch, condition) \
                     WHERE c.service = k.service AND c.app = k.app AND c.epoch = k.epoch",
                ),
                (
                    told,
                    "INSERT INTO lane_conditions AS c (service, app, epoch, condition) \
                     SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::smallint[]) \
                     ON CONFLICT (service, app) DO UPDATE \
                     SET epoch = excluded.epoch, condition = excluded.condition \
                     WHERE c.epoch <= excluded.epoch",
                ),
            ] {
                if rows.is_empty() {
                    continue;
                }
                let services: Vec<Uuid> = rows.iter().map(|row| row.service.uuid()).collect();
                let apps: Vec<Uuid> = rows.iter().map(|row| row.app.uuid()).collect();
                let epochs: Vec<i64> = rows.iter().map(|row| int(row.epoch)).collect();
                let conditions: Vec<i16> =
                    rows.iter().map(|row| row.condition.map_or(0, LaneCondition::code)).collect();
                execute(&*client, sql, &[&services, &apps, &epochs, &conditions])
                    .await
                    .map_err(|error| unavailable(&error))?;
            }
            Ok(())
        })
    }
}
