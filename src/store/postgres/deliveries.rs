//! Deliveries one by one: what has failed or was given up, and sending again.
//!
//! A redelivery and a replay begin a generation: a result that is not recorded yet belongs to the one before and
//! changes nothing, so what was to be sent again is sent again whatever was on its way at that moment.

use tokio_postgres::Row;

use super::change::{Change, LockedService, Stop, column, int, time, uint, uint_or_none, uint32};
use super::events::{self, event_of, find_event};
use super::progress;
use super::session::{Session, execute, query, query_opt};
use super::subscriptions::{JOINED, enabled_of};
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::Enabled;
use crate::store::Error;
use crate::store::rows::{
    DeliveryQuery, DeliveryRow, DeliveryState, FailedAttempt, LATER_EVENTS_MAX, LaterEvents,
    ReplayFrom, Replayed, done_of,
};
use crate::store::standing::{Standing, check_in_log, check_room};

/// Where a subscription stands; `None` when the app never subscribed.
async fn find_standing<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
) -> Result<Option<Standing>, Stop> {
    let sql = format!(
        "SELECT s.enabled, p.cursor, p.bitmap, p.since FROM {JOINED} \
         WHERE s.service = $1 AND s.app = $2"
    );
    let Some(row) = query_opt(session, &sql, &[&service.uuid(), &app.uuid()]).await? else {
        return Ok(None);
    };
    let cursor = uint(&row, 1)?;
    Ok(Some(Standing {
        enabled: enabled_of(&row, 0)?,
        cursor,
        done: done_of(cursor, column(&row, 2)?),
        since: uint(&row, 3)?,
    }))
}

/// The failed attempts of these deliveries, in order for each.
async fn failed_of<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
    rows: &mut [DeliveryRow],
) -> Result<(), Stop> {
    let sequences: Vec<i64> = rows.iter().map(|row| int(row.event.sequence)).collect();
    if sequences.is_empty() {
        return Ok(());
    }
    let sql = "SELECT sequence, attempt, at, status, step, answer FROM failed_attempts \
         WHERE service = $1 AND app = $2 AND sequence = ANY($3) ORDER BY sequence, number";
    let found = query(session, sql, &[&service.uuid(), &app.uuid(), &sequences]).await?;
    for row in &found {
        let status: Option<i32> = column(row, 3)?;
        let failed = FailedAttempt {
            sequence: uint(row, 0)?,
            attempt: uint32(row, 1)?,
            at: time(row, 2)?,
            status: status.and_then(|status| u16::try_from(status).ok()),
            step: column(row, 4)?,
            answer: column(row, 5)?,
        };
        // Both are in order of their numbers.
        let at = rows.binary_search_by_key(&failed.sequence, |row| row.event.sequence);
        if let Some(row) = at.ok().and_then(|at| rows.get_mut(at)) {
            row.failed.push(failed);
        }
    }
    Ok(())
}

/// The rows of held and exhausted deliveries with their events; the parameters are service, app, number.
fn select_kept(filter: &str) -> String {
    format!(
        "SELECT {}, k.exhausted, k.attempts, k.at FROM \
         (SELECT sequence, false AS exhausted, attempts, due_at AS at FROM held \
         WHERE service = $1 AND app = $2 AND sequence {filter} \
         UNION ALL SELECT sequence, true, attempts, at FROM exhausted \
         WHERE service = $1 AND app = $2 AND sequence {filter}) k \
         JOIN events e ON e.service = $1 AND e.sequence = k.sequence",
        events::COLUMNS
    )
}

fn kept_of(service: ServiceId, row: &Row) -> Result<DeliveryRow, Error> {
    let exhausted: bool = column(row, 7)?;
    Ok(DeliveryRow {
        event: event_of(service, row)?,
        state: if exhausted { DeliveryState::Exhausted } else { DeliveryState::Held },
        attempts: uint32(row, 8)?,
        at: Some(time(row, 9)?),
        failed: Vec::new(),
    })
}

/// In a transaction of one state.
pub(super) async fn list_deliveries<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
    wanted: DeliveryQuery,
) -> Result<Vec<DeliveryRow>, Stop> {
    let kept = select_kept("> $3");
    let filter = match wanted.state {
        Some(DeliveryState::Held) => "WHERE NOT k.exhausted",
        Some(DeliveryState::Exhausted) => "WHERE k.exhausted",
        _ => "",
    };
    let sql = format!("{kept} {filter} ORDER BY k.sequence LIMIT $4");
    let limit = i64::from(wanted.limit);
    let found =
        query(session, &sql, &[&service.uuid(), &app.uuid(), &int(wanted.after), &limit]).await?;
    let mut rows = found.iter().map(|row| kept_of(service, row)).collect::<Result<Vec<_>, _>>()?;
    failed_of(session, service, app, &mut rows).await?;
    Ok(rows)
}

/// In a transaction of one state.
pub(super) async fn find_delivery<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
    sequence: u64,
) -> Result<Option<DeliveryRow>, Stop> {
    let Some(standing) = find_standing(session, service, app).await? else { return Ok(None) };
    if standing.enabled == Enabled::No {
        return Ok(None);
    }
    let sql = select_kept("= $3");
    let kept = query(session, &sql, &[&service.uuid(), &app.uuid(), &int(sequence)]).await?;
    let row = match kept.first() {
        Some(row) => kept_of(service, row)?,
        None => {
            let Some(event) = find_event(session, service, sequence).await? else {
                return Ok(None);
            };
            let state = standing.state_of(sequence);
            DeliveryRow { event, state, attempts: 0, at: None, failed: Vec::new() }
        }
    };
    let mut rows = [row];
    failed_of(session, service, app, &mut rows).await?;
    let [row] = rows;
    Ok(Some(row))
}

/// In one statement, so of one state.
pub(super) async fn list_later_events<S: Session>(
    session: &S,
    service: ServiceId,
    sequence: u64,
) -> Result<LaterEvents, Stop> {
    let most = i64::try_from(LATER_EVENTS_MAX).unwrap_or(i64::MAX);
    let sql = "SELECT s.head, l.sequence FROM service_states s \
         LEFT JOIN events e ON e.service = s.service AND e.sequence = $2 \
         LEFT JOIN LATERAL (SELECT n.sequence FROM events n WHERE n.service = $1 AND n.sequence > $2 \
         AND n.contact = e.contact ORDER BY n.sequence DESC LIMIT $3) l ON true \
         WHERE s.service = $1 AND NOT s.hidden ORDER BY l.sequence DESC";
    let rows = query(session, sql, &[&service.uuid(), &int(sequence), &most]).await?;
    let mut later = LaterEvents::default();
    for row in &rows {
        later.head = uint(row, 0)?;
        later.sequences.extend(uint_or_none(row, 1)?);
    }
    Ok(later)
}

/// The subscription's standing, if it sends at all, and its service. Both rows are locked.
async fn lock_standing(
    change: &Change<'_>,
    service: ServiceId,
    app: AppId,
) -> Result<(LockedService, Standing), Stop> {
    let locked = change.lock_service(service).await?;
    progress::lock(change, service, app).await?;
    let standing = find_standing(change.client, service, app).await?.ok_or(Error::NotFound)?;
    standing.check_sends()?;
    Ok((locked, standing))
}

/// The numbers in the first column.
fn numbers(rows: &[Row]) -> Result<Vec<u64>, Error> {
    rows.iter().map(|row| uint(row, 0)).collect()
}

/// The held events of a contact, in order.
async fn held_of(
    change: &Change<'_>,
    service: ServiceId,
    app: AppId,
    contact: ContactId,
) -> Result<Vec<u64>, Stop> {
    let sql = "SELECT sequence FROM held WHERE service = $1 AND app = $2 AND contact = $3 \
         ORDER BY sequence";
    let rows = change.query(sql, &[&service.uuid(), &app.uuid(), &contact.uuid()]).await?;
    Ok(numbers(&rows)?)
}

pub(super) async fn redeliver(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    sequence: u64,
    later: &LaterEvents,
) -> Result<(), Stop> {
    let (_, mut standing) = lock_standing(change, service, app).await?;
    let event = find_event(change.client, service, sequence).await?.ok_or(Error::NotFound)?;
    let (of_service, of_app, contact) = (service.uuid(), app.uuid(), event.contact.uuid());
    let held = held_of(change, service, app, event.contact).await?;
    let is_finished = |standing: &Standing, sequence: u64| {
        standing.finished(sequence) && held.binary_search(&sequence).is_err()
    };

    if !is_finished(&standing, sequence) {
        // Owed: its contact's first owed event becomes due. One that is not held is on its way already.
        let Some(first) = held.first() else { return Ok(()) };
        let sql = "UPDATE held SET due_at = $4 WHERE service = $1 AND app = $2 AND sequence = $3 \
             AND due_at > $4";
        let now = change.now.millis();
        if change.execute(sql, &[&of_service, &of_app, &int(*first), &now]).await? > 0 {
            begin_generation(change, service, app, &standing).await?;
        }
        return Ok(());
    }

    let sql = "SELECT count(*) FROM held WHERE service = $1 AND app = $2";
    let count = change.query_opt(sql, &[&of_service, &of_app]).await?;
    check_room(count.map_or(Ok(0), |row| uint(&row, 0))?)?;
    // What came after the reader looked is little, and at the front.
    let sql = "SELECT sequence FROM events WHERE service = $1 AND sequence > $2 AND contact = $3 \
         ORDER BY sequence DESC LIMIT $4";
    let (looked_at, most) = (int(later.head.max(sequence)), int(LATER_EVENTS_MAX as u64));
    let rows = change.query(sql, &[&of_service, &looked_at, &contact, &most]).await?;
    let mut candidates = numbers(&rows)?;
    candidates.extend(&later.sequences);
    let newest = candidates.into_iter().find(|candidate| is_finished(&standing, *candidate));
    for again in [Some(sequence), newest].into_iter().flatten() {
        let sql = "DELETE FROM exhausted WHERE service = $1 AND app = $2 AND sequence = $3 \
             RETURNING attempts";
        let exhausted = change.query_opt(sql, &[&of_service, &of_app, &int(again)]).await?;
        let attempts = exhausted.map_or(Ok(0), |row| uint(&row, 0))?;
        let sql = "INSERT INTO held (service, app, sequence, contact, retries_used, attempts, due_at) \
             VALUES ($1, $2, $3, $4, 0, $5, $6)";
        let now = change.now.millis();
        change
            .execute(sql, &[&of_service, &of_app, &int(again), &contact, &int(attempts), &now])
            .await?;
        standing.done.retain(|done| *done != again);
    }
    begin_generation(change, service, app, &standing).await?;
    change.commit.again.push((service, app));
    Ok(())
}

pub(super) async fn replay(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    from: ReplayFrom,
) -> Result<Replayed, Stop> {
    let (LockedService { head, floor }, mut standing) = lock_standing(change, service, app).await?;
    let after = match from {
        ReplayFrom::After(after) => check_in_log(after, head)?,
        ReplayFrom::Since(time) => events::before_time(change.client, service, time, head).await?,
    };
    let from = after.max(floor);
    let (of_service, of_app) = (service.uuid(), app.uuid());
    for table in ["held", "exhausted"] {
        let sql = format!("DELETE FROM {table} WHERE service = $1 AND app = $2 AND sequence > $3");
        change.execute(&sql, &[&of_service, &of_app, &int(from)]).await?;
    }
    standing.set_back(from);
    let sql = "UPDATE progress SET since = least(since, $3) WHERE service = $1 AND app = $2";
    change.execute(sql, &[&of_service, &of_app, &int(from)]).await?;
    if after < floor {
        extend_gap(change.client, service, app, after + 1, floor).await?;
    }
    begin_generation(change, service, app, &standing).await?;
    change.commit.again.push((service, app));
    Ok(Replayed { after: from, newest: head })
}

/// Adds to the stored gap of a subscription.
pub(super) async fn extend_gap<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
    from: u64,
    to: u64,
) -> Result<(), tokio_postgres::Error> {
    let sql = "UPDATE progress SET gap_from = least(gap_from, $3), gap_to = greatest(gap_to, $4) \
         WHERE service = $1 AND app = $2";
    execute(session, sql, &[&service.uuid(), &app.uuid(), &int(from), &int(to)]).await?;
    Ok(())
}

async fn begin_generation(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    standing: &Standing,
) -> Result<(), Stop> {
    progress::set(change.client, service, app, standing.cursor, &standing.done).await?;
    change.subscription_changed(service, app);
    Ok(())
}
