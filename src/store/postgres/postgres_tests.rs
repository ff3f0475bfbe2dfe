use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Options, Postgres, Target};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::shard::Shard;
use crate::store::conformance;
use crate::store::keyring::{Key, Keyring};
use crate::store::sqlite::retention::Retention;

/// A database of its own, removed at the end.
pub(super) struct Database {
    server: String,
    name: String,
}

impl Database {
    pub(super) async fn make() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let server = std::env::var("TEST_POSTGRES_URL")
            .expect("TEST_POSTGRES_URL is not set: `make test` starts a PostgreSQL and sets it");
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("rollcall_test_{}_{number}", std::process::id());
        let client = Target::parse(&server).unwrap().connect_plain().await.unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        Self { server, name }
    }

    pub(super) fn url(&self) -> String {
        let (address, query) = self.server.split_once('?').unwrap_or((&self.server, ""));
        let at = address.rfind('/').unwrap();
        format!("{}/{}?{query}", &address[..at], self.name)
    }

    pub(super) fn target(&self) -> Target {
        Target::parse(&self.url()).unwrap()
    }

    pub(super) async fn drop(self) {
        let client = Target::parse(&self.server).unwrap().connect_plain().await.unwrap();
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        client.batch_execute(&sql).await.unwrap();
    }
}

pub(super) fn options() -> Options {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let keys = Keyring::new(vec![Key::random().unwrap()]).unwrap();
    Options { clock, retention: Retention::FOREVER, keys }
}

/// Opens the store as the only node, with every shard as it was made.
pub(super) async fn open_alone(database: &Database) -> Postgres {
    open_at(&database.url()).await
}

/// As [`open_alone`], by another way to the database.
pub(super) async fn open_at(url: &str) -> Postgres {
    let postgres = Postgres::open(&Target::parse(url).unwrap(), options()).await.unwrap();
    for shard in Shard::all() {
        postgres.ownership.gain(shard, 0);
    }
    postgres
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let opened = std::sync::Mutex::new(Vec::new());
    conformance::run(|| async {
        let database = Database::make().await;
        let postgres = open_alone(&database).await;
        let store = postgres.store.clone();
        opened.lock().unwrap().push((postgres, database));
        store
    })
    .await;
    for (postgres, database) in opened.into_inner().unwrap() {
        postgres.close().await;
        database.drop().await;
    }
}
