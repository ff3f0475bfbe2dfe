//! `rollcall store copy` with the real binary: a store with everything in it goes to PostgreSQL, back, and on, and serves
//! there as before; where it came from nobody serves any more.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value as Cell;
use serde_json::{Value, json};

use crate::congress;
use crate::harness::client::{Api, SUBSCRIPTION};
use crate::harness::eventually;
use crate::harness::postgres::Database;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::{Builder, TestServer};

pub(crate) const STOP: Duration = Duration::from_secs(20);
/// Tables that follow from the others.
const DERIVED: [&str; 4] = ["meta", "emails", "recent_emails_0", "recent_emails_1"];

pub(crate) fn command(from: &str, to: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    command.args(["store", "copy", "--from", from, "--to", to]);
    command
}

/// What a copy printed and said; fails the test when it did not end well.
#[track_caller]
pub(crate) fn copy(from: &str, to: &str) -> (String, String) {
    let output = command(from, to).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    (out, err)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every row of every table that is not made from others.
pub(crate) fn rows_of(directory: &Path) -> BTreeMap<String, Vec<Vec<Cell>>> {
    let connection = Connection::open(directory.join("rollcall.db")).unwrap();
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table'";
    let mut names = connection.prepare(sql).unwrap();
    let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
    names
        .filter(|name| !DERIVED.contains(&name.as_str()))
        .map(|name| {
            let mut all =
                connection.prepare(&format!("SELECT * FROM {name} ORDER BY 1, 2, 3")).unwrap();
            let columns = all.column_count();
            let row = |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get(at)).collect();
            let rows = all.query_map([], row).unwrap().map(Result::unwrap).collect();
            (name, rows)
        })
        .collect()
}

fn assert_same_rows(one: &Path, other: &Path) {
    let (one, other) = (rows_of(one), rows_of(other));
    for (table, rows) in &one {
        assert!(!rows.is_empty(), "{table} is empty, so nothing is shown");
        assert_eq!(other.get(table), Some(rows), "{table}");
    }
    assert_eq!(one.len(), other.len());
}

pub(crate) fn serving(builder: Builder) -> Builder {
    builder
        .serve()
        .flag("--allow-targets", "127.0.0.0/8")
        .flag("--allow-http", "true")
        .flag("--requests-per-minute", "0")
}

/// A server on a data directory.
pub(crate) fn on_directory(directory: &Path) -> Builder {
    serving(TestServer::builder()).data_dir(directory)
}

/// A node on a PostgreSQL, with this key of signing secrets.
pub(crate) fn on_database(url: &str, key: &str) -> Builder {
    serving(TestServer::builder())
        .node(url, "one")
        .environment(vec![("ROLLCALL_SECRET_KEY", key.into())])
}

/// What the builder refuses to start, in words.
pub(crate) fn refuses_to_start(builder: &Builder) -> String {
    let (code, said) = builder.start_and_fail();
    assert_eq!(code, Some(1), "{said}");
    said
}

async fn secret(app: &Api) -> String {
    let answer = app.get(&format!("{SUBSCRIPTION}/secret")).await.expect(200);
    answer["secret"].as_str().unwrap().to_owned()
}

pub(crate) async fn post_contact(app: &Api, name: &str, extension: Option<u32>) -> Value {
    let mut body =
        json!({"firstName": "Ana", "lastName": name, "email": format!("{name}@example.org")});
    if let Some(extension) = extension {
        body["extensionNumber"] = json!(extension);
    }
    app.post("/contacts/staff", body).await.expect(201)
}

async fn audit_numbers(admin: &Api, path: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let after = numbers.last().copied().unwrap_or(0);
        let page = admin.get(&format!("{path}?limit=500&after={after}")).await.expect(200);
        let items = page["items"].as_array().unwrap();
        numbers.extend(items.iter().map(|entry| entry["number"].as_u64().unwrap()));
        if page["next"].is_null() {
            assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
            return numbers;
        }
    }
}

/// A store with something in every table, and what is known of it.
struct Filled {
    server: TestServer,
    receiver: Receiver,
    /// The app whose token and secret were replaced: id, earlier token, token, secret.
    rotated: [String; 4],
    /// An answer that was given to an idempotency key.
    keyed: Value,
    /// The lowest extension numbers that are free.
    free: Vec<u64>,
    other_service: String,
}

async fn fill() -> Filled {
    let receiver = Receiver::start().await;
    receiver.answer(|seen| match seen.full_name().as_str() {
        _ if seen.path == "/gone" => Reply::status(410),
        name if name.ends_with("Hang") => Reply::Hang,
        name if name.ends_with("Bad") => Reply::status(500),
        _ => Reply::status(200),
    });
    let builder = serving(TestServer::builder());
    let mut server = builder.clone().flag("--retry-schedule", "1s").start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    congress::apply(&app).await;

    // Exhausted after its only retry, which needs successes of others.
    let bad = post_contact(&app, "Bad", None).await;
    let path = format!("{SUBSCRIPTION}/deliveries?state=exhausted");
    let number = AtomicU32::new(0);
    eventually("a delivery is exhausted", async || {
        let number = number.fetch_add(1, Ordering::Relaxed);
        post_contact(&app, &format!("good{number}"), None).await;
        let listed = app.get(&path).await.expect(200);
        (!listed["items"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    assert_eq!(bad["lastName"], "Bad");

    let rotated = fill_apps(&server, &receiver).await;

    let chosen = post_contact(&app, "chosen", Some(9000)).await;
    assert_eq!(chosen["extensionNumber"], 9000);
    let keyed = app.with_header("idempotency-key", "copy-1");
    let keyed = post_contact(&keyed, "keyed", None).await;

    let other = server.admin().post("/services", json!({"name": "Other"})).await.expect(201);
    let other_service = other["serviceId"].as_str().unwrap().to_owned();
    let removed = server.admin().post("/services", json!({"name": "Removed"})).await.expect(201);
    let removed = removed["serviceId"].as_str().unwrap().to_owned();
    server.admin().delete(&format!("/services/{removed}")).await.expect(200);

    // Held for an hour; and one under way when the server is killed, with later ones finished.
    server.terminate(STOP).await.unwrap();
    let mut server = builder.flag("--retry-schedule", "1h").start_as(&server.credentials());
    let app = server.app();
    post_contact(&app, "held-Bad", None).await;
    // A lane begins with one slot and grows by success.
    for number in 0..10 {
        post_contact(&app, &format!("warm{number}"), None).await;
    }
    post_contact(&app, "Hang", None).await;
    // The lowest number with a gap behind it becomes free.
    let second = app.list_contact_ids().await.into_iter().nth(1).unwrap();
    app.delete(&format!("/contacts/staff/{second}")).await.expect(200);
    for number in 0..5 {
        post_contact(&app, &format!("behind{number}"), Some(9_500 + number)).await;
    }
    eventually("all but two are finished, and one is held", async || {
        let status = app.subscription().await;
        let path = format!("{SUBSCRIPTION}/deliveries?state=held");
        let held = app.get(&path).await.expect(200)["items"].as_array().unwrap().len();
        let newest = receiver.delivered().iter().any(|seen| seen.full_name() == "Ana behind4");
        (held == 1 && newest && status["cursor"] != status["newest"]).then_some(())
    })
    .await;
    // Its last results are recorded within this time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill();
    let free = free_extensions(&server.data_dir());
    Filled { server, receiver, rotated, keyed, free, other_service }
}

/// An app that unsubscribed, one whose receiver is gone, and one with two tokens and two secrets, of which is told: id,
/// earlier token, token, secret.
async fn fill_apps(server: &TestServer, receiver: &Receiver) -> [String; 4] {
    let service = server.service_id.clone();
    let (off, off_token) = server.create_app(&["events"]).await;
    let off = server.app_with(&off, &off_token);
    off.subscribe(true, &receiver.url_of("/off")).await.expect(200);
    off.subscribe(false, &receiver.url_of("/off")).await.expect(200);
    let (gone, gone_token) = server.create_app(&["events"]).await;
    let gone = server.app_with(&gone, &gone_token);
    gone.subscribe(true, &receiver.url_of("/gone")).await.expect(200);
    post_contact(&server.app(), "last", None).await;
    gone.wait_for_state("disabled").await;
    let (id, earlier) = server.create_app(&["events"]).await;
    let path = format!("/services/{service}/apps/{id}/token/rotate");
    let token = server.admin().post(&path, json!({})).await.expect(200);
    let token = token["appToken"].as_str().unwrap().to_owned();
    let rotated = server.app_with(&id, &token);
    rotated.post(&format!("{SUBSCRIPTION}/secret/rotate"), json!({})).await.expect(200);
    [id, earlier, token, secret(&rotated).await]
}

/// The lowest extension numbers of the first service that no contact has.
fn free_extensions(directory: &Path) -> Vec<u64> {
    let connection = Connection::open(directory.join("rollcall.db")).unwrap();
    let sql = "SELECT extension FROM contacts WHERE extension IS NOT NULL";
    let mut taken = connection.prepare(sql).unwrap();
    let taken = taken.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(Result::unwrap);
    let taken: std::collections::BTreeSet<i64> = taken.collect();
    let free = (100..).filter(|number| !taken.contains(number)).take(4);
    free.map(i64::cast_unsigned).collect()
}

/// The key in a key file.
pub(crate) fn key_in(directory: &Path) -> String {
    let file = std::fs::read_to_string(directory.join("secret.key")).unwrap();
    let line = file.lines().find(|line| !line.starts_with('#')).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_to_postgresql_and_back_and_on_and_serves_as_before() {
    let Filled { server, receiver, rotated, keyed, free, other_service } = fill().await;
    let (first, credentials) = (server.data_dir(), server.credentials());
    // The token of the tests is a setting, and not in the store.
    let mut reset = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    reset.args(["admin-token", "reset", "--data-dir"]).arg(&first);
    assert!(reset.output().unwrap().status.success());
    let (database, onward) = (Database::create().await, Database::create().await);
    let [back, last] = ["back", "last"].map(|name| first.with_file_name(name));

    let (out, err) = copy(text(&first), &database.url());
    assert!(out.contains("contacts") && out.contains("sha256"), "{out}");
    assert!(err.contains("the source is sealed") && err.contains("secret.key"), "{err}");
    copy(&database.url(), text(&back));
    assert_same_rows(&first, &back);
    let (out, _) = copy(text(&back), &onward.url());
    assert!(!out.is_empty());

    // Whoever was copied away serves no more.
    let key = key_in(&first);
    for builder in [on_directory(&first), on_directory(&back), on_database(&database.url(), &key)] {
        let said = refuses_to_start(&builder);
        assert!(said.contains("is sealed: start the server on that one"), "{said}");
    }
    let node = on_database(&onward.url(), &key).flag("--retry-schedule", "1s");
    receiver.answer(|_| Reply::status(200));
    let mut node = node.start_as(&credentials);
    goes_on(&node, &receiver, &rotated, &keyed, &free).await;
    node.terminate(STOP).await.unwrap();
    let numbers = |of: &TestServer| {
        let (admin, service) = (of.admin(), of.service_id.clone());
        async move {
            let service = format!("/services/{service}/audit");
            (audit_numbers(&admin, "/audit").await, audit_numbers(&admin, &service).await)
        }
    };
    drop(node);

    copy(&onward.url(), text(&last));

    std::fs::copy(first.join("secret.key"), last.join("secret.key")).unwrap();
    let again = on_directory(&last).start_as(&credentials);
    let app = again.app();
    let created = post_contact(&app, "in-the-end", None).await;
    assert_eq!(created["extensionNumber"].as_u64(), Some(free[3]));
    let seen = eventually("it is delivered", async || {
        receiver.delivered().into_iter().find(|seen| seen.full_name() == "Ana in-the-end")
    })
    .await;
    seen.assert_signed_with(&secret(&app).await);
    let taken = json!({"firstName": "Ana", "lastName": "X", "email": "IN-THE-END@example.org"});
    app.post("/contacts/staff", taken).await.refused(409, 6_451_000);
    let before = numbers(&again).await;
    again.admin().post("/services", json!({"name": "New"})).await.expect(201);
    post_contact(&app, "audited", None).await;
    let after = numbers(&again).await;
    assert_eq!((after.0.len(), after.1.len()), (before.0.len() + 1, before.1.len() + 1));
    let path = format!("/services/{other_service}/audit");
    assert!(again.admin().get(&path).await.status == 200);
}

/// On the node everything is as it was, and what was owed is delivered.
async fn goes_on(
    node: &TestServer,
    receiver: &Receiver,
    rotated: &[String; 4],
    keyed: &Value,
    free: &[u64],
) {
    let app = node.app();
    let head = app.subscription().await["newest"].as_u64().unwrap();
    let [id, earlier, token, secret_before] = rotated;
    for token in [earlier, token] {
        let app = node.app_with(id, token);
        app.get("/event-hooks").await.expect(200);
        assert_eq!(secret(&app).await, *secret_before);
    }
    let again = app.with_header("idempotency-key", "copy-1");
    assert_eq!(post_contact(&again, "keyed", None).await, *keyed);
    let taken = json!({"firstName": "Ana", "lastName": "X", "email": "Keyed@example.org"});
    app.post("/contacts/staff", taken).await.refused(409, 6_451_000);
    let taken = json!({
        "firstName": "Ana", "lastName": "X", "email": "x@example.org", "extensionNumber": 9000
    });
    app.post("/contacts/staff", taken).await.refused(409, 6_451_000);
    for (number, expected) in (0..).zip(&free[..3]) {
        let created = post_contact(&app, &format!("onward{number}"), None).await;
        assert_eq!(created["extensionNumber"].as_u64(), Some(*expected));
    }
    assert_eq!(app.subscription().await["newest"].as_u64(), Some(head + 3));
    // What is held waits for its hour, unless it is asked for.
    let held = app.get(&format!("{SUBSCRIPTION}/deliveries?state=held")).await.expect(200);
    for item in held["items"].as_array().unwrap() {
        let path = format!("{SUBSCRIPTION}/deliveries/{}/redeliver", item["sequence"]);
        app.post(&path, json!({})).await.expect(200);
    }
    app.wait_until_idle().await;
    for name in ["Ana Hang", "Ana held-Bad", "Ana onward2"] {
        let delivered = receiver.delivered();
        let seen = delivered.iter().find(|seen| seen.full_name() == name && seen.path == "/hook");
        seen.unwrap_or_else(|| panic!("{name}")).assert_signed_with(&secret(&app).await);
    }
    receiver.assert_contacts_in_order();
    audit_numbers(&node.admin(), "/audit").await;
    audit_numbers(&node.admin(), &format!("/services/{}/audit", node.service_id)).await;
}
