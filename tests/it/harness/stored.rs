//! What a store must hold, and reading a store file with SQLite to see whether it does.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use super::writers::{Acknowledged, Told};

/// The kind of an event that ends a contact, as the store has it.
const DELETE: i64 = 3;

/// E-mails that are taken and that no contact has, or that a contact has and that are not taken. The tables of recent
/// changes go before the sorted one, and in them the highest number.
const EMAILS_AT_ODDS: &str = "\
    WITH recent AS (SELECT * FROM recent_emails_0 UNION ALL SELECT * FROM recent_emails_1), \
    newest AS (SELECT service, email, contact, max(number) FROM recent GROUP BY service, email), \
    taken AS (SELECT service, email, contact FROM newest WHERE contact IS NOT NULL UNION ALL \
        SELECT service, email, contact FROM emails \
        WHERE (service, email) NOT IN (SELECT service, email FROM newest)), \
    had AS (SELECT service, email, contact FROM contacts) \
    SELECT (SELECT count(*) FROM (SELECT * FROM taken EXCEPT SELECT * FROM had)) \
        + (SELECT count(*) FROM (SELECT * FROM had EXCEPT SELECT * FROM taken))";

/// Rows of the audit log of the service that do not begin where the one before ends, and whether the last one ends
/// before or after the head.
const AUDIT_GAPS: &str = "\
    SELECT (SELECT count(*) FROM (SELECT first, coalesce(lag(first + entries) OVER (ORDER BY first), 1) AS next \
        FROM audit WHERE service = (SELECT service FROM services)) WHERE first <> next) \
        + (SELECT audit_head <> (SELECT coalesce(max(first + entries), 1) - 1 FROM audit \
        WHERE service = services.service) FROM services)";

/// Changes that were acknowledged.
#[derive(Clone, Default)]
pub(crate) struct Stored {
    pub(crate) changes: BTreeMap<(String, u64), Told>,
    pub(crate) deletes: BTreeMap<String, Told>,
}

impl Stored {
    /// Also what these callers were told.
    pub(crate) fn add(&mut self, told: &Acknowledged) {
        self.changes.extend(told.changes.lock().unwrap().clone());
        self.deletes.extend(told.deletes.lock().unwrap().clone());
    }

    /// What was told up to a position; from then on it counts as told from the beginning.
    pub(crate) fn until(&self, position: u64) -> Self {
        let from_beginning = |told: &Told| Told { position: 0, ..told.clone() };
        let changes = self.changes.iter().filter(|(_, told)| told.position <= position);
        let deletes = self.deletes.iter().filter(|(_, told)| told.position <= position);
        Self {
            changes: changes.map(|(key, told)| (key.clone(), from_beginning(told))).collect(),
            deletes: deletes.map(|(key, told)| (key.clone(), from_beginning(told))).collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len() + self.deletes.len()
    }
}

/// What is wrong with a store.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Acknowledged, and not there.
    pub(crate) lost: Vec<String>,
    /// What may not be, whatever was acknowledged.
    pub(crate) broken: Vec<String>,
}

struct ContactRow {
    version: u64,
    fields: serde_json::Value,
}

/// The events of one contact: version and kind in the order of the log.
type Chains = BTreeMap<String, Vec<(u64, i64)>>;

/// Reads a store with one service. `is_set_up` says that service, app and subscription were acknowledged.
pub(crate) fn find_faults(database: &Path, acknowledged: &Stored, is_set_up: bool) -> Faults {
    let mut faults = Faults::default();
    let is_there = std::fs::metadata(database).is_ok_and(|file| file.len() > 0);
    if !is_there && !is_set_up {
        return faults;
    }
    if let Err(error) = read(database, acknowledged, is_set_up, &mut faults) {
        let place = if is_there { &mut faults.broken } else { &mut faults.lost };
        place.push(format!("cannot be read: {error}"));
    }
    faults
}

fn read(
    database: &Path,
    acknowledged: &Stored,
    is_set_up: bool,
    faults: &mut Faults,
) -> Result<(), rusqlite::Error> {
    let connection = Connection::open(database)?;
    let integrity: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if integrity != "ok" {
        faults.broken.push(format!("integrity check: {integrity}"));
    }
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    if count("SELECT count(*) FROM sqlite_master WHERE name = 'services'")? == 0 {
        faults.lost.extend(is_set_up.then(|| "everything".to_owned()));
        return Ok(());
    }
    let set_up = [
        ("service", "SELECT count(*) FROM services WHERE hidden = 0"),
        ("app", "SELECT count(*) FROM app_tokens"),
        (
            "subscription",
            "SELECT count(*) FROM subscriptions JOIN progress USING (service, app) WHERE enabled = 1",
        ),
    ];
    for (what, sql) in set_up {
        if is_set_up && count(sql)? != 1 {
            faults.lost.push(format!("the {what}"));
        }
    }
    if count("SELECT count(*) FROM services")? != 1 {
        return Ok(());
    }
    let contacts = read_contacts(&connection)?;
    let (head, counted): (u64, usize) =
        connection.query_row("SELECT head, contacts FROM services", [], |row| {
            Ok((
                row.get::<_, i64>(0)?.cast_unsigned(),
                usize::try_from(row.get::<_, i64>(1)?).unwrap(),
            ))
        })?;
    if counted != contacts.len() {
        faults.broken.push(format!("{} contacts, {counted} are counted", contacts.len()));
    }
    if count("SELECT count(*) FROM progress WHERE cursor > (SELECT head FROM services)")? > 0 {
        faults.broken.push("a cursor is beyond the head".to_owned());
    }
    let noted = "SELECT coalesce(sum(entries), 0) FROM audit WHERE action = 'contacts'";
    if count(noted)?.cast_unsigned() != head {
        faults
            .broken
            .push(format!("{} changes in the audit log, the head is {head}", count(noted)?));
    }
    if count(AUDIT_GAPS)? > 0 {
        faults.broken.push("the audit log is not numbered without gaps up to its head".to_owned());
    }
    if count(EMAILS_AT_ODDS)? > 0 {
        faults.broken.push("what is taken is not what contacts have as e-mail".to_owned());
    }
    let chains = read_chains(&connection, head, faults)?;
    compare_contacts(&contacts, &chains, faults);
    compare_acknowledged(acknowledged, &contacts, &chains, faults);
    Ok(())
}

fn read_contacts(connection: &Connection) -> Result<BTreeMap<String, ContactRow>, rusqlite::Error> {
    let mut statement =
        connection.prepare("SELECT lower(hex(contact)), version, fields FROM contacts")?;
    let rows = statement.query_map([], |row| {
        let fields = serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default();
        let version = row.get::<_, i64>(1)?.cast_unsigned();
        Ok((row.get(0)?, ContactRow { version, fields }))
    })?;
    rows.collect()
}

/// The events by contact; their numbers must be 1, 2, 3 … up to the head.
fn read_chains(
    connection: &Connection,
    head: u64,
    faults: &mut Faults,
) -> Result<Chains, rusqlite::Error> {
    let mut statement = connection.prepare(
        "SELECT sequence, lower(hex(contact)), contact_version, kind FROM events ORDER BY sequence",
    )?;
    let mut rows = statement.query([])?;
    let mut chains = Chains::new();
    let mut last = 0;
    while let Some(row) = rows.next()? {
        let sequence = row.get::<_, i64>(0)?.cast_unsigned();
        if sequence != last + 1 {
            faults.broken.push(format!("event {sequence} follows {last}"));
        }
        last = sequence;
        let event = (row.get::<_, i64>(2)?.cast_unsigned(), row.get(3)?);
        chains.entry(row.get(1)?).or_default().push(event);
    }
    if last != head {
        faults.broken.push(format!("the last event is {last}, the head {head}"));
    }
    Ok(chains)
}

/// No contact without its event, no event without its contact.
fn compare_contacts(contacts: &BTreeMap<String, ContactRow>, chains: &Chains, faults: &mut Faults) {
    for (id, chain) in chains {
        for (expected, (version, _)) in (1..).zip(chain) {
            if *version != expected {
                faults
                    .broken
                    .push(format!("contact {id}: event of version {version}, not {expected}"));
            }
        }
        let (last, kind) = chain[chain.len() - 1];
        let row = contacts.get(id).map(|row| row.version);
        let wanted = (kind != DELETE).then_some(last);
        if row != wanted {
            faults.broken.push(format!("contact {id}: row {row:?}, events say {wanted:?}"));
        }
    }
    for id in contacts.keys().filter(|id| !chains.contains_key(*id)) {
        faults.broken.push(format!("contact {id} has no event"));
    }
}

fn compare_acknowledged(
    acknowledged: &Stored,
    contacts: &BTreeMap<String, ContactRow>,
    chains: &Chains,
    faults: &mut Faults,
) {
    for ((id, version), told) in &acknowledged.changes {
        let key = digits(id);
        let last = chains.get(key).map_or(0, |chain| chain[chain.len() - 1].0);
        if last < *version {
            faults.lost.push(format!("{id} version {version}, stored is {last}"));
        }
        if let Some(row) = contacts.get(key).filter(|row| row.version == *version) {
            let stored = row.fields["jobTitle"].as_str().map(str::to_owned);
            if stored != told.job_title {
                faults.broken.push(format!("{id}: told {:?}, stored {stored:?}", told.job_title));
            }
        }
    }
    for id in acknowledged.deletes.keys() {
        let last = chains.get(digits(id)).map(|chain| chain[chain.len() - 1].1);
        if last != Some(DELETE) {
            faults.lost.push(format!("the delete of {id}"));
        }
    }
}

/// The hexadecimal digits of an id.
fn digits(id: &str) -> &str {
    id.rsplit_once('_').map_or(id, |(_, digits)| digits)
}
