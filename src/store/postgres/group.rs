//! One group of the roll as one transaction: changes of contacts, and the engine's records.
//!
//! Two round trips. The first takes the locks (services, shards, progress, each in the order of its keys) and reads what
//! the group touches, in statements that come after the locks: on READ COMMITTED each sees everything that was committed
//! before it, and nothing of what it read can change any more. Then everything is decided in memory
//! (`overlay.rs`). The second writes, and commits. All statements of a round trip are sent at once.

use std::collections::{BTreeSet, HashMap};

use deadpool_postgres::ClientWrapper;
use futures_util::future::try_join_all;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::{column, time, uint};
use super::overlay::{ContactState, KeptAnswer, Making, Needs, Overlay, ServiceState, TAKEN_SPARE};
use super::ownership::Ownership;
use super::statements::{Reading, Statements};
use super::writer::{Failure, Outcome};
use super::writes::{Key, RecordWrites, Writes, pairs};
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
    group: Uuid,
    work: &Work<'_>,
) -> Result<(Outcome, Writes), Failure> {
    let asked = Asked::of(work);
    let read = read(setting, group, &asked).await?;
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
    let writes = Writes::of(setting.now, overlay, records);
    Ok((Outcome { commit, recorded, replies }, writes))
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
    generation: u64,
    failed_attempts: u64,
}

struct ReadRows {
    overlay: Overlay,
    shards: HashMap<Shard, u64>,
    progress: HashMap<Key, ProgressRow>,
}

/// Begins the transaction, locks, and reads.
async fn read(setting: Setting<'_>, group: Uuid, asked: &Asked) -> Result<ReadRows, Failure> {
    let Setting { client, statements, now, .. } = setting;
    let needs = &asked.needs;
    let services: Vec<Uuid> = needs.services.iter().map(|service| service.uuid()).collect();
    let (free_services, free_counts): (Vec<Uuid>, Vec<i32>) = needs
        .free
        .iter()
        .map(|(service, count)| (service.uuid(), i32::try_from(*count).unwrap_or(i32::MAX)))
        .unzip();
    let spare = i32::try_from(TAKEN_SPARE).unwrap_or(i32::MAX);
    let taken_counts: Vec<i32> =
        free_counts.iter().map(|count| count.saturating_add(spare)).collect();
    let contacts = pairs(needs.contacts.iter().map(|(service, id)| (service.uuid(), id.uuid())));
    let emails =
        pairs(needs.emails.iter().map(|(service, email)| (service.uuid(), email.as_str())));
    let extensions = pairs(
        needs
            .extensions
            .iter()
            .map(|(service, number)| (service.uuid(), i32::try_from(*number).unwrap_or(i32::MAX))),
    );
    let key_services: Vec<Uuid> = needs.keys.iter().map(|(service, ..)| service.uuid()).collect();
    let key_apps: Vec<Uuid> = needs.keys.iter().map(|(_, app, _)| app.uuid()).collect();
    let key_texts: Vec<&str> = needs.keys.iter().map(|(.., key)| key.as_str()).collect();
    let keys_after = now.minus(IDEMPOTENCY_AGE).millis();
    let progress = pairs(asked.progress.iter().map(|(service, app)| (service.uuid(), app.uuid())));

    // In this order: the locks first.
    let all: [(Reading, bool, Params<'_>); 9] = [
        (Reading::Services, services.is_empty(), vec![&services]),
        (Reading::Shards, asked.shards.is_empty(), vec![&asked.shards]),
        (Reading::Progress, progress.0.is_empty(), vec![&progress.0, &progress.1]),
        (Reading::Contacts, contacts.0.is_empty(), vec![&contacts.0, &contacts.1]),
        (Reading::Emails, emails.0.is_empty(), vec![&emails.0, &emails.1]),
        (Reading::Extensions, extensions.0.is_empty(), vec![&extensions.0, &extensions.1]),
        (
            Reading::Keys,
            key_services.is_empty(),
            vec![&key_services, &key_apps, &key_texts, &keys_after],
        ),
        (Reading::Free, free_services.is_empty(), vec![&free_services, &free_counts]),
        (Reading::Taken, free_services.is_empty(), vec![&free_services, &taken_counts]),
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
    for ((reading, _), rows) in queries.iter().zip(rows) {
        for row in rows {
            take_row(&mut found, *reading, &row).map_err(Failure::Broken)?;
        }
    }
    for key in &needs.emails {
        found.overlay.emails.entry(key.clone()).or_insert(None);
    }
    read_more_taken(setting, needs, &mut found.overlay).await?;
    Ok(found)
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

fn number(row: &Row, at: usize) -> Result<u32, Error> {
    let number: i32 = column(row, at)?;
    u32::try_from(number).map_err(|_| Error::Internal(format!("a stored number is {number}")))
}

fn service_at(row: &Row) -> Result<ServiceId, Error> {
    column(row, 0).map(ServiceId::from_uuid)
}

fn take_row(found: &mut ReadRows, reading: Reading, row: &Row) -> Result<(), Error> {
    let overlay = &mut found.overlay;
    match reading {
        Reading::Services => {
            let state = ServiceState {
                head: uint(row, 1)?,
                last_event_at: time(row, 2)?,
                contacts: uint(row, 3)?,
                extension_next: number(row, 4)?,
                audit_head: uint(row, 5)?,
                audit_at: time(row, 6)?,
                ..ServiceState::default()
            };
            overlay.services.insert(service_at(row)?, state);
        }
        Reading::Shards => {
            let shard = Shard::from_number(column(row, 0)?);
            let shard = shard.ok_or_else(|| Error::Internal("an unknown shard".to_owned()))?;
            found.shards.insert(shard, uint(row, 1)?);
        }
        Reading::Progress => {
            let key = (service_at(row)?, AppId::from_uuid(column(row, 1)?));
            let progress =
                ProgressRow { generation: uint(row, 2)?, failed_attempts: uint(row, 3)? };
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
        Reading::Extensions => {
            let key = (service_at(row)?, number(row, 1)?);
            overlay.extensions.insert(key, Some(ContactId::from_uuid(column(row, 2)?)));
        }
        Reading::Keys => {
            let key = (service_at(row)?, AppId::from_uuid(column(row, 1)?), column(row, 2)?);
            let kept = KeptAnswer { request_hash: column(row, 3)?, answer: column(row, 4)? };
            overlay.answers.insert(key, kept);
        }
        Reading::Free => {
            if let Some(state) = overlay.services.get_mut(&service_at(row)?) {
                state.free.insert(number(row, 1)?);
            }
        }
        Reading::Taken => {
            if let Some(state) = overlay.services.get_mut(&service_at(row)?) {
                state.taken.insert(number(row, 1)?);
            }
        }
    }
    Ok(())
}

/// Reads on where a long run of numbers that callers chose stands in the way of a free one.
async fn read_more_taken(
    setting: Setting<'_>,
    needs: &Needs,
    overlay: &mut Overlay,
) -> Result<(), Failure> {
    for (service, wanted) in &needs.free {
        let mut limit = wanted + TAKEN_SPARE;
        while let Some(state) = overlay.services.get_mut(service)
            && !state.can_find(*wanted, state.taken.len() < limit)
        {
            limit = limit.saturating_mul(8);
            let services = vec![service.uuid()];
            let counts = vec![i32::try_from(limit).unwrap_or(i32::MAX)];
            let params: Params<'_> = vec![&services, &counts];
            let rows = setting
                .client
                .query(setting.statements.reading(Reading::Taken), &params)
                .await
                .map_err(Failure::before_commit)?;
            for row in &rows {
                state.taken.insert(number(row, 1).map_err(Failure::Broken)?);
            }
        }
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
    writes.progress.push((key, record.clone(), failed));
    Ok(())
}
