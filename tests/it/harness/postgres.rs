//! PostgreSQL for the system tests: databases of their own on the server that all tests share, and servers of their own
//! for tests that kill one.
//!
//! The shared server is named by `TEST_POSTGRES_URL`; `make test` starts it. Servers of a test are real ones: a test ends
//! their processes by their ids, starts them again on the same files, and lets a standby follow.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use rustix::process::{Pid, Signal};
use tokio_postgres::{Client, NoTls};
use url::Url;

use super::certificates::Pair;
use super::chance::Chance;
use super::eventually;

/// The variable that names the shared server.
const SHARED: &str = "TEST_POSTGRES_URL";
/// The user of servers that a test starts, and their database.
const NAME: &str = "rollcall";
/// Ports of those servers: below those that systems give to outgoing connections, above those of `with_server.sh` at most
/// by accident.
const PORTS: std::ops::Range<u16> = 14_000..19_000;

/// Connects without TLS; the connection ends with the client.
pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // Its end is seen by the client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// A database of one test on the shared server; it goes away with the value, whoever is still connected.
#[derive(Debug)]
pub(crate) struct Database {
    server: Url,
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        Self::create_with("").await
    }

    /// With options of `CREATE DATABASE`.
    pub(crate) async fn create_with(options: &str) -> Self {
        let server = std::env::var(SHARED).unwrap_or_else(|_| {
            panic!(
                "{SHARED} is not set: run `make test`, or tests/postgres/with_server.sh with your command behind it"
            )
        });
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let name = format!("rollcall_test_{:016x}", u64::from_le_bytes(random));
        let client = connect(&server).await.unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name} {options}")).await.unwrap();
        Self { server: Url::parse(&server).unwrap(), name }
    }

    /// What a node is given as its store.
    pub(crate) fn url(&self) -> String {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        url.into()
    }

    /// The same by another way, such as a [`Proxy`](super::proxy::Proxy).
    pub(crate) fn url_over(&self, way: SocketAddr) -> String {
        let mut url = Url::parse(&self.url()).unwrap();
        url.set_ip_host(way.ip()).unwrap();
        url.set_port(Some(way.port())).unwrap();
        url.into()
    }

    /// Where the shared server listens.
    pub(crate) fn server_address(&self) -> SocketAddr {
        let port = self.server.port().unwrap_or(5432);
        self.server.socket_addrs(|| Some(port)).unwrap()[0]
    }

    pub(crate) async fn connect(&self) -> Client {
        connect(&self.url()).await.unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, drop_it) =
            (self.server.to_string(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
        // A value is dropped in the middle of a runtime, which cannot wait for another future.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                connect(&server).await.unwrap().batch_execute(&drop_it).await.unwrap();
            });
        });
        let dropped = dropped.join();
        assert!(dropped.is_ok() || std::thread::panicking(), "{} stays behind", self.name);
    }
}

/// A PostgreSQL that a test started and may kill. It goes away with the value.
pub(crate) struct Postgres {
    folder: Folder,
    port: u16,
    process: Option<Child>,
    /// More of its settings, each `name=value`.
    settings: Vec<String>,
    _template: Arc<Folder>,
}

impl Postgres {
    /// An empty one, on a free port of 127.0.0.1, with a database for Rollcall.
    pub(crate) async fn start() -> Self {
        let template = template();
        let folder = Folder::new("postgres");
        run(Command::new("cp").arg("-a").arg(template.0.join("data")).arg(folder.0.join("data")));
        let mut postgres = Self {
            folder,
            port: free_port(),
            process: None,
            settings: Vec::new(),
            _template: template,
        };
        postgres.restart().await;
        let admin = connect(&postgres.url_of("postgres")).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {NAME}")).await.unwrap();
        postgres
    }

    /// What a node is given as its store.
    pub(crate) fn url(&self) -> String {
        self.url_of(NAME)
    }

    /// The same by another way, such as a [`Proxy`](super::proxy::Proxy).
    pub(crate) fn url_over(way: SocketAddr) -> String {
        format!("postgres://{NAME}@{way}/{NAME}")
    }

    /// What a node is given that is to go on at the other server when this one is gone.
    pub(crate) fn url_or(&self, other: &Self) -> String {
        format!("postgres://{NAME}@{},{}/{NAME}", self.address(), other.address())
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{NAME}@{}/{database}", self.address())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) async fn connect(&self) -> Client {
        connect(&self.url()).await.unwrap()
    }

    /// SIGKILL of all its processes, as a machine that stops.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // It is stopped first, so that it neither makes more of them nor answers for those that are gone. Each is a group
        // of its own.
        signal_if_there(process.id(), Signal::STOP);
        for child in children_of(process.id()) {
            signal_if_there(child, Signal::KILL);
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops the process that writes what asynchronous commits have left in memory; it ends with the server.
    pub(crate) fn stop_wal_writer(&self) {
        let children = children_of(self.process.as_ref().unwrap().id());
        let is_wal_writer = |id: &u32| {
            let title = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).contains("walwriter")
        };
        let writer = children.into_iter().find(is_wal_writer).expect("PostgreSQL has one");
        signal_if_there(writer, Signal::STOP);
    }

    /// Starts it on the same files and port after [`Self::kill`]; waits until it answers, its recovery included.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.is_none(), "PostgreSQL still runs");
        let url = self.url_of("postgres");
        self.process = Some(self.spawn());
        eventually("PostgreSQL answers", || {
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                // Processes that were killed may not all be gone, and then it refuses to start.
                self.process = Some(self.spawn());
            }
            let answer = connect(&url);
            async { answer.await.ok().map(drop) }
        })
        .await;
    }

    fn spawn(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.folder.0.join("log"));
        let mut command = as_user(&programs().join("postgres"));
        command.arg("-D").arg(self.folder.0.join("data"));
        let port = format!("port={}", self.port);
        let fixed = [
            port.as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            // Processes are killed here, never the kernel.
            "fsync=off",
            // A standby must not miss anything while it is made.
            "wal_keep_size=128MB",
        ];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap()
    }

    /// Ends the session of every client, as an administrator may; gives how many there were.
    pub(crate) async fn terminate_clients(&self) -> i64 {
        let admin = connect(&self.url_of("postgres")).await.unwrap();
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Makes a standby of it that follows over this way; no commit waits for it.
    pub(crate) async fn standby(&self, way: SocketAddr) -> Self {
        let folder = Folder::new("standby");
        let mut backup = as_user(&programs().join("pg_basebackup"));
        let (port, data) = (self.port.to_string(), folder.0.join("data"));
        backup.args(["-h", "127.0.0.1", "-U", NAME, "-p", &port, "-c", "fast", "-X", "stream"]);
        run(backup.args(["--no-sync", "--write-recovery-conf", "-D"]).arg(&data));
        let primary = format!(
            "primary_conninfo=host={} port={} user={NAME} application_name=standby",
            way.ip(),
            way.port()
        );
        let mut standby = Self {
            folder,
            port: free_port(),
            process: None,
            // After a loss of the primary it asks again at once, not after 5 s.
            settings: vec![primary, "wal_retrieve_retry_interval=100ms".to_owned()],
            _template: Arc::clone(&self._template),
        };
        standby.restart().await;
        standby
    }

    /// Makes a standby of it, and lets every commit wait from now on until the standby has it too.
    pub(crate) async fn synchronous_standby(&self) -> Self {
        let standby = self.standby(self.address()).await;
        let admin = connect(&self.url_of("postgres")).await.unwrap();
        // Each alone, since a setting of the system cannot be changed in a transaction.
        admin
            .batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            .await
            .unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        eventually("the standby is synchronous", async || {
            let sql = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'";
            admin.query_opt(sql, &[]).await.unwrap()
        })
        .await;
        standby
    }

    /// Starts it again with these settings, each `name=value`.
    pub(crate) async fn restart_with(&mut self, settings: &[&str]) {
        self.kill();
        self.settings.extend(settings.iter().map(|&setting| setting.to_owned()));
        self.restart().await;
    }

    /// Starts it again with TLS and this certificate; those who want none are still let in.
    pub(crate) async fn restart_with_tls(&mut self, pair: &Pair) {
        self.kill();
        let owner = fs::metadata(self.folder.0.join("data")).unwrap();
        for (name, pem) in [("server.crt", &pair.cert), ("server.key", &pair.key)] {
            let path = self.folder.0.join("data").join(name);
            fs::write(&path, pem).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        self.settings.retain(|setting| setting != "ssl=on");
        self.settings.push("ssl=on".to_owned());
        self.restart().await;
    }

    /// Makes a primary of a standby.
    pub(crate) async fn promote(&self) {
        let admin = connect(&self.url_of("postgres")).await.unwrap();
        let promoted = admin.query_one("SELECT pg_promote(true, 30)", &[]).await.unwrap();
        assert!(promoted.get::<_, bool>(0), "the standby was not promoted");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.0.join("log")).unwrap_or_default();
            super::say(&format!("---- PostgreSQL's log, port {} ----\n{log}----", self.port));
        }
    }
}

/// A directory of the user that PostgreSQL runs as; it goes away with the value.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir()
            .join(format!("rollcall-it-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        if let Some((user, group)) = other_user() {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// An empty cluster that others are copied from, which takes a tenth of the time of making one. It stays as long as one of
/// them is there.
fn template() -> Arc<Folder> {
    static TEMPLATE: Mutex<Weak<Folder>> = Mutex::new(Weak::new());
    let mut kept = TEMPLATE.lock().unwrap();
    if let Some(template) = kept.upgrade() {
        return template;
    }
    let template = Arc::new(Folder::new("template"));
    let mut initdb = as_user(&programs().join("initdb"));
    initdb.args(["-U", NAME, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
    run(initdb.arg(template.0.join("data")));
    *kept = Arc::downgrade(&template);
    template
}

/// The directory of PostgreSQL's programs. One place knows where that is.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres/with_server.sh");
        run(Command::new(script).arg("--programs")).trim().into()
    })
}

/// PostgreSQL refuses to run as root: then the user and group to run it as.
fn other_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        let ask = |what| run(Command::new("id").args([what, "postgres"])).trim().parse().unwrap();
        rustix::process::geteuid().is_root().then(|| (ask("-u"), ask("-g")))
    })
}

/// A program of PostgreSQL, as the user that may run it, in a directory that this user may see.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Runs a command to its end; gives what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn free_port() -> u16 {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    let mut chance = Chance::new(u64::from_le_bytes(random));
    loop {
        let port = PORTS.start + u16::try_from(chance.below(PORTS.len() as u64)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn signal_if_there(id: u32, signal: Signal) {
    let id = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    if let Err(error) = rustix::process::kill_process(id, signal) {
        assert_eq!(error, rustix::io::Errno::SRCH);
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Number, name in parentheses, state, parent.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        Some((id, parent))
    });
    processes.filter(|(_, of)| *of == parent).map(|(id, _)| id).collect()
}
