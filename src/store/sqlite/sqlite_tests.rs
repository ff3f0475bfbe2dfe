//! The embedded back end passes the suite of every back end, and its own rules for file, lock and schema.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::retention::Retention;
use super::{DATABASE_FILE, Embedded, migrate, retention};
use crate::domain::clock::{SystemClock, Timestamp};
use crate::domain::contact::ContactPatch;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::command::{ContactAnswer, ContactChange, IfMatch};
use crate::store::{Error, conformance};

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "rollcall-store-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self) -> Result<Embedded, Error> {
        Embedded::open(&self.0, Arc::new(SystemClock::new()), Retention::default())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory that is left over in the temporary folder harms nobody.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_store_passes_the_suite() {
    let opened = std::sync::Mutex::new(Vec::new());

    conformance::run(|| {
        let scratch = Scratch::new();
        let embedded = scratch.open().unwrap();
        let store = embedded.store.clone();
        opened.lock().unwrap().push((embedded, scratch));
        std::future::ready(store)
    })
    .await;

    for (embedded, _scratch) in opened.into_inner().unwrap() {
        embedded.close();
    }
}

#[tokio::test]
async fn a_second_process_is_refused_and_what_was_written_is_there_again() {
    let scratch = Scratch::new();
    let first = scratch.open().unwrap();
    let made = first.store.write.create_service("Kept".to_owned()).await.unwrap();

    let second = scratch.open();
    assert!(matches!(second, Err(Error::Unavailable(text)) if text.contains("in use")));
    first.close();
    let again = scratch.open().unwrap();

    assert_eq!(again.store.read.find_service(made.id).await.unwrap(), Some(made));
    again.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_of_a_group_that_failed_is_free() {
    let scratch = Scratch::new();
    let embedded = scratch.open().unwrap();
    let write = &embedded.store.write;
    let service = write.create_service("Service".to_owned()).await.unwrap().id;
    let create = async |email| write.change_contact(service, create_of(email), None).await;
    create("ana@example.org").await.unwrap();
    let file = Connection::open(scratch.0.join(DATABASE_FILE)).unwrap();
    file.execute_batch(
        "CREATE TRIGGER fails BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'for a test'); END",
    )
    .unwrap();
    // The event comes last: the e-mail was taken before, in the table and in memory.
    assert!(matches!(create("bo@example.org").await, Err(Error::Unavailable(_))));
    file.execute_batch("DROP TRIGGER fails").unwrap();

    create("bo@example.org").await.unwrap();

    let taken = create("ana@example.org").await;
    assert!(matches!(taken, Err(Error::Conflict(field)) if field.field == "email"));
    embedded.close();
}

fn version(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

fn rows(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    let tables = [
        "services",
        "apps",
        "app_tokens",
        "app_secrets",
        "contacts",
        "events",
        "emails",
        "recent_emails_0",
        "recent_emails_1",
    ];
    let count = |table: &&str| -> i64 {
        let query = format!("SELECT count(*) FROM {table}");
        connection.query_row(&query, [], |row| row.get(0)).unwrap()
    };
    tables.iter().map(count).sum()
}

fn create_of(email: &str) -> ContactChange {
    let body = serde_json::json!({"firstName": "Ana", "lastName": "Ng", "email": email});
    let serde_json::Value::Object(object) = body else { unreachable!("it is an object") };
    ContactChange::Create(ContactPatch::from_json(object).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_service_is_removed_in_slices() {
    let scratch = Scratch::new();
    let embedded = scratch.open().unwrap();
    let write = &embedded.store.write;
    let service = write.create_service("Leaving".to_owned()).await.unwrap().id;
    let changes = || (0..1_200).map(|number| create_of(&format!("a{number}@example.org")));
    write.change_contacts(service, changes().collect()).await.unwrap();
    let path = scratch.0.join(DATABASE_FILE);
    assert_eq!(rows(&path), 1 + 1_200 + 1_200 + 1_200);

    write.delete_service(service).await.unwrap();

    let deadline = Instant::now() + Duration::from_secs(20);
    while rows(&path) > 0 {
        assert!(Instant::now() < deadline, "{} rows are left", rows(&path));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = write.create_service("Back".to_owned()).await.unwrap().id;
    let answers = write.change_contacts(again, changes().collect()).await.unwrap();
    assert!(answers.iter().all(Result::is_ok));
    embedded.close();
}

/// The schema as version 2 had it, with two contacts.
fn file_of_version_2(scratch: &Scratch) {
    std::fs::create_dir_all(&scratch.0).unwrap();
    let connection = Connection::open(scratch.0.join(DATABASE_FILE)).unwrap();
    connection
        .execute_batch(concat!(
            include_str!("../../../migrations/sqlite/0001_roll.sql"),
            include_str!("../../../migrations/sqlite/0002_deliveries.sql"),
            "PRAGMA user_version = 2;
             INSERT INTO services (service, name, created_at, head, contacts)
                 VALUES (x'01010101010101010101010101010101', 'two', 0, 2, 2);"
        ))
        .unwrap();
    for (number, email) in [(1_u8, "Bo@Example.org"), (2, "ana@example.org")] {
        let fields =
            serde_json::json!({"firstName": "Ana", "lastName": "Ng", "email": email}).to_string();
        connection
            .execute(
                "INSERT INTO contacts (service, contact, version, created_at, updated_at, email, search_name,
                     fields) VALUES (x'01010101010101010101010101010101', ?1, 1, 0, 0, ?2, 'ana ng', ?3)",
                rusqlite::params![[number; 16], email.to_lowercase(), fields],
            )
            .unwrap();
    }
}

#[tokio::test]
async fn a_file_of_version_2_keeps_its_contacts_and_their_emails() {
    let scratch = Scratch::new();
    file_of_version_2(&scratch);
    let embedded = scratch.open().unwrap();
    let service = ServiceId::from_bytes([1; 16]);
    let write = &embedded.store.write;
    let create = async |email| write.change_contact(service, create_of(email), None).await;

    for email in ["bo@example.ORG", "ana@example.org"] {
        let taken = create(email).await;
        assert!(matches!(taken, Err(Error::Conflict(field)) if field.field == "email"));
    }
    let bo = ContactId::from_bytes([1; 16]);
    assert!(embedded.store.read.find_contact(service, bo).await.unwrap().is_some());
    let delete = ContactChange::Delete { id: bo, if_match: IfMatch::Any };
    write.change_contact(service, delete, None).await.unwrap();
    create("bo@example.org").await.unwrap();

    assert!(create("bo@example.org").await.is_err());
    embedded.close();
}

#[tokio::test]
async fn an_email_is_taken_and_free_after_a_restart_as_before() {
    let scratch = Scratch::new();
    let first = scratch.open().unwrap();
    let write = &first.store.write;
    let service = write.create_service("Service".to_owned()).await.unwrap().id;
    let mut ids = Vec::new();
    for email in ["ana@example.org", "bo@example.org"] {
        match write.change_contact(service, create_of(email), None).await.unwrap() {
            ContactAnswer::Created(contact) => ids.push(contact.id),
            other => panic!("{other:?}"),
        }
    }
    let delete = ContactChange::Delete { id: ids[0], if_match: IfMatch::Any };
    write.change_contact(service, delete, None).await.unwrap();
    first.close();

    let again = scratch.open().unwrap();
    let write = &again.store.write;
    let create = async |email| write.change_contact(service, create_of(email), None).await;

    let taken = create("BO@example.org").await;
    assert!(matches!(taken, Err(Error::Conflict(field)) if field.field == "email"));
    create("ana@example.org").await.unwrap();
    assert!(create("ana@example.org").await.is_err());
    again.close();
}

#[test]
fn a_newer_schema_is_refused_with_both_versions_named() {
    let scratch = Scratch::new();
    scratch.open().unwrap().close();
    let path = scratch.0.join(DATABASE_FILE);
    let known = version(&path);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();

    let refused = scratch.open().unwrap_err().to_string();

    assert!(refused.contains("99") && refused.contains(&known.to_string()), "{refused}");
    assert_eq!(version(&path), 99);
}

#[test]
fn directory_and_file_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    scratch.open().unwrap().close();

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;

    assert_eq!(mode(&scratch.0), 0o700);
    assert_eq!(mode(&scratch.0.join(DATABASE_FILE)), 0o600);
}

#[test]
fn sqlite_is_recent_enough_for_a_sound_write_ahead_log() {
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}

#[test]
fn migrating_twice_changes_nothing() {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate::migrate(&mut connection).unwrap();

    migrate::migrate(&mut connection).unwrap();

    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 5);
}

/// A service of ten events, of which an app that subscribed at the start has got some, and its file.
fn log_of_ten(scratch: &Scratch) -> Connection {
    let mut connection = {
        std::fs::create_dir_all(&scratch.0).unwrap();
        super::open_writer(&scratch.0.join(DATABASE_FILE)).unwrap()
    };
    migrate::migrate(&mut connection).unwrap();
    connection
        .execute_batch(
            "INSERT INTO services (service, name, created_at, head) VALUES (zeroblob(16), 'other', 0, 0);
             INSERT INTO services (service, name, created_at, head)
                 VALUES (x'01010101010101010101010101010101', 'ten', 0, 10);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10)
             INSERT INTO events SELECT x'01010101010101010101010101010101', i, zeroblob(16), zeroblob(16), 2, i,
                 'Ana Ng', i * 1000 FROM n;
             INSERT INTO subscriptions (service, app, url, enabled, ticket, updated_at)
                 VALUES (x'01010101010101010101010101010101', zeroblob(16), 'https://a.example/', 1, 1, 0);
             INSERT INTO progress (service, app, generation, cursor, bitmap)
                 VALUES (x'01010101010101010101010101010101', zeroblob(16), 1, 2, x'16');
             INSERT INTO held VALUES
                 (x'01010101010101010101010101010101', zeroblob(16), 2, zeroblob(16), 1, 1, 0);",
        )
        .unwrap();
    connection
}

fn progress_of(connection: &Connection) -> (i64, i64, Vec<u8>, Option<i64>, Option<i64>) {
    connection
        .query_row("SELECT generation, cursor, bitmap, gap_from, gap_to FROM progress", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })
        .unwrap()
}

/// Prunes slice after slice until a whole walk finds nothing; gives how much each slice removed.
fn prune(connection: &Connection, before: i64, limit: i64) -> Vec<usize> {
    let (mut position, mut removed) = (None, Vec::new());
    for _ in 0..100 {
        let before = Timestamp::from_millis(before);
        let slice = retention::remove_events(connection, position, before, limit).unwrap();
        position = slice.position;
        if slice.events == 0 && position.is_none() {
            return removed;
        }
        removed.push(slice.events);
    }
    panic!("it never ends: {removed:?}");
}

#[test]
fn pruning_moves_the_cursor_and_stores_what_was_never_delivered() {
    let scratch = Scratch::new();
    let connection = log_of_ten(&scratch);

    // Event 2 is held; 4, 5 and 7 are delivered above the cursor, so 3 and 6 are owed.
    assert_eq!(prune(&connection, 2_000, 100), [1]);
    assert_eq!(progress_of(&connection), (1, 2, vec![0x16], None, None));

    assert_eq!(prune(&connection, 4_500, 2), [2, 1]);
    assert_eq!(progress_of(&connection), (2, 5, vec![0b10], Some(2), Some(3)));
    let held: i64 = connection.query_row("SELECT count(*) FROM held", [], |r| r.get(0)).unwrap();
    assert_eq!(held, 0);
}

#[test]
fn the_newest_event_and_the_numbers_outlive_every_retention() {
    let scratch = Scratch::new();
    let connection = log_of_ten(&scratch);

    assert_eq!(prune(&connection, i64::MAX, 4), [4, 4, 1]);

    let left: Vec<i64> = connection
        .prepare("SELECT sequence FROM events")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(left, [10]);
    let (_, cursor, bitmap, from, to) = progress_of(&connection);
    assert_eq!((cursor, bitmap.len(), from, to), (9, 0, Some(2), Some(9)));
    let floor: i64 =
        connection.query_row("SELECT max(floor) FROM services", [], |row| row.get(0)).unwrap();
    assert_eq!(floor, 9);
}

#[test]
fn an_app_that_unsubscribed_has_no_gap() {
    let scratch = Scratch::new();
    let connection = log_of_ten(&scratch);
    connection.execute_batch("UPDATE subscriptions SET enabled = 0; DELETE FROM held").unwrap();

    prune(&connection, i64::MAX, 100);

    assert_eq!(progress_of(&connection), (1, 2, vec![0x16], None, None));
}

#[test]
fn upkeep_finds_what_is_over_without_looking_at_every_row() {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate::migrate(&mut connection).unwrap();
    for query in [
        "SELECT service FROM services WHERE hidden = 1 LIMIT 1",
        "DELETE FROM app_tokens WHERE expires_at <= 5",
        "DELETE FROM app_secrets WHERE expires_at <= 5",
        "SELECT service, app, key FROM idempotency_keys WHERE at <= 5 LIMIT 1",
        "SELECT service, app, number FROM failed_attempts WHERE at < 5 ORDER BY at LIMIT 1",
    ] {
        let plan: String = connection
            .query_row(&format!("EXPLAIN QUERY PLAN {query}"), [], |row| row.get(3))
            .unwrap();
        assert!(plan.contains("INDEX"), "{query}: {plan}");
    }
}
