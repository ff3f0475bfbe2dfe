//! Subscriptions: what the app wishes, stored by ticket; and where each stands.

use tokio_postgres::Row;
use uuid::Uuid;

use super::change::{Stop, column, time, time_or_none, uint, uint_or_none, uint32};
use super::session::{Session, query_opt};
use crate::domain::event::Gap;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{Enabled, Subscription};
use crate::store::Error;
use crate::store::rows::{Failing, SubscriptionStatus};

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
    // The event after the cursor is always owed: else the cursor would have passed it.
    let sql = format!(
        "SELECT {COLUMNS}, v.head, h.rows, x.rows, \
         (SELECT e.at FROM events e WHERE e.service = $1 AND e.sequence = \
         least(h.first, CASE WHEN p.cursor < v.head THEN p.cursor + 1 END)) \
         FROM services v LEFT JOIN ({JOINED}) ON s.service = v.service AND s.app = $2 \
         CROSS JOIN LATERAL (SELECT count(*) AS rows, min(sequence) AS first FROM held \
         WHERE service = $1 AND app = $2) h \
         CROSS JOIN LATERAL (SELECT count(*) AS rows FROM exhausted WHERE service = $1 AND app = $2) x \
         WHERE v.service = $1"
    );
    let Some(row) = query_opt(session, &sql, &[&service.uuid(), &app.uuid()]).await? else {
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
    })
}
