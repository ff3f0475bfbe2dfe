//! Staff contacts: read by id or in slices, changed by the writer together with their event.

use tokio_postgres::Row;

use super::change::{Stop, column, int, time, uint};
use super::session::{Session, query, query_opt};
use crate::domain::contact::StaffContact;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::Error;
use crate::store::rows::{ContactList, ContactQuery};

/// The columns that [`contact_of`] reads, as the first ones of a query that calls the contacts `c`.
pub(super) const COLUMNS: &str = "c.contact, c.version, c.created_at, c.updated_at, c.fields";

/// The contact in a row that begins with [`COLUMNS`].
pub(super) fn contact_of(row: &Row) -> Result<StaffContact, Error> {
    let text: &str = column(row, 4)?;
    let fields = serde_json::from_str(text)
        .map_err(|_| Error::Internal("the fields of a stored contact cannot be read".to_owned()))?;
    Ok(StaffContact {
        id: ContactId::from_uuid(column(row, 0)?),
        version: uint(row, 1)?,
        created_at: time(row, 2)?,
        updated_at: time(row, 3)?,
        fields,
    })
}

pub(super) async fn find_contact<S: Session>(
    session: &S,
    service: ServiceId,
    id: ContactId,
) -> Result<Option<StaffContact>, Stop> {
    let sql = format!("SELECT {COLUMNS} FROM contacts c WHERE c.service = $1 AND c.contact = $2");
    let row = query_opt(session, &sql, &[&service.uuid(), &id.uuid()]).await?;
    Ok(row.map(|row| contact_of(&row)).transpose()?)
}

/// Identifiers sort in the order they were made, so the key gives the oldest first. One statement, so one state.
pub(super) async fn list_contacts<S: Session>(
    session: &S,
    service: ServiceId,
    wanted: &ContactQuery,
) -> Result<ContactList, Stop> {
    let name = wanted.full_name.as_ref().map(|name| name.to_lowercase());
    // PostgreSQL takes no such text, and no contact has one.
    let is_impossible = name.as_ref().is_some_and(|name| name.contains('\0'));
    let name = name.filter(|_| !is_impossible);
    let (total, filter) = match name {
        None => ("s.contacts", "$4::text IS NULL"),
        Some(_) => (
            "(SELECT count(*) FROM contacts n WHERE n.service = $1 AND strpos(n.search_name, $4) > 0)",
            "strpos(l.search_name, $4) > 0",
        ),
    };
    let sql = format!(
        "SELECT {COLUMNS}, s.head, {total} FROM service_states s LEFT JOIN LATERAL \
         (SELECT * FROM contacts l WHERE l.service = $1 AND {filter} ORDER BY l.contact LIMIT $2 OFFSET $3) c \
         ON true WHERE s.service = $1 ORDER BY c.contact"
    );
    let limit = if is_impossible { 0 } else { i64::from(wanted.limit) };
    let rows = query(session, &sql, &[&service.uuid(), &limit, &int(wanted.offset), &name]).await?;
    let mut list = ContactList { total: 0, items: Vec::new(), sequence: 0 };
    if let Some(first) = rows.first() {
        list.sequence = uint(first, 5)?;
        list.total = if is_impossible { 0 } else { uint(first, 6)? };
        // A slice without contacts gives one row, of the numbers alone.
        if column::<Option<i64>>(first, 1)?.is_some() {
            list.items = rows.iter().map(contact_of).collect::<Result<_, _>>()?;
        }
    }
    Ok(list)
}
