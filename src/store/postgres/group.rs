//! One group of the roll as one transaction: changes of contacts, and the engine's records.
//!
//! Two round trips. The first takes the locks (services, shards, progress, each in the order of its keys) and reads what
//! the group touches, in statements that come after the locks: on READ COMMITTED each sees everything that was committed
//! before it, and nothing of what it read can change any more. Then everything is decided in memory
//! (`overlay.rs`). The second writes, and commits. All statements of a round trip are sent at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use deadpool_postgres::ClientWrapper;
use futures_util::future::try_join_all;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::{column, int, time, uint};
use super::numbers::{self, BEHIND_MAX, Numbers, Remembered};
use super::overlay::{ContactState, KeptAnswer, Making, Needs, Overlay, ServiceState};
use super::ownership::Ownership;
use super::statements::{Reading, Statements};
use super::writer::{Failure, Outcome};
use super::writes::{Key, NewProgress, RecordWrites, Writes, pairs};
use crate::domain::audit::{Action, Origin, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, IdMaker, ServiceId};
use crate::domain::shard::{Shard, shard_of};
use crate::store::command::{Command, Reply};
use crate::store::queue::{Waiting, WaitingRecord};
use crate::store::retention::IDEMPOTENCY_AGE;
use crate::store::rows::Record;
use crate::store::{Commit, Error};

/// What a group is made of.
pub(super) struct Work<'a> {
    pub(super) records: &'a [WaitingRecord],
    pub(super) changes: &'a [Waiting],
}

/// With what it is run.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) client: &'a ClientWrapper,
    pub(super) statements: &'a Statements,
    pub(super) ownership: &'a Ownership,
    pub(super) ids: &'a IdMaker,
    pub(super) now: Timestamp,
}

type Params<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// What the group asks for, in the arrays of its statements.
#[derive(Default)]
struct Asked {
    needs: Needs,
    shards: Vec<i16>,
    progress: BTreeSet<Key>,
}

impl Asked {
    fn of(work: &Work<'_>) -> Self {
        let mut asked = Self::default();
        let mut shards = BTreeSet::new();
        for Waiting { command, .. } in work.changes {
            match command {
                Command::ChangeContact { service, change, key } => {
                    asked.needs.add(*service, change, key.as_ref());
                }
                Command::ChangeContacts { service, changes } => {
                    asked.needs.services.insert(*service);
                    for change in changes {
                        asked.needs.add(*service, change, None);
                    }
                }
                _ => {}
            }
        }
        for WaitingRecord { record, .. } in work.records {
            shards.insert(shard_of(record.app));
            asked.progress.insert((record.service, record.app));
            if record.disable.is_some() {
                // Its entry in the audit log takes a number of the service.
                asked.needs.services.insert(record.service);
            }
        }
        asked.shards = shards.into_iter().map(Shard::number).collect();
        asked
    }
}

/// Runs the group up to its commit, which the caller sends: with the outcome that holds if it succeeds.
pub(super) async fn run(
    setting: Setting<'_>,
    remembered: &mut Remembered,
    group: Uuid,
    work: &Work<'_>,
) -> Result<(Outcome, Writes), Failure> {
    let asked = Asked::of(work);
    let mut numbers = BTreeMap::new();
    for service in &asked.needs.numbers {
        let known = match remembered.take(*service) {
            Some(known) => Some(known),
            // Before any lock is held: it may be much.
            None => numbers::read(setting.client, setting.statements, *service).await?,
        };
        if let Some(known) = known {
            numbers.insert(*service, known);
        }
    }
    let read = read(setting, group, &asked, numbers).await?;
    let mut overlay = read.overlay;
    let mut commit = Commit::default();
    let mut records = RecordWrites::default();
    let mut recorded = Vec::with_capacity(work.records.len());
    for WaitingRecord { record, .. } in work.records {
        recorded.push(decide_record(setting, &read.shards, &mut records, &read.progress, record));
    }
    for (service, app, reason) in &records.disabled {
        commit.subscriptions.push((*service, *app));
        let subject =
            Subject { app: Some(*app), reason: Some(reason.clone()), ..Subject::default() };
        overlay.audit.note(*service, Origin::SYSTEM, Action::SubscriptionDisable, subject);
    }
    let mut replies = Vec::with_capacity(work.changes.len());
    for Waiting { command, origin, .. } in work.changes {
        let making = Making { ids: setting.ids, now: setting.now, origin: *origin };
        replies.push(decide(&mut overlay, making, command));
    }
    commit.events.clone_from(&overlay.events);
    let numbers = overlay.services.iter_mut().filter_map(|(service, row)| {
        let taken = row.numbers.take()?;
        Some((*service, Numbers { head: row.head, taken }))
    });
    let numbers = numbers.collect();
    let writes = Writes::of(setting.now, overlay, records);
    Ok((Outcome { commit, recorded, replies, numbers }, writes))
}

fn decide(overlay: &mut Overlay, making: Making<'_>, command: &Command) -> Result<Reply, Error> {
    match command {
        Command::ChangeContact { service, change, key } => {
            overlay.apply(making, *service, change, key.as_ref()).map(Reply::Contact)
        }
        Command::ChangeContacts { service, changes } => {
            if !overlay.services.contains_key(service) {
                return Err(Error::NotFound);
            }
            let apply = |change| overlay.apply(making, *service, change, None);
            Ok(Reply::Contacts(changes.iter().map(apply).collect()))
        }
        other => Err(Error::Internal(format!("not a change of the roll: {other:?}"))),
    }
}

/// What was found of a subscription's progress.
struct ProgressRow {
    version: u64,
    generation: u64,
    failed_attempts: u64,
}

struct ReadRows {
    overlay: Overlay,
    shards: HashMap<Shard, u64>,
    progress: HashMap<Key, ProgressRow>,
}

/// Begins the transaction, locks, and reads.
async fn read(
    setting: Setting<'_>,
    group: Uuid,
    asked: &Asked,
    mut numbers: BTreeMap<ServiceId, Numbers>,
) -> Result<ReadRows, Failure> {
    let Setting { client, statements, now, .. } = setting;
    let needs = &asked.needs;
    let services: Vec<Uuid> = needs.services.iter().map(|service| service.uuid()).collect();
    let (number_services, number_heads) =
        pairs(numbers.iter().map(|(service, known)| (service.uuid(), int(known.head))));
    let contacts = pairs(needs.contacts.iter().map(|(service, id)| (service.uuid(), id.uuid())));
    let emails =
        pairs(needs.emails.iter().map(|(service, email)| (service.uuid(), email.as_str())));
    let key_services: Vec<Uuid> = needs.keys.iter().map(|(service, ..)| service.uuid()).collect();
    let key_apps: Vec<Uuid> = needs.keys.iter().map(|(_, app, _)| app.uuid()).collect();
    let key_texts: Vec<&str> = needs.keys.iter().map(|(.., key)| key.as_str()).collect();
    let keys_after = now.minus(IDEMPOTENCY_AGE).millis();
    let progress = pairs(asked.progress.iter().map(|(service, app)| (service.uuid(), app.uuid())));

    // In this order: the locks first.
    let all: [(Reading, bool, Params<'_>); 8] = [
        (Reading::Services, services.is_empty(), vec![&services]),
        (Reading::Shards, asked.shards.is_empty(), vec![&asked.shards]),
        (Reading::Progress, progress.0.is_empty(), vec![&progress.0, &progress.1]),
        (Reading::Rolls, services.is_empty(), vec![&services]),
        (Reading::Contacts, contacts.0.is_empty(), vec![&contacts.0, &contacts.1]),
        (Reading::Emails, emails.0.is_empty(), vec![&emails.0, &emails.1]),
        (
            Reading::Keys,
            key_services.is_empty(),
            vec![&key_services, &key_apps, &key_texts, &keys_after],
        ),
        (
            Reading::Numbers,
            number_services.is_empty(),
            vec![&number_services, &number_heads, &BEHIND_MAX],
        ),
    ];
    let queries: Vec<(Reading, Params<'_>)> = all
        .into_iter()
        .filter(|(_, unasked, _)| !unasked)
        .map(|(reading, _, params)| (reading, params))
        .collect();

    let begin = begin(client, statements, group);
    let rows = async {
        let all = queries
            .iter()
            .map(|(reading, params)| client.query(statements.reading(*reading), params));
        // Polled in this order, which is how they are sent.
        try_join_all(all.map(Box::pin)).await
    };
    let (begun, rows) = futures_util::join!(begin, rows);
    begun?;
    let rows = rows.map_err(Failure::before_commit)?;
    let mut found =
        ReadRows { overlay: Overlay::default(), shards: HashMap::new(), progress: HashMap::new() };
    let mut behind: HashMap<ServiceId, i64> = HashMap::new();
    for ((reading, _), rows) in queries.iter().zip(rows) {
        for row in rows {
            let taken = if *reading == Reading::Numbers {
                follow_number(&mut numbers, &mut behind, &row)
            } else {
                take_row(&mut found, *reading, &row)
            };
            taken.map_err(Failure::Broken)?;
        }
    }
    take_numbers(setting, &mut found.overlay, numbers, &behind).await?;
    for key in &needs.emails {
        found.overlay.emails.entry(key.clone()).or_insert(None);
    }
    Ok(found)
}

/// Brings what is remembered forward by an event, and counts it.
fn follow_number(
    numbers: &mut BTreeMap<ServiceId, Numbers>,
    behind: &mut HashMap<ServiceId, i64>,
    row: &Row,
) -> Result<(), Error> {
    let service = service_at(row)?;
    *behind.entry(service).or_default() += 1;
    if let Some(known) = numbers.get_mut(&service) {
        known.follow(column(row, 1)?, column(row, 2)?);
    }
    Ok(())
}

/// Gives each service the numbers that are taken in it: those that were brought forward, or what the contacts say now that
/// the service is locked.
async fn take_numbers(
    setting: Setting<'_>,
    overlay: &mut Overlay,
    numbers: BTreeMap<ServiceId, Numbers>,
    behind: &HashMap<ServiceId, i64>,
) -> Result<(), Failure> {
    for (service, known) in numbers {
        let Some(state) = overlay.services.get_mut(&service) else { continue };
        let pruned = state.floor > known.head;
        let too_far = behind.get(&service).is_some_and(|events| *events >= BEHIND_MAX);
        // A head that went back is another database's.
        state.numbers = if pruned || too_far || state.head < known.head {
            let read = numbers::read(setting.client, setting.statements, service).await?;
            read.map(|numbers| numbers.taken)
        } else {
            Some(known.taken)
        };
    }
    Ok(())
}

/// Begins, and inserts the group's id: no row of it means that an earlier try of this group has happened.
pub(super) async fn begin(
    client: &ClientWrapper,
    statements: &Statements,
    group: Uuid,
) -> Result<(), Failure> {
    let params: [&(dyn ToSql + Sync); 1] = [&group];
    let (begun, inserted) = futures_util::join!(
        client.batch_execute("BEGIN"),
        client.execute(&statements.group, &params)
    );
    begun.map_err(Failure::before_commit)?;
    match inserted.map_err(Failure::before_commit)? {
        0 => Err(Failure::HappenedBefore),
        _ => Ok(()),
    }
}

fn service_at(row: &Row) -> Result<ServiceId, Error> {
    column(row, 0).map(ServiceId::from_uuid)
}

fn take_row(found: &mut ReadRows, reading: Reading, row: &Row) -> Result<(), Error> {
    let overlay = &mut found.overlay;
    match reading {
        Reading::Services => {
            let state = ServiceState { floor: uint(row, 1)?, ..ServiceState::default() };
            overlay.services.insert(service_at(row)?, state);
        }
        Reading::Rolls => {
            // Not there when the service is hidden, and so not locked.
            if let Some(state) = overlay.services.get_mut(&service_at(row)?) {
                state.version = uint(row, 1)?;
                state.head = uint(row, 2)?;
                state.last_event_at = time(row, 3)?;
                state.contacts = uint(row, 4)?;
                state.audit_head = uint(row, 5)?;
                state.audit_at = time(row, 6)?;
            }
        }
        Reading::Shards => {
            let shard = Shard::from_number(column(row, 0)?);
            let shard = shard.ok_or_else(|| Error::Internal("an unknown shard".to_owned()))?;
            found.shards.insert(shard, uint(row, 1)?);
        }
        Reading::Progress => {
            let key = (service_at(row)?, AppId::from_uuid(column(row, 1)?));
            let progress = ProgressRow {
                version: uint(row, 2)?,
                generation: uint(row, 3)?,
                failed_attempts: uint(row, 4)?,
            };
            found.progress.insert(key, progress);
        }
        Reading::Contacts => {
            let service = ServiceId::from_uuid(column(row, 5)?);
            let contact = super::contacts::contact_of(row)?;
            let key = (service, contact.id);
            let state = ContactState {
                stored: Some(contact.clone()),
                email: column(row, 6)?,
                now: Some(contact),
            };
            overlay.contacts.insert(key, state);
        }
        Reading::Emails => {
            let key = (service_at(row)?, column(row, 1)?);
            overlay.emails.insert(key, Some(ContactId::from_uuid(column(row, 2)?)));
        }
        Reading::Keys => {
            let key = (service_at(row)?, AppId::from_uuid(column(row, 1)?), column(row, 2)?);
            let kept = KeptAnswer { request_hash: column(row, 3)?, answer: column(row, 4)? };
            overlay.answers.insert(key, kept);
        }
        // Follows what is remembered, not what was read.
        Reading::Numbers => {}
    }
    Ok(())
}

fn decide_record(
    setting: Setting<'_>,
    shards: &HashMap<Shard, u64>,
    writes: &mut RecordWrites,
    found: &HashMap<Key, ProgressRow>,
    record: &Record,
) -> Result<(), Error> {
    let key = (record.service, record.app);
    let shard = shard_of(record.app);
    // As this node believes, as the table says, and as it was when the lane was loaded: all three.
    let mine = setting.ownership.epoch(shard) == Some(record.epoch)
        && shards.get(&shard) == Some(&record.epoch);
    let row = found.get(&key).filter(|row| mine && row.generation == record.generation);
    let Some(row) = row else { return Err(Error::Superseded) };
    if !writes.seen.insert(key) {
        return Err(Error::Unavailable("another record of the lane is in this group".to_owned()));
    }
    let failed = row.failed_attempts + record.failed.len() as u64;
    if let Some(reason) = &record.disable {
        writes.disabled.push((record.service, record.app, reason.clone()));
    }
    writes.progress.push(NewProgress {
        key,
        record: record.clone(),
        failed_attempts: failed,
        version: row.version,
    });
    Ok(())
}
