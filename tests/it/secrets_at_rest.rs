//! The key of signing secrets: made, replaced at any moment of a crash, missed, and given by the operator.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::chance::Chance;
use crate::harness::client::{Api, SUBSCRIPTION};
use crate::harness::receiver::Receiver;
use crate::harness::server::TestServer;

/// Apps of the store whose key is replaced.
const APPS: usize = 60;
/// How often replacing is broken off.
const KILLS: usize = 12;
const STOP: Duration = Duration::from_secs(20);

fn key_command(what: &str, data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(["key", what, "--data-dir"]).arg(data_dir);
    command
}

fn key(what: &str, data_dir: &Path) -> (Option<i32>, String, String) {
    let output = key_command(what, data_dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn secret(app: &Api) -> String {
    let answer = app.get(&format!("{SUBSCRIPTION}/secret")).await.expect(200);
    answer["secret"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_at_any_moment_of_a_crash_without_losing_a_secret() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let mut apps = vec![(server.app_id.clone(), server.app_token.clone())];
    for _ in 1..APPS {
        apps.push(server.create_app(&["events"]).await);
    }
    let mut secrets = Vec::new();
    for (id, token) in &apps {
        secrets.push(secret(&server.app_with(id, token)).await);
    }
    let (code, _, err) = key("rotate", &server.data_dir());
    assert_eq!(code, Some(1), "a server runs");
    assert!(err.contains("in use"), "{err}");
    server.terminate(STOP).await.unwrap();
    let mut chance = Chance::new(Chance::seed());
    let key_file = server.data_dir().join("secret.key");
    let mut keys = std::collections::BTreeSet::new();

    for _ in 0..KILLS {
        let mut rotate = key_command("rotate", &server.data_dir());
        let mut rotate = rotate.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(chance.below(200)));
        drop(rotate.kill());
        rotate.wait().unwrap();
        keys.insert(std::fs::read_to_string(&key_file).unwrap());
    }
    assert!(keys.len() > 1, "none of them came as far as the key");
    let (code, out, err) = key("rotate", &server.data_dir());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(&format!("{APPS} signing secrets sealed")), "{out}");

    server.restart().await;
    for ((id, token), earlier) in apps.iter().zip(&secrets) {
        assert_eq!(secret(&server.app_with(id, token)).await, *earlier);
    }
    server.app().create_contact("Ana", "Reyes").await;
    receiver.wait_for_delivered(1).await[0].assert_signed_with(&secrets[0]);
    let text = std::fs::read_to_string(&key_file).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("rollcall-key-1 ")).count(), 1);
    assert_eq!(std::fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_named_and_new_secrets_can_be_made() {
    let mut server = TestServer::start().await;
    let earlier = secret(&server.app()).await;
    server.terminate(STOP).await.unwrap();
    std::fs::remove_file(server.data_dir().join("secret.key")).unwrap();

    let (code, said) = server.builder_of().start_and_fail();

    assert_eq!(code, Some(1));
    assert!(said.contains("secret.key") && said.contains("rollcall key reset"), "{said}");
    let (code, _, err) = key("reset", &server.data_dir());
    assert_eq!(code, Some(1));
    assert!(err.contains("1 signing secrets") && err.contains("--yes"), "{err}");
    let output = key_command("reset", &server.data_dir()).arg("--yes").output().unwrap();
    let (code, out) = (output.status.code(), String::from_utf8(output.stdout).unwrap());
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!((code, out.contains("1 apps with a new signing secret")), (Some(0), true), "{err}");
    server.restart().await;
    assert_ne!(secret(&server.app()).await, earlier);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_from_the_environment_makes_no_file_and_is_replaced_by_one_in_front() {
    let generated = || {
        let output =
            Command::new(env!("CARGO_BIN_EXE_rollcall")).args(["key", "generate"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
    };
    let (old, new) = (generated(), generated());
    assert!(old.len() == 44 && old != new);
    let with = |builder: crate::harness::server::Builder, key: &str| {
        builder.environment(vec![("ROLLCALL_SECRET_KEY", key.into())])
    };
    let mut server = with(TestServer::builder(), &old).start().await;
    let earlier = secret(&server.app()).await;
    assert!(!server.data_dir().join("secret.key").exists());
    server.terminate(STOP).await.unwrap();

    let (code, said) = with(server.builder_of(), &new).start_and_fail();
    assert_eq!(code, Some(1));
    assert!(said.contains("sealed with key") && !said.contains(&new), "{said}");
    // The key that is a setting opens everything: nothing is lost, and no file is made.
    let mut reset = key_command("reset", &server.data_dir());
    let output = reset.env("ROLLCALL_SECRET_KEY", &old).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("0 apps"));
    assert!(!server.data_dir().join("secret.key").exists());
    for keys in [format!("{new},{old}"), new.clone()] {
        let builder = with(server.builder_of(), &keys);
        let mut again = builder.start().await;
        assert_eq!(secret(&again.app()).await, earlier);
        again.terminate(STOP).await.unwrap();
    }
}
