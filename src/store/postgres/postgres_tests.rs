//! The suite of every back end, on PostgreSQL.

use std::sync::{Arc, LazyLock};

use super::copying::PostgresSide;
use super::test_database::TestDatabase;
use super::{Options, Postgres, Target};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::shard::Shard;
use crate::store::conformance;
use crate::store::keyring::{Key, Keyring};
use crate::store::sqlite::retention::Retention;

pub(super) fn options() -> Options {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // The same for all nodes of a test.
    static KEYS: LazyLock<Keyring> =
        LazyLock::new(|| Keyring::new(vec![Key::random().unwrap()]).unwrap());
    let keys = KEYS.clone();
    Options { clock, retention: Retention::FOREVER, keys, node_name: "test".to_owned() }
}

/// Opens the store as the only node, with every shard as it was made.
pub(super) async fn open_alone(database: &TestDatabase) -> Postgres {
    open_at(&database.target).await
}

/// As [`open_alone`], by another way to the database.
pub(super) async fn open_at(target: &Target) -> Postgres {
    let postgres = Postgres::open(target, options()).await.unwrap();
    for shard in Shard::all() {
        postgres.ownership.gain(shard, 0);
    }
    postgres
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let opened = std::sync::Mutex::new(Vec::new());
    conformance::run(|| async {
        let database = TestDatabase::new().await;
        let postgres = open_alone(&database).await;
        let store = postgres.store.clone();
        opened.lock().unwrap().push((postgres, database));
        store
    })
    .await;
    for (postgres, _database) in opened.into_inner().unwrap() {
        postgres.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_refused_from_the_moment_a_store_is_open() {
    let database = TestDatabase::new().await;
    let mut postgres = Postgres::open(&database.target, options()).await.unwrap();

    let early = PostgresSide::open(&database.target).await.unwrap_err();
    assert!(early.to_string().contains("stop every node first"), "{early}");
    // Again and again while the connection of before gives way to the keeper's.
    postgres.start_node(std::sync::Arc::new(|_| Box::pin(async {}))).unwrap();
    for _ in 0..100 {
        let during = PostgresSide::open(&database.target).await.unwrap_err();
        assert!(during.to_string().contains("stop every node first"), "{during}");
    }

    postgres.close().await;
    PostgresSide::open(&database.target).await.unwrap().close().await;
}
