//! What is replaced while no node runs, and that none may.

use super::Unused;
use crate::domain::audit::{Action, SERVER};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::Scopes;
use crate::store::command::NewApp;
use crate::store::keyring::{Key, Keyring};
use crate::store::postgres::test_database::TestDatabase;
use crate::store::postgres::test_stage::{NOW, hash};
use crate::store::postgres::tests::options;
use crate::store::postgres::{Options, Postgres};
use crate::store::rows::AuditQuery;

const APPS: u8 = 3;

fn keys() -> Keyring {
    Keyring::new(vec![Key::random().unwrap()]).unwrap()
}

async fn open(database: &TestDatabase, keys: &Keyring) -> Postgres {
    let options = Options { keys: keys.clone(), ..options() };
    Postgres::open(&database.target, options).await.unwrap()
}

/// Apps with secrets of 32 times their number.
async fn make_apps(postgres: &Postgres) -> Vec<(ServiceId, AppId)> {
    let write = &postgres.store.write;
    let service = write.create_service("Service".to_owned()).await.unwrap().id;
    let mut apps = Vec::new();
    for byte in 1..=APPS {
        let secret = SigningSecret(vec![byte; 32]);
        let (name, scopes) = ("App".to_owned(), Scopes::all());
        let new = NewApp { service, name, scopes, token: hash(byte), secret };
        apps.push((service, write.create_app(new).await.unwrap().id));
    }
    apps
}

async fn newest(postgres: &Postgres, (service, app): (ServiceId, AppId)) -> Vec<u8> {
    let read = &postgres.store.read;
    read.list_signing_secrets(service, app, NOW).await.unwrap()[0].secret.0.clone()
}

async fn actions(postgres: &Postgres, service: ServiceId) -> Vec<Action> {
    let query = AuditQuery { limit: 100, ..AuditQuery::default() };
    let page = postgres.store.read.list_audit(service, query).await.unwrap().unwrap();
    page.entries.iter().map(|entry| entry.action).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_secrets_are_counted_and_replaced_and_the_others_stay() {
    let database = TestDatabase::new().await;
    let (earlier, later) = (keys(), keys());
    let postgres = open(&database, &earlier).await;
    let apps = make_apps(&postgres).await;
    postgres.close().await;
    let mut unused = Unused::open(&database.target).await.unwrap();

    assert_eq!(unused.count_lost_secrets(&earlier).await.unwrap(), 0);
    assert_eq!(unused.count_lost_secrets(&later).await.unwrap(), usize::from(APPS));
    let (key, replaced) = unused.replace_lost_secrets(&later, NOW).await.unwrap();
    let again = unused.replace_lost_secrets(&later, NOW).await.unwrap().1;
    unused.close().await;

    assert_eq!((key, replaced, again), (later.newest(), APPS.into(), 0));
    let postgres = open(&database, &later).await;
    for (app, byte) in apps.iter().zip(1..) {
        let secret = newest(&postgres, *app).await;
        assert!(secret.len() == 32 && secret != [byte; 32]);
    }
    let rotated = actions(&postgres, apps[0].0).await;
    assert_eq!(rotated.iter().filter(|it| **it == Action::SecretRotate).count(), apps.len());
    postgres.close().await;
    // One that is damaged is replaced alone.
    let client = database.target.connect(|_| ()).await.unwrap();
    let damage = "UPDATE app_secrets SET secret = '\\x00' WHERE app = $1";
    client.execute(damage, &[&apps[0].1.uuid()]).await.unwrap();
    let mut unused = Unused::open(&database.target).await.unwrap();
    assert_eq!(unused.count_lost_secrets(&later).await.unwrap(), 1);
    assert_eq!(unused.replace_lost_secrets(&later, NOW).await.unwrap().1, 1);
    unused.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_secret_that_is_lost_goes_and_the_newest_stays() {
    let database = TestDatabase::new().await;
    let keys = keys();
    let postgres = open(&database, &keys).await;
    let (service, app) = make_apps(&postgres).await[0];
    let until = Timestamp::from_millis(1 << 50);
    let new = SigningSecret(vec![9; 32]);
    postgres.store.write.rotate_secret(service, app, new, until).await.unwrap();
    postgres.close().await;
    let client = database.target.connect(|_| ()).await.unwrap();
    let damage = "UPDATE app_secrets SET secret = '\\x00' WHERE app = $1 AND number = 1";
    assert_eq!(client.execute(damage, &[&app.uuid()]).await.unwrap(), 1);

    let mut unused = Unused::open(&database.target).await.unwrap();
    assert_eq!(unused.count_lost_secrets(&keys).await.unwrap(), 1);
    assert_eq!(unused.replace_lost_secrets(&keys, NOW).await.unwrap().1, 0);
    unused.close().await;

    let postgres = open(&database, &keys).await;
    assert_eq!(newest(&postgres, (service, app)).await, [9; 32]);
    postgres.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_token_is_replaced() {
    let database = TestDatabase::new().await;
    let keys = keys();
    let postgres = open(&database, &keys).await;
    postgres.store.write.set_admin_token(hash(1)).await.unwrap();
    postgres.close().await;

    let unused = Unused::open(&database.target).await.unwrap();
    unused.set_admin_token(hash(2), NOW).await.unwrap();
    unused.close().await;

    let postgres = open(&database, &keys).await;
    let tokens = postgres.store.read.list_admin_tokens(NOW).await.unwrap();
    assert_eq!(tokens.iter().map(|token| token.hash).collect::<Vec<_>>(), [hash(2)]);
    assert_eq!(actions(&postgres, SERVER).await, [Action::AdminTokenSet, Action::AdminTokenSet]);
    postgres.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replaced_while_a_node_runs_or_in_a_store_that_was_copied_away() {
    let database = TestDatabase::new().await;
    let refusal = async || Unused::open(&database.target).await.unwrap_err().to_string();
    let postgres = open(&database, &keys()).await;
    // Its writer has connected when it has written.
    make_apps(&postgres).await;
    assert!(refusal().await.contains("stop every node first"));
    postgres.close().await;
    let unused = Unused::open(&database.target).await.unwrap();

    let opened = Postgres::open(&database.target, options()).await;

    assert!(opened.is_err(), "a node was let in");
    unused.close().await;
    let client = database.target.connect(|_| ()).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO meta (name, value) VALUES ('copy', \
             '{\"id\":\"1\",\"role\":\"sealed\",\"other\":\"elsewhere\"}')",
        )
        .await
        .unwrap();
    assert!(refusal().await.contains("is sealed"));
}

#[tokio::test]
async fn a_database_without_a_store_is_left_as_it_is() {
    let database = TestDatabase::new().await;
    let client = database.target.connect(|_| ()).await.unwrap();
    client.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();

    let refused = Unused::open(&database.target).await.unwrap_err().to_string();

    assert!(refused.contains("there is no Rollcall data in postgres://"), "{refused}");
    let tables = client.query("SELECT 1 FROM pg_tables WHERE schemaname = 'public'", &[]).await;
    assert!(tables.unwrap().is_empty());
}
