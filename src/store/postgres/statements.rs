//! The statements of the group commit, prepared once for each writer connection.

use deadpool_postgres::ClientWrapper;
use futures_util::future::try_join_all;
use tokio_postgres::Statement;

/// What a group locks and reads, in the order in which it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Services,
    Shards,
    Progress,
    Contacts,
    Emails,
    Extensions,
    Keys,
    Free,
    Taken,
}

const READING: [(Reading, &str); 9] = [
    // The locks come first, each in the order of its keys: two groups then wait for each other in one direction only.
    (
        Reading::Services,
        "SELECT service, head, last_event_at, contacts, extension_next, audit_head, audit_at FROM services \
         WHERE service = ANY($1) AND NOT hidden ORDER BY service FOR NO KEY UPDATE",
    ),
    (
        Reading::Shards,
        "SELECT shard, epoch FROM shards WHERE shard = ANY($1) ORDER BY shard FOR SHARE",
    ),
    (
        Reading::Progress,
        "SELECT p.service, p.app, p.generation, p.failed_attempts FROM progress p \
         JOIN unnest($1::uuid[], $2::uuid[]) AS k (service, app) ON p.service = k.service AND p.app = k.app \
         ORDER BY p.service, p.app FOR NO KEY UPDATE OF p",
    ),
    (
        Reading::Contacts,
        "SELECT c.contact, c.version, c.created_at, c.updated_at, c.fields, c.service, c.email \
         FROM unnest($1::uuid[], $2::uuid[]) AS k (service, contact) \
         JOIN contacts c ON c.service = k.service AND c.contact = k.contact",
    ),
    (
        Reading::Emails,
        "SELECT c.service, c.email, c.contact FROM unnest($1::uuid[], $2::text[]) AS k (service, email) \
         JOIN contacts c ON c.service = k.service AND c.email = k.email",
    ),
    (
        Reading::Extensions,
        "SELECT c.service, c.extension, c.contact FROM unnest($1::uuid[], $2::int[]) AS k (service, extension) \
         JOIN contacts c ON c.service = k.service AND c.extension = k.extension AND c.extension IS NOT NULL",
    ),
    (
        Reading::Keys,
        "SELECT i.service, i.app, i.key, i.request_hash, i.answer \
         FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS k (service, app, key) \
         JOIN idempotency_keys i ON i.service = k.service AND i.app = k.app AND i.key = k.key WHERE i.at > $4",
    ),
    (
        Reading::Free,
        "SELECT k.service, f.number FROM unnest($1::uuid[], $2::int[]) AS k (service, wanted) \
         CROSS JOIN LATERAL (SELECT number FROM free_extensions f WHERE f.service = k.service \
         ORDER BY number LIMIT k.wanted) f",
    ),
    (
        Reading::Taken,
        "SELECT k.service, t.extension FROM unnest($1::uuid[], $2::int[]) AS k (service, wanted) \
         JOIN services s ON s.service = k.service \
         CROSS JOIN LATERAL (SELECT extension FROM contacts c WHERE c.service = k.service \
         AND c.extension >= s.extension_next AND c.extension IS NOT NULL ORDER BY extension LIMIT k.wanted) t",
    ),
];

/// What a group writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    Progress,
    Hold,
    Release,
    Exhaust,
    Failed,
    ForgetFailed,
    ForgetOldFailed,
    Disable,
    DeleteContacts,
    GiveUpExtensions,
    UpdateContacts,
    InsertContacts,
    TakeFree,
    AddFree,
    Events,
    Keys,
    Services,
    Audit,
}

const WRITING: [(Writing, &str); 18] = [
    (
        Writing::Progress,
        "UPDATE progress p SET generation = k.generation + k.disabled::int, cursor = k.cursor, bitmap = k.bitmap, \
         failing_since = k.failing_since, failing_attempts = k.failing_attempts, failed_attempts = k.failed_attempts \
         FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[], \
         $8::bigint[], $9::boolean[]) \
         AS k (service, app, generation, cursor, bitmap, failing_since, failing_attempts, failed_attempts, disabled) \
         WHERE p.service = k.service AND p.app = k.app",
    ),
    (
        Writing::Hold,
        "INSERT INTO held (service, app, sequence, contact, retries_used, attempts, due_at) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[]) \
         ON CONFLICT (service, app, sequence) DO UPDATE SET contact = excluded.contact, \
         retries_used = excluded.retries_used, attempts = excluded.attempts, due_at = excluded.due_at",
    ),
    (
        Writing::Release,
        "DELETE FROM held h USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS k (service, app, sequence) \
         WHERE h.service = k.service AND h.app = k.app AND h.sequence = k.sequence",
    ),
    (
        Writing::Exhaust,
        "INSERT INTO exhausted (service, app, sequence, contact, attempts, at) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[]) \
         ON CONFLICT (service, app, sequence) DO UPDATE SET contact = excluded.contact, \
         attempts = excluded.attempts, at = excluded.at",
    ),
    (
        Writing::Failed,
        "INSERT INTO failed_attempts (service, app, number, sequence, attempt, at, status, step, answer) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
         $7::int[], $8::text[], $9::bytea[])",
    ),
    (
        Writing::ForgetFailed,
        "DELETE FROM failed_attempts f USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS k (service, app, sequence) \
         WHERE f.service = k.service AND f.app = k.app AND f.sequence = k.sequence AND f.number <= \
         (SELECT number FROM failed_attempts o WHERE o.service = k.service AND o.app = k.app \
         AND o.sequence = k.sequence ORDER BY number DESC OFFSET $4 LIMIT 1)",
    ),
    (
        Writing::ForgetOldFailed,
        "DELETE FROM failed_attempts f USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS k (service, app, number) \
         WHERE f.service = k.service AND f.app = k.app AND f.number <= k.number",
    ),
    (
        Writing::Disable,
        "UPDATE subscriptions s SET enabled = $4, reason = k.reason, updated_at = $5 \
         FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS k (service, app, reason) \
         WHERE s.service = k.service AND s.app = k.app",
    ),
    (
        Writing::DeleteContacts,
        "DELETE FROM contacts c USING unnest($1::uuid[], $2::uuid[]) AS k (service, contact) \
         WHERE c.service = k.service AND c.contact = k.contact",
    ),
    (
        Writing::GiveUpExtensions,
        "UPDATE contacts c SET extension = NULL FROM unnest($1::uuid[], $2::uuid[]) AS k (service, contact) \
         WHERE c.service = k.service AND c.contact = k.contact",
    ),
    (
        Writing::UpdateContacts,
        "UPDATE contacts c SET version = k.version, updated_at = k.updated_at, extension = k.extension, \
         search_name = k.search_name, fields = k.fields \
         FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::int[], $6::text[], $7::text[]) \
         AS k (service, contact, version, updated_at, extension, search_name, fields) \
         WHERE c.service = k.service AND c.contact = k.contact",
    ),
    (
        Writing::InsertContacts,
        "INSERT INTO contacts (service, contact, version, created_at, updated_at, email, extension, search_name, fields) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::int[], \
         $8::text[], $9::text[])",
    ),
    (
        Writing::TakeFree,
        "DELETE FROM free_extensions f USING unnest($1::uuid[], $2::int[]) AS k (service, number) \
         WHERE f.service = k.service AND f.number = k.number",
    ),
    (
        Writing::AddFree,
        "INSERT INTO free_extensions (service, number) SELECT * FROM unnest($1::uuid[], $2::int[]) \
         ON CONFLICT DO NOTHING",
    ),
    (
        Writing::Events,
        "INSERT INTO events (service, sequence, event, contact, kind, contact_version, full_name, at) \
         SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::smallint[], $6::bigint[], \
         $7::text[], $8::bigint[])",
    ),
    (
        Writing::Keys,
        "INSERT INTO idempotency_keys (service, app, key, request_hash, answer, at) \
         SELECT k.*, $6::bigint FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[]) k \
         ON CONFLICT (service, app, key) DO UPDATE SET request_hash = excluded.request_hash, \
         answer = excluded.answer, at = excluded.at",
    ),
    (
        Writing::Services,
        "UPDATE services s SET head = k.head, last_event_at = k.last_event_at, contacts = k.contacts, \
         extension_next = k.extension_next, audit_head = k.audit_head, audit_at = k.audit_at \
         FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::int[], $6::bigint[], $7::bigint[]) \
         AS k (service, head, last_event_at, contacts, extension_next, audit_head, audit_at) \
         WHERE s.service = k.service",
    ),
    (
        Writing::Audit,
        "INSERT INTO audit (service, first, entries, at, who, address, action, sequence, app, subject, target, reason) \
         SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], \
         $8::bigint[], $9::uuid[], $10::bytea[], $11::text[], $12::text[])",
    ),
];

/// Every statement of a group looks up rows by their keys, however large the tables are and whatever the planner has
/// heard of them: a plan that reads a whole table would be right for an empty one and is kept.
const SESSION: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET plan_cache_mode = force_generic_plan; SET random_page_cost = 1";

/// The prepared statements of one connection.
pub(super) struct Statements {
    pub(super) group: Statement,
    reading: Vec<Statement>,
    writing: Vec<Statement>,
}

impl Statements {
    /// Prepares the connection.
    pub(super) async fn prepare(client: &ClientWrapper) -> Result<Self, tokio_postgres::Error> {
        // On the database's clock: were it ours, and wrong, another node would remove the id while it is needed.
        let group = "INSERT INTO groups (id, at) VALUES ($1, (extract(epoch FROM now()) * 1000)::bigint) \
             ON CONFLICT DO NOTHING";
        // In one round trip: a connection that was lost is soon replaced.
        let prepare = |sql: &'static str| Box::pin(client.prepare(sql));
        let (session, group, reading, writing) = futures_util::try_join!(
            client.batch_execute(SESSION),
            client.prepare(group),
            try_join_all(READING.iter().map(|(_, sql)| prepare(sql))),
            try_join_all(WRITING.iter().map(|(_, sql)| prepare(sql))),
        )?;
        let () = session;
        Ok(Self { group, reading, writing })
    }

    /// The statement of this reading.
    pub(super) fn reading(&self, reading: Reading) -> &Statement {
        &self.reading[reading as usize]
    }

    /// The statement of this writing.
    pub(super) fn writing(&self, writing: Writing) -> &Statement {
        &self.writing[writing as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::{READING, WRITING};

    #[test]
    fn statements_stand_in_the_order_of_their_names() {
        assert!(READING.iter().enumerate().all(|(at, (reading, _))| *reading as usize == at));
        assert!(WRITING.iter().enumerate().all(|(at, (writing, _))| *writing as usize == at));
    }
}
