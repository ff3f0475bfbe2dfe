//! Eras on the real database. That PostgreSQL empties the table when it should, and no sooner, is part of the system tests.

use std::sync::Arc;

use uuid::Uuid;

use super::{enter, find};
use crate::domain::lease::Lease;
use crate::store::Error;
use crate::store::postgres::connect::Readers;
use crate::store::postgres::ownership::Ownership;
use crate::store::postgres::test_database::TestDatabase;
use crate::store::queue::Queue;

/// As PostgreSQL leaves the table after a crash.
const CRASH: &str = "TRUNCATE eras";

async fn look(database: &TestDatabase) -> Result<Uuid, Error> {
    let mut client = database.target.connect_plain().await.unwrap();
    enter(&mut client, &Ownership::default(), &Queue::default()).await
}

#[tokio::test]
async fn an_era_begins_once_for_all_and_frees_every_shard_beyond_all_epochs() {
    let database = TestDatabase::new().await;
    let client = database.target.connect_plain().await.unwrap();
    let settled = async || -> bool {
        client.query_one("SELECT settled FROM eras", &[]).await.unwrap().get(0)
    };
    let first = look(&database).await.unwrap();
    assert_eq!(look(&database).await.unwrap(), first);
    assert!(settled().await, "nobody was there before");
    client
        .batch_execute(
            "INSERT INTO nodes (node, name, version) VALUES (gen_random_uuid(), 'n', '1'); \
             UPDATE shards SET node = (SELECT node FROM nodes), epoch = shard; \
             SELECT nextval('subscription_tickets') FROM generate_series(1, 40)",
        )
        .await
        .unwrap();

    client.batch_execute(CRASH).await.unwrap();
    let found = futures_util::future::join_all((0..8).map(|_| look(&database))).await;

    let second = found[0].clone().unwrap();
    assert!(second != first && found.iter().all(|era| *era == Ok(second)), "{found:?}");
    assert!(!settled().await);
    let sql = "SELECT count(*) FROM shards WHERE node IS NULL AND epoch = shard + 1000000";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 64);
    assert!(client.query("SELECT 1 FROM nodes", &[]).await.unwrap().is_empty());
    let sql = "SELECT nextval('subscription_tickets')";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1_000_041);
}

#[tokio::test]
async fn tables_of_another_version_are_refused_and_say_why() {
    let database = TestDatabase::new().await;
    let mut client = database.target.connect_plain().await.unwrap();
    let (ownership, queue) = (Ownership::default(), Queue::default());

    client.batch_execute("INSERT INTO schema_version VALUES (1000)").await.unwrap();
    let newer = enter(&mut client, &ownership, &queue).await.unwrap_err();
    assert!(newer.to_string().contains("start the newer program"), "{newer}");
    assert!(ownership.is_outdated());

    // As after a failover to a standby that lacks the last scripts.
    let back = "DELETE FROM schema_version WHERE version > 5; DROP TABLE eras";
    client.batch_execute(back).await.unwrap();
    let older = enter(&mut client, &ownership, &queue).await.unwrap_err();
    assert!(older.to_string().contains("went back to schema version 5"), "{older}");
    assert!(!ownership.is_outdated());
}

#[tokio::test]
async fn nobody_reads_in_another_era_than_the_one_that_the_node_is_in() {
    let database = TestDatabase::new().await;
    let mut client = database.target.connect_plain().await.unwrap();
    let (ownership, queue) = (Arc::new(Ownership::new(Lease::not_yet())), Queue::default());
    let first = enter(&mut client, &ownership, &queue).await.unwrap();
    let readers = Readers::new(&database.target, &ownership).unwrap();
    drop(readers.get().await.unwrap());
    let taken = readers.get().await.unwrap();

    client.batch_execute(CRASH).await.unwrap();
    let second = look(&database).await.unwrap();

    // A new connection leads into an era that this node has not entered.
    let refused = readers.get().await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("another server took over"), "{refused}");
    drop(taken);
    ownership.enter(second, &queue);
    let reading = readers.get().await.unwrap();
    assert_eq!(find(&reading).await.unwrap(), Some(second));
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'rollcall' AND pid <> pg_backend_pid()";
    // The earlier connection is gone, and not used again; this one is the other.
    let others = async || reading.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    while others().await > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_ne!(first, second);
}
