//! The event log: appended by the writer, read in order.

use tokio_postgres::Row;

use super::change::{Stop, column, int, time, uint};
use super::session::{Session, query, query_opt};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ContactId, EventId, ServiceId};
use crate::store::Error;
use crate::store::rows::LogPage;

/// The columns that [`event_of`] reads, as the first ones of a query that calls the events `e`.
pub(super) const COLUMNS: &str =
    "e.sequence, e.event, e.contact, e.kind, e.contact_version, e.full_name, e.at";

/// The services with the heads of their logs. All at once, so not by way of the view, which looks each of them up.
pub(super) const HEADS: &str = "SELECT s.service, r.head FROM services s JOIN rolls r ON r.service = s.service WHERE NOT s.hidden";

/// The event in a row that begins with [`COLUMNS`].
pub(super) fn event_of(service: ServiceId, row: &Row) -> Result<Event, Error> {
    let code: i16 = column(row, 3)?;
    Ok(Event {
        service,
        sequence: uint(row, 0)?,
        id: EventId::from_uuid(column(row, 1)?),
        contact: ContactId::from_uuid(column(row, 2)?),
        kind: EventKind::from_code(i64::from(code))
            .ok_or_else(|| Error::Internal(format!("a stored event is of kind {code}")))?,
        contact_version: uint(row, 4)?,
        full_name: column(row, 5)?,
        at: time(row, 6)?,
    })
}

pub(super) async fn list_heads<S: Session>(session: &S) -> Result<Vec<(ServiceId, u64)>, Stop> {
    let rows = query(session, &format!("{HEADS} ORDER BY s.service"), &[]).await?;
    let head = |row: &Row| Ok((ServiceId::from_uuid(column(row, 0)?), uint(row, 1)?));
    rows.iter().map(head).collect()
}

pub(super) async fn list_events<S: Session>(
    session: &S,
    service: ServiceId,
    after: u64,
    limit: u32,
) -> Result<Vec<Event>, Stop> {
    let sql = format!(
        "SELECT {COLUMNS} FROM events e WHERE e.service = $1 AND e.sequence > $2 \
         ORDER BY e.sequence LIMIT $3"
    );
    let rows = query(session, &sql, &[&service.uuid(), &int(after), &i64::from(limit)]).await?;
    Ok(rows.iter().map(|row| event_of(service, row)).collect::<Result<_, _>>()?)
}

pub(super) async fn find_event<S: Session>(
    session: &S,
    service: ServiceId,
    sequence: u64,
) -> Result<Option<Event>, Stop> {
    let sql = format!("SELECT {COLUMNS} FROM events e WHERE e.service = $1 AND e.sequence = $2");
    let row = query_opt(session, &sql, &[&service.uuid(), &int(sequence)]).await?;
    Ok(row.map(|row| event_of(service, &row)).transpose()?)
}

/// Head and events of one state, in one statement because readers of the feed ask for nothing else. A service that is
/// being removed is not there.
pub(super) async fn list_log<S: Session>(
    session: &S,
    service: ServiceId,
    after: u64,
    limit: u32,
) -> Result<Option<LogPage>, Stop> {
    let sql = format!(
        "SELECT {COLUMNS}, s.head FROM service_states s LEFT JOIN LATERAL \
         (SELECT * FROM events l WHERE l.service = $1 AND l.sequence > $2 ORDER BY l.sequence LIMIT $3) e \
         ON true WHERE s.service = $1 AND NOT s.hidden ORDER BY e.sequence"
    );
    let rows = query(session, &sql, &[&service.uuid(), &int(after), &i64::from(limit)]).await?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let mut page = LogPage { events: Vec::new(), newest: uint(first, 7)? };
    // A log without such events gives one row, of the head alone.
    if column::<Option<i64>>(first, 0)?.is_some() {
        page.events = rows.iter().map(|row| event_of(service, row)).collect::<Result<_, _>>()?;
    }
    Ok(Some(page))
}

/// The number before the first event of this time or later. Times never go back within a log, so it is found by halving.
pub(super) async fn before_time<S: Session>(
    session: &S,
    service: ServiceId,
    wanted: Timestamp,
    head: u64,
) -> Result<u64, Stop> {
    // A number that was removed is older than everything that is there.
    let sql = "WITH RECURSIVE steps (low, high) AS (SELECT 0::bigint, $3::bigint UNION ALL \
         SELECT CASE WHEN m.earlier THEN m.middle ELSE m.low END, \
         CASE WHEN m.earlier THEN m.high ELSE m.middle - 1 END FROM \
         (SELECT h.low, h.high, h.middle, coalesce((SELECT e.at < $2 FROM events e \
         WHERE e.service = $1 AND e.sequence = h.middle), true) AS earlier FROM \
         (SELECT low, high, low + (high - low) / 2 + 1 AS middle FROM steps WHERE low < high) h) m) \
         SELECT low FROM steps WHERE low >= high";
    let row = query_opt(session, sql, &[&service.uuid(), &wanted.millis(), &int(head)]).await?;
    Ok(row.map_or(Ok(0), |row| uint(&row, 0))?)
}
