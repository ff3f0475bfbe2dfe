//! How a subscription is doing is the same on every node: the one that has its lane knows, the others show what that one
//! has told of it under the epoch of now.

use std::time::Instant;

use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::postgres::Database;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::{Builder, TestServer};
use crate::harness::{eventually, say};

/// What the nodes are called, in the order of [`Nodes::all`].
const NAMES: [&str; 3] = ["one", "two", "three"];
/// All shards.
const SHARDS: u8 = 64;
/// Contacts that are made while a receiver fails: more than the failures in a row that open the circuit.
const CONTACTS: usize = 8;
/// How a lane that fails is stored.
const FAILING: i16 = 2;

/// Three nodes with their shares, and one subscription.
struct Nodes {
    all: Vec<TestServer>,
    receiver: Receiver,
    client: Client,
    _database: Database,
}

fn node(database: &Database, name: &str) -> Builder {
    TestServer::builder()
        .node(&database.url(), name)
        .flag("--allow-targets", "127.0.0.0/8")
        .flag("--allow-http", "true")
        .flag("--requests-per-minute", "0")
        .flag("--retry-schedule", "1s,1s,1s,1s,1s,1s,1s,1s,1s,1s")
}

/// The numbers in `0-21,40`.
fn shards_in(ranges: &str) -> Vec<u8> {
    let number = |text: &str| text.parse::<u8>().unwrap();
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        number(first)..=number(last)
    };
    ranges.split(',').filter(|it| !it.is_empty()).flat_map(range).collect()
}

impl Nodes {
    async fn start() -> Self {
        let database = Database::create().await;
        let first = node(&database, NAMES[0]).start().await;
        let credentials = first.credentials();
        let mut all = vec![first];
        all.extend(NAMES[1..].iter().map(|name| node(&database, name).start_as(&credentials)));
        let receiver = Receiver::start().await;
        let client = database.connect().await;
        let nodes = Self { all, receiver, client, _database: database };
        eventually("the nodes have their shares", async || {
            let list = nodes.all[0].admin().get("/nodes").await.expect(200);
            let items = list["items"].as_array().unwrap();
            let share = u64::from(SHARDS) / NAMES.len() as u64;
            let even = |node: &Value| node["shardCount"].as_u64().unwrap() >= share;
            (items.len() == NAMES.len() && items.iter().all(even)).then_some(())
        })
        .await;
        nodes.all[0].app().subscribe(true, &nodes.receiver.url()).await.expect(200);
        nodes
    }

    /// The last byte of the identifier, as `shard_of`.
    fn shard(&self) -> u8 {
        let app = &self.all[0].app_id;
        u8::from_str_radix(&app[app.len() - 2..], 16).unwrap() % SHARDS
    }

    /// Which node sends for the subscription, as this one says.
    async fn owner(&self, asked: usize) -> Option<usize> {
        let list = self.all[asked].admin().get("/nodes").await.expect(200);
        let has =
            |node: &&Value| shards_in(node["shards"].as_str().unwrap()).contains(&self.shard());
        let owner = list["items"].as_array().unwrap().iter().find(has)?["name"].as_str()?;
        NAMES.iter().position(|name| *name == owner)
    }

    async fn write(&self, asked: usize, last_name: &str, count: usize) {
        for number in 0..count {
            self.all[asked].app().create_contact("Ana", &format!("{last_name}{number}")).await;
        }
    }

    /// Waits until each of these nodes shows this state.
    async fn wait_for_state(&self, asked: &[usize], state: &str) {
        for node in asked {
            self.all[*node].app().wait_for_state(state).await;
        }
    }

    /// Lets the receiver fail until every node says so; gives the owner, and the others.
    async fn let_it_fail(&self) -> (usize, Vec<usize>) {
        let owner = self.owner(0).await.unwrap();
        self.receiver.answer(|_| Reply::status(500));
        self.write(0, "Failing", CONTACTS).await;
        self.wait_for_state(&[0, 1, 2], "failing").await;
        assert_eq!(self.owner(0).await, Some(owner), "another node took over");
        (owner, (0..NAMES.len()).filter(|node| *node != owner).collect())
    }

    /// What is stored of the lane: how it does, and whether that was under the epoch of now.
    async fn stored(&self) -> Option<(i16, bool)> {
        let sql = "SELECT c.condition, c.epoch = s.epoch FROM lane_conditions c, shards s WHERE s.shard = $1";
        let row = self.client.query_opt(sql, &[&i16::from(self.shard())]).await.unwrap()?;
        Some((row.get(0), row.get(1)))
    }

    /// Waits until one of these nodes, which are all that are left, has taken over and has delivered everything.
    async fn wait_for_takeover(&self, left: &[usize]) {
        self.receiver.answer(|_| Reply::status(200));
        eventually("another node has the shard", async || {
            self.owner(left[0]).await.filter(|owner| left.contains(owner))
        })
        .await;
        self.receiver.wait_for_delivered(CONTACTS).await;
        self.wait_for_state(left, "active").await;
        // The old owner could not take it back: so this is not what they go by.
        assert_eq!(self.stored().await, Some((FAILING, false)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_do_not_send_for_a_subscription_show_how_it_is_doing() {
    let nodes = Nodes::start().await;
    let owner = nodes.owner(0).await.unwrap();
    let others: Vec<usize> = (0..NAMES.len()).filter(|node| *node != owner).collect();
    assert_eq!(others.len(), 2);
    nodes.wait_for_state(&others, "active").await;

    nodes.receiver.answer(|_| Reply::header(503, "retry-after", "3"));
    nodes.write(others[0], "Paused", 1).await;
    nodes.wait_for_state(&[owner], "paused").await;
    let paused = Instant::now();
    nodes.wait_for_state(&others, "paused").await;
    let late = paused.elapsed();
    nodes.receiver.answer(|_| Reply::status(200));
    nodes.wait_for_state(&others, "active").await;

    nodes.let_it_fail().await;
    nodes.receiver.answer(|_| Reply::status(200));
    nodes.wait_for_state(&others, "active").await;
    nodes.receiver.wait_for_delivered(1 + CONTACTS).await;
    eventually("nothing is stored of a lane that is active", async || {
        nodes.stored().await.is_none().then_some(())
    })
    .await;

    for asked in 0..NAMES.len() {
        assert_eq!(nodes.owner(asked).await, Some(owner), "another node took over");
    }
    say(&format!("a pause was known to the other nodes {} ms after its own", late.as_millis()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_told_of_a_subscription_does_not_count_for_the_next_one() {
    let mut nodes = Nodes::start().await;
    let (owner, left) = nodes.let_it_fail().await;

    nodes.all[owner].kill();
    nodes.wait_for_takeover(&left).await;

    nodes.receiver.answer(|_| Reply::header(429, "retry-after", "3"));
    nodes.write(left[0], "Paused", 1).await;
    nodes.wait_for_state(&left, "paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_was_stopped_shows_what_the_next_owner_tells() {
    let nodes = Nodes::start().await;
    let (owner, left) = nodes.let_it_fail().await;

    nodes.all[owner].pause();
    nodes.wait_for_takeover(&left).await;
    nodes.all[owner].resume();

    nodes.wait_for_state(&[owner], "active").await;
    nodes.receiver.answer(|_| Reply::header(503, "retry-after", "3"));
    nodes.write(owner, "Paused", 1).await;
    nodes.wait_for_state(&[0, 1, 2], "paused").await;
}
