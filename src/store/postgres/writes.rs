//! What a group writes, in the arrays of its statements, and the commit behind them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use deadpool_postgres::ClientWrapper;
use futures_util::future::join_all;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::int;
use super::overlay::{Move, NewAnswer, Overlay, ServiceState};
use super::statements::{Statements, Writing};
use super::writer::Failure;
use crate::domain::clock::Timestamp;
use crate::domain::contact::StaffContact;
use crate::domain::event::Event;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::Enabled;
use crate::store::audit_rows::Audit;
use crate::store::rows::{FAILED_PER_DELIVERY_MAX, FAILED_PER_SUBSCRIPTION_MAX, Record};

/// A key of a subscription.
pub(super) type Key = (ServiceId, AppId);

/// What becomes of a subscription's progress, which has this version now.
pub(super) struct NewProgress {
    pub(super) key: Key,
    pub(super) record: Record,
    pub(super) failed_attempts: u64,
    pub(super) version: u64,
}

/// The engine's records as arrays.
#[derive(Default)]
pub(super) struct RecordWrites {
    pub(super) seen: HashSet<Key>,
    pub(super) progress: Vec<NewProgress>,
    pub(super) disabled: Vec<(ServiceId, AppId, String)>,
}

/// Statements with their arrays, ready to be sent.
#[derive(Default)]
pub(super) struct Writes(Vec<(Writing, Vec<Box<dyn ToSql + Sync + Send>>)>);

macro_rules! columns {
    ($($column:expr),+ $(,)?) => { vec![$(Box::new($column) as Box<dyn ToSql + Sync + Send>),+] };
}

impl Writes {
    pub(super) fn of(now: Timestamp, overlay: Overlay, records: RecordWrites) -> Self {
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
        let of = |it: &NewProgress| (it.key.0.uuid(), it.key.1.uuid());
        let (services, apps) = pairs(rows.iter().map(of));
        self.add(
            Writing::Progress,
            columns![
                services,
                apps,
                rows.iter().map(|it| int(it.version)).collect::<Vec<_>>(),
                rows.iter()
                    .map(|it| int(it.record.generation) + i64::from(it.record.disable.is_some()))
                    .collect::<Vec<_>>(),
                rows.iter().map(|it| int(it.record.cursor)).collect::<Vec<_>>(),
                rows.iter().map(|it| it.record.bitmap.clone()).collect::<Vec<_>>(),
                rows.iter()
                    .map(|it| it.record.failing.map(|failing| failing.since.millis()))
                    .collect::<Vec<_>>(),
                rows.iter()
                    .map(|it| it.record.failing.map_or(0, |failing| i64::from(failing.attempts)))
                    .collect::<Vec<_>>(),
                rows.iter().map(|it| int(it.failed_attempts)).collect::<Vec<_>>(),
            ],
        );
        self.add_held(&rows);
        self.add_failed(&rows);
        if !records.disabled.is_empty() {
            let off = i16::try_from(Enabled::DisabledBySystem.code()).unwrap_or(i16::MAX);
            let (services, apps) =
                pairs(records.disabled.iter().map(|(s, a, _)| (s.uuid(), a.uuid())));
            let reasons: Vec<String> = records.disabled.into_iter().map(|(.., r)| r).collect();
            self.add(Writing::Disable, columns![services, apps, reasons, off, now.millis()]);
        }
    }

    /// What is held from now on, what is not any more, and what was given up.
    fn add_held(&mut self, rows: &[NewProgress]) {
        let held: Vec<_> =
            rows.iter().flat_map(|it| it.record.hold.iter().map(move |h| (it.key, *h))).collect();
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
        let released: Vec<_> = rows
            .iter()
            .flat_map(|it| it.record.release.iter().map(move |s| (it.key, *s)))
            .collect();
        if !released.is_empty() {
            let (services, apps) =
                pairs(released.iter().map(|(key, _)| (key.0.uuid(), key.1.uuid())));
            let sequences: Vec<i64> = released.iter().map(|(_, s)| int(*s)).collect();
            self.add(Writing::Release, columns![services, apps, sequences]);
        }
        let exhausted: Vec<_> = rows
            .iter()
            .flat_map(|it| it.record.exhaust.iter().map(move |e| (it.key, *e)))
            .collect();
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
    }

    fn add_failed(&mut self, rows: &[NewProgress]) {
        let mut failed = Vec::new();
        for NewProgress { key, record, failed_attempts, .. } in rows {
            let first = failed_attempts + 1 - record.failed.len() as u64;
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
            .filter(|it| {
                !it.record.failed.is_empty() && it.failed_attempts > FAILED_PER_SUBSCRIPTION_MAX
            })
            .collect();
        if !many.is_empty() {
            self.add(
                Writing::ForgetOldFailed,
                columns![
                    many.iter().map(|it| it.key.0.uuid()).collect::<Vec<_>>(),
                    many.iter().map(|it| it.key.1.uuid()).collect::<Vec<_>>(),
                    many.iter()
                        .map(|it| int(it.failed_attempts - FAILED_PER_SUBSCRIPTION_MAX))
                        .collect::<Vec<_>>(),
                ],
            );
        }
    }

    fn add_roll(&mut self, now: Timestamp, mut overlay: Overlay) {
        let audit = std::mem::take(&mut overlay.audit);
        self.add_audit(now, audit, &mut overlay.services);
        let mut inserted = Vec::new();
        let mut updated = Vec::new();
        let mut deleted = Vec::new();
        for ((service, id), state) in overlay.contacts {
            match (state.stored, state.now) {
                (None, Some(contact)) => inserted.push((service, contact, state.email)),
                (Some(stored), Some(contact)) if stored.version != contact.version => {
                    updated.push((service, contact));
                }
                (Some(_), None) => deleted.push((service.uuid(), id.uuid())),
                _ => {}
            }
        }
        // What gives up e-mails goes before what takes them.
        if !deleted.is_empty() {
            let (services, ids) = pairs(deleted.into_iter());
            self.add(Writing::DeleteContacts, columns![services, ids]);
        }
        self.add_updates(&updated);
        self.add_inserts(&inserted);
        self.add_events(&overlay.events, &overlay.moves);
        self.add_answers(now, overlay.new_answers);
        let changed: Vec<_> = overlay.services.iter().filter(|(_, row)| row.changed).collect();
        if !changed.is_empty() {
            self.add(
                Writing::Rolls,
                columns![
                    changed.iter().map(|(service, _)| service.uuid()).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.version)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.head)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| row.last_event_at.millis()).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.contacts)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| int(row.audit_head)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| row.audit_at.millis()).collect::<Vec<_>>(),
                ],
            );
        }
    }

    fn add_answers(&mut self, now: Timestamp, new: Vec<NewAnswer>) {
        if new.is_empty() {
            return;
        }
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

    fn add_updates(&mut self, updated: &[(ServiceId, StaffContact)]) {
        if updated.is_empty() {
            return;
        }
        self.add(
            Writing::UpdateContacts,
            columns![
                updated.iter().map(|it| it.0.uuid()).collect::<Vec<_>>(),
                updated.iter().map(|it| it.1.id.uuid()).collect::<Vec<_>>(),
                updated.iter().map(|it| int(it.1.version)).collect::<Vec<_>>(),
                updated.iter().map(|it| it.1.updated_at.millis()).collect::<Vec<_>>(),
                updated.iter().map(|it| extension_of(&it.1)).collect::<Vec<_>>(),
                updated.iter().map(|it| it.1.full_name().to_lowercase()).collect::<Vec<_>>(),
                updated.iter().map(|it| it.1.fields.to_json()).collect::<Vec<_>>(),
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

    fn add_events(&mut self, events: &[Arc<Event>], moves: &[Move]) {
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
                moves.iter().map(|it| number_of(it.freed)).collect::<Vec<_>>(),
                moves.iter().map(|it| number_of(it.taken)).collect::<Vec<_>>(),
            ],
        );
    }

    /// Numbers what was noted; every service of it is locked.
    fn add_audit(
        &mut self,
        now: Timestamp,
        audit: Audit,
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
        let params: Vec<(&Statement, Vec<&(dyn ToSql + Sync)>)> = self
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
    number_of(contact.fields.extension())
}

fn number_of(extension: Option<u32>) -> Option<i32> {
    extension.and_then(|number| i32::try_from(number).ok())
}

/// Takes pairs apart, for two arrays.
pub(super) fn pairs<A, B>(of: impl Iterator<Item = (A, B)>) -> (Vec<A>, Vec<B>) {
    of.unzip()
}
