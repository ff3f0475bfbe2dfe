//! Three nodes on one PostgreSQL with twelve subscriptions of one service, spread evenly over the nodes, and callers that
//! write. What came of it is judged in `verdict`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use super::receiver::{Receiver, Reply};
use super::senders::Senders;
use super::server::TestServer;
use super::verdict::Verdict;
use super::watcher::Watcher;
use super::writers::{
    Acknowledged, start_forgiving_writers, start_stubborn_writers, start_writers,
};
use super::{PATIENCE, eventually};

/// What the nodes are called.
pub(crate) const NAMES: [&str; 3] = ["one", "two", "three"];
/// Subscriptions that each node has at the beginning.
const SUBSCRIPTIONS_PER_NODE: usize = 4;
/// All shards.
const SHARDS: usize = 64;
/// Pause of a caller after each change: each change is twelve notifications, and all nodes and receivers share a machine.
const PAUSE: Duration = Duration::from_millis(200);

/// An app whose events go to a receiver of its own.
pub(crate) struct Subscription {
    pub(crate) app: (String, String),
    pub(crate) shard: i16,
    pub(crate) receiver: Receiver,
}

/// Three nodes that run.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<TestServer>,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) acknowledged: Arc<Acknowledged>,
    pub(crate) senders: Arc<Senders>,
    pub(crate) watcher: Watcher,
    writers: Vec<JoinSet<()>>,
}

impl Cluster {
    /// Starts a node on each of these URLs, which lead to one database; it is looked into at `direct`. Receivers take
    /// `answer_after` for an answer.
    pub(crate) async fn start(stores: [&str; 3], direct: &str, answer_after: Duration) -> Self {
        let builders = NAMES.iter().zip(stores).map(|(name, store)| {
            TestServer::builder()
                .node(store, name)
                .flag("--allow-targets", "127.0.0.0/8")
                .flag("--allow-http", "true")
                .flag("--requests-per-minute", "0")
                .flag("--verifications-per-app", "0")
                .flag("--verifications-per-host", "0")
                .flag("--retry-schedule", "1s,1s,1s,1s,1s,1s,1s,1s,1s,1s")
                // What a database is away for is an error to whoever operates it.
                .tolerate_errors()
        });
        let mut builders = builders.into_iter();
        let first = builders.next().unwrap().start().await;
        let credentials = first.credentials();
        let mut nodes = vec![first];
        nodes.extend(builders.map(|builder| builder.start_as(&credentials)));
        let mut cluster = Self {
            nodes,
            subscriptions: Vec::new(),
            acknowledged: Arc::default(),
            senders: Arc::default(),
            watcher: Watcher::start(direct),
            writers: Vec::new(),
        };
        for (node, name) in cluster.nodes.iter().zip(NAMES) {
            cluster.senders.runs(node.process_id(), name);
        }
        cluster.wait_until_balanced().await;
        cluster.subscribe(answer_after).await;
        cluster
    }

    /// Three nodes on the same URL.
    pub(crate) async fn start_on(store: &str) -> Self {
        Self::start([store; 3], store, Duration::ZERO).await
    }

    /// Makes apps until every node has its subscriptions.
    async fn subscribe(&mut self, answer_after: Duration) {
        let owners = self.watcher.owners();
        let mut places: Vec<&str> = NAMES.repeat(SUBSCRIPTIONS_PER_NODE);
        while !places.is_empty() {
            let app = self.nodes[0].create_app(&["events"]).await;
            // The last byte of the identifier, as `shard_of`.
            let last = u8::from_str_radix(&app.0[app.0.len() - 2..], 16).unwrap();
            let shard = i16::from(last) % i16::try_from(SHARDS).unwrap();
            let Some(place) = places.iter().position(|name| owners[&shard] == *name) else {
                continue;
            };
            places.remove(place);
            let receiver = Receiver::start().await;
            let (senders, number) = (Arc::clone(&self.senders), self.subscriptions.len());
            let port = url::Url::parse(&receiver.url()).unwrap().port().unwrap();
            receiver.work(move |seen| {
                senders.note(number, port, &seen);
                async move {
                    tokio::time::sleep(answer_after).await;
                    Reply::status(200)
                }
            });
            // In turn on each node, whoever will send.
            let node = &self.nodes[number % self.nodes.len()];
            node.app_with(&app.0, &app.1).subscribe(true, &receiver.url()).await.expect(200);
            self.subscriptions.push(Subscription { app, shard, receiver });
        }
    }

    /// Waits until every node has its share of the shards.
    pub(crate) async fn wait_until_balanced(&self) {
        // A receiver may hear of a takeover before the watcher has seen it: then the shares of before still look even.
        let since = Instant::now();
        eventually("the nodes have their shares", async || {
            let is_known = self.watcher.has_looked_since(since);
            let shares = self.watcher.shares();
            let even = shares.values().all(|share| *share >= SHARDS / NAMES.len());
            (is_known && shares.len() == NAMES.len() && even).then_some(())
        })
        .await;
    }

    /// The subscriptions that this node sends for.
    pub(crate) fn subscriptions_of(&self, name: &str) -> Vec<usize> {
        let owners = self.watcher.owners();
        let of_node = |number: &usize| {
            let shard = self.subscriptions[*number].shard;
            owners.get(&shard).is_some_and(|owner| owner == name)
        };
        (0..self.subscriptions.len()).filter(of_node).collect()
    }

    /// The node that sends for the most subscriptions.
    pub(crate) fn busiest(&self) -> usize {
        let subscriptions = |node: &usize| self.subscriptions_of(NAMES[*node]).len();
        (0..NAMES.len()).max_by_key(subscriptions).unwrap()
    }

    /// Starts callers of a node that end when it gives no answer, or a 503.
    pub(crate) fn write_while_it_lives(&mut self, node: usize) {
        let name = format!("w{}", self.writers.len());
        let app = self.nodes[node].app();
        self.writers.push(start_writers(&app, &name, PAUSE, &self.acknowledged));
    }

    /// Starts callers of a node that go on after a 503; and it must always answer.
    pub(crate) fn write(&mut self, node: usize) {
        let name = format!("w{}", self.writers.len());
        let app = self.nodes[node].app();
        self.writers.push(start_stubborn_writers(&app, &name, PAUSE, &self.acknowledged));
    }

    /// Starts callers of a node that go on after a 503 and when a contact is gone; and it must always answer.
    pub(crate) fn write_what_may_be_lost(&mut self, node: usize) {
        let name = format!("w{}", self.writers.len());
        let app = self.nodes[node].app();
        self.writers.push(start_forgiving_writers(&app, &name, PAUSE, &self.acknowledged));
    }

    /// Writes for so long.
    pub(crate) async fn write_for(&self, time: Duration) {
        let before = self.acknowledged.count();
        tokio::time::sleep(time).await;
        let written = self.acknowledged.count() - before;
        assert!(written > 0, "nothing was acknowledged within {time:?}");
    }

    /// SIGKILL of a node.
    pub(crate) fn kill(&mut self, node: usize) -> Instant {
        let at = Instant::now();
        self.nodes[node].kill();
        at
    }

    /// Starts a node again that was killed.
    pub(crate) async fn restart(&mut self, node: usize) {
        self.nodes[node].restart().await;
        self.senders.runs(self.nodes[node].process_id(), NAMES[node]);
    }

    /// Waits until each of these subscriptions has got something from another node than this one after a moment. Gives how
    /// long after it that was.
    pub(crate) async fn wait_for_takeover(
        &self,
        subscriptions: &[usize],
        from: &str,
        since: Instant,
    ) -> Vec<Duration> {
        let mut waits = Vec::new();
        for number in subscriptions {
            let what = format!("subscription {number} goes on without node {from}");
            let first = async || self.senders.first_after(since, *number, from);
            waits.push(eventually(&what, first).await - since);
        }
        waits
    }

    /// Lets callers end, waits until everything is delivered, ends the nodes, and judges. `failures` is how often something
    /// failed that may have made attempts come twice.
    pub(crate) async fn finish(mut self, failures: usize) -> Verdict {
        self.end().await;
        Verdict::reach(&self, failures).await
    }

    /// Lets callers end, waits until everything is delivered, and ends the nodes.
    pub(crate) async fn end(&mut self) {
        self.acknowledged.stop();
        for writers in std::mem::take(&mut self.writers) {
            writers.join_all().await;
        }
        for (number, subscription) in self.subscriptions.iter().enumerate() {
            self.wait_until_idle(number, subscription).await;
        }
        for node in &mut self.nodes {
            node.kill();
        }
        // What a node gained and sent for at the very end is judged too.
        let ended = Instant::now();
        eventually("the watcher has seen the end", async || {
            self.watcher.has_looked_since(ended).then_some(())
        })
        .await;
    }

    /// Waits until everything is finished; fails only when nothing moves any more.
    async fn wait_until_idle(&self, number: usize, subscription: &Subscription) {
        let (id, token) = &subscription.app;
        let mut moved = (Value::Null, Instant::now());
        loop {
            // Each node in turn: any of them must know.
            let node = &self.nodes[number % self.nodes.len()];
            let status = node.app_with(id, token).subscription().await;
            if status["cursor"] == status["newest"] && status["held"] == 0 {
                return;
            }
            if status["cursor"] != moved.0 {
                moved = (status["cursor"].clone(), Instant::now());
            }
            assert!(
                moved.1.elapsed() < PATIENCE,
                "subscription {number} stands still: {status}, {:?}, arrivals {:?}",
                self.watcher.tenures_of(subscription.shard),
                self.senders
                    .arrivals()
                    .iter()
                    .filter(|it| it.to == number)
                    .map(|it| (it.from, it.sequence))
                    .collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
