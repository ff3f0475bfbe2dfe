//! `rollcall events` and the commands about the secret and the receiver, as a person or a script uses them.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;
use crate::harness::{PATIENCE, eventually};

/// A command in the name of the server's app.
struct Run {
    child: Child,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

impl Run {
    fn start(server: &TestServer, address: SocketAddr, arguments: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ROLLCALL_") {
                command.env_remove(name);
            }
        }
        command.args(arguments.split(' ')).env("ROLLCALL_URL", format!("http://{address}"));
        command.env("ROLLCALL_APP", &server.app_id).env("ROLLCALL_TOKEN", &server.app_token);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// Interrupts it as Ctrl-C does.
    fn interrupt(&self) {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(id, Signal::INT).unwrap();
    }

    /// The exit code, and what it wrote since it was last read.
    async fn end(mut self) -> (Option<i32>, Vec<String>, Vec<String>) {
        let ended: ExitStatus =
            eventually("the command ends", || std::future::ready(self.child.try_wait().unwrap()))
                .await;
        (ended.code(), rest(&mut self.out).await, rest(&mut self.err).await)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // An error means that it has already ended.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}

/// More lines than any of these commands writes before they are read.
const LINES_MAX: usize = 1000;

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            if sender.blocking_send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn next(lines: &mut mpsc::Receiver<String>) -> String {
    let line = tokio::time::timeout(PATIENCE, lines.recv()).await;
    line.expect("a line must come").expect("a line must come before the end")
}

async fn rest(lines: &mut mpsc::Receiver<String>) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(line) = lines.recv().await {
        all.push(line);
    }
    all
}

async fn run(server: &TestServer, arguments: &str) -> (Option<i32>, Vec<String>, Vec<String>) {
    Run::start(server, server.address(), arguments).end().await
}

/// The way to a server, which can be cut.
struct Way {
    address: SocketAddr,
    /// Where it leads; connections end at once while it is cut.
    to: Arc<Mutex<Option<SocketAddr>>>,
    open: Arc<Mutex<JoinSet<()>>>,
}

impl Way {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let way = Self { address, to: Arc::new(Mutex::new(Some(to))), open: Arc::default() };
        let (to, open) = (Arc::clone(&way.to), Arc::clone(&way.open));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let Some(to) = *to.lock().unwrap() else { continue };
                open.lock().unwrap().spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    // An end that breaks off is part of the test.
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        way
    }

    fn cut(&self) {
        *self.to.lock().unwrap() = None;
        self.open.lock().unwrap().abort_all();
    }

    fn mend(&self, to: SocketAddr) {
        *self.to.lock().unwrap() = Some(to);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_lists_a_page_and_says_where_to_go_on() {
    let server = TestServer::start().await;
    let app = server.app();
    for name in ["Reyes", "Lund", "Ng"] {
        app.create_contact("Ana", name).await;
    }

    let (code, out, err) = run(&server, "events --limit 2").await;
    assert_eq!((code, out.len()), (Some(0), 2), "{out:?} {err:?}");
    assert!(out[0].contains("  staffCreate  Ana Reyes ") && out[0].ends_with("  #1"), "{out:?}");
    assert_eq!(err, ["1 more; go on with --after 2"]);

    let (code, out, err) = run(&server, "events --after 2 --json").await;
    let event: Value = serde_json::from_str(&out[0]).unwrap();
    assert_eq!((code, out.len(), err.len()), (Some(0), 1, 0));
    assert_eq!(event["sequence"], 3);
    assert_eq!(event["notification"]["message"]["fullName"], "Ana Ng");

    assert_eq!(run(&server, "events --after 3").await, (Some(0), Vec::new(), Vec::new()));
    assert_eq!(run(&server, "events --limit 501").await.0, Some(2));
    assert_eq!(run(&server, "events --token nonsense").await.0, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_kept_any_more_are_told() {
    let dir = std::env::temp_dir().join(format!("rollcall-it-{}-gap", std::process::id()));
    let mut server = TestServer::builder().data_dir(&dir).start().await;
    for name in ["Reyes", "Lund", "Ng"] {
        server.app().create_contact("Ana", name).await;
    }
    server.kill();
    let file = rusqlite::Connection::open(dir.join("rollcall.db")).unwrap();
    file.execute("DELETE FROM events WHERE sequence < 3", []).unwrap();
    drop(file);
    server.restart().await;

    let page = server.app().get("/staff-contact-events").await.expect(200);
    let (code, out, err) = run(&server, "events").await;
    let (_, json, _) = run(&server, "events --json").await;

    server.kill();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(page["gap"], serde_json::json!({"from": 1, "to": 2}));
    assert_eq!((code, out.len()), (Some(0), 1));
    assert_eq!(err, ["the events 1 to 2 are not kept any more"]);
    assert_eq!((json[0].as_str(), json.len()), (r#"{"gap":{"from":1,"to":2}}"#, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_prints_what_comes_survives_an_outage_and_ends_at_ctrl_c() {
    let mut server = TestServer::start().await;
    let way = Way::start(server.address()).await;
    server.app().create_contact("Ana", "Reyes").await;
    let mut follow = Run::start(&server, way.address, "events --follow");
    assert!(next(&mut follow.out).await.ends_with("  #1"));
    let following = "following the events after 0; end with Ctrl-C";
    assert_eq!(next(&mut follow.err).await, following);

    server.app().create_contact("Bo", "Lund").await;
    assert!(next(&mut follow.out).await.ends_with("  #2"));
    way.cut();
    let told = next(&mut follow.err).await;
    assert!(told.ends_with("; trying again in 1 s"), "{told}");
    server.kill();
    server.restart().await;
    server.app().create_contact("Cy", "Ng").await;
    way.mend(server.address());

    let again = next(&mut follow.out).await;
    assert!(again.contains("  Cy Ng ") && again.ends_with("  #3"), "{again}");
    while next(&mut follow.err).await != "connected again" {}
    follow.interrupt();
    assert_eq!(follow.end().await, (Some(0), Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ends_when_the_server_refuses_or_was_never_there() {
    let server = TestServer::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (code, _, err) = Run::start(&server, nobody, "events --follow").end().await;
    assert_eq!(code, Some(1), "{err:?}");

    let mut follow = Run::start(&server, server.address(), "events --follow --json");
    next(&mut follow.err).await;
    let path = format!("/services/{}/apps/{}", server.service_id, server.app_id);
    let (other, token) = server.create_app(&["directory:write"]).await;
    server.admin().delete(&path).await.expect(200);
    server.app_with(&other, &token).create_contact("Ana", "Secret").await;

    let (code, out, err) = follow.end().await;
    assert_eq!((code, out.len()), (Some(1), 0));
    assert!(err[0].contains("Invalid token"), "{err:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_verified_and_a_secret_rotated_by_command() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    assert_eq!(run(&server, "subscription verify").await.0, Some(1));
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    let (code, out, _) = run(&server, "subscription verify").await;
    assert_eq!((code, out[0].as_str()), (Some(0), "verified  true"), "{out:?}");
    let (code, out, _) = run(&server, "subscription rotate-secret --json").await;
    let rotated: Value = serde_json::from_str(&out[0]).unwrap();
    let stored = server.app().get("/staff-contact-event-sub/secret").await.expect(200);
    assert_eq!((code, rotated), (Some(0), stored));
    let (code, out, _) = run(&server, "subscription rotate-secret").await;
    assert_eq!(code, Some(0));
    assert!(out[0].starts_with("secret  whsec_"), "{out:?}");
    assert_eq!(out.last().unwrap(), "the earlier secrets sign 24 h longer");

    receiver.answer_challenges(|_| Reply::status(500));
    let (code, out, err) = run(&server, "subscription verify").await;
    assert_eq!((code, out.len()), (Some(1), 0));
    assert!(err[0].contains("the receiver answered 500"), "{err:?}");
}
