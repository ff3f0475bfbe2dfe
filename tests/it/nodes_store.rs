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

/// Runs `rollcall` on a PostgreSQL that is in the environment; tells how it ended and what it said.
fn rollcall_on(store: &str, key: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.env("ROLLCALL_STORE", store).env("ROLLCALL_SECRET_KEY", key);
    let output = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_keys_and_admin_tokens_are_replaced_while_no_node_runs() {
    const OTHER_KEY: &str = "Q0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0M=";
    let database = Database::create().await;
    let (store, builder) = (database.url(), TestServer::builder());
    let mut node = builder.clone().node(&store, "one").start().await;
    let secret = async |node: &TestServer| {
        let answer = node.app().get("/staff-contact-event-sub/secret").await.expect(200);
        answer["secret"].as_str().unwrap().to_owned()
    };
    let earlier = secret(&node).await;
    let key_reset = ["key", "reset", "--yes"];
    for arguments in [&key_reset[..], &["admin-token", "reset"]] {
        let (code, out, err) = rollcall_on(&store, OTHER_KEY, arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""), "a node runs");
        assert!(err.contains("stop every node first"), "{err}");
    }
    assert!(node.terminate(Duration::from_secs(15)).await.is_some_and(|status| status.success()));

    let (code, token, err) = rollcall_on(&store, OTHER_KEY, &["admin-token", "reset"]);
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = rollcall_on(&store, OTHER_KEY, &["key", "reset"]);
    assert!(code == Some(1) && err.contains("1 signing secrets") && err.contains("--yes"), "{err}");
    let (code, out, err) = rollcall_on(&store, OTHER_KEY, &key_reset);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("1 apps with a new signing secret"), "{out}");

    let with_other_key =
        builder.node(&store, "two").environment(vec![("ROLLCALL_SECRET_KEY", OTHER_KEY.into())]);
    let other = with_other_key.clone().start_as(&node.credentials());
    assert_ne!(secret(&other).await, earlier);
    drop(other);
    let (stored, printed) = with_other_key.start_without_admin_token();
    assert_eq!(printed, None);
    stored.anyone(Some(token.trim())).get("/v1/admin/services").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_key_does_not_start_even_while_nothing_is_sealed() {
    const OTHER_KEY: &str = "Q0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0M=";
    let database = Database::create().await;
    let other = TestServer::builder()
        .node(&database.url(), "other")
        .environment(vec![("ROLLCALL_SECRET_KEY", OTHER_KEY.into())]);
    let first = TestServer::builder().node(&database.url(), "first").serve().start().await;
    let client = database.connect().await;
    client.batch_execute("DELETE FROM app_secrets").await.unwrap();

    let (code, said) = other.clone().start_and_fail();

    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("are sealed with key") && said.contains("secret_key"), "{said}");
    drop(first);
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
