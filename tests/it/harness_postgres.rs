//! The harness for PostgreSQL keeps its own word: what it cuts is cut, what it kills is dead, what it promotes takes over.

use std::future::Future;
use std::time::Duration;

use tokio_postgres::Client;

use crate::harness::eventually;
use crate::harness::postgres::{Database, Postgres, connect};
use crate::harness::proxy::Proxy;
use crate::harness::server::TestServer;

/// How long is waited for something that must not happen.
const A_WHILE: Duration = Duration::from_millis(300);

async fn make_rows(client: &Client) {
    client
        .batch_execute("CREATE TABLE rows (n INTEGER); INSERT INTO rows VALUES (1)")
        .await
        .unwrap();
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM rows", &[]).await.unwrap().get(0)
}

/// Whether this does not end within a while. It can be waited for further on.
async fn is_stuck<F: Future + Unpin>(future: &mut F) -> bool {
    tokio::time::timeout(A_WHILE, future).await.is_err()
}

#[tokio::test]
async fn database_of_a_test_is_its_own_and_goes_away() {
    let (one, other) = (Database::create().await, Database::create().await);
    let (of_one, of_other) = (one.connect().await, other.connect().await);
    make_rows(&of_one).await;

    assert!(count(&of_one).await == 1 && of_other.query("SELECT FROM rows", &[]).await.is_err());
    let name = one.url().rsplit_once('/').unwrap().1.to_owned();
    drop(one);

    let sql = "SELECT count(*) FROM pg_database WHERE datname = $1";
    let left: i64 = of_other.query_one(sql, &[&name]).await.unwrap().get(0);
    assert_eq!(left, 0);
}

#[tokio::test]
async fn killed_postgres_comes_back_with_what_was_committed() {
    let mut postgres = Postgres::start().await;
    let client = postgres.connect().await;
    make_rows(&client).await;

    assert_eq!(postgres.terminate_clients().await, 1);
    eventually("the client notices", async || client.is_closed().then_some(())).await;
    let client = postgres.connect().await;
    postgres.kill();
    eventually("the client notices", async || client.is_closed().then_some(())).await;
    assert!(connect(&postgres.url()).await.is_err());
    postgres.restart().await;

    assert_eq!(count(&postgres.connect().await).await, 1);
}

#[tokio::test]
async fn standby_has_every_commit_and_takes_over() {
    let mut primary = Postgres::start().await;
    let client = primary.connect().await;
    make_rows(&client).await;
    let mut standby = primary.synchronous_standby().await;

    standby.kill();
    let mut commit = Box::pin(client.execute("INSERT INTO rows VALUES (2)", &[]));
    assert!(is_stuck(&mut commit).await, "a commit did not wait for the standby");
    standby.restart().await;
    commit.await.unwrap();
    let either = format!("{}?target_session_attrs=read-write", primary.url_or(&standby));
    let port = async || -> String {
        let client = connect(&either).await.unwrap();
        client.query_one("SHOW port", &[]).await.unwrap().get(0)
    };
    assert_eq!(port().await, primary.address().port().to_string());
    primary.kill();
    standby.promote().await;

    assert_eq!(count(&standby.connect().await).await, 2);
    assert_eq!(port().await, standby.address().port().to_string());
}

#[tokio::test]
async fn frozen_way_swallows_what_a_cut_way_ends() {
    let database = Database::create().await;
    let direct = database.connect().await;
    make_rows(&direct).await;
    let proxy = Proxy::start(database.server_address()).await;
    let url = database.url_over(proxy.address());
    let client = connect(&url).await.unwrap();
    let insert = "INSERT INTO rows VALUES (2)";

    proxy.freeze();
    let mut asked = Box::pin(client.execute(insert, &[]));
    assert!(is_stuck(&mut asked).await && is_stuck(&mut Box::pin(connect(&url))).await);
    assert_eq!(count(&direct).await, 1, "a frozen way let a request through");
    proxy.heal();
    assert_eq!(asked.await.unwrap(), 1);

    proxy.freeze_answers();
    let mut asked = Box::pin(client.batch_execute(insert));
    assert!(is_stuck(&mut asked).await);
    assert_eq!(count(&direct).await, 3, "the server did not hear of it");

    proxy.cut();
    assert!(asked.await.is_err());
    assert!(connect(&url).await.is_err());
    proxy.heal();
    assert_eq!(count(&connect(&url).await.unwrap()).await, 3);
}

#[tokio::test]
async fn cut_ends_connections_also_when_it_is_healed_at_once() {
    let postgres = Postgres::start().await;
    let proxy = Proxy::start(postgres.address()).await;
    let client = connect(&Postgres::url_over(proxy.address())).await.unwrap();

    proxy.cut();
    proxy.heal();

    eventually("the client notices", async || client.is_closed().then_some(())).await;
}

#[tokio::test]
async fn paused_server_is_silent_until_it_goes_on() {
    let server = TestServer::start().await;
    let caller = server.anyone(None);
    caller.get("/livez").await.expect(200);

    server.pause();
    let mut asked = Box::pin(caller.get("/livez"));
    assert!(is_stuck(&mut asked).await);
    server.resume();

    asked.await.expect(200);
}

#[tokio::test]
async fn node_without_its_postgresql_does_not_start_and_says_so() {
    let database = Database::create().await;
    let proxy = Proxy::start(database.server_address()).await;
    proxy.cut();
    let node = TestServer::builder().node(&database.url_over(proxy.address()), "one");

    let (code, said) = tokio::task::spawn_blocking(move || node.start_and_fail()).await.unwrap();

    assert!(code == Some(1) && said.contains("with PostgreSQL"), "{said}");
}
