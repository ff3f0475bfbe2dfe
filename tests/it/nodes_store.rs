//! `rollcall serve` on a PostgreSQL: everything is there, and nothing on the machine of the node.

use std::time::Duration;

use crate::harness::eventually;
use crate::harness::postgres::{Database, Postgres};
use crate::harness::server::TestServer;

#[tokio::test]
async fn node_keeps_everything_in_postgresql_and_nothing_else() {
    let database = Database::create().await;
    let mut node = TestServer::builder().node(&database.url(), "one").start().await;
    let id = node.app().create_contact("Ana", "Reyes").await;

    assert!(node.terminate(Duration::from_secs(15)).await.is_some_and(|status| status.success()));
    assert!(!node.data_dir().exists(), "a node made a data directory");
    node.restart().await;

    assert!(node.app().list_contact_ids().await.contains(&id));
    let other = TestServer::builder().node(&database.url(), "two").start_as(&node.credentials());
    let second = other.app().create_contact("Ben", "Okafor").await;
    assert!(node.app().list_contact_ids().await.contains(&second));
}

#[tokio::test]
async fn nodes_that_start_together_on_an_empty_database_make_its_tables_once() {
    let database = Database::create().await;
    let starting = ["one", "two", "three"].map(|name| {
        let node = TestServer::builder().node(&database.url(), name);
        tokio::spawn(node.start())
    });

    for node in starting {
        node.await.unwrap().anyone(None).get("/readyz").await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_together_print_one_admin_token_and_it_works_on_all() {
    let database = Database::create().await;
    let starting = ["one", "two", "three"].map(|name| {
        let node = TestServer::builder().node(&database.url(), name);
        tokio::task::spawn_blocking(move || node.start_without_admin_token())
    });

    let (mut nodes, mut tokens) = (Vec::new(), Vec::new());
    for node in starting {
        let (node, token) = node.await.unwrap();
        nodes.push(node);
        tokens.extend(token);
    }

    assert_eq!(tokens.len(), 1, "{} nodes printed a token", tokens.len());
    for node in &nodes {
        node.anyone(Some(&tokens[0])).get("/v1/admin/services").await.expect(200);
    }
}

#[tokio::test]
async fn node_goes_on_by_itself_when_postgresql_is_back() {
    let mut postgres = Postgres::start().await;
    let node = TestServer::builder().node(&postgres.url(), "one").tolerate_errors().start().await;
    node.app().create_contact("Ana", "Reyes").await;

    postgres.kill();
    let list = "/contacts/staffcontact-list";
    assert_eq!(node.app().get(list).await.status, 503);
    assert_eq!(node.anyone(None).get("/readyz").await.status, 503);
    postgres.restart().await;

    eventually("the node stores again", async || {
        let contact = serde_json::json!({
            "firstName": "Ben", "lastName": "Okafor", "email": "ben@example.com"
        });
        let answer = node.app().post("/contacts/staff", contact).await;
        [201, 409].contains(&answer.status).then_some(())
    })
    .await;
    assert_eq!(node.app().list_contact_ids().await.len(), 2);
}
