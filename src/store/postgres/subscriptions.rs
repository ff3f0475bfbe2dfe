//! Subscriptions: what the app wishes, stored by ticket; and where each stands.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::{Change, Stop, column, int, time, time_or_none, uint, uint_or_none, uint32};
use super::session::{Session, query_opt};
use super::{progress, tenancy};
use crate::domain::audit::{Subject, target_of};
use crate::domain::clock::Timestamp;
use crate::domain::event::Gap;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::shard::shard_of;
use crate::domain::subscription::{Enabled, Subscription};
use crate::store::Error;
use crate::store::command::SubscriptionWish;
use crate::store::rows::{Failing, LaneCondition, SubscriptionStatus};
use crate::store::wish::{action_of, keeps_progress, wished};

/// The columns that the functions below read, as the first ones of a query that calls the subscription `s` and its
/// progress `p`.
pub(super) const COLUMNS: &str = "s.service, s.app, s.url, s.enabled, s.reason, p.generation, \
     s.verified_at, s.updated_at, p.cursor, p.bitmap, p.failing_since, p.failing_attempts, s.ticket, p.since, \
     p.gap_from, p.gap_to";
/// How many there are.
pub(super) const COLUMNS_COUNT: usize = 16;

/// Both tables, row by row.
pub(super) const JOINED: &str =
    "subscriptions s JOIN progress p ON p.service = s.service AND p.app = s.app";

/// The subscription in a row of these columns.
pub(super) fn subscription_of(row: &Row) -> Result<Subscription, Error> {
    Ok(Subscription {
        service: ServiceId::from_uuid(column(row, 0)?),
        app: AppId::from_uuid(column(row, 1)?),
        url: column(row, 2)?,
        enabled: enabled_of(row, 3)?,
        reason: column(row, 4)?,
        generation: uint(row, 5)?,
        verified_at: time_or_none(row, 6)?,
        updated_at: time(row, 7)?,
    })
}

/// A stored [`Enabled`].
pub(super) fn enabled_of(row: &Row, at: usize) -> Result<Enabled, Error> {
    let code: i16 = column(row, at)?;
    Enabled::from_code(i64::from(code))
        .ok_or_else(|| Error::Internal(format!("a stored subscription is in state {code}")))
}

/// The unbroken row of failures in a row of these columns.
pub(super) fn failing_of(row: &Row) -> Result<Option<Failing>, Error> {
    let attempts = uint32(row, 11)?;
    Ok(time_or_none(row, 10)?.map(|since| Failing { since, attempts }))
}

pub(super) async fn find_subscription<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
) -> Result<Option<Subscription>, Stop> {
    let sql = format!("SELECT {COLUMNS} FROM {JOINED} WHERE s.service = $1 AND s.app = $2");
    let row = query_opt(session, &sql, &[&service.uuid(), &app.uuid()]).await?;
    Ok(row.map(|row| subscription_of(&row)).transpose()?)
}

/// In one statement, so of one state.
pub(super) async fn get_status<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
) -> Result<SubscriptionStatus, Stop> {
    let shard = shard_of(app).number();
    // The event after the cursor is always owed: else the cursor would have passed it.
    let sql = format!(
        "SELECT {COLUMNS}, v.head, h.rows, x.rows, \
         (SELECT e.at FROM events e WHERE e.service = $1 AND e.sequence = \
         least(h.first, CASE WHEN p.cursor < v.head THEN p.cursor + 1 END)), \
         (SELECT c.condition FROM lane_conditions c JOIN shards n ON n.shard = $3 AND n.epoch = c.epoch \
         WHERE c.service = $1 AND c.app = $2) \
         FROM service_states v LEFT JOIN ({JOINED}) ON s.service = v.service AND s.app = $2 \
         CROSS JOIN LATERAL (SELECT count(*) AS rows, min(sequence) AS first FROM held \
         WHERE service = $1 AND app = $2) h \
         CROSS JOIN LATERAL (SELECT count(*) AS rows FROM exhausted WHERE service = $1 AND app = $2) x \
         WHERE v.service = $1"
    );
    let Some(row) = query_opt(session, &sql, &[&service.uuid(), &app.uuid(), &shard]).await? else {
        return Ok(SubscriptionStatus::default());
    };
    let newest = uint(&row, COLUMNS_COUNT)?;
    if column::<Option<Uuid>>(&row, 0)?.is_none() {
        return Ok(SubscriptionStatus { cursor: newest, newest, ..SubscriptionStatus::default() });
    }
    let subscription = subscription_of(&row)?;
    let owes = subscription.enabled != Enabled::No;
    let gap = uint_or_none(&row, 14)?.zip(uint_or_none(&row, 15)?);
    Ok(SubscriptionStatus {
        subscription: Some(subscription),
        cursor: if owes { uint(&row, 8)? } else { newest },
        newest,
        held: uint(&row, COLUMNS_COUNT + 1)?,
        exhausted: uint(&row, COLUMNS_COUNT + 2)?,
        oldest_undelivered: time_or_none(&row, COLUMNS_COUNT + 3)?.filter(|_| owes),
        failing: failing_of(&row)?,
        gap: gap.map(|(from, to)| Gap { from, to }),
        condition: column::<Option<i16>>(&row, COLUMNS_COUNT + 4)?
            .and_then(LaneCondition::from_code),
    })
}

/// Stores a wish and begins a generation, unless a later ticket has stored.
pub(super) async fn set_subscription(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    ticket: u64,
    wish: &SubscriptionWish,
) -> Result<Subscription, Stop> {
    let head = change.lock_service(service).await?.head;
    tenancy::check_app(change, service, app).await?;
    progress::lock(change, service, app).await?;
    let sql = format!("SELECT {COLUMNS} FROM {JOINED} WHERE s.service = $1 AND s.app = $2");
    let before = match change.query_opt(&sql, &[&service.uuid(), &app.uuid()]).await? {
        Some(row) if uint(&row, 12)? > ticket => return Err(Error::Superseded.into()),
        Some(row) => Some(subscription_of(&row)?),
        None => None,
    };
    let keeps = keeps_progress(before.as_ref(), wish);
    let after = wished(change.now, service, app, before.as_ref(), wish);
    if keeps {
        go_on(change, &after).await?;
    } else {
        start_at(change, &after, head).await?;
    }
    write(change, &after, ticket).await?;
    change.subscription_changed(service, app);
    if let Some(action) = action_of(before.as_ref(), &after) {
        let target = target_of(&after.url);
        change.note(service, action, Subject { app: Some(app), target, ..Subject::default() });
    }
    Ok(after)
}

async fn write(change: &Change<'_>, after: &Subscription, ticket: u64) -> Result<(), Stop> {
    let enabled = i16::try_from(after.enabled.code()).unwrap_or_default();
    let sql = "INSERT INTO subscriptions \
         (service, app, url, enabled, reason, ticket, verified_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (service, app) DO UPDATE SET \
         url = excluded.url, enabled = excluded.enabled, reason = excluded.reason, \
         ticket = excluded.ticket, verified_at = excluded.verified_at, updated_at = excluded.updated_at";
    let verified_at = after.verified_at.map(Timestamp::millis);
    let (service, app, updated_at) =
        (after.service.uuid(), after.app.uuid(), after.updated_at.millis());
    let ticket = int(ticket);
    change
        .execute(
            sql,
            &[
                &service,
                &app,
                &after.url,
                &enabled,
                &after.reason,
                &ticket,
                &verified_at,
                &updated_at,
            ],
        )
        .await?;
    Ok(())
}

/// Begins a generation at the same place: clears the failing clock and the gap, which the app has seen, and makes held
/// deliveries due at once.
async fn go_on(change: &Change<'_>, after: &Subscription) -> Result<(), Stop> {
    let (service, app) = (after.service.uuid(), after.app.uuid());
    let sql = "UPDATE progress SET generation = $3, failing_since = NULL, failing_attempts = 0, \
         gap_from = NULL, gap_to = NULL WHERE service = $1 AND app = $2";
    change.execute(sql, &[&service, &app, &int(after.generation)]).await?;
    let sql = "UPDATE held SET due_at = $3 WHERE service = $1 AND app = $2 AND due_at > $3";
    change.execute(sql, &[&service, &app, &change.now.millis()]).await?;
    Ok(())
}

/// Begins a generation behind this event, and drops everything that was pending.
async fn start_at(change: &Change<'_>, after: &Subscription, cursor: u64) -> Result<(), Stop> {
    let (service, app) = (after.service.uuid(), after.app.uuid());
    let params: [&(dyn ToSql + Sync); 4] = [&service, &app, &int(after.generation), &int(cursor)];
    let again = "UPDATE progress SET generation = $3, cursor = $4, since = $4, bitmap = ''::bytea, \
         failing_since = NULL, failing_attempts = 0, failed_attempts = 0, gap_from = NULL, gap_to = NULL \
         WHERE service = $1 AND app = $2";
    // Nobody else makes one meanwhile: the service is locked.
    if change.execute(again, &params).await? == 0 {
        let sql = "INSERT INTO progress (service, app, generation, cursor, since, bitmap) \
             VALUES ($1, $2, $3, $4, $4, ''::bytea)";
        change.execute(sql, &params).await?;
    }
    for table in ["held", "exhausted", "failed_attempts"] {
        let sql = format!("DELETE FROM {table} WHERE service = $1 AND app = $2");
        change.execute(&sql, &[&service, &app]).await?;
    }
    Ok(())
}
