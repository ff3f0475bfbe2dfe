//! Commands against a server that runs: whose credentials they find, and what they print.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

/// Runs a command in a directory with nothing in it; gives exit code, standard output and standard error.
fn run(arguments: &[&str], data_dir: Option<&Path>, elsewhere: &Path) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    if let Some(path) = data_dir {
        command.env("ROLLCALL_DATA_DIR", path);
    }
    let output = command.args(arguments).current_dir(elsewhere).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn app_list_takes_server_token_and_service_from_dev_json() {
    let server = TestServer::start().await;
    let (other, _) = server.create_app(&["events"]).await;
    let data_dir = server.data_dir();
    let named = ["app", "list", "--json", "--data-dir", data_dir.to_str().unwrap()];

    let (code, out, err) = run(&named, None, &data_dir);

    assert_eq!(code, 0, "{err}");
    let listed: Value = serde_json::from_str(&out).unwrap();
    let ids: Vec<&str> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|app| app["appID"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [server.app_id.as_str(), &other]);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_directory_is_taken_from_the_flag_then_from_the_environment() {
    let server = TestServer::start().await;
    let data_dir = server.data_dir();
    let nowhere = data_dir.join("nowhere");

    let (code, out, err) = run(&["app", "list"], Some(&data_dir), &data_dir);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&server.app_id), "{out}");
    let flag = ["app", "list", "--data-dir", data_dir.to_str().unwrap()];
    assert_eq!(run(&flag, Some(&nowhere), &data_dir).0, 0);

    // Exit code 2: no credentials were found.
    assert_eq!(run(&["app", "list"], Some(&nowhere), &data_dir).0, 2);
    assert_eq!(run(&["app", "list"], None, &data_dir).0, 2);
    let flag = ["app", "list", "--data-dir", nowhere.to_str().unwrap()];
    assert_eq!(run(&flag, Some(&data_dir), &data_dir).0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn service_of_dev_json_does_not_go_with_a_token_that_was_given() {
    let server = TestServer::start().await;
    let data_dir = server.data_dir();
    let given = ["app", "list", "--url", &server.base_url, "--token", &server.admin_token];

    let (code, _, err) = run(&given, Some(&data_dir), &data_dir);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("no service: give --service or set ROLLCALL_SERVICE"), "{err}");

    let with_service = [&given[..], &["--service", &server.service_id]].concat();
    let (code, out, err) = run(&with_service, None, &data_dir);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&server.app_id), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_listed_shown_and_sent_again() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|_| Reply::body(500, "out of order"));
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    server.app().create_contact("Ana", "Ng").await;
    receiver.wait_for_notifications(2).await;
    let data_dir = server.data_dir();
    let command =
        |line: &str| run(&line.split(' ').collect::<Vec<_>>(), Some(&data_dir), &data_dir);

    let (code, out, err) = command("deliveries list --state held");
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("NUMBER  STATE") && lines[1].starts_with("1 "), "{out}");
    assert_eq!(lines.len(), 2, "{out}");
    let (_, out, _) = command("deliveries show 1");
    assert!(out.contains("state") && out.contains("held"), "{out}");
    assert!(out.contains("ATTEMPT") && out.contains("out of order"), "{out}");

    receiver.answer(|_| Reply::status(204));
    let (code, _, err) = command("deliveries redeliver 1");
    assert_eq!(code, 0, "{err}");
    receiver.wait_for_delivered(1).await;
    server.app().wait_until_idle().await;
    let (code, out, err) = command("replay --after 0");
    assert_eq!((code, out.as_str()), (0, "sends again what follows 0, up to 1\n"), "{err}");
    receiver.wait_for_delivered(2).await;
    let (code, _, err) = command("deliveries show 2");
    assert!(code == 1 && err.contains("No records found"), "{code} {err}");
}
