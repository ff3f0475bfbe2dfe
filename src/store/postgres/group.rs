//! One group of the roll as one transaction: changes of contacts, and the engine's records.
//!
//! Two round trips. The first takes the locks (services, shards, progress, each in the order of its keys) and reads what
//! the group touches, in statements that come after the locks: on READ COMMITTED each sees everything that was committed
//! before it, and nothing of what it read can change any more. Then everything is decided in memory
//! (`overlay.rs`). The second writes, and commits. All statements of a round trip are sent at once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use deadpool_postgres::ClientWrapper;
use futures_util::future::{join_all, try_join_all};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use super::change::{column, int, time, uint};
use super::overlay::{ContactState, KeptAnswer, Making, Needs, Overlay, ServiceState, TAKEN_SPARE};
use super::ownership::Ownership;
use super::statements::{Reading, Statements, Writing};
use super::writer::{Failure, Outcome};
use crate::domain::audit::{Action, Origin, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::contact::StaffContact;
use crate::domain::id::{AppId, ContactId, IdMaker, ServiceId};
use crate::domain::shard::{Shard, shard_of};
use crate::domain::subscription::Enabled;
use crate::store::command::{Command, Reply};
use crate::store::queue::{Waiting, WaitingRecord};
use crate::store::retention::IDEMPOTENCY_AGE;
use crate::store::rows::{FAILED_PER_DELIVERY_MAX, FAILED_PER_SUBSCRIPTION_MAX, Record};
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

/// A key of a subscription.
type Key = (ServiceId, AppId);

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

    let at = now.millis();
    let begin = begin(client, statements, group, at);
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
    at: i64,
) -> Result<(), Failure> {
    let params: [&(dyn ToSql + Sync); 2] = [&group, &at];
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

fn pairs<A, B>(of: impl Iterator<Item = (A, B)>) -> (Vec<A>, Vec<B>) {
    of.unzip()
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

/// The engine's records as arrays.
#[derive(Default)]
struct RecordWrites {
    seen: HashSet<Key>,
    progress: Vec<(Key, Record, u64)>,
    disabled: Vec<(ServiceId, AppId, String)>,
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

/// Statements with their arrays, ready to be sent.
#[derive(Default)]
pub(super) struct Writes(Vec<(Writing, Vec<Box<dyn ToSql + Sync + Send>>)>);

macro_rules! columns {
    ($($column:expr),+ $(,)?) => { vec![$(Box::new($column) as Box<dyn ToSql + Sync + Send>),+] };
}

impl Writes {
    fn of(now: Timestamp, overlay: Overlay, records: RecordWrites) -> Self {
        let mut writes = Self::default();
        writes.add_records(now, records);
        writes.add_roll(now, overlay);
        writes
    }

    fn add(&mut self, writing: Writing, columns: Vec<Box<dyn ToSql + Sync + Send>>) {
        self.0.push((writing, columns));
    }

    fn add_records(&mut self, now: Timestamp, records: RecordWrites) {
        let rows = records.progress;
        if rows.is_empty() {
            return;
        }
        let of = |it: &(Key, Record, u64)| (it.0.0.uuid(), it.0.1.uuid());
        let (services, apps) = pairs(rows.iter().map(of));
        self.add(
            Writing::Progress,
            columns![
                services,
                apps,
                rows.iter().map(|(_, r, _)| int(r.generation)).collect::<Vec<_>>(),
                rows.iter().map(|(_, r, _)| int(r.cursor)).collect::<Vec<_>>(),
                rows.iter().map(|(_, r, _)| r.bitmap.clone()).collect::<Vec<_>>(),
                rows.iter()
                    .map(|(_, r, _)| r.failing.map(|failing| failing.since.millis()))
                    .collect::<Vec<_>>(),
                rows.iter()
                    .map(|(_, r, _)| r.failing.map_or(0, |failing| i64::from(failing.attempts)))
                    .collect::<Vec<_>>(),
                rows.iter().map(|(_, _, failed)| int(*failed)).collect::<Vec<_>>(),
                rows.iter().map(|(_, r, _)| r.disable.is_some()).collect::<Vec<_>>(),
            ],
        );
        let held: Vec<_> =
            rows.iter().flat_map(|(key, r, _)| r.hold.iter().map(move |h| (*key, *h))).collect();
        if !held.is_empty() {
            let (services, apps) = pairs(held.iter().map(|(key, _)| (key.0.uuid(), key.1.uuid())));
            self.add(
                Writing::Hold,
                columns![
                    services,
                    apps,
                    held.iter().map(|(_, h)| int(h.sequence)).collect::<Vec<_>>(),
                    held.iter().map(|(_, h)| h.contact.uuid()).collect::<Vec<_>>(),
                    held.iter().map(|(_, h)| i64::from(h.retries_used)).collect::<Vec<_>>(),
                    held.iter().map(|(_, h)| i64::from(h.attempts)).collect::<Vec<_>>(),
                    held.iter().map(|(_, h)| h.due_at.millis()).collect::<Vec<_>>(),
                ],
            );
        }
        let released: Vec<_> =
            rows.iter().flat_map(|(key, r, _)| r.release.iter().map(move |s| (*key, *s))).collect();
        if !released.is_empty() {
            let (services, apps) =
                pairs(released.iter().map(|(key, _)| (key.0.uuid(), key.1.uuid())));
            let sequences: Vec<i64> = released.iter().map(|(_, s)| int(*s)).collect();
            self.add(Writing::Release, columns![services, apps, sequences]);
        }
        let exhausted: Vec<_> =
            rows.iter().flat_map(|(key, r, _)| r.exhaust.iter().map(move |e| (*key, *e))).collect();
        if !exhausted.is_empty() {
            let (services, apps) =
                pairs(exhausted.iter().map(|(key, _)| (key.0.uuid(), key.1.uuid())));
            self.add(
                Writing::Exhaust,
                columns![
                    services,
                    apps,
                    exhausted.iter().map(|(_, e)| int(e.sequence)).collect::<Vec<_>>(),
                    exhausted.iter().map(|(_, e)| e.contact.uuid()).collect::<Vec<_>>(),
                    exhausted.iter().map(|(_, e)| i64::from(e.attempts)).collect::<Vec<_>>(),
                    exhausted.iter().map(|(_, e)| e.at.millis()).collect::<Vec<_>>(),
                ],
            );
        }
        self.add_failed(&rows);
        if !records.disabled.is_empty() {
            let off = i16::try_from(Enabled::DisabledBySystem.code()).unwrap_or(i16::MAX);
            let (services, apps) =
                pairs(records.disabled.iter().map(|(s, a, _)| (s.uuid(), a.uuid())));
            let reasons: Vec<String> = records.disabled.into_iter().map(|(.., r)| r).collect();
            self.add(Writing::Disable, columns![services, apps, reasons, off, now.millis()]);
        }
    }

    fn add_failed(&mut self, rows: &[(Key, Record, u64)]) {
        let mut failed = Vec::new();
        for (key, record, last) in rows {
            let first = last + 1 - record.failed.len() as u64;
            failed.extend((first..).zip(&record.failed).map(|(number, it)| (*key, number, it)));
        }
        if failed.is_empty() {
            return;
        }
        let (services, apps) = pairs(failed.iter().map(|(key, ..)| (key.0.uuid(), key.1.uuid())));
        self.add(
            Writing::Failed,
            columns![
                services,
                apps,
                failed.iter().map(|(_, n, _)| int(*n)).collect::<Vec<_>>(),
                failed.iter().map(|(.., it)| int(it.sequence)).collect::<Vec<_>>(),
                failed.iter().map(|(.., it)| i64::from(it.attempt)).collect::<Vec<_>>(),
                failed.iter().map(|(.., it)| it.at.millis()).collect::<Vec<_>>(),
                failed.iter().map(|(.., it)| it.status.map(i32::from)).collect::<Vec<_>>(),
                failed.iter().map(|(.., it)| it.step.clone()).collect::<Vec<_>>(),
                failed.iter().map(|(.., it)| it.answer.clone()).collect::<Vec<_>>(),
            ],
        );
        let deliveries: BTreeSet<(Uuid, Uuid, i64)> = failed
            .iter()
            .map(|(key, _, it)| (key.0.uuid(), key.1.uuid(), int(it.sequence)))
            .collect();
        self.add(
            Writing::ForgetFailed,
            columns![
                deliveries.iter().map(|it| it.0).collect::<Vec<_>>(),
                deliveries.iter().map(|it| it.1).collect::<Vec<_>>(),
                deliveries.iter().map(|it| it.2).collect::<Vec<_>>(),
                int(FAILED_PER_DELIVERY_MAX),
            ],
        );
        let many: Vec<_> = rows
            .iter()
            .filter(|(_, record, last)| {
                !record.failed.is_empty() && *last > FAILED_PER_SUBSCRIPTION_MAX
            })
            .collect();
        if !many.is_empty() {
            self.add(
                Writing::ForgetOldFailed,
                columns![
                    many.iter().map(|it| it.0.0.uuid()).collect::<Vec<_>>(),
                    many.iter().map(|it| it.0.1.uuid()).collect::<Vec<_>>(),
                    many.iter()
                        .map(|it| int(it.2 - FAILED_PER_SUBSCRIPTION_MAX))
                        .collect::<Vec<_>>(),
                ],
            );
        }
    }

    fn add_roll(&mut self, now: Timestamp, mut overlay: Overlay) {
        let free_changes = overlay.free_changes();
        let audit = std::mem::take(&mut overlay.audit);
        self.add_audit(now, audit, &mut overlay.services);
        let mut inserted = Vec::new();
        let mut updated = Vec::new();
        let mut deleted = Vec::new();
        for ((service, id), state) in overlay.contacts {
            match (state.stored, state.now) {
                (None, Some(contact)) => inserted.push((service, contact, state.email)),
                (Some(stored), Some(contact)) if stored.version != contact.version => {
                    updated.push((service, stored.fields.extension(), contact));
                }
                (Some(_), None) => deleted.push((service.uuid(), id.uuid())),
                _ => {}
            }
        }
        // What gives up e-mails and numbers goes before what takes them.
        if !deleted.is_empty() {
            let (services, ids) = pairs(deleted.into_iter());
            self.add(Writing::DeleteContacts, columns![services, ids]);
        }
        self.add_updates(&updated);
        self.add_inserts(&inserted);
        self.add_free(&free_changes);
        self.add_events(&overlay.events);
        if !overlay.new_answers.is_empty() {
            let new = overlay.new_answers;
            self.add(
                Writing::Keys,
                columns![
                    new.iter().map(|it| it.service.uuid()).collect::<Vec<_>>(),
                    new.iter().map(|it| it.key.app.uuid()).collect::<Vec<_>>(),
                    new.iter().map(|it| it.key.key.clone()).collect::<Vec<_>>(),
                    new.iter().map(|it| it.key.request_hash.to_vec()).collect::<Vec<_>>(),
                    new.into_iter().map(|it| it.answer).collect::<Vec<_>>(),
                    now.millis(),
                ],
            );
        }
        let changed: Vec<_> = overlay.services.iter().filter(|(_, row)| row.changed).collect();
        if !changed.is_empty() {
            self.add(
                Writing::Services,
                columns![
                    changed.iter().map(|(service, _)| service.uuid()).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.head)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| row.last_event_at.millis()).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.contacts)).collect::<Vec<_>>(),
                    changed
                        .iter()
                        .map(|(_, row)| i32::try_from(row.extension_next).unwrap_or(i32::MAX))
                        .collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.audit_head)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| row.audit_at.millis()).collect::<Vec<_>>(),
                ],
            );
        }
    }

    fn add_updates(&mut self, updated: &[(ServiceId, Option<u32>, StaffContact)]) {
        if updated.is_empty() {
            return;
        }
        let moved: Vec<_> = updated
            .iter()
            .filter(|(_, before, contact)| {
                before.is_some() && *before != contact.fields.extension()
            })
            .collect();
        if !moved.is_empty() {
            // Two contacts may have swapped their numbers: first all are given up.
            let (services, ids) = pairs(moved.iter().map(|it| (it.0.uuid(), it.2.id.uuid())));
            self.add(Writing::GiveUpExtensions, columns![services, ids]);
        }
        self.add(
            Writing::UpdateContacts,
            columns![
                updated.iter().map(|it| it.0.uuid()).collect::<Vec<_>>(),
                updated.iter().map(|it| it.2.id.uuid()).collect::<Vec<_>>(),
                updated.iter().map(|it| int(it.2.version)).collect::<Vec<_>>(),
                updated.iter().map(|it| it.2.updated_at.millis()).collect::<Vec<_>>(),
                updated.iter().map(|it| extension_of(&it.2)).collect::<Vec<_>>(),
                updated.iter().map(|it| it.2.full_name().to_lowercase()).collect::<Vec<_>>(),
                updated.iter().map(|it| it.2.fields.to_json()).collect::<Vec<_>>(),
            ],
        );
    }

    fn add_inserts(&mut self, inserted: &[(ServiceId, StaffContact, String)]) {
        if inserted.is_empty() {
            return;
        }
        self.add(
            Writing::InsertContacts,
            columns![
                inserted.iter().map(|it| it.0.uuid()).collect::<Vec<_>>(),
                inserted.iter().map(|it| it.1.id.uuid()).collect::<Vec<_>>(),
                inserted.iter().map(|it| int(it.1.version)).collect::<Vec<_>>(),
                inserted.iter().map(|it| it.1.created_at.millis()).collect::<Vec<_>>(),
                inserted.iter().map(|it| it.1.updated_at.millis()).collect::<Vec<_>>(),
                inserted.iter().map(|it| it.2.clone()).collect::<Vec<_>>(),
                inserted.iter().map(|it| extension_of(&it.1)).collect::<Vec<_>>(),
                inserted.iter().map(|it| it.1.full_name().to_lowercase()).collect::<Vec<_>>(),
                inserted.iter().map(|it| it.1.fields.to_json()).collect::<Vec<_>>(),
            ],
        );
    }

    fn add_free(&mut self, changes: &[(ServiceId, u32, bool)]) {
        for (free, writing) in [(false, Writing::TakeFree), (true, Writing::AddFree)] {
            let (services, numbers) = pairs(
                changes
                    .iter()
                    .filter(|it| it.2 == free)
                    .map(|it| (it.0.uuid(), i32::try_from(it.1).unwrap_or(i32::MAX))),
            );
            if !services.is_empty() {
                self.add(writing, columns![services, numbers]);
            }
        }
    }

    fn add_events(&mut self, events: &[std::sync::Arc<crate::domain::event::Event>]) {
        if events.is_empty() {
            return;
        }
        self.add(
            Writing::Events,
            columns![
                events.iter().map(|it| it.service.uuid()).collect::<Vec<_>>(),
                events.iter().map(|it| int(it.sequence)).collect::<Vec<_>>(),
                events.iter().map(|it| it.id.uuid()).collect::<Vec<_>>(),
                events.iter().map(|it| it.contact.uuid()).collect::<Vec<_>>(),
                events
                    .iter()
                    .map(|it| i16::try_from(it.kind.code()).unwrap_or(i16::MAX))
                    .collect::<Vec<_>>(),
                events.iter().map(|it| int(it.contact_version)).collect::<Vec<_>>(),
                events.iter().map(|it| it.full_name.clone()).collect::<Vec<_>>(),
                events.iter().map(|it| it.at.millis()).collect::<Vec<_>>(),
            ],
        );
    }

    /// Numbers what was noted; every service of it is locked.
    fn add_audit(
        &mut self,
        now: Timestamp,
        audit: crate::store::audit_rows::Audit,
        services: &mut BTreeMap<ServiceId, ServiceState>,
    ) {
        let mut rows = Vec::new();
        for pending in audit.into_pending() {
            // A service that is being removed has no audit log that anybody reads on.
            let Some(state) = services.get_mut(&pending.service()) else { continue };
            let first = state.audit_head + 1;
            state.audit_head += pending.entries();
            state.audit_at = state.audit_at.max(now);
            state.changed = true;
            rows.push(pending.into_row(first, state.audit_at));
        }
        if rows.is_empty() {
            return;
        }
        self.add(
            Writing::Audit,
            columns![
                rows.iter().map(|it| it.service.uuid()).collect::<Vec<_>>(),
                rows.iter().map(|it| int(it.first)).collect::<Vec<_>>(),
                rows.iter().map(|it| int(it.entries)).collect::<Vec<_>>(),
                rows.iter().map(|it| it.at.millis()).collect::<Vec<_>>(),
                rows.iter().map(|it| it.who.clone()).collect::<Vec<_>>(),
                rows.iter().map(|it| it.address.clone()).collect::<Vec<_>>(),
                rows.iter().map(|it| it.action.clone()).collect::<Vec<_>>(),
                rows.iter().map(|it| it.sequence.map(int)).collect::<Vec<_>>(),
                rows.iter().map(|it| it.app.map(AppId::uuid)).collect::<Vec<_>>(),
                rows.iter().map(|it| it.subject.clone()).collect::<Vec<_>>(),
                rows.iter().map(|it| it.target.clone()).collect::<Vec<_>>(),
                rows.iter().map(|it| it.reason.clone()).collect::<Vec<_>>(),
            ],
        );
    }

    /// Whether there is anything to commit.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends everything and the commit behind it in one go.
    pub(super) async fn send_and_commit(
        self,
        client: &ClientWrapper,
        statements: &Statements,
    ) -> Result<(), Failure> {
        let params: Vec<(&Statement, Params<'_>)> = self
            .0
            .iter()
            .map(|(writing, columns)| {
                let columns = columns.iter().map(|column| &**column as &(dyn ToSql + Sync));
                (statements.writing(*writing), columns.collect())
            })
            .collect();
        let all = params.iter().map(|(statement, params)| client.execute(*statement, params));
        let writing = join_all(all.map(Box::pin));
        // The commit is never cut short by a time limit: then nobody would know what became of it.
        let unlimited = client.batch_execute("SET LOCAL statement_timeout = 0");
        let committing = client.batch_execute("COMMIT");
        let (written, unlimited, committed) = futures_util::join!(writing, unlimited, committing);
        // After a statement that failed the commit was a rollback, and succeeded as one.
        for result in written {
            result.map_err(Failure::with_commit_behind)?;
        }
        unlimited.map_err(Failure::with_commit_behind)?;
        committed.map_err(Failure::in_commit)
    }
}

fn extension_of(contact: &StaffContact) -> Option<i32> {
    contact.fields.extension().and_then(|number| i32::try_from(number).ok())
}
