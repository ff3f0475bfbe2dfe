//! The audit log in its table: written with the group, read by number. Rows are never changed; only [`remove_old`]
//! removes them.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::{Change, Stop, column, int, time, uint, uint_or_none};
use super::session::{Session, execute, query, query_opt};
use crate::domain::audit::SERVER;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::store::Error;
use crate::store::audit_rows::{AuditRow, CONTACTS};
use crate::store::rows::{AuditPage, AuditQuery};

/// Rows of contacts that one page looks at. With a filter that seldom fits a page comes back short instead of late.
const PAGE_ROWS_MAX: usize = 5_000;
/// Rows that are read at once: 3 MB of the largest. Fewer take more turns with the server.
const READ_ROWS: i64 = 200;
/// Services whose oldest row is looked at in one slice of upkeep.
const SLICE_SERVICES: i32 = 100;

/// Numbers and writes what was noted. Only the transaction that has locked a service's row may give numbers of it;
/// those of the server come last, because its counts are locked behind all services.
pub(super) async fn write_all(change: &mut Change<'_>) -> Result<(), Stop> {
    let mut noted = std::mem::take(&mut change.audit).into_pending();
    noted.sort_by_key(|pending| pending.service() == SERVER);
    let mut rows = Vec::with_capacity(noted.len());
    for pending in noted {
        let (service, entries) = (pending.service(), pending.entries());
        let (first, at) = take_numbers(change, service, entries).await?;
        rows.push(pending.into_row(first, at));
    }
    insert_rows(change.client, &rows).await?;
    Ok(())
}

/// The first of so many numbers of a service, and the time of its entries: never earlier than the entry before.
async fn take_numbers(
    change: &Change<'_>,
    service: ServiceId,
    entries: u64,
) -> Result<(u64, Timestamp), Stop> {
    let (entries, now) = (int(entries), change.now.millis());
    let missing = || Error::Internal("the counts of the audit log are missing".to_owned());
    let (head, at) = if service == SERVER {
        let add =
            "UPDATE counts SET count = count + $1 WHERE name = 'server_audit' RETURNING count";
        let head = change.query_opt(add, &[&entries]).await?.ok_or_else(missing)?;
        let move_on = "UPDATE counts SET count = greatest(count, $1) \
             WHERE name = 'server_audit_at' RETURNING count";
        let at = change.query_opt(move_on, &[&now]).await?.ok_or_else(missing)?;
        (uint(&head, 0)?, time(&at, 0)?)
    } else {
        // Also when this transaction has hidden it.
        let add = "UPDATE rolls SET version = version + 1, audit_head = audit_head + $2, \
             audit_at = greatest(audit_at, $3) WHERE service = $1 AND version = (SELECT version FROM rolls \
             WHERE service = $1 ORDER BY version DESC LIMIT 1) RETURNING audit_head, audit_at";
        let row = change.query_opt(add, &[&service.uuid(), &entries, &now]).await?;
        let row = row.ok_or_else(missing)?;
        (uint(&row, 0)?, time(&row, 1)?)
    };
    Ok((head - u64::try_from(entries).unwrap_or_default() + 1, at))
}

/// Writes rows that have their numbers, all in one statement.
pub(super) async fn insert_rows<S: Session>(
    session: &S,
    rows: &[AuditRow],
) -> Result<(), tokio_postgres::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let services: Vec<Uuid> = rows.iter().map(|row| row.service.uuid()).collect();
    let firsts: Vec<i64> = rows.iter().map(|row| int(row.first)).collect();
    let entries: Vec<i64> = rows.iter().map(|row| int(row.entries)).collect();
    let times: Vec<i64> = rows.iter().map(|row| row.at.millis()).collect();
    let who: Vec<&str> = rows.iter().map(|row| row.who.as_str()).collect();
    let addresses: Vec<Option<&str>> = rows.iter().map(|row| row.address.as_deref()).collect();
    let actions: Vec<&str> = rows.iter().map(|row| row.action.as_str()).collect();
    let sequences: Vec<Option<i64>> = rows.iter().map(|row| row.sequence.map(int)).collect();
    let apps: Vec<Option<Uuid>> = rows.iter().map(|row| row.app.map(AppId::uuid)).collect();
    let subjects: Vec<Option<&[u8]>> = rows.iter().map(|row| row.subject.as_deref()).collect();
    let targets: Vec<Option<&str>> = rows.iter().map(|row| row.target.as_deref()).collect();
    let reasons: Vec<Option<&str>> = rows.iter().map(|row| row.reason.as_deref()).collect();
    let sql = "INSERT INTO audit (service, first, entries, at, who, address, action, sequence, app, \
         subject, target, reason) SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], \
         $4::bigint[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::uuid[], $10::bytea[], \
         $11::text[], $12::text[])";
    let params: [&(dyn ToSql + Sync); 12] = [
        &services, &firsts, &entries, &times, &who, &addresses, &actions, &sequences, &apps,
        &subjects, &targets, &reasons,
    ];
    execute(session, sql, &params).await?;
    Ok(())
}

fn row_of(service: ServiceId, row: &Row) -> Result<AuditRow, Error> {
    Ok(AuditRow {
        service,
        first: uint(row, 0)?,
        entries: uint(row, 10)?,
        at: time(row, 1)?,
        who: column(row, 2)?,
        address: column(row, 3)?,
        action: column(row, 4)?,
        sequence: uint_or_none(row, 5)?,
        app: column::<Option<_>>(row, 6)?.map(AppId::from_uuid),
        subject: column(row, 7)?,
        target: column(row, 8)?,
        reason: column(row, 9)?,
    })
}

async fn is_known<S: Session>(session: &S, service: ServiceId) -> Result<bool, Stop> {
    if service == SERVER {
        return Ok(true);
    }
    let sql = "SELECT 1 FROM services WHERE service = $1 AND NOT hidden \
         UNION ALL SELECT 1 FROM audit WHERE service = $1 LIMIT 1";
    Ok(query_opt(session, sql, &[&service.uuid()]).await?.is_some())
}

/// A page of the entries of a service; `None` when there is no such service and nothing is kept of one. In a
/// transaction of one state.
pub(super) async fn list<S: Session>(
    session: &S,
    service: ServiceId,
    wanted: AuditQuery,
) -> Result<Option<AuditPage>, Stop> {
    if !is_known(session, service).await? {
        return Ok(None);
    }
    let mut after = wanted.after;
    if let Some(since) = wanted.since {
        after = after.max(before_time(session, service, since).await?);
    }
    // The row that has the next number may begin before it.
    let sql =
        "SELECT first FROM audit WHERE service = $1 AND first <= $2 ORDER BY first DESC LIMIT 1";
    let found = query_opt(session, sql, &[&service.uuid(), &int(after.saturating_add(1))]).await?;
    let mut from = found.map_or(Ok(0), |row| uint(&row, 0))?;
    let (filter, name) = match wanted.action {
        None => ("$3::text IS NULL", None),
        Some(action) if action.event_kind().is_some() => ("action = $3", Some(CONTACTS)),
        // The second half makes the partial index fit.
        Some(action) => ("action = $3 AND action <> 'contacts'", Some(action.name())),
    };
    let sql = format!(
        "SELECT first, at, who, address, action, sequence, app, subject, target, reason, entries FROM audit \
         WHERE service = $1 AND first >= $2 AND {filter} ORDER BY first LIMIT $4"
    );
    let limit = usize::try_from(wanted.limit).unwrap_or(usize::MAX);
    // Without a filter each row has an entry, but for the first.
    let at_once = READ_ROWS.min(i64::from(wanted.limit) + 1);
    let mut page = AuditPage::default();
    let mut looked_at = 0;
    loop {
        let rows = query(session, &sql, &[&service.uuid(), &int(from), &name, &at_once]).await?;
        for row in &rows {
            let row = row_of(service, row)?;
            from = row.first + 1;
            let last = row
                .push_entries(after, wanted.action, limit, &mut page.entries)
                .map_err(|error| Error::Internal(error.to_string()))?;
            looked_at += 1;
            if page.entries.len() == limit || looked_at == PAGE_ROWS_MAX {
                page.next = Some(last);
                return Ok(Some(page));
            }
        }
        if i64::try_from(rows.len()).unwrap_or(i64::MAX) < at_once {
            return Ok(Some(page));
        }
    }
}

/// The number before the first entry of this time or later. Times never go back within a log, so it is found by halving.
async fn before_time<S: Session>(
    session: &S,
    service: ServiceId,
    wanted: Timestamp,
) -> Result<u64, Stop> {
    let sql = "WITH RECURSIVE ends AS (SELECT min(first) AS oldest, max(first) AS newest FROM audit \
         WHERE service = $1), steps (low, high) AS (SELECT oldest, newest + 1 FROM ends \
         WHERE oldest IS NOT NULL UNION ALL \
         SELECT CASE WHEN r.at < $2 THEN m.middle + 1 ELSE m.low END, \
         CASE WHEN r.at < $2 THEN m.high ELSE r.first END FROM \
         (SELECT low, high, low + (high - low) / 2 AS middle FROM steps WHERE low < high) m \
         CROSS JOIN LATERAL (SELECT a.first, a.at FROM audit a WHERE a.service = $1 \
         AND a.first <= m.middle ORDER BY a.first DESC LIMIT 1) r) \
         SELECT s.low, e.newest FROM steps s CROSS JOIN ends e WHERE s.low >= s.high";
    let Some(row) = query_opt(session, sql, &[&service.uuid(), &wanted.millis()]).await? else {
        return Ok(0);
    };
    let (low, newest) = (uint(&row, 0)?, uint(&row, 1)?);
    // Entries of the newest row have its time; if that is too old, so are they.
    let is_beyond = low > newest;
    Ok(if is_beyond { u64::MAX >> 1 } else { low - 1 })
}

/// What one slice over the audit logs did.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// Rows removed.
    pub(super) rows: u64,
    /// The last service that was looked at; `None` at the end of all.
    pub(super) position: Option<ServiceId>,
}

/// Removes old rows of some services after `position`, at most `limit`. Those of deleted services are among them.
pub(super) async fn remove_old<S: Session>(
    session: &S,
    position: Option<ServiceId>,
    before: Timestamp,
    limit: u64,
) -> Result<Removed, Stop> {
    // The log of the server stands under the lowest number of all.
    let (beyond, from) = match position {
        None => (">=", SERVER),
        Some(position) => (">", position),
    };
    // The first row of each service in turn, without a look at the others.
    let sql = format!(
        "WITH RECURSIVE oldest AS ((SELECT service, at, 1 AS place FROM audit WHERE service {beyond} $1 \
         ORDER BY service, first LIMIT 1) UNION ALL SELECT n.service, n.at, o.place + 1 FROM oldest o \
         CROSS JOIN LATERAL (SELECT a.service, a.at FROM audit a WHERE a.service > o.service \
         ORDER BY a.service, a.first LIMIT 1) n WHERE o.place < $2) SELECT service, at FROM oldest"
    );
    let services = query(session, &sql, &[&from.uuid(), &SLICE_SERVICES]).await?;
    let mut removed = Removed { position, ..Removed::default() };
    for row in &services {
        let service = ServiceId::from_uuid(column(row, 0)?);
        if time(row, 1)? < before {
            // Times never go back within a log.
            let sql = "DELETE FROM audit WHERE service = $1 AND first <= (SELECT max(o.first) FROM \
                 (SELECT first, at FROM audit WHERE service = $1 ORDER BY first LIMIT $2) o WHERE o.at < $3)";
            let left = int(limit - removed.rows);
            let key = service.uuid();
            removed.rows += execute(session, sql, &[&key, &left, &before.millis()]).await?;
        }
        if removed.rows >= limit {
            // There may be more of this service: the position stays before it.
            return Ok(removed);
        }
        removed.position = Some(service);
    }
    if i32::try_from(services.len()).unwrap_or(i32::MAX) < SLICE_SERVICES {
        removed.position = None;
    }
    Ok(removed)
}
