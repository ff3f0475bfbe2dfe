//! Kills at random moments, under load and during start: nothing acknowledged is lost, no contact goes back, and
//! little comes twice. Judged by what callers were told and by what reached the receivers, on nothing else.
//!
//! The short form belongs to every run of the tests; `make crash KILLS=500` is the long one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::chance::{Chance, number_from};
use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::{Builder, TestServer};
use crate::harness::writers::{Acknowledged, start_editors, start_writers};
use crate::harness::{PATIENCE, say};

/// The variable that says how many kills there are.
const KILLS: &str = "ROLLCALL_TEST_KILLS";
/// Kills in the short form.
const KILLS_SHORT: u64 = 10;
/// Most events that a kill may repeat, for one subscription: the promise.
const REPEATED_MAX: usize = 256;
/// Longest time from the start of the process to "ready": the promise.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// Longest life under load. Longer makes a run longer, shorter leaves starts only.
const LIFE_MILLIS_MAX: u64 = 400;
/// Of a hundred kills, those during a start.
const START_PERCENT: u64 = 25;
/// After so many kills everything is delivered before the next one: keeps the backlog of the slow receiver small.
const CATCH_UP_EVERY: u64 = 25;
/// Pause of a caller after each change: so that three receivers in one process with everything else keep up.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the slow receiver takes.
const SLOW: Duration = Duration::from_millis(30);
/// Contacts that are edited from the first life to the last.
const KEPT_CONTACTS: usize = 40;

/// The last attempt of an event: the life of the server that made it, and the answer, if one was given.
#[derive(Clone, Copy)]
struct Attempt {
    life: u64,
    status: Option<u16>,
}

/// One subscription: its receiver and all that came there.
struct Subscription {
    name: &'static str,
    app: (String, String),
    receiver: Receiver,
    attempts: HashMap<u64, Attempt>,
    newest: HashMap<String, u64>,
    delivered: BTreeSet<(String, u64)>,
    last_kind: BTreeMap<String, String>,
    /// Events that came again, by the kill that ended the life of the attempt before.
    repeated: BTreeMap<u64, usize>,
    retried: usize,
}

impl Subscription {
    async fn new(name: &'static str, server: &TestServer, app: (String, String)) -> Self {
        let receiver = Receiver::start().await;
        server.app_with(&app.0, &app.1).subscribe(true, &receiver.url()).await.expect(200);
        Self {
            name,
            app,
            receiver,
            attempts: HashMap::new(),
            newest: HashMap::new(),
            delivered: BTreeSet::new(),
            last_kind: BTreeMap::new(),
            repeated: BTreeMap::new(),
            retried: 0,
        }
    }

    fn api(&self, server: &TestServer) -> Api {
        server.app_with(&self.app.0, &self.app.1)
    }

    /// Reads what came in this life to its end, after the server was killed.
    async fn judge(&mut self, life: u64) {
        self.receiver.wait_until_quiet().await;
        for seen in self.receiver.take_notifications() {
            self.judge_one(life, &seen);
        }
    }

    fn judge_one(&mut self, life: u64, seen: &Seen) {
        let name = self.name;
        let (contact, version) = (seen.contact(), seen.version());
        let newest = self.newest.entry(contact.clone()).or_default();
        assert!(
            version >= *newest,
            "{name}: {version} came after {newest} in life {life}: {seen:?}"
        );
        *newest = version;
        let attempt = Attempt { life, status: seen.status };
        if let Some(before) = self.attempts.insert(seen.sequence(), attempt) {
            if before.status.is_some_and(|status| status >= 300) {
                self.retried += 1;
            } else {
                // That it is the newest of its contact was seen above.
                assert!(before.life < life, "{name}: came twice in life {life}: {seen:?}");
                *self.repeated.entry(before.life).or_default() += 1;
            }
        }
        if seen.status == Some(200) {
            self.last_kind.insert(contact.clone(), seen.kind());
            self.delivered.insert((contact, version));
        }
    }

    /// Fails when something that a caller was told has not reached the receiver.
    fn assert_nothing_lost(&self, acknowledged: &Acknowledged) {
        let missing: Vec<_> = acknowledged
            .changes
            .lock()
            .unwrap()
            .keys()
            .filter(|change| !self.delivered.contains(change))
            .cloned()
            .collect();
        assert!(missing.is_empty(), "{}: acknowledged and not delivered: {missing:?}", self.name);
        for id in acknowledged.deletes.lock().unwrap().keys() {
            let kind = self.last_kind.get(id).map(String::as_str);
            assert_eq!(kind, Some("staffDelete"), "{}: of {id}, which was deleted", self.name);
        }
        let last = self.attempts.keys().max().copied().unwrap_or_default();
        assert_eq!(self.delivered.len() as u64, last, "{}: the log has gaps", self.name);
    }

    /// The contacts that are on the roll as far as the receiver knows.
    fn ids_told(&self) -> BTreeSet<String> {
        let is_there = |(_, kind): &(&String, &String)| kind.as_str() != "staffDelete";
        self.last_kind.iter().filter(is_there).map(|(id, _)| id.clone()).collect()
    }

    fn repeated_most(&self) -> usize {
        self.repeated.values().copied().max().unwrap_or_default()
    }
}

/// A server that is killed again and again, with three subscriptions.
struct Crashes {
    server: TestServer,
    builder: Builder,
    subscriptions: Vec<Subscription>,
    acknowledged: Arc<Acknowledged>,
    kept: Arc<Vec<String>>,
    chance: Chance,
    life: u64,
    ready: Vec<Duration>,
    killed_in_start: u64,
}

impl Crashes {
    async fn new(chance: Chance) -> Self {
        let server = TestServer::builder()
            .flag("--retry-schedule", "1s,1s,1s,1s,1s,1s,1s,1s,1s,1s")
            .flag("--max-in-flight", "256")
            .start()
            .await;
        let mut subscriptions = Vec::new();
        for name in ["healthy", "failing", "slow"] {
            let app = match name {
                "healthy" => (server.app_id.clone(), server.app_token.clone()),
                _ => server.create_app(&["events", "directory:read"]).await,
            };
            subscriptions.push(Subscription::new(name, &server, app).await);
        }
        let failed = Mutex::new(BTreeSet::new());
        subscriptions[1].receiver.answer(move |seen| {
            let fails = seen.sequence() % 20 == 0 && failed.lock().unwrap().insert(seen.sequence());
            Reply::status(if fails { 500 } else { 200 })
        });
        subscriptions[2].receiver.work(|_| async {
            tokio::time::sleep(SLOW).await;
            Reply::status(200)
        });
        let mut kept = Vec::new();
        for number in 0..KEPT_CONTACTS {
            kept.push(server.app().create_contact("Ana", &format!("kept {number}")).await);
        }
        Self {
            builder: server.builder_of(),
            server,
            subscriptions,
            acknowledged: Arc::default(),
            kept: Arc::new(kept),
            chance,
            life: 1,
            ready: Vec::new(),
            killed_in_start: 0,
        }
    }

    /// One life: under load until a random moment, or not even until it is ready.
    async fn live_and_die(&mut self) {
        if self.life > 1 && self.chance.percent(START_PERCENT) {
            let whole = self.ready.last().copied().unwrap_or(READY_WITHIN);
            let micros = u64::try_from(whole.as_micros()).unwrap();
            let after = Duration::from_micros(self.chance.below(micros));
            self.builder.start_and_kill(after).await;
            self.killed_in_start += 1;
        } else {
            self.restart().await;
            if self.life.is_multiple_of(CATCH_UP_EVERY) {
                self.catch_up().await;
            }
            self.write_until_killed().await;
        }
        self.judge().await;
    }

    async fn restart(&mut self) {
        if self.life == 1 {
            return;
        }
        let started = Instant::now();
        self.server.restart().await;
        self.server.anyone(None).get("/readyz").await.expect(200);
        let took = started.elapsed();
        assert!(took <= READY_WITHIN, "ready after {took:?} in life {}", self.life);
        self.ready.push(took);
    }

    async fn write_until_killed(&mut self) {
        let app = self.server.app();
        let name = format!("life{}", self.life);
        let writers = start_writers(&app, &name, PAUSE, &self.acknowledged);
        let editors = start_editors(&app, &self.kept, &mut self.chance, PAUSE, &self.acknowledged);
        let life = Duration::from_millis(self.chance.below(LIFE_MILLIS_MAX));
        tokio::time::sleep(life).await;
        self.server.kill();
        writers.join_all().await;
        editors.join_all().await;
    }

    async fn judge(&mut self) {
        for subscription in &mut self.subscriptions {
            subscription.judge(self.life).await;
        }
        self.life += 1;
    }

    /// Waits until every subscription is at the end of the log; fails when one of them no longer moves.
    async fn catch_up(&self) {
        for subscription in &self.subscriptions {
            let api = subscription.api(&self.server);
            wait_until_idle(subscription.name, &api).await;
        }
    }

    async fn finish(mut self, seed: u64) {
        self.restart().await;
        self.catch_up().await;
        let listed = self.server.app().list_contact_ids().await;
        self.server.kill();
        self.judge().await;
        for subscription in &self.subscriptions {
            subscription.assert_nothing_lost(&self.acknowledged);
            assert_eq!(subscription.ids_told(), listed, "{}", subscription.name);
            for (kill, repeated) in &subscription.repeated {
                let name = subscription.name;
                assert!(*repeated <= REPEATED_MAX, "{name}: kill {kill} repeated {repeated}");
            }
        }
        self.print_figures(seed);
    }

    fn print_figures(&mut self, seed: u64) {
        self.ready.sort_unstable();
        let kills = self.life - 2;
        say(&format!("crash proof, seed {seed}, all checks passed"));
        say(&format!("  kills                          {kills}"));
        say(&format!("  of these during a start        {}", self.killed_in_start));
        say(&format!("  acknowledged changes           {}", self.acknowledged.count()));
        say("  lost, out of order             0");
        let median = self.ready[self.ready.len() / 2];
        let longest = self.ready[self.ready.len() - 1];
        say(&format!("  ready again, median / longest  {median:.0?} / {longest:.0?}"));
        say("  subscription   delivered  retried  repeated  at most by one kill");
        for s in &self.subscriptions {
            let repeated: usize = s.repeated.values().sum();
            let (delivered, most) = (s.delivered.len(), s.repeated_most());
            say(&format!(
                "  {:<12} {delivered:>11} {:>8} {repeated:>9} {most:>20}",
                s.name, s.retried
            ));
        }
    }
}

/// Waits until everything is finished; fails only when nothing moves any more.
async fn wait_until_idle(name: &str, api: &Api) {
    let mut moved = (Value::Null, Instant::now());
    loop {
        let status = api.subscription().await;
        if status["cursor"] == status["newest"] && status["held"] == 0 {
            return;
        }
        let at = Value::from(vec![status["cursor"].clone(), status["held"].clone()]);
        if at != moved.0 {
            moved = (at, Instant::now());
        }
        assert!(moved.1.elapsed() < PATIENCE, "{name} stands still: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_nothing_and_repeat_little() {
    let kills = number_from(KILLS).unwrap_or(KILLS_SHORT);
    let seed = Chance::seed();
    say(&format!("{kills} kills, seed {seed}"));
    let mut crashes = Crashes::new(Chance::new(seed)).await;

    while crashes.life <= kills {
        crashes.live_and_die().await;
        if crashes.life.is_multiple_of(50) {
            let done = crashes.acknowledged.count();
            say(&format!("{} of {kills} kills, {done} changes acknowledged", crashes.life));
        }
    }

    crashes.finish(seed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_start_may_be_killed_at_any_time() {
    let builder = TestServer::builder();
    for step in 0..20 {
        builder.start_and_kill(Duration::from_millis(step * 3)).await;
    }

    let server = builder.start().await;

    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    server.app().create_contact("Ana", "Reyes").await;
    receiver.wait_for_delivered(1).await;
}
