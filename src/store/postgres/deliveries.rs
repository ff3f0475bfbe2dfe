//! Deliveries one by one: what has failed or was given up, and sending again.

use tokio_postgres::Row;

use super::change::{Stop, column, int, time, uint, uint_or_none, uint32};
use super::events::{self, event_of, find_event};
use super::session::{Session, query, query_opt};
use super::subscriptions::{JOINED, enabled_of};
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::Enabled;
use crate::store::Error;
use crate::store::rows::{
    DeliveryQuery, DeliveryRow, DeliveryState, FailedAttempt, LATER_EVENTS_MAX, LaterEvents,
    done_of,
};
use crate::store::standing::Standing;

/// Where a subscription stands; `None` when the app never subscribed. Locks the row of its progress when `lock` says so
/// (`FOR UPDATE OF p`).
async fn find_standing<S: Session>(
    session: &S,
    service: ServiceId,
    app: AppId,
    lock: &str,
) -> Result<Option<Standing>, Stop> {
    let sql = format!(
        "SELECT s.enabled, p.cursor, p.bitmap, p.since FROM {JOINED} \
         WHERE s.service = $1 AND s.app = $2 {lock}"
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
    let Some(standing) = find_standing(session, service, app, "").await? else { return Ok(None) };
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
    let sql = "SELECT s.head, l.sequence FROM services s \
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
