//! Nodes of the release program on one PostgreSQL, as an operator starts them, with services that are ready to be driven.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rollcall::domain::id::AppId;
use rollcall::domain::shard::{SHARDS, shard_of};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::claims::connect;
use crate::helper::Helper;
use crate::process;
use crate::protocol::{self, Target};
use crate::server::{ask, stop};

/// Given to all nodes, so that none makes one of its own.
const ADMIN_TOKEN: &str = "admin-token-of-the-benchmark-0123456789abcdef";
const SECRET_KEY: &str = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";
/// How long it may take until every node has its part of the subscriptions.
const BALANCE: Duration = Duration::from_secs(30);
/// Apps that are made until the subscription of one belongs to the wanted node.
const APPS_MAX: usize = 200;

/// A running node; it ends with this value.
struct Node {
    child: Child,
    address: String,
    /// A node that cannot say where it listens ends.
    out: Option<BufReader<ChildStdout>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The app of a service that creates contacts and is subscribed.
struct App {
    id: String,
    token: String,
}

/// What has been used up to a moment.
pub(super) struct Used {
    pub(super) nodes: f64,
    pub(super) postgres: f64,
    pub(super) log_bytes: f64,
}

/// Nodes on one database.
pub(super) struct Cluster<'a> {
    runtime: &'a Runtime,
    client: Client,
    postmaster: u32,
    nodes: Vec<Node>,
    apps: Vec<App>,
}

impl<'a> Cluster<'a> {
    /// Starts so many nodes on an empty database and waits until each has its part. `guard` ends them if this process
    /// dies.
    pub(super) fn start(
        runtime: &'a Runtime,
        program: &Path,
        directory: &Path,
        url: &str,
        nodes: usize,
        guard: &mut Helper,
    ) -> anyhow::Result<Self> {
        let client = runtime.block_on(connect(url))?;
        let row = runtime.block_on(client.query_one("SELECT pg_backend_pid()", &[]))?;
        let backend = u32::try_from(row.get::<_, i32>(0))?;
        let postmaster = process::parent(backend)
            .context("PostgreSQL must run on this machine, so that its CPU time can be read")?;
        let nodes = (0..nodes)
            .map(|number| start_node(program, directory, url, number, guard))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let cluster = Self { runtime, client, postmaster, nodes, apps: Vec::new() };
        cluster.wait_for_balance()?;
        Ok(cluster)
    }

    fn wait_for_balance(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let fair = usize::from(SHARDS) / self.nodes.len();
        while self.held()?.iter().filter(|shards| shards.len() >= fair).count() < self.nodes.len() {
            ensure!(
                began.elapsed() < BALANCE,
                "the nodes have not shared everything in {BALANCE:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The shards of each node.
    fn held(&self) -> anyhow::Result<Vec<Vec<i16>>> {
        let sql = "SELECT array_agg(shard) FROM shards WHERE node IS NOT NULL GROUP BY node ORDER BY node";
        let rows = self.runtime.block_on(self.client.query(sql, &[]))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Makes so many services with one subscriber each, whose subscriptions belong to one node after the other.
    pub(super) fn found(&mut self, services: usize, port: u16) -> anyhow::Result<()> {
        let held = self.held()?;
        for service in 0..services {
            let name = json!({"name": format!("Bench {service}")});
            let made = self.admin("/v1/admin/services", &name)?;
            let made = made["result"]["serviceId"].as_str().context("no service")?;
            let shards = held.get(service % held.len().max(1)).context("no node")?;
            let app = self.app_in(made, shards)?;
            self.apps.push(app);
        }
        self.subscribe(port)
    }

    fn app_in(&self, service: &str, shards: &[i16]) -> anyhow::Result<App> {
        let path = format!("/v1/admin/services/{service}/apps");
        let body =
            json!({"name": "Bench", "scopes": ["events", "directory:read", "directory:write"]});
        for _ in 0..APPS_MAX {
            let made = self.admin(&path, &body)?;
            let text = |name: &str| made["result"][name].as_str().map(str::to_owned);
            let (id, token) = text("appID").zip(text("appToken")).context("no app was made")?;
            let app = AppId::parse(&id).context("not an app's id")?;
            if shards.contains(&shard_of(app).number()) {
                return Ok(App { id, token });
            }
        }
        anyhow::bail!("{APPS_MAX} apps, and none of them belongs to the wanted node")
    }

    /// Lets every subscription call this port from now on.
    pub(super) fn subscribe(&self, port: u16) -> anyhow::Result<()> {
        for (number, App { id, token }) in self.apps.iter().enumerate() {
            let node = &self.nodes[number % self.nodes.len()];
            let path = format!("/v1/api/apps/{id}/staff-contact-event-sub");
            // All on one account: numbers of contacts are given over all services.
            let body = json!({"enabled": true, "url": format!("http://127.0.0.1:{port}/0")});
            ask(&node.address, "PATCH", &path, token, &body)?;
        }
        Ok(())
    }

    fn admin(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        ask(&self.nodes[0].address, "POST", path, ADMIN_TOKEN, body)
    }

    /// Each service at each node.
    pub(super) fn targets(&self) -> Vec<Target> {
        let of_service = |App { id, token }: &App| {
            let target = |node: &Node| Target {
                address: node.address.clone(),
                path: format!("/v1/api/apps/{id}/contacts/staff"),
                token: token.clone(),
            };
            self.nodes.iter().map(target).collect::<Vec<_>>()
        };
        self.apps.iter().flat_map(of_service).collect()
    }

    pub(super) fn used(&self) -> anyhow::Result<Used> {
        let mut nodes = 0.0;
        for node in &self.nodes {
            nodes += process::cpu_seconds(node.child.id())?;
        }
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8";
        let row = self.runtime.block_on(self.client.query_one(sql, &[]))?;
        let postgres = process::family_cpu_seconds(self.postmaster)?;
        Ok(Used { nodes, postgres, log_bytes: row.get(0) })
    }

    /// The most of memory that a node has had, in MiB.
    pub(super) fn memory(&self) -> anyhow::Result<f64> {
        let mut most: f64 = 0.0;
        for node in &self.nodes {
            most = most.max(process::memory(node.child.id())?.highest);
        }
        Ok(most)
    }

    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            stop(&mut node.child)?;
        }
        Ok(())
    }
}

fn start_node(
    program: &Path,
    directory: &Path,
    url: &str,
    number: usize,
    guard: &mut Helper,
) -> anyhow::Result<Node> {
    let log = directory.join(format!("log-{number}"));
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"ROLLCALL_") {
            command.env_remove(name);
        }
    }
    command
        .args(["serve", "--listen=127.0.0.1:0", "--allow-targets=127.0.0.0/8", "--allow-http=true"])
        .args(["--requests-per-minute=0", "--log=warn"])
        .arg(format!("--node-name=node-{number}"))
        .env("ROLLCALL_STORE", url)
        .env("ROLLCALL_ADMIN_TOKEN", ADMIN_TOKEN)
        .env("ROLLCALL_SECRET_KEY", SECRET_KEY)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log)?);
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let mut node = Node { child, address: String::new(), out: None };
    guard.ask::<()>(&protocol::Command::Guard { pid: node.child.id().try_into()? })?;
    let out = node.child.stdout.take().context("no standard output")?;
    let mut line = String::new();
    node.out.insert(BufReader::new(out)).read_line(&mut line)?;
    let (_, address) = line.trim().rsplit_once("http://").with_context(|| {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        format!("a node did not start: {said}")
    })?;
    address.clone_into(&mut node.address);
    Ok(node)
}
