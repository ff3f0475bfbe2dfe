//! The embedded back end: one SQLite file in the data directory, one writer thread, a pool of readers.
//!
//! Write-ahead log with `synchronous=FULL`: a commit that returned is on the disk. `NORMAL` would lose
//! acknowledged changes at a power cut.

mod audit;
mod contacts;
pub mod copying;
mod deliveries;
mod emails;
mod events;
mod key_file;
mod migrate;
mod pool;
mod progress;
pub mod retention;
mod secrets;
mod services;
mod subscriptions;
mod tenancy;
mod upkeep;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use super::keyring::{Key, KeyId, Keyring};
use super::queue::{Queue, Write};
use super::rows::{
    AuditPage, AuditQuery, ContactList, ContactQuery, DeliveryQuery, DeliveryRow, LaneRow,
    LaterEvents, LogPage, SubscriptionStatus, TokenOfApp,
};
use super::{Answer, Error, Read, Store};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::contact::StaffContact;
use crate::domain::event::Event;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::page::Page;
use crate::domain::subscription::{StoredSecret, Subscription};
use crate::domain::tenancy::{App, Service, StoredToken, TokenHash};

use self::pool::Pool;
use self::retention::Retention;
use self::writer::Writer;

/// The file that holds everything.
const DATABASE_FILE: &str = "rollcall.db";
/// The file whose lock says that a process uses the directory.
const LOCK_FILE: &str = "lock";
/// Pages after which a commit also checkpoints. 64 MiB of log: large, because the writer checkpoints in idle
/// moments; larger lengthens the longest commit and the start after a crash, smaller makes such commits frequent.
const CHECKPOINT_PAGES: i64 = 16_000;
/// Page cache of the writer in KiB. More makes commits slower: moving pages in a balance makes SQLite walk its table
/// of cached pages at the commit. Less reads index pages of a large roll from the system's cache more often.
const WRITER_CACHE_KIB: i64 = 8_192;
/// Page cache of each reader in KiB: readers mostly touch few pages.
const READER_CACHE_KIB: i64 = 4_096;
/// Bytes of the log that are written again at once. More takes memory, fewer takes more calls.
const SETTLE_BYTES: usize = 1024 * 1024;
/// Prepared statements kept per connection: every statement there is, with room.
const STATEMENTS_CACHED: usize = 128;

/// An open embedded store: dropping it without [`Self::close`] loses nothing that was acknowledged.
#[derive(Debug)]
pub struct Embedded {
    /// Reads and writes.
    pub store: Store,
    writer: std::thread::JoinHandle<()>,
    queue: Arc<Queue>,
    _lock: File,
}

impl Embedded {
    /// Opens the store in this directory, making it when it is not there.
    ///
    /// # Errors
    ///
    /// Another process uses the directory, it cannot be written, or its schema is newer than this program.
    pub fn open(
        directory: &Path,
        clock: Arc<dyn Clock>,
        retention: Retention,
    ) -> Result<Self, Error> {
        Self::open_with(directory, clock, retention, Keys::File)
    }

    /// As [`Self::open`], with the keys of signing secrets from elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], or a secret needs a key that is not there.
    pub fn open_with(
        directory: &Path,
        clock: Arc<dyn Clock>,
        retention: Retention,
        keys: Keys,
    ) -> Result<Self, Error> {
        make_directory(directory)?;
        let lock = lock_directory(directory)?;
        let (path, mut connection) = open_database(directory)?;
        copying::check_mark(&connection)?;
        let keys = match keys {
            Keys::File => {
                let keys = find_keys(directory, &connection)?;
                Some(use_key_file(directory, &mut connection, &keys)?.0)
            }
            Keys::Given(keys) => {
                secrets::prepare(&mut connection, &keys)?;
                Some(keys)
            }
            Keys::Without => None,
        };
        let ticket = subscriptions::last_ticket(&connection).map_err(|e| unavailable(&e))?;
        let pool = Arc::new(Pool::new(path.clone()));
        let queue = Arc::new(Queue::default());
        let writer = Writer::new(
            path,
            connection,
            Arc::clone(&queue),
            Arc::clone(&pool),
            clock,
            retention,
            keys.clone(),
        );
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Unavailable(format!("cannot start the writer: {error}")))?;
        let write = Write::new(Arc::clone(&queue), ticket);
        let read: Arc<dyn Read> = Arc::new(Reader { pool, keys });
        Ok(Self { store: Store { read, write, conditions: None }, writer, queue, _lock: lock })
    }

    /// Gives a store a new key for its secrets, in the key file; no process may have it open.
    ///
    /// # Errors
    ///
    /// Another process uses the directory, or a secret needs a key that is not in the file.
    pub fn rotate_key(directory: &Path, now: Timestamp) -> Result<(KeyId, u64), Error> {
        let _lock = lock_directory(directory)?;
        let (_, mut connection) = open_database(directory)?;
        copying::check_mark(&connection)?;
        let keys = find_keys(directory, &connection)?;
        // First ends an earlier rotation that was broken off, or keys would gather with each such attempt.
        let (keys, _) = use_key_file(directory, &mut connection, &keys)?;
        // Both are in the file until nothing needs the earlier one: whatever breaks this off, the next start ends it.
        let keys = keys.with_new().map_err(key_file::unusable)?;
        key_file::write(directory, &keys)?;
        secrets::note_rotation(&mut connection, now)?;
        let (keys, secrets) = use_key_file(directory, &mut connection, &keys)?;
        Ok((keys.newest(), secrets))
    }

    /// How many signing secrets do not open with these keys; no process may have the store open.
    ///
    /// # Errors
    ///
    /// Another process uses the directory, or the key file cannot be used.
    pub fn count_lost_secrets(directory: &Path, keys: &Keys) -> Result<usize, Error> {
        let _lock = lock_directory(directory)?;
        let (_, connection) = open_database(directory)?;
        let keys = match keys {
            Keys::Given(keys) => keys.clone(),
            // With no key at all none opens, and a new one opens none either.
            Keys::File | Keys::Without => match key_file::read(directory)? {
                Some(keys) => keys,
                None => Key::random()
                    .and_then(|key| Keyring::new(vec![key]))
                    .map_err(key_file::unusable)?,
            },
        };
        Ok(secrets::lost(&connection, &keys)?.len())
    }

    /// Gives a new secret to every app whose secret does not open with these keys; no process may have the store open.
    /// Tells how many there were.
    ///
    /// # Errors
    ///
    /// Another process uses the directory, or the key file cannot be used.
    pub fn replace_lost_secrets(
        directory: &Path,
        keys: &Keys,
        now: Timestamp,
    ) -> Result<(KeyId, u64), Error> {
        let _lock = lock_directory(directory)?;
        let (_, mut connection) = open_database(directory)?;
        copying::check_mark(&connection)?;
        if let Keys::Given(keys) = keys {
            let replaced = secrets::replace_lost(&mut connection, keys, now)?;
            secrets::prepare(&mut connection, keys)?;
            return Ok((keys.newest(), replaced));
        }
        let keys = match key_file::read(directory)? {
            Some(keys) => keys,
            None => key_file::make(directory)?,
        };
        let replaced = secrets::replace_lost(&mut connection, &keys, now)?;
        let (keys, _) = use_key_file(directory, &mut connection, &keys)?;
        Ok((keys.newest(), replaced))
    }

    /// Whether there is a store in this directory.
    #[must_use]
    pub fn exists(directory: &Path) -> bool {
        directory.join(DATABASE_FILE).is_file()
    }

    /// Whether the writer lives.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        !self.writer.is_finished()
    }

    /// Lets nothing more in, finishes what waits, and closes the file. Blocks until that is done.
    pub fn close(self) {
        self.queue.close();
        if self.writer.join().is_err() {
            tracing::error!("store writer panicked");
        }
    }
}

/// Where the keys of signing secrets come from.
#[derive(Clone, Debug)]
pub enum Keys {
    /// The key file of the data directory, made when there is none.
    File,
    /// The operator.
    Given(Keyring),
    /// Nowhere: no secret is read or written.
    Without,
}

fn open_database(directory: &Path) -> Result<(PathBuf, Connection), Error> {
    let path = directory.join(DATABASE_FILE);
    let mut connection = open_writer(&path)?;
    migrate::migrate(&mut connection)?;
    Ok((path, connection))
}

/// The keys of the file; a first one is made only when nothing was ever sealed.
fn find_keys(directory: &Path, connection: &Connection) -> Result<Keyring, Error> {
    match key_file::read(directory)? {
        Some(keys) => Ok(keys),
        None if secrets::any_sealed(connection)? => {
            secrets::lacks_keys(connection, None)?;
            Err(Error::Internal("the key file is missing".to_owned()))
        }
        None => key_file::make(directory),
    }
}

/// Brings every secret to the newest key, and the file to this key alone.
fn use_key_file(
    directory: &Path,
    connection: &mut Connection,
    keys: &Keyring,
) -> Result<(Keyring, u64), Error> {
    let secrets = secrets::prepare(connection, keys)?;
    if keys.ids().count() == 1 {
        return Ok((keys.clone(), secrets));
    }
    let newest = keys.only_newest().map_err(key_file::unusable)?;
    key_file::write(directory, &newest)?;
    Ok((newest, secrets))
}

fn make_directory(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        Error::Unavailable(format!("cannot make data directory {}: {error}", directory.display()))
    })?;
    // Also when the directory was there: a start that made it may have been killed before it came to this.
    if !Embedded::exists(directory) {
        sync_names_above(directory);
    }
    Ok(())
}

/// Makes the name of a new directory as durable as what will be stored in it. SQLite syncs the data directory, and
/// nothing above it.
fn sync_names_above(directory: &Path) {
    for above in directory.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        if let Err(error) = File::open(above).and_then(|above| above.sync_all()) {
            // A directory that may be entered and not read was made by somebody else.
            tracing::debug!(directory = %above.display(), error = %error, "directory not synced");
        }
    }
}

fn lock_directory(directory: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.join(LOCK_FILE);
    let file =
        File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(
            |error| Error::Unavailable(format!("cannot open {}: {error}", path.display())),
        )?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Unavailable(format!(
            "data directory {} is in use by another rollcall process: stop that one, or choose another directory with --data-dir",
            directory.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(Error::Unavailable(format!("cannot lock {}: {error}", path.display())))
        }
    }
}

fn unavailable(error: &rusqlite::Error) -> Error {
    Error::Unavailable(error.to_string())
}

fn open(path: &Path, cache_kib: i64) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

/// Writes what can be read of the write-ahead log once more, and syncs it.
///
/// When a sync has failed, Linux gives up what waited for it and still shows it to readers: SQLite would take a
/// commit out of the log that is not on the disk, and everything behind it would be gone after a power cut. Only
/// what is written again is synced again. No connection is open meanwhile.
fn settle_log(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    let log = match File::options().read(true).write(true).open(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut part = vec![0; SETTLE_BYTES];
    let mut at = 0;
    loop {
        let count = log.read_at(&mut part, at)?;
        if count == 0 {
            break;
        }
        log.write_all_at(&part[..count], at)?;
        at += count as u64;
    }
    if at > 0 { log.sync_all() } else { Ok(()) }
}

fn open_writer(path: &Path) -> Result<Connection, Error> {
    settle_log(path).map_err(|error| {
        Error::Unavailable(format!("cannot write the log of {}: {error}", path.display()))
    })?;
    let opened = open(path, WRITER_CACHE_KIB).and_then(|connection| {
        connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get::<_, String>(0))?;
        // In one literal, because the test of power cuts lowers it in a copy of the program.
        connection.execute_batch("PRAGMA synchronous=FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        Ok(connection)
    });
    restrict(path);
    opened.map_err(|error| Error::Unavailable(format!("cannot open {}: {error}", path.display())))
}

/// Makes the file readable by its owner only, should the directory be more open than we made it.
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        tracing::debug!(error = %error, "database permissions not changed");
    }
}

fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = open(path, READER_CACHE_KIB)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// The reading side.
#[derive(Debug)]
struct Reader {
    pool: Arc<Pool>,
    /// None when the store was opened for something that needs no secrets.
    keys: Option<Keyring>,
}

impl Reader {
    /// A read that opens secrets.
    fn read_sealed<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &Keyring) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Answer<'_, T> {
        let Some(keys) = self.keys.clone() else {
            let error = Error::Internal("opened without the keys of secrets".to_owned());
            return Box::pin(std::future::ready(Err(error)));
        };
        self.pool.read(move |connection| work(connection, &keys))
    }
}

impl Read for Reader {
    fn find_app_by_token(
        &self,
        token: TokenHash,
        now: Timestamp,
    ) -> Answer<'_, Option<TokenOfApp>> {
        self.pool.read(move |c| tenancy::find_app_by_token(c, token, now))
    }

    fn list_admin_tokens(&self, now: Timestamp) -> Answer<'_, Vec<StoredToken>> {
        self.pool.read(move |c| tenancy::list_admin_tokens(c, now))
    }

    fn list_tokens(
        &self,
        service: ServiceId,
        apps: Vec<AppId>,
        now: Timestamp,
    ) -> Answer<'_, Vec<Vec<StoredToken>>> {
        self.pool.read(move |c| tenancy::list_tokens(c, service, &apps, now))
    }

    fn list_audit(&self, service: ServiceId, query: AuditQuery) -> Answer<'_, Option<AuditPage>> {
        self.pool.scan(move |c| audit::list(c, service, query))
    }

    fn find_service(&self, service: ServiceId) -> Answer<'_, Option<Service>> {
        self.pool.read(move |c| tenancy::find_service(c, service))
    }

    fn list_services(&self, after: Option<ServiceId>, limit: u32) -> Answer<'_, Page<Service>> {
        self.pool.read(move |c| tenancy::list_services(c, after, limit))
    }

    fn list_apps(
        &self,
        service: ServiceId,
        after: Option<AppId>,
        limit: u32,
    ) -> Answer<'_, Page<App>> {
        self.pool.read(move |c| tenancy::list_apps(c, service, after, limit))
    }

    fn find_contact(&self, service: ServiceId, id: ContactId) -> Answer<'_, Option<StaffContact>> {
        self.pool.read(move |c| contacts::find_contact(c, service, id))
    }

    fn list_contacts(&self, service: ServiceId, query: ContactQuery) -> Answer<'_, ContactList> {
        self.pool.scan(move |c| contacts::list_contacts(c, service, &query))
    }

    fn find_subscription(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Answer<'_, Option<Subscription>> {
        self.pool.read(move |c| subscriptions::find_subscription(c, service, app))
    }

    fn get_subscription_status(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Answer<'_, SubscriptionStatus> {
        self.pool.read(move |c| subscriptions::get_status(c, service, app))
    }

    fn list_signing_secrets(
        &self,
        service: ServiceId,
        app: AppId,
        now: Timestamp,
    ) -> Answer<'_, Vec<StoredSecret>> {
        self.read_sealed(move |c, keys| secrets::list_signing_secrets(c, keys, service, app, now))
    }

    fn list_heads(&self) -> Answer<'_, Vec<(ServiceId, u64)>> {
        self.pool.read(events::list_heads)
    }

    fn list_lanes(&self) -> Answer<'_, Vec<LaneRow>> {
        self.read_sealed(progress::list_lanes)
    }

    fn find_lane(&self, service: ServiceId, app: AppId) -> Answer<'_, Option<LaneRow>> {
        self.read_sealed(move |c, keys| progress::find_lane(c, keys, service, app))
    }

    fn list_events(&self, service: ServiceId, after: u64, limit: u32) -> Answer<'_, Vec<Event>> {
        self.pool.read(move |c| events::list_events(c, service, after, limit))
    }

    fn list_deliveries(
        &self,
        service: ServiceId,
        app: AppId,
        query: DeliveryQuery,
    ) -> Answer<'_, Vec<DeliveryRow>> {
        self.pool.read(move |c| deliveries::list_deliveries(c, service, app, query))
    }

    fn find_delivery(
        &self,
        service: ServiceId,
        app: AppId,
        sequence: u64,
    ) -> Answer<'_, Option<DeliveryRow>> {
        self.pool.read(move |c| deliveries::find_delivery(c, service, app, sequence))
    }

    fn list_later_events(&self, service: ServiceId, sequence: u64) -> Answer<'_, LaterEvents> {
        self.pool.scan(move |c| deliveries::list_later_events(c, service, sequence))
    }

    fn list_log(&self, service: ServiceId, after: u64, limit: u32) -> Answer<'_, Option<LogPage>> {
        self.pool.scan(move |c| events::list_log(c, service, after, limit))
    }

    fn check(&self) -> Answer<'_, ()> {
        self.pool.check()
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
