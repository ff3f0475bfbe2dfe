//! The real binary, started with its own data directory on a free port.
//!
//! A test that fails shows the server's log; a test that passes fails all the same when the server logged an error
//! or a panic that the test did not announce.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::{Value, json};

use super::certificates::Authority;
use super::client::Api;
use super::process::Process;

/// The admin token that servers started with `serve` are given.
const ADMIN_TOKEN: &str = "admin-token-of-the-system-tests-0123456789";

/// The key of signing secrets that all nodes on one PostgreSQL are given.
const SECRET_KEY: &str = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";

/// A directory that goes away with the last server on it.
#[derive(Debug)]
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("rollcall-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    command: &'static str,
    flags: Vec<String>,
    tls: Option<Arc<ClientConfig>>,
    dir: Arc<TestDir>,
    other_dir: Option<PathBuf>,
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    tolerates_errors: bool,
    has_admin_token: bool,
}

/// Who calls: kept when a server is started on a directory that another one has filled.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    service_id: String,
    app_id: String,
    app_token: String,
}

impl Builder {
    /// `rollcall serve` in place of `rollcall dev`.
    pub(crate) fn serve(mut self) -> Self {
        self.command = "serve";
        self
    }

    /// `rollcall serve` as a node of this name on a PostgreSQL. The first one on an empty database is started with
    /// [`Self::start`], the others with [`Self::start_as`] and the credentials of the first.
    pub(crate) fn node(mut self, store: &str, name: &str) -> Self {
        self.environment.push(("ROLLCALL_SECRET_KEY", SECRET_KEY.into()));
        self.serve().flag("--store", store).flag("--node-name", name)
    }

    /// One more flag with its value.
    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push(format!("{name}={value}"));
        self
    }

    /// One more variable in its environment.
    pub(crate) fn variable(mut self, name: &'static str, path: PathBuf) -> Self {
        self.environment.push((name, path.into()));
        self
    }

    /// TLS with a first certificate of a new authority, which the server itself trusts too.
    pub(crate) fn tls(mut self) -> (Self, Authority) {
        let authority = Authority::new(&self.dir.0);
        authority.install(&authority.issue());
        self.tls = Some(Arc::new(authority.client()));
        let (cert, key) = (authority.cert_path(), authority.key_path());
        let with_tls = self
            .variable("SSL_CERT_FILE", authority.root_path())
            .flag("--tls-cert", cert.to_str().unwrap())
            .flag("--tls-key", key.to_str().unwrap());
        (with_tls, authority)
    }

    /// Another data directory than one of its own.
    pub(crate) fn data_dir(mut self, path: &Path) -> Self {
        self.other_dir = Some(path.to_owned());
        self
    }

    /// Another program than the one that was built.
    pub(crate) fn program(mut self, path: &Path) -> Self {
        self.program = path.to_owned();
        self
    }

    /// More of the environment.
    pub(crate) fn environment(mut self, variables: Vec<(&'static str, OsString)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Errors in the log are part of this test.
    pub(crate) fn tolerate_errors(mut self) -> Self {
        self.tolerates_errors = true;
        self
    }

    /// Starts the server and waits until it says where it listens.
    pub(crate) async fn start(self) -> TestServer {
        let mut server = self.launch();
        if server.builder.command == "serve" {
            server.make_app().await;
        }
        server
    }

    /// Starts `rollcall serve` on a directory in which these credentials are known.
    pub(crate) fn start_as(self, credentials: &Credentials) -> TestServer {
        let mut server = self.launch();
        credentials.service_id.clone_into(&mut server.service_id);
        credentials.app_id.clone_into(&mut server.app_id);
        credentials.app_token.clone_into(&mut server.app_token);
        server
    }

    /// Starts `rollcall serve` without an admin token in its settings; gives the one that it has made and printed, if any.
    /// Nothing else is known of the server.
    pub(crate) fn start_without_admin_token(mut self) -> (TestServer, Option<String>) {
        self.has_admin_token = false;
        let mut server = self.launch();
        let welcome = server.process.came_with_first_line();
        let printed = |line: &str| {
            line.strip_prefix("admin token, shown only this once: ").map(str::to_owned)
        };
        let token = welcome.lines().find_map(printed);
        token.as_deref().unwrap_or_default().clone_into(&mut server.admin_token);
        (server, token)
    }

    fn launch(self) -> TestServer {
        let mut process = self.spawn();
        let welcome = process.first_line();
        let mut server = TestServer {
            process,
            base_url: String::new(),
            admin_token: ADMIN_TOKEN.to_owned(),
            service_id: String::new(),
            app_id: String::new(),
            app_token: String::new(),
            builder: self,
        };
        server.read_welcome(&welcome);
        server
    }

    fn spawn(&self) -> Process {
        let mut program = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ROLLCALL_") {
                program.env_remove(name);
            }
        }
        program.envs(self.environment.iter().cloned()).arg(self.command);
        if self.command == "dev" {
            program.arg("--json");
        } else if self.has_admin_token {
            program.env("ROLLCALL_ADMIN_TOKEN", ADMIN_TOKEN);
        }
        if !self.flags.iter().any(|flag| flag.starts_with("--listen=")) {
            program.arg("--listen=127.0.0.1:0");
        }
        if !self.flags.iter().any(|flag| flag.starts_with("--log-format=")) {
            program.arg("--log-format=json");
        }
        let data_dir = self.data_dir_path();
        program.arg(format!("--data-dir={}", data_dir.display()));
        program.args(&self.flags);
        Process::spawn(program)
    }

    fn data_dir_path(&self) -> PathBuf {
        self.other_dir.clone().unwrap_or_else(|| self.dir.0.join("data"))
    }

    /// Starts a server and kills it after so long, wherever it is by then.
    pub(crate) async fn start_and_kill(&self, after: Duration) {
        let mut process = self.spawn();
        tokio::time::sleep(after).await;
        process.kill();
        let log = process.log();
        let faults: Vec<&str> = log.lines().filter(|line| is_fault(line)).collect();
        assert!(faults.is_empty(), "the server logged: {faults:#?}");
    }

    /// Runs a server that must not start; gives its exit code and what it said.
    pub(crate) fn start_and_fail(&self) -> (Option<i32>, String) {
        let mut process = self.spawn();
        let status = process.wait(super::PATIENCE).expect("the process must end by itself");
        (status.code(), process.log())
    }
}

/// A server that runs.
pub(crate) struct TestServer {
    pub(crate) base_url: String,
    pub(crate) admin_token: String,
    pub(crate) service_id: String,
    pub(crate) app_id: String,
    pub(crate) app_token: String,
    process: Process,
    builder: Builder,
}

impl TestServer {
    /// `rollcall dev` with a service and an app of all scopes.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    pub(crate) fn builder() -> Builder {
        Builder {
            command: "dev",
            flags: Vec::new(),
            tls: None,
            dir: Arc::new(TestDir::new()),
            other_dir: None,
            program: env!("CARGO_BIN_EXE_rollcall").into(),
            environment: Vec::new(),
            tolerates_errors: false,
            has_admin_token: true,
        }
    }

    /// The app that came with the server.
    pub(crate) fn app(&self) -> Api {
        self.app_with(&self.app_id, &self.app_token)
    }

    /// Another app.
    pub(crate) fn app_with(&self, app_id: &str, token: &str) -> Api {
        self.api(&format!("/v1/api/apps/{app_id}"), Some(token))
    }

    /// The administration.
    pub(crate) fn admin(&self) -> Api {
        self.api("/v1/admin", Some(&self.admin_token))
    }

    /// Every path, with this token.
    pub(crate) fn anyone(&self, token: Option<&str>) -> Api {
        self.api("", token)
    }

    fn api(&self, path: &str, token: Option<&str>) -> Api {
        Api::new(&format!("{}{path}", self.base_url), token).over(self.builder.tls.clone())
    }

    /// Makes another app in the service of the server; gives its id and token.
    pub(crate) async fn create_app(&self, scopes: &[&str]) -> (String, String) {
        let path = format!("/services/{}/apps", self.service_id);
        let app = self.admin().post(&path, json!({"name": "Other", "scopes": scopes})).await;
        let app = app.expect(201);
        let text = |field: &str| app[field].as_str().unwrap().to_owned();
        (text("appID"), text("appToken"))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let (_, address) = self.base_url.split_once("://").unwrap();
        address.parse().unwrap()
    }

    /// Where its files are.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.builder.data_dir_path()
    }

    /// How it was started, to start something else on the same directory.
    pub(crate) fn builder_of(&self) -> Builder {
        self.builder.clone()
    }

    /// Who calls as its first app.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials {
            service_id: self.service_id.clone(),
            app_id: self.app_id.clone(),
            app_token: self.app_token.clone(),
        }
    }

    /// Everything that it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// The id of its process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The most of memory that it has had resident, in MiB.
    pub(crate) fn memory_mib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    /// SIGKILL, as the kernel gives it when memory is short.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGSTOP: when this returns it does nothing any more, and it has closed nothing.
    pub(crate) fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT: it goes on where it was.
    pub(crate) fn resume(&self) {
        self.process.signal(rustix::process::Signal::CONT);
    }

    /// SIGHUP: read again what can be read again.
    pub(crate) fn hang_up(&self) {
        self.process.signal(rustix::process::Signal::HUP);
    }

    /// SIGTERM; gives the exit status, `None` when it does not come within the time.
    pub(crate) async fn terminate(&mut self, within: Duration) -> Option<ExitStatus> {
        self.process.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.process.ended() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts again on the same directory after [`Self::kill`] or [`Self::terminate`]. The port is another one.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.ended().is_some(), "the server still runs");
        let mut process = self.builder.spawn();
        let welcome = process.first_line();
        let earlier = std::mem::replace(&mut self.process, process);
        self.process.keep_log_of(&earlier);
        self.read_welcome(&welcome);
    }

    fn read_welcome(&mut self, line: &str) {
        if self.builder.command == "serve" {
            let url = line.trim().strip_prefix("rollcall listens on ");
            url.expect("the first line must name the address").clone_into(&mut self.base_url);
            return;
        }
        let welcome: Value = serde_json::from_str(line)
            .unwrap_or_else(|_| panic!("no JSON line: {line:?}\n{}", self.process.log()));
        let text = |field: &str| welcome[field].as_str().unwrap().to_owned();
        self.base_url = text("baseURL");
        self.admin_token = text("adminToken");
        self.service_id = text("serviceId");
        self.app_id = text("appID");
        self.app_token = text("appToken");
    }

    async fn make_app(&mut self) {
        let service = self.admin().post("/services", json!({"name": "Test"})).await.expect(201);
        service["serviceId"].as_str().unwrap().clone_into(&mut self.service_id);
        let scopes = ["events", "directory:read", "directory:write"];
        (self.app_id, self.app_token) = self.create_app(&scopes).await;
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.process.kill();
        let log = self.process.log();
        if std::thread::panicking() {
            show(&log);
        } else if !self.builder.tolerates_errors {
            let faults: Vec<&str> = log.lines().filter(|line| is_fault(line)).collect();
            assert!(faults.is_empty(), "the server logged: {faults:#?}");
        }
    }
}

fn is_fault(line: &str) -> bool {
    line.contains(r#""level":"ERROR""#) || line.contains("panicked at")
}

#[expect(clippy::print_stderr, reason = "the test runner shows it with the failed test only")]
fn show(log: &str) {
    eprintln!("---- the server's log ----\n{log}----");
}
