//! Copies of a large store with the real binary: killed at any moment, refused, watched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::chance::{Chance, number_from};
use crate::harness::postgres::Database;
use crate::harness::server::TestServer;
use crate::harness::{eventually, say};
use crate::store_copy::{
    STOP, command, copy, key_in, on_database, on_directory, post_contact, refuses_to_start,
    rows_of, serving, text,
};

/// Contacts and events of a store whose copy takes long enough to be killed.
const ROWS: i64 = 40_000;
/// How often a copy is killed before it is let through.
const KILLS: u64 = 6;

/// What a copy said that must not end well.
#[track_caller]
pub(crate) fn refused(from: &str, to: &str) -> String {
    let output = command(from, to).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty());
    said
}

/// A data directory with so many contacts and events, which no server has open.
async fn large() -> (TestServer, PathBuf) {
    let mut server = serving(TestServer::builder()).start().await;
    server.app().create_contact("Ana", "First").await;
    server.terminate(STOP).await.unwrap();
    let directory = server.data_dir();
    let connection = Connection::open(directory.join("rollcall.db")).unwrap();
    let sql = format!(
        "BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i <= {ROWS}) \
             SELECT i, randomblob(16) AS contact FROM n;
         CREATE TEMP TABLE s AS SELECT service FROM services;
         INSERT INTO contacts SELECT service, contact, 1, i, i, i || '@example.org', 99 + i, 'n' || i, \
             '{{\"firstName\":\"N\",\"lastName\":\"' || i || '\",\"email\":\"' || i || '@example.org\"}}' FROM n, s;
         INSERT INTO emails SELECT service, i || '@example.org', contact FROM n, s;
         INSERT INTO events SELECT service, i, randomblob(16), contact, 1, 1, 'N ' || i, i FROM n, s;
         UPDATE services SET head = {ROWS} + 1, contacts = {ROWS} + 1;
         COMMIT"
    );
    connection.execute_batch(&sql).unwrap();
    (server, directory)
}

fn start(from: &str, to: &str) -> Child {
    command(from, to).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_at_any_moment_is_ended_by_the_same_command() {
    let seed = Chance::seed();
    say(&format!("seed {seed}"));
    let mut chance = Chance::new(seed);
    let (server, first) = large().await;
    let (database, back) = (Database::create().await, first.with_file_name("back"));
    let kills = number_from("ROLLCALL_TEST_KILLS").unwrap_or(KILLS);
    let key = key_in(&first);

    let url = database.url();
    for (from, to) in [(text(&first), url.as_str()), (url.as_str(), text(&back))] {
        let mut broken_off = 0;
        for _ in 0..kills {
            let mut child = start(from, to);
            tokio::time::sleep(Duration::from_millis(chance.below(1_500))).await;
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                break;
            }
            broken_off += 1;
            // Its session ends a moment after it.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        say(&format!("{broken_off} broken off"));
        let target = |to: &str| match to.starts_with("postgres") {
            true => on_database(to, &key),
            false => on_directory(Path::new(to)),
        };
        // At least one that is well under way, and by then the target is nobody else's.
        if broken_off == kills {
            let mut child = start(from, to);
            tokio::time::sleep(Duration::from_millis(300)).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        eventually("the same command ends it", async || {
            // The session of the killed one ends a moment after it.
            let output = command(from, to).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() || said.contains("stop every node first"), "{said}");
            output.status.success().then_some(())
        })
        .await;
        let (out, err) = copy(from, to);
        assert!(out.is_empty() && err.contains("had ended before"), "{out}{err}");
        let said = refuses_to_start(&target(from));
        assert!(said.contains("is sealed"), "{said}");
    }

    let (one, other) = (rows_of(&first), rows_of(&back));
    assert_eq!(one["contacts"].len() as i64, ROWS + 1);
    assert_eq!(one, other);
    std::fs::copy(first.join("secret.key"), back.join("secret.key")).unwrap();
    let served = on_directory(&back).start_as(&server.credentials());
    let created = post_contact(&served.app(), "after", None).await;
    assert_eq!(created["extensionNumber"], ROWS + 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_not_served_before_it_is_whole_and_takes_nothing_else() {
    let (server, first) = large().await;
    let (database, key) = (Database::create().await, key_in(&first));
    let client = database.connect().await;
    let mut child = start(text(&first), &database.url());
    let mark = "SELECT convert_from(value, 'UTF8') FROM meta WHERE name = 'copy'";
    // Stopped where it is, it holds both stores.
    let rows = eventually("some contacts are copied", async || {
        let row = client.query_one("SELECT count(*) FROM contacts", &[]).await.ok()?;
        (row.get::<_, i64>(0) > 0).then(|| row.get::<_, i64>(0))
    })
    .await;
    assert!(child.try_wait().unwrap().is_none(), "too fast to be watched");
    let said = refuses_to_start(&on_directory(&first));
    assert!(said.contains("in use by another rollcall process"), "{said}");
    let said = refuses_to_start(&on_database(&database.url(), &key));
    assert!(said.contains("is being copied") || said.contains("has not ended"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(rows <= ROWS);

    let said = eventually("the session of the copy has ended", async || {
        let said = refuses_to_start(&on_database(&database.url(), &key));
        (!said.contains("is being copied")).then_some(said)
    })
    .await;
    assert!(said.contains("has not ended: run the same `rollcall store copy` again"), "{said}");
    let noted: String = client.query_one(mark, &[]).await.unwrap().get(0);
    assert!(noted.contains(text(&first)) && noted.contains("target"), "{noted}");
    let mut other = serving(TestServer::builder()).start().await;
    let said = refused(text(&other.data_dir()), &database.url());
    assert!(said.contains("cannot open the source") && said.contains("in use"), "{said}");
    other.terminate(STOP).await.unwrap();
    let said = refused(text(&other.data_dir()), &database.url());
    assert!(said.contains("is not empty"), "{said}");

    // A server may go on with the source; but then it is another one than the target was begun from.
    let mut again = on_directory(&first).start_as(&server.credentials());
    let ids = again.app().list_contact_ids().await;
    for id in ids.iter().take(3) {
        again.app().delete(&format!("/contacts/staff/{id}")).await.expect(200);
    }
    let said = refused(text(&first), &database.url());
    assert!(said.contains("cannot open the source"), "{said}");
    again.terminate(STOP).await.unwrap();
    drop(again);
    let said = refused(text(&first), &database.url());
    assert!(said.contains("begin anew with an empty target"), "{said}");
    assert!(refuses_to_start(&on_database(&database.url(), &key)).contains("has not ended"));

    let fresh = Database::create().await;
    copy(text(&first), &fresh.url());
    let node = on_database(&fresh.url(), &key).start_as(&server.credentials());
    node.app().get("/event-hooks").await.expect(200);
    let said = refused(&fresh.url(), text(&first.with_file_name("never")));
    assert!(said.contains("stop every node first"), "{said}");
    let said = refused(text(&other.data_dir()), &fresh.url());
    assert!(said.contains("cannot open the target: "), "{said}");
    assert!(said.contains("stop every node first"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_says_how_far_it_is_and_prints_json_and_no_password() {
    let (server, first) = large().await;
    let second = first.with_file_name("second");
    let mut json = command(text(&first), text(&second));

    let output = json.arg("--json").output().unwrap();

    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tables = done["tables"].as_array().unwrap();
    let events = tables.iter().find(|table| table["table"] == "events").unwrap();
    assert_eq!(events["rows"], ROWS + 1);
    assert_eq!(events["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(done["endedBefore"], false);
    assert!(said.contains("copying   0 %") && said.contains("comparing 100 %"), "{said}");
    assert!(said.lines().count() < 30 && !said.contains('\r'), "{said}");
    let database = Database::create().await;
    let url = database.url().replacen("rollcall@", "rollcall:s3cret@", 1);
    let (out, err) = copy(text(&second), &url);
    let mark = std::fs::read(second.join("rollcall.db")).unwrap();
    let holds = |bytes: &[u8]| bytes.windows(6).any(|window| window == b"s3cret");
    assert!(!holds(out.as_bytes()) && !holds(err.as_bytes()) && !holds(&mark));
    let said = refused("/nowhere/at/all", &url);
    assert!(said.contains("there is no Rollcall data in /nowhere/at/all"), "{said}");
    let said = refused(text(&second), "postgres://u:s3cret@127.0.0.1:1/x?sslmode=odd");
    assert!(said.contains("as its sslmode") && !said.contains("s3cret"), "{said}");
    let terminal = Command::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(format!(
            "{} store copy --from '{url}' --to {}",
            env!("CARGO_BIN_EXE_rollcall"),
            first.with_file_name("third").display()
        ))
        .arg("/dev/null")
        .output();
    if let Ok(output) = terminal {
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shown}");
        assert!(shown.contains("\r\u{1b}[2Kcopying") && shown.contains("sealed"), "{shown}");
        assert!(!shown.contains("s3cret"));
    }
    drop(server);
}
