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

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
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

async fn list_ids(app: &Api) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    loop {
        let path = format!("/contacts/staffcontact-list?limit=500&offset={}", ids.len());
        let page = app.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap().clone();
        if items.is_empty() {
            return ids;
        }
        ids.extend(items.iter().map(id_of));
    }
}

fn id_of(contact: &Value) -> String {
    contact["id"].as_str().unwrap().to_owned()
}

/// Creates contacts until one is refused; gives its number and the answer.
async fn create_until_refused(app: &Api, acknowledged: &mut BTreeSet<String>) -> (usize, Answer) {
    for number in 1..5_000 {
        let answer = create(app, number).await;
        if answer.status != 201 {
            return (number, answer);
        }
        acknowledged.insert(id_of(&answer.expect(201)));
    }
    panic!("the disk is never full")
}

fn data_dir(disk: &Path) -> PathBuf {
    disk.join("data")
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_stops_writes_only_and_only_while_it_is_full() {
    let Some(disk) = SmallDisk::mount("full", 8) else {
        return say_skipped();
    };
    let builder = TestServer::builder().data_dir(&data_dir(&disk.0)).tolerate_errors();
    let mut server = builder.start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let mut acknowledged = BTreeSet::from([id_of(&create(&app, 0).await.expect(201))]);

    disk.fill();
    let (mut number, refused) = create_until_refused(&app, &mut acknowledged).await;

    let message = refused.refused(503, 6_451_001);
    assert!(message.starts_with("Bad response from the service"), "{message}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for _ in 0..5 {
        number += 1;
        create(&app, number).await.refused(503, 6_451_001);
        assert!(list_ids(&app).await.is_superset(&acknowledged));
        app.subscription().await;
    }

    disk.free();
    eventually("writes return by themselves", || async {
        (create(&app, 0).await.status == 409).then_some(())
    })
    .await;
    let last = create(&app, number + 1).await.expect(201);
    acknowledged.insert(id_of(&last));

    app.wait_until_idle().await;
    let told: BTreeSet<String> = receiver.delivered().iter().map(Seen::contact).collect();
    let listed = list_ids(&app).await;
    assert!(listed.is_superset(&acknowledged), "an acknowledged contact is gone");
    assert_eq!(told, listed, "told and listed differ");
    server.kill();
    server.restart().await;
    assert_eq!(list_ids(&server.app()).await, listed);
    drop(server);
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
    disk.fill();
    let mut acknowledged = BTreeSet::new();
    let (_, refused) = create_until_refused(&server.app(), &mut acknowledged).await;
    refused.refused(503, 6_451_001);

    server.kill();
    disk.free();
    server.restart().await;

    let last = server.app().create_contact("Ana", "Last").await;
    acknowledged.insert(last);
    server.app().wait_until_idle().await;
    let listed = list_ids(&server.app()).await;
    assert!(listed.is_superset(&acknowledged), "an acknowledged contact is gone");
    let told: BTreeSet<String> = receiver.delivered().iter().map(Seen::contact).collect();
    assert_eq!(told, listed, "told and listed differ");
    drop(server);
}
