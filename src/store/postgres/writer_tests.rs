//! What the writer does with a connection that is not what it was, and with a group of which nobody knows the end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::{Job, Writer};
use crate::domain::clock::{Clock, SystemClock};
use crate::store::Commit;
use crate::store::keyring::{Key, Keyring};
use crate::store::postgres::ownership::Ownership;
use crate::store::postgres::test_database::TestDatabase;
use crate::store::queue::Queue;

struct Told {
    reopened: AtomicUsize,
    went_back: AtomicUsize,
}

fn writer(database: &TestDatabase) -> (Writer, Arc<Told>) {
    let queue = Arc::new(Queue::default());
    let told = Arc::new(Told { reopened: AtomicUsize::new(0), went_back: AtomicUsize::new(0) });
    let telling = Arc::clone(&told);
    queue.add_listener(Arc::new(move |commit: &Commit| {
        telling.reopened.fetch_add(usize::from(commit.reopened), Ordering::SeqCst);
        telling.went_back.fetch_add(usize::from(commit.went_back), Ordering::SeqCst);
    }));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let keys = Keyring::new(vec![Key::random().unwrap()]).unwrap();
    let ownership = Arc::new(Ownership::default());
    let broken = Arc::new(Mutex::new(None));
    (Writer::new(database.target.clone(), queue, clock, keys, ownership, broken), told)
}

async fn write(writer: &mut Writer) {
    assert!(writer.work(&Job::TokenUses(Vec::new())).await.is_ok());
}

#[tokio::test]
async fn what_is_in_doubt_is_settled_before_everything_is_read_anew() {
    let database = TestDatabase::new().await;
    let (mut writer, told) = writer(&database);
    write(&mut writer).await;
    // It hangs on the server, with its id.
    let hanging = database.target.connect_plain().await.unwrap();
    let (happens, fails, nowhere) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    let insert = "INSERT INTO groups (id, at) VALUES ($1, 0) ON CONFLICT DO NOTHING";
    hanging.batch_execute("BEGIN").await.unwrap();
    hanging.execute(insert, &[&happens]).await.unwrap();

    writer.in_doubt = vec![nowhere, happens];
    write(&mut writer).await;
    write(&mut writer).await;
    assert_eq!(told.reopened.load(Ordering::SeqCst), 0, "it may still happen");
    hanging.batch_execute("COMMIT").await.unwrap();
    writer.settle_at = writer.clock.moment();
    writer.idle().await;
    assert_eq!(told.reopened.load(Ordering::SeqCst), 1);

    // One that ends without having happened cannot happen later.
    hanging.batch_execute("BEGIN").await.unwrap();
    hanging.execute(insert, &[&fails]).await.unwrap();
    hanging.batch_execute("ROLLBACK").await.unwrap();
    writer.in_doubt = vec![fails];
    write(&mut writer).await;
    assert_eq!((told.reopened.load(Ordering::SeqCst), writer.in_doubt.len()), (2, 0));
    for id in [nowhere, fails] {
        assert_eq!(hanging.execute(insert, &[&id]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn statements_that_do_not_fit_any_more_are_prepared_anew() {
    let database = TestDatabase::new().await;
    let (mut writer, _) = writer(&database);
    write(&mut writer).await;
    let link = writer.link.as_ref().unwrap();
    link.client.batch_execute("DEALLOCATE ALL").await.unwrap();

    write(&mut writer).await;

    let client = database.target.connect_plain().await.unwrap();
    let link = writer.link.as_ref().unwrap();
    link.client.batch_execute("PREPARE kept AS SELECT * FROM groups; EXECUTE kept").await.unwrap();
    client.batch_execute("ALTER TABLE groups ADD COLUMN more TEXT").await.unwrap();
    let changed = link.client.batch_execute("EXECUTE kept").await.unwrap_err();
    let failure = super::Failure::before_commit(changed);
    assert!(
        matches!(&failure, super::Failure::Lost(text) if text.contains("0A000")),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_writer_that_finds_another_era_says_so_and_forgets_what_was_in_doubt() {
    let database = TestDatabase::new().await;
    let (mut writer, told) = writer(&database);
    write(&mut writer).await;
    let client = database.target.connect_plain().await.unwrap();
    let crash = "TRUNCATE eras; SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.batch_execute(crash).await.unwrap();
    writer.in_doubt = vec![Uuid::from_u128(1)];

    while told.went_back.load(Ordering::SeqCst) == 0 {
        // Nobody writes.
        writer.idle().await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    assert_eq!((told.reopened.load(Ordering::SeqCst), writer.in_doubt.len()), (1, 0));
    // Another connection of this node may know of an era before this one does.
    let other = Uuid::from_u128(7);
    writer.ownership.enter(other, &writer.queue);
    write(&mut writer).await;
    assert_ne!(writer.ownership.era(), Some(other));
}

#[tokio::test]
async fn a_writer_does_not_go_on_where_a_newer_program_has_brought_the_tables_forward() {
    let database = TestDatabase::new().await;
    let (mut writer, _) = writer(&database);
    let client = database.target.connect_plain().await.unwrap();
    client.batch_execute("INSERT INTO schema_version VALUES (1000)").await.unwrap();

    let failure = writer.connect().await.unwrap_err();

    let super::Failure::Lost(text) = failure else { panic!("{failure:?}") };
    assert!(text.contains("start the newer program"), "{text}");
    assert!(writer.link.is_none() && writer.ownership.is_outdated());
}
