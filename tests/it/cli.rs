//! Commands against a server that runs: whose credentials they find, and what they print.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::harness::PATIENCE;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

/// A command in a directory with nothing in it.
fn command(arguments: &[&str], data_dir: Option<&Path>, elsewhere: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    if let Some(path) = data_dir {
        command.env("ROLLCALL_DATA_DIR", path);
    }
    command.args(arguments).current_dir(elsewhere);
    command
}

/// Runs such a command; gives exit code, standard output and standard error.
fn run(arguments: &[&str], data_dir: Option<&Path>, elsewhere: &Path) -> (i32, String, String) {
    let output = command(arguments, data_dir, elsewhere).output().unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn token_of_admin_token_reset_holds_for_the_next_dev() {
    let mut server = TestServer::start().await;
    let lost = server.admin_token.clone();
    let status = server.terminate(PATIENCE).await;
    assert_eq!(status.unwrap().code(), Some(0));
    let data_dir = server.data_dir();

    let (code, out, err) = run(&["admin-token", "reset"], Some(&data_dir), &data_dir);
    assert_eq!(code, 0, "{err}");
    server.restart().await;

    assert_eq!(server.admin_token, out.trim());
    assert_ne!(server.admin_token, lost);
    server.admin().get("/services").await.expect(200);
    server.admin().with_token(Some(&lost)).get("/services").await.refused(401, 6_452_000);
    let mode = std::fs::metadata(data_dir.join("dev.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// `rollcall listen` on any port, once it is subscribed.
struct Listening {
    child: Child,
    /// Open, so that it can go on printing.
    _out: BufReader<ChildStdout>,
}

impl Listening {
    fn start(data_dir: &Path) -> Self {
        let mut child = command(&["listen", "--port", "0"], Some(data_dir), data_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("subscribed ") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "it ended before it was subscribed");
        }
        Self { child, _out: out }
    }

    /// Ctrl-C; gives exit code and standard error.
    fn interrupt(mut self) -> (Option<i32>, String) {
        let id = i32::try_from(self.child.id()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), err)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listen_unsubscribes_its_own_url_and_no_other() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let data_dir = server.data_dir();
    let listening = || {
        let data_dir = data_dir.clone();
        tokio::task::spawn_blocking(move || Listening::start(&data_dir))
    };
    let interrupt = |listening: Listening| tokio::task::spawn_blocking(|| listening.interrupt());

    let own = listening().await.unwrap();
    assert_eq!(app.subscription().await["enabled"], true);
    let (code, err) = interrupt(own).await.unwrap();
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("unsubscribed; what was pending is dropped"), "{err}");
    assert_eq!(app.subscription().await["enabled"], false);

    let replaced = listening().await.unwrap();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let (code, err) = interrupt(replaced).await.unwrap();
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains(&format!("not unsubscribed: the URL of {} is", server.app_id)), "{err}");
    let status = app.subscription().await;
    assert_eq!(status["enabled"], true);
    assert_eq!(status["url"], receiver.url());
}
