//! The embedded back end passes the suite of every back end, and its own rules for file, lock and schema.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::retention::Retention;
use super::{DATABASE_FILE, Embedded, migrate};
use crate::domain::clock::SystemClock;
use crate::domain::contact::ContactPatch;
use crate::store::command::ContactChange;
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

fn version(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

fn rows(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    let tables = ["services", "apps", "app_tokens", "app_secrets", "contacts", "events"];
    let count = |table: &&str| -> i64 {
        let query = format!("SELECT count(*) FROM {table}");
        connection.query_row(&query, [], |row| row.get(0)).unwrap()
    };
    tables.iter().map(count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_service_is_removed_in_slices() {
    let scratch = Scratch::new();
    let embedded = scratch.open().unwrap();
    let write = &embedded.store.write;
    let service = write.create_service("Leaving".to_owned()).await.unwrap().id;
    let changes = (0..1_200).map(|number| {
        let body = serde_json::json!({
            "firstName": "Ana", "lastName": "Ng", "email": format!("a{number}@example.org"),
        });
        let serde_json::Value::Object(object) = body else { unreachable!("it is an object") };
        ContactChange::Create(ContactPatch::from_json(object).unwrap())
    });
    write.change_contacts(service, changes.collect()).await.unwrap();
    let path = scratch.0.join(DATABASE_FILE);
    assert_eq!(rows(&path), 1 + 1_200 + 1_200);

    write.delete_service(service).await.unwrap();

    let deadline = Instant::now() + Duration::from_secs(20);
    while rows(&path) > 0 {
        assert!(Instant::now() < deadline, "{} rows are left", rows(&path));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    embedded.close();
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
    assert_eq!(version, 1);
}
