//! The server under test: the release program as its users start it, in a fresh directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::helper::Helper;
use crate::protocol::{self, Target};

/// How long an orderly stop may take.
const STOP: Duration = Duration::from_secs(15);

/// The data directory within a server's directory.
pub(crate) const DATA: &str = "data";

/// The one line that `rollcall dev --json` prints.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Welcome {
    #[serde(rename = "baseURL")]
    base_url: String,
    admin_token: String,
    service_id: String,
    #[serde(rename = "appID")]
    app_id: String,
    app_token: String,
}

/// A running server; it ends with this value.
pub(crate) struct Server {
    child: Child,
    welcome: Welcome,
    directory: PathBuf,
    /// From starting the process to its line.
    pub(crate) ready: Duration,
}

impl Server {
    /// Starts the program and waits until it is ready. `guard` ends it if this process dies.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        arguments: &[String],
        guard: &mut Helper,
    ) -> anyhow::Result<Self> {
        let data = directory.join(DATA);
        fs::create_dir_all(&data)?;
        let log = File::options().create(true).append(true).open(directory.join("log"))?;
        let mut command = Command::new(program);
        command
            .args(["dev", "--json", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"ROLLCALL_") {
                command.env_remove(name);
            }
        }
        let began = Instant::now();
        let child =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self {
            child,
            welcome: Welcome::none(),
            directory: directory.to_owned(),
            ready: Duration::ZERO,
        };
        let pid = server.pid().try_into()?;
        guard.ask::<()>(&protocol::Command::Guard { pid })?;
        let out = server.child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        server.ready = began.elapsed();
        server.welcome = serde_json::from_str(&line)
            .with_context(|| format!("the server did not start: {}", server.log()))?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what the server logged.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Subscribes the first app, and more apps made for it, to `/0`, `/1` … of the receiver.
    pub(crate) fn subscribe(&self, subscriptions: usize, port: u16) -> anyhow::Result<()> {
        let Welcome { admin_token, service_id, app_id, app_token, .. } = &self.welcome;
        let mut apps = vec![(app_id.clone(), app_token.clone())];
        for index in 1..subscriptions {
            let path = format!("/v1/admin/services/{service_id}/apps");
            let body = json!({"name": format!("Bench {index}"), "scopes": ["events"]});
            let made = self.ask("POST", &path, admin_token, &body)?;
            let text = |name: &str| made["result"][name].as_str().map(str::to_owned);
            let app = text("appID").zip(text("appToken"));
            apps.push(app.with_context(|| format!("no app was made: {made}"))?);
        }
        for (index, (app, token)) in apps.iter().enumerate() {
            let path = format!("/v1/api/apps/{app}/staff-contact-event-sub");
            let url = format!("http://127.0.0.1:{port}/{index}");
            self.ask("PATCH", &path, token, &json!({"enabled": true, "url": url}))?;
        }
        Ok(())
    }

    /// IP address and port, and the admin token.
    pub(crate) fn admin(&self) -> anyhow::Result<(String, String)> {
        Ok((self.address()?.to_owned(), self.welcome.admin_token.clone()))
    }

    /// Where contacts are created.
    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        Ok(Target {
            address: self.address()?.to_owned(),
            path: format!("/v1/api/apps/{}/contacts/staff", self.welcome.app_id),
            token: self.welcome.app_token.clone(),
        })
    }

    fn address(&self) -> anyhow::Result<&str> {
        let address = self.welcome.base_url.strip_prefix("http://");
        address.context("the base URL is not http")
    }

    fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> anyhow::Result<Value> {
        ask(self.address()?, method, path, token, body)
    }

    /// SIGKILL, as at a crash.
    pub(crate) fn crash(self) {
        drop(self);
    }

    /// Asks the server to stop and waits until it has.
    pub(crate) fn stop(mut self) -> anyhow::Result<Duration> {
        let stopped = stop(&mut self.child);
        stopped.with_context(|| format!("the server's log: {}", self.log()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Welcome {
    fn none() -> Self {
        Self {
            base_url: String::new(),
            admin_token: String::new(),
            service_id: String::new(),
            app_id: String::new(),
            app_token: String::new(),
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(
    address: &str,
    method: &str,
    path: &str,
    token: &str,
    body: &Value,
) -> anyhow::Result<Value> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, address)
        .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::new(Bytes::from(body.to_string())))?;
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let io = TokioIo::new(stream);
        let (mut sender, wire) = hyper::client::conn::http1::handshake(io).await?;
        let wire = tokio::spawn(wire);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let answer = answer.into_body().collect().await?.to_bytes();
        wire.abort();
        let text = String::from_utf8_lossy(&answer);
        ensure!(status.is_success(), "{method} {path}: {status} {text}");
        Ok(serde_json::from_slice(&answer)?)
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(exchange)
}

/// Asks a server to stop and waits until it has.
pub(crate) fn stop(server: &mut Child) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let pid = Pid::from_raw(server.id().try_into()?).context("not a process id")?;
    kill_process(pid, Signal::TERM)?;
    while began.elapsed() < STOP {
        if let Some(status) = server.try_wait()? {
            ensure!(status.success(), "a server ended with {status}");
            return Ok(began.elapsed());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("a server did not stop within {STOP:?}")
}
