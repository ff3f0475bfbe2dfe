//! Secrets at rest: what is in the file, which key opens it, and how keys are replaced, also when that is broken off.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use crate::domain::audit::Action;
use crate::domain::clock::{SystemClock, Timestamp};
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::{Scopes, Token};
use crate::store::Error;
use crate::store::command::NewApp;
use crate::store::keyring::{Key, Keyring};
use crate::store::rows::AuditQuery;
use crate::store::sqlite::retention::Retention;
use crate::store::sqlite::{
    DATABASE_FILE, Embedded, Keys, find_keys, key_file, open_writer, use_key_file,
};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// A directory of its own, removed at the end.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("rollcall-secrets-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn open(&self, keys: Keys) -> Result<Embedded, Error> {
        Embedded::open_with(&self.0, Arc::new(SystemClock::new()), Retention::default(), keys)
    }

    /// All bytes of the database and its log.
    fn bytes(&self) -> Vec<u8> {
        let read = |name: String| fs::read(self.0.join(name)).unwrap_or_default();
        [read(DATABASE_FILE.to_owned()), read(format!("{DATABASE_FILE}-wal"))].concat()
    }

    fn holds(&self, needle: &[u8]) -> bool {
        self.bytes().windows(needle.len()).any(|part| part == needle)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn secret(number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    [high, low, 0xa5, 0x5a].repeat(8)
}

/// Apps with these secrets: service, app and the secret of each.
async fn make_apps(embedded: &Embedded, count: u16) -> Vec<(ServiceId, AppId, Vec<u8>)> {
    let write = &embedded.store.write;
    let service = write.create_service("Keys".to_owned()).await.unwrap().id;
    let mut made = Vec::new();
    for number in 0..count {
        let token = Token::from_text(format!("token {number}")).hash();
        let secret = secret(number);
        let app = NewApp {
            service,
            name: "App".to_owned(),
            scopes: Scopes::all(),
            token,
            secret: SigningSecret(secret.clone()),
        };
        made.push((service, write.create_app(app).await.unwrap().id, secret));
    }
    made
}

async fn newest(embedded: &Embedded, service: ServiceId, app: AppId) -> Vec<u8> {
    let read = &embedded.store.read;
    let listed = read.list_signing_secrets(service, app, Timestamp::default()).await.unwrap();
    listed[0].secret.0.clone()
}

async fn all_open(scratch: &Scratch, keys: Keys, apps: &[(ServiceId, AppId, Vec<u8>)]) {
    let embedded = scratch.open(keys).unwrap();
    for (service, app, secret) in apps {
        assert_eq!(newest(&embedded, *service, *app).await, *secret);
    }
    embedded.close();
}

fn ring() -> Keyring {
    Keyring::new(vec![Key::random().unwrap()]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_the_file_only_sealed_and_the_key_is_the_owners_alone() {
    let scratch = Scratch::new("sealed");
    let embedded = scratch.open(Keys::File).unwrap();
    let apps = make_apps(&embedded, 20).await;
    let (service, app, _) = apps[0];
    let (rotated, until) = (secret(900), Timestamp::from_millis(i64::MAX / 2));
    embedded
        .store
        .write
        .rotate_secret(service, app, SigningSecret(rotated.clone()), until)
        .await
        .unwrap();

    for secret in apps.iter().map(|app| &app.2).chain([&rotated]) {
        assert!(!scratch.holds(secret));
    }
    assert_eq!(newest(&embedded, service, app).await, rotated);
    embedded.close();
    // The search finds what is there.
    assert!(scratch.holds(service.as_bytes()));
    for secret in apps.iter().map(|app| &app.2).chain([&rotated]) {
        assert!(!scratch.holds(secret));
    }
    let mode = fs::metadata(key_file::path(&scratch.0)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    all_open(&scratch, Keys::File, &apps[1..]).await;
}

/// A store as it was before secrets were sealed, with some and with what was left of others.
fn plain_store(directory: &Path, count: u16) -> Vec<(ServiceId, AppId, Vec<u8>)> {
    let connection = open_writer(&directory.join(DATABASE_FILE)).unwrap();
    for script in ["0001_roll", "0002_deliveries", "0003_emails"] {
        let path = format!("{}/migrations/sqlite/{script}.sql", env!("CARGO_MANIFEST_DIR"));
        connection.execute_batch(&fs::read_to_string(path).unwrap()).unwrap();
    }
    connection.pragma_update(None, "user_version", 3).unwrap();
    let service = ServiceId::from_bytes([9; 16]);
    let insert = "INSERT INTO app_secrets (service, app, number, secret) VALUES (?1, ?2, 1, ?3)";
    let mut made = Vec::new();
    for number in 0..count {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        let row = rusqlite::params![service.as_bytes(), id, secret(number)];
        connection.execute(insert, row).unwrap();
        made.push((service, AppId::from_bytes(id), secret(number)));
    }
    connection.execute("DELETE FROM app_secrets WHERE app < x'0040'", []).unwrap();
    made.split_off(0x40)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_plain_secrets_is_sealed_and_nothing_plain_is_left_in_the_file() {
    let scratch = Scratch::new("plain");
    let apps = plain_store(&scratch.0, 500);
    let left = (0..500).filter(|number| scratch.holds(&secret(*number))).count();
    assert!(left > 436, "{left} of 500 found before: the deleted ones should be among them");

    let embedded = scratch.open(Keys::File).unwrap();
    for (service, app, secret) in &apps {
        assert_eq!(newest(&embedded, *service, *app).await, *secret);
    }

    let found = (0..500).filter(|number| scratch.holds(&secret(*number))).count();
    assert_eq!(found, 0);
    embedded.close();
    assert_eq!((0..500).filter(|number| scratch.holds(&secret(*number))).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleaning_that_was_broken_off_is_made_up_for() {
    let scratch = Scratch::new("scrub");
    let apps = plain_store(&scratch.0, 300);
    {
        // As far as the commit of what was sealed, and no further.
        let mut connection = open_writer(&scratch.0.join(DATABASE_FILE)).unwrap();
        crate::store::sqlite::migrate::migrate(&mut connection).unwrap();
        let keys = find_keys(&scratch.0, &connection).unwrap();
        super::seal_all(&mut connection, &keys).unwrap();
    }
    assert!((0..300).any(|number| scratch.holds(&secret(number))));

    all_open(&scratch, Keys::File, &apps).await;

    assert!(!(0..300).any(|number| scratch.holds(&secret(number))));
}

/// Files without a name that this process has open, by their directories.
#[cfg(target_os = "linux")]
fn open_without_name(directory: &Path) -> bool {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        target.file_name()?.to_str()?.ends_with("(deleted)").then_some(target)
    });
    links.into_iter().any(|target| target.parent() == Some(directory))
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_is_written_anew_by_way_of_its_own_directory() {
    let scratch = Scratch::new("vacuum");
    let connection = open_writer(&scratch.0.join(DATABASE_FILE)).unwrap();
    // More than is kept in memory.
    connection
        .execute_batch(
            "CREATE TABLE much (x BLOB); WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
             WHERE i < 10000) INSERT INTO much SELECT randomblob(4000) FROM n",
        )
        .unwrap();
    assert!(!open_without_name(&scratch.0));

    let seen = std::thread::scope(|scope| {
        let writing = scope.spawn(move || super::vacuum(&connection).unwrap());
        let mut seen = false;
        while !writing.is_finished() {
            seen |= open_without_name(&scratch.0);
        }
        writing.join().unwrap();
        seen
    });

    assert!(seen, "the copy was elsewhere");
    assert!(!open_without_name(&scratch.0), "the copy is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_takes_over_wherever_the_change_is_broken_off() {
    let scratch = Scratch::new("rotate");
    let embedded = scratch.open(Keys::File).unwrap();
    let apps = make_apps(&embedded, 30).await;
    embedded.close();
    let first = key_file::read(&scratch.0).unwrap().unwrap();

    let (second, sealed) = Embedded::rotate_key(&scratch.0, NOW).unwrap();

    assert_eq!(sealed, 30);
    assert_ne!(second, first.newest());
    let ids = |keys: Keyring| keys.ids().collect::<Vec<_>>();
    assert_eq!(ids(key_file::read(&scratch.0).unwrap().unwrap()), [second]);
    all_open(&scratch, Keys::File, &apps).await;

    // After the file has both keys, after all is sealed, and in the middle of an earlier change that never ended.
    let both = key_file::read(&scratch.0).unwrap().unwrap().with_new().unwrap();
    key_file::write(&scratch.0, &both).unwrap();
    all_open(&scratch, Keys::File, &apps).await;
    assert_eq!(ids(key_file::read(&scratch.0).unwrap().unwrap()), [both.newest()]);
    let both = both.only_newest().unwrap().with_new().unwrap();
    key_file::write(&scratch.0, &both).unwrap();
    {
        let mut connection = open_writer(&scratch.0.join(DATABASE_FILE)).unwrap();
        super::seal_all(&mut connection, &both).unwrap();
    }
    let (third, sealed) = Embedded::rotate_key(&scratch.0, NOW).unwrap();
    assert_eq!(sealed, 30);
    assert_eq!(ids(key_file::read(&scratch.0).unwrap().unwrap()), [third]);
    all_open(&scratch, Keys::File, &apps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_key_nothing_starts_and_nothing_changes() {
    let scratch = Scratch::new("missing");
    let embedded = scratch.open(Keys::File).unwrap();
    let apps = make_apps(&embedded, 3).await;
    embedded.close();
    let (path, aside) = (key_file::path(&scratch.0), scratch.0.join("aside"));
    let needed = key_file::read(&scratch.0).unwrap().unwrap().newest().to_string();
    let refused = |keys: Keys, part: &str| {
        let error = scratch.open(keys).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };

    refused(Keys::Given(ring()), &needed);
    fs::rename(&path, &aside).unwrap();
    refused(Keys::File, &needed);
    assert!(!path.exists());
    assert!(Embedded::rotate_key(&scratch.0, NOW).is_err());
    fs::write(&path, "rollcall-key-1 AAAA\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    refused(Keys::File, "base64");
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(&aside, &path).unwrap();
    refused(Keys::File, "0640");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();

    all_open(&scratch, Keys::File, &apps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_given_are_replaced_by_giving_a_new_one_in_front() {
    let scratch = Scratch::new("given");
    let old = ring();
    let embedded = scratch.open(Keys::Given(old.clone())).unwrap();
    let apps = make_apps(&embedded, 5).await;
    embedded.close();
    assert!(!key_file::path(&scratch.0).exists());
    let both = old.with_new().unwrap();

    all_open(&scratch, Keys::Given(both.clone()), &apps).await;
    all_open(&scratch, Keys::Given(both.only_newest().unwrap()), &apps).await;

    assert!(scratch.open(Keys::Given(old)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_get_new_secrets_when_the_key_is_lost_for_good() {
    let scratch = Scratch::new("lost");
    let embedded = scratch.open(Keys::File).unwrap();
    let apps = make_apps(&embedded, 7).await;
    embedded.close();
    fs::remove_file(key_file::path(&scratch.0)).unwrap();

    let (_, replaced) = Embedded::replace_lost_secrets(&scratch.0, &Keys::File, NOW).unwrap();

    assert_eq!(replaced, 7);
    let embedded = scratch.open(Keys::File).unwrap();
    for (service, app, secret) in &apps {
        let new = newest(&embedded, *service, *app).await;
        assert!(new.len() == 32 && new != *secret);
    }
    let query =
        AuditQuery { action: Some(Action::SecretRotate), limit: 100, ..AuditQuery::default() };
    let page = embedded.store.read.list_audit(apps[0].0, query).await.unwrap().unwrap();
    let noted: Vec<Option<AppId>> = page.entries.iter().map(|entry| entry.subject.app).collect();
    assert_eq!(noted, apps.iter().map(|app| Some(app.1)).collect::<Vec<_>>());
    embedded.close();
    assert_eq!(Embedded::replace_lost_secrets(&scratch.0, &Keys::File, NOW).unwrap().1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_put_in_the_place_of_another_does_not_open() {
    let scratch = Scratch::new("moved");
    let embedded = scratch.open(Keys::File).unwrap();
    let apps = make_apps(&embedded, 2).await;
    embedded.close();
    let connection = Connection::open(scratch.0.join(DATABASE_FILE)).unwrap();
    connection
        .execute(
            "UPDATE app_secrets SET secret = (SELECT secret FROM app_secrets WHERE app = ?1) WHERE app = ?2",
            [apps[0].1.as_bytes(), apps[1].1.as_bytes()],
        )
        .unwrap();
    drop(connection);

    let embedded = scratch.open(Keys::File).unwrap();
    assert_eq!(newest(&embedded, apps[0].0, apps[0].1).await, apps[0].2);
    let read = &embedded.store.read;
    let moved = read.list_signing_secrets(apps[1].0, apps[1].1, Timestamp::default()).await;
    assert!(moved.unwrap_err().to_string().contains("does not open"));
    embedded.close();
    // It can be replaced alone.
    assert_eq!(Embedded::count_lost_secrets(&scratch.0, &Keys::File).unwrap(), 1);
    assert_eq!(Embedded::replace_lost_secrets(&scratch.0, &Keys::File, NOW).unwrap().1, 1);
    let embedded = scratch.open(Keys::File).unwrap();
    assert_eq!(newest(&embedded, apps[0].0, apps[0].1).await, apps[0].2);
    assert_eq!(newest(&embedded, apps[1].0, apps[1].1).await.len(), 32);
    embedded.close();
}

#[test]
fn the_file_of_keys_is_replaced_whole() {
    let scratch = Scratch::new("file");
    let mut connection = open_writer(&scratch.0.join(DATABASE_FILE)).unwrap();
    crate::store::sqlite::migrate::migrate(&mut connection).unwrap();
    let keys = find_keys(&scratch.0, &connection).unwrap();
    fs::write(scratch.0.join("secret.key.new"), "left by a crash").unwrap();

    key_file::write(&scratch.0, &keys.with_new().unwrap()).unwrap();
    let (left, _) =
        use_key_file(&scratch.0, &mut connection, &key_file::read(&scratch.0).unwrap().unwrap())
            .unwrap();

    assert_eq!(left.ids().count(), 1);
    assert!(!scratch.0.join("secret.key.new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_refused_while_an_earlier_secret_is_damaged_and_its_neighbours_go_on() {
    let scratch = Scratch::new("damaged-rotation");
    let embedded = scratch.open(Keys::File).unwrap();
    let (service, app, _) = make_apps(&embedded, 1).await[0].clone();
    let damage = "UPDATE app_secrets SET secret = x'00'";
    open_writer(&scratch.0.join(DATABASE_FILE)).unwrap().execute_batch(damage).unwrap();
    let write = &embedded.store.write;
    let rotate = |until| {
        write.rotate_secret(service, app, SigningSecret(secret(7)), Timestamp::from_millis(until))
    };

    let (refused, neighbour) =
        tokio::join!(rotate(i64::MAX / 2), write.create_service("Other".to_owned()));

    assert!(
        matches!(&refused, Err(Error::Unavailable(text)) if text.contains("key reset")),
        "{refused:?}"
    );
    neighbour.unwrap();
    assert_eq!(embedded.store.read.check().await, Ok(()));
    // Where it does not sign on it is not opened.
    rotate(0).await.unwrap();
    assert_eq!(newest(&embedded, service, app).await, secret(7));
    embedded.close();
}
