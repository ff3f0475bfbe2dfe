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
    Rolls,
    Contacts,
    Emails,
    Keys,
    Numbers,
}

const READING: [(Reading, &str); 8] = [
    // The locks come first, each in the order of its keys: two groups then wait for each other in one direction only.
    (
        Reading::Services,
        "SELECT service, floor FROM services \
         WHERE service = ANY($1) AND NOT hidden ORDER BY service FOR NO KEY UPDATE",
    ),
    (
        Reading::Shards,
        "SELECT shard, epoch FROM shards WHERE shard = ANY($1) ORDER BY shard FOR SHARE",
    ),
    (
        Reading::Progress,
        // One after the other as they stand in the arrays.
        "SELECT k.service, k.app, p.version, p.generation, p.failed_attempts \
         FROM unnest($1::uuid[], $2::uuid[]) AS k (service, app) \
         CROSS JOIN LATERAL (SELECT * FROM progress p WHERE p.service = k.service AND p.app = k.app \
         ORDER BY p.version DESC LIMIT 1 FOR NO KEY UPDATE) p",
    ),
    (
        Reading::Rolls,
        "SELECT k.service, r.version, r.head, r.last_event_at, r.contacts, r.audit_head, r.audit_at \
         FROM unnest($1::uuid[]) AS k (service) \
         CROSS JOIN LATERAL (SELECT * FROM rolls r WHERE r.service = k.service ORDER BY r.version DESC LIMIT 1) r",
    ),
    // What is between LATERAL and OFFSET 0 is looked up for one key after the other, whatever the planner thinks of the size
    // of the table.
    (
        Reading::Contacts,
        "SELECT c.contact, c.version, c.created_at, c.updated_at, c.fields, c.service, c.email \
         FROM unnest($1::uuid[], $2::uuid[]) AS k (service, contact) \
         CROSS JOIN LATERAL (SELECT * FROM contacts c WHERE c.service = k.service AND c.contact = k.contact OFFSET 0) c",
    ),
    (
        Reading::Emails,
        "SELECT k.service, k.email, c.contact FROM unnest($1::uuid[], $2::text[]) AS k (service, email) \
         CROSS JOIN LATERAL (SELECT contact FROM contacts c WHERE c.service = k.service AND c.email = k.email OFFSET 0) c",
    ),
    (
        Reading::Keys,
        "SELECT k.service, k.app, k.key, i.request_hash, i.answer \
         FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS k (service, app, key) \
         CROSS JOIN LATERAL (SELECT * FROM idempotency_keys i WHERE i.service = k.service AND i.app = k.app \
         AND i.key = k.key AND i.at > $4 OFFSET 0) i",
    ),
    (
        Reading::Numbers,
        "SELECT k.service, e.number_freed, e.number_taken FROM unnest($1::uuid[], $2::bigint[]) AS k (service, known) \
         CROSS JOIN LATERAL (SELECT number_freed, number_taken FROM events e WHERE e.service = k.service \
         AND e.sequence > k.known ORDER BY e.sequence LIMIT $3) e",
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
    UpdateContacts,
    InsertContacts,
    Events,
    Keys,
    Rolls,
    Audit,
}

const WRITING: [(Writing, &str); 15] = [
    (Writing::Progress, "SELECT write_progress($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
    (
        Writing::Hold,
        "INSERT INTO held (service, app, sequence, contact, retries_used, attempts, due_at) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[]) \
         ON CONFLICT (service, app, sequence) DO UPDATE SET contact = excluded.contact, \
         retries_used = excluded.retries_used, attempts = excluded.attempts, due_at = excluded.due_at",
    ),
    (Writing::Release, "SELECT release_held($1, $2, $3)"),
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
    (Writing::ForgetFailed, "SELECT forget_failed($1, $2, $3, $4)"),
    (Writing::ForgetOldFailed, "SELECT forget_old_failed($1, $2, $3)"),
    (
        Writing::Disable,
        "UPDATE subscriptions s SET enabled = $4, reason = k.reason, updated_at = $5 \
         FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS k (service, app, reason) \
         WHERE s.service = k.service AND s.app = k.app",
    ),
    (Writing::DeleteContacts, "SELECT delete_contacts($1, $2)"),
    (Writing::UpdateContacts, "SELECT write_contacts($1, $2, $3, $4, $5, $6, $7)"),
    (
        Writing::InsertContacts,
        "INSERT INTO contacts (service, contact, version, created_at, updated_at, email, extension, search_name, fields) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::int[], \
         $8::text[], $9::text[])",
    ),
    (
        Writing::Events,
        "INSERT INTO events (service, sequence, event, contact, kind, contact_version, full_name, at, number_freed, \
         number_taken) SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::smallint[], \
         $6::bigint[], $7::text[], $8::bigint[], $9::int[], $10::int[])",
    ),
    (
        Writing::Keys,
        "INSERT INTO idempotency_keys (service, app, key, request_hash, answer, at) \
         SELECT k.*, $6::bigint FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[]) k \
         ON CONFLICT (service, app, key) DO UPDATE SET request_hash = excluded.request_hash, \
         answer = excluded.answer, at = excluded.at",
    ),
    (Writing::Rolls, "SELECT write_rolls($1, $2, $3, $4, $5, $6, $7)"),
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
    pub(super) all_numbers: Statement,
    reading: Vec<Statement>,
    writing: Vec<Statement>,
}

impl Statements {
    /// Prepares the connection.
    pub(super) async fn prepare(client: &ClientWrapper) -> Result<Self, tokio_postgres::Error> {
        // On the database's clock: were it ours, and wrong, another node would remove the id while it is needed.
        let group = "INSERT INTO groups (id, at) VALUES ($1, (extract(epoch FROM now()) * 1000)::bigint) \
             ON CONFLICT DO NOTHING";
        // Of one moment: both are in one statement.
        let all_numbers = "SELECT s.head, (SELECT array_agg(c.extension) FROM contacts c WHERE c.service = s.service \
             AND c.extension IS NOT NULL) FROM service_states s WHERE s.service = $1 AND NOT s.hidden";
        // In one round trip: a connection that was lost is soon replaced.
        let prepare = |sql: &'static str| Box::pin(client.prepare(sql));
        let (session, group, all_numbers, reading, writing) = futures_util::try_join!(
            client.batch_execute(SESSION),
            client.prepare(group),
            client.prepare(all_numbers),
            try_join_all(READING.iter().map(|(_, sql)| prepare(sql))),
            try_join_all(WRITING.iter().map(|(_, sql)| prepare(sql))),
        )?;
        let () = session;
        Ok(Self { group, all_numbers, reading, writing })
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
