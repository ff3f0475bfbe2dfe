//! Stores for tests of copies: places of both kinds, and rows of every shape for them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::domain::clock::SystemClock;
use crate::store::copy::Side;
use crate::store::copy::tables::{Kind, TABLES, Table, Value};
use crate::store::keyring::{Key, Keyring};
use crate::store::postgres::copying::PostgresSide;
use crate::store::postgres::test_database::TestDatabase;
use crate::store::postgres::{Options, Postgres};
use crate::store::retention::Retention;
use crate::store::sqlite::copying::SqliteSide;
use crate::store::sqlite::{Embedded, Keys};
use crate::store::{Error, Store};

/// Rows of each table of a filled store, in more than one page.
pub(super) const ROWS: usize = 700;
/// Columns that may be empty, in both kinds of store.
pub(super) const NULLABLE: [&str; 17] = [
    "app_tokens.expires_at",
    "app_tokens.created_at",
    "app_tokens.used_at",
    "admin_tokens.created_at",
    "admin_tokens.used_at",
    "admin_tokens.expires_at",
    "app_secrets.expires_at",
    "contacts.extension",
    "subscriptions.verified_at",
    "progress.failing_since",
    "progress.gap_from",
    "progress.gap_to",
    "failed_attempts.status",
    "audit.address",
    "audit.sequence",
    "audit.app",
    "audit.reason",
];
/// A store somewhere, which goes away with the value.
pub(super) enum Place {
    Directory(PathBuf),
    Database(Box<TestDatabase>),
}

impl Place {
    pub(super) fn directory() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rollcall-copy-{}-{number}", std::process::id());
        Self::Directory(std::env::temp_dir().join(name))
    }

    pub(super) async fn database() -> Self {
        Self::Database(Box::new(TestDatabase::new().await))
    }

    /// Two of each kind, so that every pair of kinds can be had.
    pub(super) async fn every_pair() -> Vec<(Self, Self)> {
        vec![
            (Self::directory(), Self::directory()),
            (Self::directory(), Self::database().await),
            (Self::database().await, Self::directory()),
            (Self::database().await, Self::database().await),
        ]
    }

    pub(super) async fn try_open(&self) -> Result<Side, Error> {
        match self {
            Self::Directory(path) => SqliteSide::open(path).map(Side::Sqlite),
            Self::Database(database) => {
                PostgresSide::open(&database.target).await.map(Side::Postgres)
            }
        }
    }

    pub(super) async fn open(&self) -> Side {
        self.try_open_soon().await.unwrap()
    }

    pub(super) async fn filled(self, seed: u64) -> Self {
        let mut side = self.open().await;
        let mut random = Random(seed);
        for table in &TABLES {
            side.write(table, &random.rows(table)).await.unwrap();
        }
        self
    }

    /// A server's store, as a start would open it.
    pub(super) async fn serve(&self) -> Result<Served, Error> {
        let clock = Arc::new(SystemClock::new());
        let keys = Keyring::new(vec![Key::random().unwrap()]).unwrap();
        match self {
            Self::Directory(path) => {
                Embedded::open_with(path, clock, Retention::FOREVER, Keys::Without)
                    .map(Served::Embedded)
            }
            Self::Database(database) => {
                let retention = Retention::FOREVER;
                let options = Options { clock, retention, keys, node_name: "test".to_owned() };
                let postgres = Postgres::open(&database.target, options).await?;
                Ok(Served::Postgres(Box::new(postgres)))
            }
        }
    }

    /// Fails when the mark does not let a server start. Random bytes are no secrets, which comes to light only after it.
    pub(super) async fn assert_may_serve(&self) {
        match self.serve_soon().await {
            Ok(served) => served.close().await,
            Err(why) => assert!(why.contains("number of a key"), "{why}"),
        }
    }

    pub(super) async fn refusal(&self) -> String {
        match self.serve_soon().await {
            Err(why) => why,
            Ok(served) => {
                served.close().await;
                panic!("a server starts")
            }
        }
    }

    /// As soon as the session of a side that was dropped has ended, a moment after its client.
    pub(super) async fn serve_soon(&self) -> Result<Served, String> {
        soon(async || {
            let served = self.serve().await.map_err(|error| error.to_string());
            let ends = served.as_ref().is_err_and(|why| why.contains("is being copied"));
            (!ends).then_some(served)
        })
        .await
    }

    /// The same for a side.
    pub(super) async fn try_open_soon(&self) -> Result<Side, Error> {
        soon(async || {
            let side = self.try_open().await;
            let ends = side.as_ref().is_err_and(|why| why.to_string().contains("another copy"));
            (!ends).then_some(side)
        })
        .await
    }
}

async fn soon<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = ask().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a session does not end")
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Directory(path) = self {
            drop(std::fs::remove_dir_all(path));
        }
    }
}

pub(super) enum Served {
    Embedded(Embedded),
    Postgres(Box<Postgres>),
}

impl Served {
    pub(super) fn store(&self) -> &Store {
        match self {
            Self::Embedded(it) => &it.store,
            Self::Postgres(it) => &it.store,
        }
    }

    pub(super) async fn close(self) {
        match self {
            Self::Embedded(it) => it.close(),
            Self::Postgres(it) => it.close().await,
        }
    }
}

impl Side {
    pub(super) async fn sql(&self, sql: &str) {
        match self {
            Self::Sqlite(side) => side.sql(sql),
            Self::Postgres(side) => side.sql(sql).await,
        }
    }

    pub(super) async fn rows(&mut self, table: &Table) -> Vec<Vec<Value>> {
        self.read(table, None, 1_000_000).await.unwrap()
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn within(&mut self, first: i64, last: i64) -> i64 {
        first + i64::try_from(self.next() % (last - first + 1).cast_unsigned()).unwrap()
    }

    fn number(&mut self) -> i64 {
        match self.below(4) {
            0 => [i64::MIN, i64::MAX, 0, -1, 1][self.below(5)],
            1 => i64::try_from(self.below(1000)).unwrap(),
            _ => self.next().cast_signed(),
        }
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 9] =
            ["", "a", "Ærøskøbing", "\\N\t\n\r", "'\"\u{1}", "名前", "e\u{301}", "🙂", "\u{ffff}"];
        (0..self.below(6)).map(|_| PARTS[self.below(PARTS.len())]).collect()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    fn value(&mut self, column: &str, kind: Kind, unique: usize) -> Value {
        if NULLABLE.contains(&column) && self.below(3) == 0 {
            return Value::Null;
        }
        match (column, kind) {
            // Each but a few of them, from the lowest on.
            ("contacts.extension", _) => Value::Number(100 + i64::try_from(unique).unwrap()),
            // Keys, of which some share their beginning.
            (_, Kind::Id) if column.ends_with(".service") => {
                Value::Bytes(vec![u8::try_from(unique % 3).unwrap(); 16])
            }
            (_, Kind::Id) => Value::Bytes(self.bytes(16)),
            (_, Kind::Bytes) => {
                let len = 40 + self.below(400);
                Value::Bytes(self.bytes(len))
            }
            (_, Kind::Long) => Value::Number(self.number()),
            (_, Kind::Int) => Value::Number(self.within(i32::MIN.into(), i32::MAX.into())),
            (_, Kind::Small) => Value::Number(self.within(i16::MIN.into(), i16::MAX.into())),
            (_, Kind::Flag) => Value::Number(i64::from(self.next() & 1 == 1)),
            (_, Kind::Text) if column == "contacts.email" || column.ends_with(".key") => {
                Value::Text(format!("{}{unique}", self.text()))
            }
            (_, Kind::Text) => Value::Text(self.text()),
        }
    }

    /// Rows of every shape that the table takes; each key once.
    fn rows(&mut self, table: &Table) -> Vec<Vec<Value>> {
        let mut keys = BTreeSet::new();
        let mut rows = Vec::new();
        for unique in 0..ROWS {
            let value = |(name, kind): &(&str, Kind)| {
                self.value(&format!("{}.{name}", table.name), *kind, unique)
            };
            let mut row: Vec<Value> = table.columns.iter().map(value).collect();
            if table.name == "services" {
                row[0] = Value::Bytes(self.bytes(16));
            }
            let key = format!("{:?}", &row[..table.key]);
            if keys.insert(key) {
                rows.push(row);
            }
        }
        assert!(rows.len() > ROWS / 2, "{}: {} rows", table.name, rows.len());
        rows
    }
}
