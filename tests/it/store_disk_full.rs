//! A full disk: writes are answered 503, reads go on, and when there is room again everything goes on by itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::client::{Answer, Api};
use crate::harness::eventually;
use crate::harness::receiver::{Receiver, Seen};
use crate::harness::server::TestServer;

/// A small file system of its own; gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount(name: &str, megabytes: u32) -> Option<Self> {
        let name = format!("rollcall-disk-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path);
        let done = mount.output().is_ok_and(|output| output.status.success());
        if !done {
            fs::remove_dir(&path).unwrap();
        }
        done.then_some(Self(path))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all the room but so many bytes.
    fn fill(&self, leaving: u64) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
        let taken = file.metadata().unwrap().len();
        file.set_len(taken.saturating_sub(leaving)).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done =
            Command::new("umount").arg(&self.0).status().is_ok_and(|status| status.success());
        if done {
            drop(fs::remove_dir(&self.0));
        }
    }
}

#[expect(clippy::print_stderr, reason = "a test that was skipped must not look green")]
fn say_skipped() {
    eprintln!(
        "SKIPPED: this process may not mount a small file system, so a full disk was not tested"
    );
}

async fn create(app: &Api, number: usize) -> Answer {
    let contact = json!({
        "firstName": "Ana", "lastName": number.to_string(), "email": format!("c{number}@example.com"),
        "jobTitle": "x".repeat(255), "role": "y".repeat(255), "displayName": "z".repeat(255)
    });
    app.post("/contacts/staff", contact).await
}

fn id_of(contact: &Value) -> String {
    contact["id"].as_str().unwrap().to_owned()
}

/// Creates contacts from several callers until each was refused; gives the ids of those that were acknowledged.
async fn create_until_refused(app: &Api) -> BTreeSet<String> {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8 {
        let app = app.clone();
        callers.spawn(async move {
            let mut ids = Vec::new();
            for number in 0..5_000 {
                let Some(id) =
                    created_or_unavailable(&create(&app, caller * 10_000 + number).await)
                else {
                    return ids;
                };
                ids.push(id);
            }
            panic!("the disk is never full")
        });
    }
    callers.join_all().await.concat().into_iter().collect()
}

/// The id of a contact that was created; `None` for a proper 503.
#[track_caller]
fn created_or_unavailable(answer: &Answer) -> Option<String> {
    if answer.status == 201 {
        return Some(id_of(&answer.expect(201)));
    }
    let message = answer.refused(503, 6_451_001);
    assert!(message.starts_with("Bad response from the service"), "{message}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    None
}

fn data_dir(disk: &Path) -> PathBuf {
    disk.join("data")
}

/// Fills the disk but for so many bytes, writes until it is full, frees it: reads go on all the time, writes
/// return by themselves, and what was acknowledged is there and delivered.
async fn check_full_disk(name: &str, leaving: u64) {
    let Some(disk) = SmallDisk::mount(name, 8) else {
        return say_skipped();
    };
    let builder = TestServer::builder().data_dir(&data_dir(&disk.0)).tolerate_errors();
    let mut server = builder.start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let first = id_of(&create(&app, 100_000).await.expect(201));

    disk.fill(leaving);
    let mut acknowledged = create_until_refused(&app).await;
    acknowledged.insert(first);
    for number in 0..5 {
        // A single small write may still fit where a group of eight did not.
        acknowledged.extend(created_or_unavailable(&create(&app, 200_000 + number).await));
        assert!(app.list_contact_ids().await.is_superset(&acknowledged));
        app.subscription().await;
    }

    disk.free();
    let last = eventually("writes return by themselves", || async {
        let answer = create(&app, 300_000).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    acknowledged.insert(id_of(&last.expect(201)));

    app.wait_until_idle().await;
    let told: BTreeSet<String> = receiver.delivered().iter().map(Seen::contact).collect();
    let listed = app.list_contact_ids().await;
    assert!(listed.is_superset(&acknowledged), "an acknowledged contact is gone");
    assert_eq!(told, listed, "told and listed differ");
    receiver.assert_contacts_in_order();
    server.kill();
    server.restart().await;
    assert_eq!(server.app().list_contact_ids().await, listed);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_stops_writes_only_and_only_while_it_is_full() {
    check_full_disk("full", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_fills_up_under_load_loses_nothing_that_was_acknowledged() {
    check_full_disk("filling", 512 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_on_a_full_disk_loses_nothing_that_was_acknowledged() {
    let Some(disk) = SmallDisk::mount("crash", 8) else {
        return say_skipped();
    };
    let builder = TestServer::builder().data_dir(&data_dir(&disk.0)).tolerate_errors();
    let mut server = builder.start().await;
    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    disk.fill(256 * 1024);
    let mut acknowledged = create_until_refused(&server.app()).await;

    server.kill();
    disk.free();
    server.restart().await;

    acknowledged.insert(server.app().create_contact("Ana", "Last").await);
    server.app().wait_until_idle().await;
    let listed = server.app().list_contact_ids().await;
    assert!(listed.is_superset(&acknowledged), "an acknowledged contact is gone");
    let told: BTreeSet<String> = receiver.delivered().iter().map(Seen::contact).collect();
    assert_eq!(told, listed, "told and listed differ");
    drop(server);
}
