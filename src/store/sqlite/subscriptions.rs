//! Subscriptions: what the app wishes, stored by ticket; and where each stands.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{int, time, time_or_none, uint};
use super::tenancy::app_exists;
use super::writer::{Change, Stop};
use crate::domain::audit::{Subject, target_of};
use crate::domain::clock::Timestamp;
use crate::domain::event::Gap;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{Enabled, Subscription};
use crate::store::Error;
use crate::store::command::SubscriptionWish;
use crate::store::rows::{Failing, SubscriptionStatus};
use crate::store::wish::{action_of, keeps_progress, wished};

const SELECT: &str = "SELECT s.service, s.app, s.url, s.enabled, s.reason, p.generation, s.verified_at, \
     s.updated_at, p.cursor, p.bitmap, p.failing_since, p.failing_attempts, s.ticket, \
     p.gap_from, p.gap_to, p.since \
     FROM subscriptions s JOIN progress p ON p.service = s.service AND p.app = s.app";

/// The query for one subscription with its progress.
pub(super) fn select_one() -> String {
    format!("{SELECT} WHERE s.service = ?1 AND s.app = ?2")
}

/// The query for every enabled subscription of the services that are there, by key.
pub(super) fn select_enabled() -> String {
    format!(
        "{SELECT} JOIN services v ON v.service = s.service WHERE s.enabled = 1 AND v.hidden = 0 \
         ORDER BY s.service, s.app"
    )
}

/// The subscription in a row of these queries.
pub(super) fn subscription_of(row: &Row<'_>) -> Result<Subscription, rusqlite::Error> {
    Ok(Subscription {
        service: ServiceId::from_bytes(row.get(0)?),
        app: AppId::from_bytes(row.get(1)?),
        url: row.get(2)?,
        enabled: enabled_of(row, 3)?,
        reason: row.get(4)?,
        generation: uint(row, 5)?,
        verified_at: time_or_none(row, 6)?,
        updated_at: time(row, 7)?,
    })
}

/// A stored [`Enabled`].
pub(super) fn enabled_of(row: &Row<'_>, column: usize) -> Result<Enabled, rusqlite::Error> {
    let code: i64 = row.get(column)?;
    Enabled::from_code(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, code))
}

/// The unbroken row of failures in a row of these queries.
pub(super) fn failing_of(row: &Row<'_>) -> Result<Option<Failing>, rusqlite::Error> {
    let since = time_or_none(row, 10)?;
    let attempts = row.get(11)?;
    Ok(since.map(|since| Failing { since, attempts }))
}

/// The highest ticket that ever stored.
pub(super) fn last_ticket(connection: &Connection) -> Result<u64, rusqlite::Error> {
    connection
        .query_row("SELECT coalesce(max(ticket), 0) FROM subscriptions", [], |row| uint(row, 0))
}

pub(super) fn find_subscription(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
) -> Result<Option<Subscription>, rusqlite::Error> {
    connection
        .prepare_cached(&select_one())?
        .query_row(params![service.as_bytes(), app.as_bytes()], subscription_of)
        .optional()
}

pub(super) fn get_status(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
) -> Result<SubscriptionStatus, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let newest = tx
        .prepare_cached("SELECT head FROM services WHERE service = ?1")?
        .query_row([service.as_bytes()], |row| uint(row, 0))
        .optional()?
        .unwrap_or(0);
    let found = tx
        .prepare_cached(&select_one())?
        .query_row(params![service.as_bytes(), app.as_bytes()], |row| {
            let gap = match row.get::<_, Option<i64>>(13)? {
                Some(_) => Some(Gap { from: uint(row, 13)?, to: uint(row, 14)? }),
                None => None,
            };
            Ok((subscription_of(row)?, uint(row, 8)?, failing_of(row)?, gap))
        })
        .optional()?;
    let Some((subscription, cursor, failing, gap)) = found else {
        return Ok(SubscriptionStatus { cursor: newest, newest, ..SubscriptionStatus::default() });
    };
    let count = |table: &str| {
        tx.prepare_cached(&format!(
            "SELECT count(*), coalesce(min(sequence), 0) FROM {table} WHERE service = ?1 AND app = ?2"
        ))?
        .query_row(params![service.as_bytes(), app.as_bytes()], |row| Ok((uint(row, 0)?, uint(row, 1)?)))
    };
    let (held, first_held) = count("held")?;
    let (exhausted, _) = count("exhausted")?;
    // The event after the cursor is always owed: else the cursor would have passed it.
    let next = if cursor < newest { cursor + 1 } else { 0 };
    let oldest = [first_held, next].into_iter().filter(|sequence| *sequence > 0).min();
    let owes = subscription.enabled != Enabled::No;
    let oldest_undelivered = match oldest.filter(|_| owes) {
        Some(sequence) => tx
            .prepare_cached("SELECT at FROM events WHERE service = ?1 AND sequence = ?2")?
            .query_row(params![service.as_bytes(), int(sequence)], |row| time(row, 0))
            .optional()?,
        None => None,
    };
    Ok(SubscriptionStatus {
        subscription: Some(subscription),
        cursor: if owes { cursor } else { newest },
        newest,
        held,
        exhausted,
        oldest_undelivered,
        failing,
        gap,
        condition: None,
    })
}

/// Stores a wish and begins a generation, unless a later ticket has stored.
pub(super) fn set_subscription(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    ticket: u64,
    wish: &SubscriptionWish,
) -> Result<Subscription, Stop> {
    let head = change.services.get_mut(change.connection, service)?.head;
    if !app_exists(change.connection, service, app)? {
        return Err(Error::NotFound.into());
    }
    let stored = change
        .connection
        .prepare_cached(&select_one())?
        .query_row(params![service.as_bytes(), app.as_bytes()], |row| {
            Ok((subscription_of(row)?, uint(row, 12)?))
        })
        .optional()?;
    if stored.as_ref().is_some_and(|(_, last)| *last > ticket) {
        return Err(Error::Superseded.into());
    }
    let before = stored.map(|(subscription, _)| subscription);
    let keeps = keeps_progress(before.as_ref(), wish);
    let after = wished(change.now, service, app, before.as_ref(), wish);
    write(change, &after, ticket)?;
    begin_generation(change, &after, if keeps { None } else { Some(head) })?;
    change.commit.subscriptions.push((service, app));
    if let Some(action) = action_of(before.as_ref(), &after) {
        let target = target_of(&after.url);
        change.note(service, action, Subject { app: Some(app), target, ..Subject::default() });
    }
    Ok(after)
}

fn write(change: &Change<'_>, after: &Subscription, ticket: u64) -> Result<(), Stop> {
    change
        .connection
        .prepare_cached(
            "INSERT OR REPLACE INTO subscriptions \
             (service, app, url, enabled, reason, ticket, verified_at, updated_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            after.service.as_bytes(),
            after.app.as_bytes(),
            after.url,
            after.enabled.code(),
            after.reason,
            int(ticket),
            after.verified_at.map(Timestamp::millis),
            after.updated_at.millis(),
        ])?;
    Ok(())
}

/// Clears the failing clock and the gap, which the app has seen; with a start, everything that was pending is dropped and the cursor is set there.
/// Without one, held deliveries become due at once.
fn begin_generation(
    change: &Change<'_>,
    after: &Subscription,
    start: Option<u64>,
) -> Result<(), Stop> {
    let key = (after.service.as_bytes(), after.app.as_bytes());
    let Some(cursor) = start else {
        change
            .connection
            .prepare_cached(
                "UPDATE progress SET generation = ?3, failing_since = NULL, failing_attempts = 0, \
                 gap_from = NULL, gap_to = NULL WHERE service = ?1 AND app = ?2",
            )?
            .execute(params![key.0, key.1, int(after.generation)])?;
        change
            .connection
            .prepare_cached(
                "UPDATE held SET due_at = ?3 WHERE service = ?1 AND app = ?2 AND due_at > ?3",
            )?
            .execute(params![key.0, key.1, change.now.millis()])?;
        return Ok(());
    };
    change
        .connection
        .prepare_cached(
            "INSERT OR REPLACE INTO progress (service, app, generation, cursor, since, bitmap) \
             VALUES (?1, ?2, ?3, ?4, ?4, x'')",
        )?
        .execute(params![key.0, key.1, int(after.generation), int(cursor)])?;
    for table in ["held", "exhausted", "failed_attempts"] {
        change
            .connection
            .prepare_cached(&format!("DELETE FROM {table} WHERE service = ?1 AND app = ?2"))?
            .execute(params![key.0, key.1])?;
    }
    Ok(())
}
