//! The engine against a store whose reads take their time, as on a loaded machine, or are away for a second; and
//! rules of lanes and slots that hold over days.

#![expect(
    clippy::too_many_lines,
    clippy::cast_possible_truncation,
    reason = "stories over several days with small numbers"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Engine, Settings};
use crate::delivery::lane;
use crate::delivery::sender::{self, Sender};
use crate::delivery::signing;
use crate::delivery::target_guard::{Settings as GuardSettings, SystemResolver, TargetGuard};
use crate::domain::clock::{Clock, Moment, SystemClock, Timestamp};
use crate::domain::contact::{ContactPatch, StaffContact};
use crate::domain::event::Event;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::lease::Lease;
use crate::domain::page::Page;
use crate::domain::subscription::{SigningSecret, StoredSecret, Subscription};
use crate::domain::tenancy::{App, Scopes, Service, StoredToken, Token, TokenHash};
use crate::store::command::{ContactAnswer, ContactChange, IfMatch, NewApp, SubscriptionWish};
use crate::store::rows::{
    AuditPage, AuditQuery, ContactList, ContactQuery, DeliveryQuery, DeliveryRow, LaneRow,
    LaterEvents, LogPage, SubscriptionStatus, TokenOfApp,
};
use crate::store::sqlite::Embedded;
use crate::store::sqlite::retention::Retention;
use crate::store::{Answer, Commit, Error, Read, Store};

#[derive(Debug)]
struct SlowRead {
    inner: Arc<dyn Read>,
    /// Milliseconds between the read of one lane and its arrival at the engine.
    lane_late: AtomicU64,
    events_late: AtomicU64,
    away: AtomicBool,
    lanes_found: AtomicU64,
    event_reads: AtomicU64,
    /// Whether this node has the shards of all lanes.
    owned: AtomicBool,
}

impl Read for SlowRead {
    fn find_app_by_token(&self, t: TokenHash, now: Timestamp) -> Answer<'_, Option<TokenOfApp>> {
        self.inner.find_app_by_token(t, now)
    }
    fn list_admin_tokens(&self, now: Timestamp) -> Answer<'_, Vec<StoredToken>> {
        self.inner.list_admin_tokens(now)
    }
    fn list_tokens(
        &self,
        s: ServiceId,
        a: Vec<AppId>,
        n: Timestamp,
    ) -> Answer<'_, Vec<Vec<StoredToken>>> {
        self.inner.list_tokens(s, a, n)
    }
    fn list_audit(&self, s: ServiceId, q: AuditQuery) -> Answer<'_, Option<AuditPage>> {
        self.inner.list_audit(s, q)
    }
    fn find_service(&self, s: ServiceId) -> Answer<'_, Option<Service>> {
        self.inner.find_service(s)
    }
    fn list_services(&self, a: Option<ServiceId>, l: u32) -> Answer<'_, Page<Service>> {
        self.inner.list_services(a, l)
    }
    fn list_apps(&self, s: ServiceId, a: Option<AppId>, l: u32) -> Answer<'_, Page<App>> {
        self.inner.list_apps(s, a, l)
    }
    fn find_contact(&self, s: ServiceId, i: ContactId) -> Answer<'_, Option<StaffContact>> {
        self.inner.find_contact(s, i)
    }
    fn list_contacts(&self, s: ServiceId, q: ContactQuery) -> Answer<'_, ContactList> {
        self.inner.list_contacts(s, q)
    }
    fn find_subscription(&self, s: ServiceId, a: AppId) -> Answer<'_, Option<Subscription>> {
        self.inner.find_subscription(s, a)
    }
    fn get_subscription_status(&self, s: ServiceId, a: AppId) -> Answer<'_, SubscriptionStatus> {
        self.inner.get_subscription_status(s, a)
    }
    fn list_signing_secrets(
        &self,
        s: ServiceId,
        a: AppId,
        n: Timestamp,
    ) -> Answer<'_, Vec<StoredSecret>> {
        self.inner.list_signing_secrets(s, a, n)
    }
    fn list_heads(&self) -> Answer<'_, Vec<(ServiceId, u64)>> {
        if self.away.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(Error::Unavailable("away".to_owned()))));
        }
        self.inner.list_heads()
    }
    fn list_lanes(&self) -> Answer<'_, Vec<LaneRow>> {
        Box::pin(async move {
            let rows = self.inner.list_lanes().await?;
            Ok(if self.owned.load(Ordering::SeqCst) { rows } else { Vec::new() })
        })
    }
    fn find_lane(&self, s: ServiceId, a: AppId) -> Answer<'_, Option<LaneRow>> {
        if self.away.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(Error::Unavailable("away".to_owned()))));
        }
        Box::pin(async move {
            let row = self.inner.find_lane(s, a).await;
            self.lanes_found.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(self.lane_late.load(Ordering::SeqCst))).await;
            if self.owned.load(Ordering::SeqCst) { row } else { Ok(None) }
        })
    }
    fn list_events(&self, s: ServiceId, a: u64, l: u32) -> Answer<'_, Vec<Event>> {
        Box::pin(async move {
            self.event_reads.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(self.events_late.load(Ordering::SeqCst)))
                .await;
            self.inner.list_events(s, a, l).await
        })
    }
    fn list_deliveries(
        &self,
        s: ServiceId,
        a: AppId,
        q: DeliveryQuery,
    ) -> Answer<'_, Vec<DeliveryRow>> {
        self.inner.list_deliveries(s, a, q)
    }
    fn find_delivery(&self, s: ServiceId, a: AppId, n: u64) -> Answer<'_, Option<DeliveryRow>> {
        self.inner.find_delivery(s, a, n)
    }
    fn list_later_events(&self, s: ServiceId, n: u64) -> Answer<'_, LaterEvents> {
        self.inner.list_later_events(s, n)
    }
    fn list_log(&self, s: ServiceId, a: u64, l: u32) -> Answer<'_, Option<LogPage>> {
        self.inner.list_log(s, a, l)
    }
    fn check(&self) -> Answer<'_, ()> {
        self.inner.check()
    }
}

/// The machine's clock, some time ahead.
#[derive(Debug, Default)]
struct AheadClock {
    clock: SystemClock,
    ahead_seconds: AtomicU64,
}

impl Clock for AheadClock {
    fn now(&self) -> Timestamp {
        let ahead = Duration::from_secs(self.ahead_seconds.load(Ordering::SeqCst));
        self.clock.now().plus(ahead)
    }
    fn moment(&self) -> Moment {
        self.clock.moment()
    }
}

/// A request as far as its signature goes.
#[derive(Debug, Default)]
struct Signed {
    id: String,
    timestamp: String,
    signature: String,
    attempt: String,
    body: Vec<u8>,
}

struct World {
    store: Store,
    read: Arc<SlowRead>,
    engine: Engine,
    service: ServiceId,
    app: AppId,
    url: String,
    /// When each request came, with its event number.
    seen: Arc<Mutex<Vec<(Instant, u64)>>>,
    /// The same requests with their signatures, as many as fit.
    signed: mpsc::Receiver<Signed>,
    /// What the receiver answers; with 0 it does not.
    status: Arc<AtomicU64>,
    clock: Arc<AheadClock>,
    _embedded: Embedded,
}

async fn world(name: &str) -> World {
    world_under(name, Lease::forever()).await
}

async fn world_under(name: &str, lease: Lease) -> World {
    let dir = std::env::temp_dir().join(format!("rc-attack-{}-{name}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    let ahead = Arc::new(AheadClock::default());
    let clock: Arc<dyn Clock> = Arc::clone(&ahead) as Arc<dyn Clock>;
    let embedded = Embedded::open(&dir, Arc::clone(&clock), Retention::default()).unwrap();
    let read = Arc::new(SlowRead {
        inner: Arc::clone(&embedded.store.read),
        lane_late: AtomicU64::new(0),
        events_late: AtomicU64::new(0),
        away: AtomicBool::new(false),
        lanes_found: AtomicU64::new(0),
        event_reads: AtomicU64::new(0),
        owned: AtomicBool::new(true),
    });
    let store = Store {
        read: Arc::clone(&read) as Arc<dyn Read>,
        write: embedded.store.write.clone(),
        conditions: None,
    };
    let guard = GuardSettings {
        allow_targets: vec!["127.0.0.0/8".parse().unwrap()],
        allow_http: true,
        ..GuardSettings::default()
    };
    let guard = Arc::new(TargetGuard::new(guard, SystemResolver::new()));
    let sending = sender::Settings { lease, ..sender::Settings::default() };
    let sender = Arc::new(Sender::new(&sending, guard, Arc::clone(&clock)).unwrap());
    let settings = Settings { lane: lane::Settings::default(), slots: 64 };
    let engine = Engine::start(store.clone(), sender, clock, settings).await.unwrap();
    let service = store.write.create_service("S".to_owned()).await.unwrap().id;
    let app = NewApp {
        service,
        name: "A".to_owned(),
        scopes: Scopes::all(),
        token: Token::from_random(Token::APP_PREFIX, [1; 32]).hash(),
        secret: SigningSecret(vec![1; 32]),
    };
    let app = store.write.create_app(app).await.unwrap().id;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<(Instant, u64)>>> = Arc::default();
    let status = Arc::new(AtomicU64::new(200));
    let (noted, code) = (Arc::clone(&seen), Arc::clone(&status));
    let (keep, signed) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, code, keep) = (Arc::clone(&noted), Arc::clone(&code), keep.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let (mut length, mut sequence, mut line) = (0, 0, String::new());
                    let mut signed = Signed::default();
                    loop {
                        line.clear();
                        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                            return;
                        }
                        if line == "\r\n" {
                            break;
                        }
                        if let Some((name, value)) = line.split_once(':') {
                            let value = value.trim();
                            if name.eq_ignore_ascii_case("content-length") {
                                length = value.parse().unwrap();
                            }
                            if name.eq_ignore_ascii_case("rollcall-sequence") {
                                sequence = value.parse().unwrap();
                            }
                            match name.to_ascii_lowercase().as_str() {
                                "webhook-id" => value.clone_into(&mut signed.id),
                                "webhook-timestamp" => value.clone_into(&mut signed.timestamp),
                                "webhook-signature" => value.clone_into(&mut signed.signature),
                                "rollcall-attempt" => value.clone_into(&mut signed.attempt),
                                _ => {}
                            }
                        }
                    }
                    let mut body = vec![0; length];
                    if stream.read_exact(&mut body).await.is_err() {
                        return;
                    }
                    noted.lock().unwrap().push((Instant::now(), sequence));
                    drop(keep.try_send(Signed { body, ..signed }));
                    let mut status = code.load(Ordering::SeqCst);
                    while status == 0 {
                        let mut byte = [0];
                        let more = stream.read(&mut byte);
                        if tokio::time::timeout(Duration::from_millis(5), more).await.is_ok() {
                            return;
                        }
                        status = code.load(Ordering::SeqCst);
                    }
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    World {
        store,
        read,
        engine,
        service,
        app,
        url,
        seen,
        signed,
        status,
        clock: ahead,
        _embedded: embedded,
    }
}

impl World {
    async fn set(&self, on: bool) {
        let ticket = self.store.write.take_ticket().await.unwrap();
        let url = self.url.clone();
        let wish = if on {
            SubscriptionWish::Enable { url, verified_at: Timestamp::default() }
        } else {
            SubscriptionWish::Disable { url }
        };
        self.store.write.set_subscription(self.service, self.app, ticket, wish).await.unwrap();
    }
    fn patch(body: serde_json::Value) -> ContactPatch {
        let serde_json::Value::Object(object) = body else { unreachable!() };
        ContactPatch::from_json(object).unwrap()
    }
    async fn create(&self, email: &str) -> ContactId {
        let wish = Self::patch(json!({"firstName": "A", "lastName": "B", "email": email}));
        match self
            .store
            .write
            .change_contact(self.service, ContactChange::Create(wish), None)
            .await
            .unwrap()
        {
            ContactAnswer::Created(contact) => contact.id,
            other => panic!("{other:?}"),
        }
    }
    async fn rotate(&self, byte: u8, until: Timestamp) {
        let secret = SigningSecret(vec![byte; 32]);
        self.store.write.rotate_secret(self.service, self.app, secret, until).await.unwrap();
    }
    /// Which of the secrets 1 to 5 have signed the next request, in this order, and how many signatures it has.
    async fn next_signed(&mut self) -> (Vec<u8>, usize) {
        let next = tokio::time::timeout(Duration::from_secs(30), self.signed.recv());
        let Signed { id, timestamp, signature, body, .. } = next.await.unwrap().unwrap();
        let now = self.clock.now();
        let fits = |byte: &u8| {
            let secret = SigningSecret(vec![*byte; 32]);
            signing::verify(&secret, &id, &timestamp, &signature, &body, now).is_ok()
        };
        ((1..=5).filter(fits).collect(), signature.matches("v1,").count())
    }
    async fn edit(&self, id: ContactId, title: String) {
        let patch = Self::patch(json!({"jobTitle": title}));
        let change = ContactChange::Edit { id, patch, if_match: IfMatch::Any };
        self.store.write.change_contact(self.service, change, None).await.unwrap();
    }
}

/// An enable is being loaded (read, not yet handed over) when the disable commits: the load un-halts the lane.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_after_the_answer_to_a_disable() {
    let world = world("disable").await;
    world.status.store(500, Ordering::SeqCst);
    world.set(true).await;
    world.create("a@e.example").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.read.lane_late.store(300, Ordering::SeqCst);
    world.set(true).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.set(false).await;
    let answered = Instant::now();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let late: Vec<Duration> = world
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter(|(at, _)| *at > answered)
        .map(|(at, _)| *at - answered)
        .collect();
    world.engine.stop(Duration::ZERO).await;
    assert!(
        late.is_empty(),
        "notifications started so long after the answer to the disable: {late:?}"
    );
}

/// A store that is away for about a second and comes back: halted lanes are noted as changed by the comparison
/// and loaded a second time while they run; what was read is old when it is handed over.
#[tokio::test(flavor = "multi_thread")]
async fn a_contact_never_goes_back_when_the_store_was_opened_again() {
    let world = Arc::new(world("reopen").await);
    world.set(true).await;
    let contact = world.create("a@e.example").await;
    world.read.lane_late.store(20, Ordering::SeqCst);
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, stopped) = (Arc::clone(&world), Arc::clone(&stop));
    let writer = tokio::spawn(async move {
        let mut n = 0_u64;
        while !stopped.load(Ordering::SeqCst) {
            writing.edit(contact, format!("t{n}")).await;
            n += 1;
        }
    });
    let mut loads = Vec::new();
    for round in 0..6_u64 {
        world.read.away.store(true, Ordering::SeqCst);
        world.store.write.queue().tell(&Commit {
            reopened: true,
            tenancy: true,
            ..Commit::default()
        });
        tokio::time::sleep(Duration::from_millis(950 + round * 70)).await;
        let before = world.read.lanes_found.load(Ordering::SeqCst);
        world.read.away.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
        loads.push(world.read.lanes_found.load(Ordering::SeqCst) - before);
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let seen: Vec<u64> = world.seen.lock().unwrap().iter().map(|(_, sequence)| *sequence).collect();
    world.engine.stop(Duration::ZERO).await;
    let back: Vec<(u64, u64)> =
        seen.windows(2).filter(|pair| pair[1] <= pair[0]).map(|pair| (pair[0], pair[1])).collect();
    assert!(
        back.is_empty(),
        "{} events, loads of one lane after each reopening {loads:?}; went back (from, to): {back:?}",
        seen.len()
    );
}

/// A service is deleted while a lane of it reads the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_ends_when_its_service_is_gone() {
    let world = world("hidden").await;
    world.set(true).await;
    for n in 0..20 {
        world.create(&format!("h{n}@e.example")).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.status.store(500, Ordering::SeqCst);
    // Empties what is shared in memory, as 6 MiB of other events or a restart would.
    world.read.events_late.store(1500, Ordering::SeqCst);
    world.store.write.queue().tell(&Commit { reopened: true, ..Commit::default() });
    world.create("x@e.example").await;
    world.store.write.queue().tell(&Commit { reopened: true, ..Commit::default() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.store.write.delete_service(world.service).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.read.events_late.store(0, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = world.read.event_reads.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reads = world.read.event_reads.load(Ordering::SeqCst) - before;
    world.engine.stop(Duration::ZERO).await;
    assert_eq!(reads, 0, "reads of the log of a service that is gone, in 3 s");
}

/// The lane runs all the time: neither the rotation nor the end of a secret halts it or reads its row.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_lane_signs_with_a_new_secret_at_once_and_with_the_earlier_until_it_expires() {
    let mut world = world("secrets").await;
    world.set(true).await;
    world.create("a@e.example").await;
    assert_eq!(world.next_signed().await, (vec![1], 1));
    let loads = world.read.lanes_found.load(Ordering::SeqCst);
    let overlap = Duration::from_hours(24);

    world.rotate(2, world.clock.now().plus(overlap)).await;
    world.create("b@e.example").await;
    assert_eq!(world.next_signed().await, (vec![1, 2], 2));
    world.clock.ahead_seconds.store(overlap.as_secs() / 2, Ordering::SeqCst);
    world.rotate(3, world.clock.now().plus(overlap)).await;
    world.create("c@e.example").await;
    assert_eq!(world.next_signed().await, (vec![1, 2, 3], 3));
    world.clock.ahead_seconds.store(overlap.as_secs(), Ordering::SeqCst);
    world.create("d@e.example").await;
    assert_eq!(world.next_signed().await, (vec![2, 3], 2));
    world.clock.ahead_seconds.store(overlap.as_secs() * 2, Ordering::SeqCst);
    world.create("e@e.example").await;
    assert_eq!(world.next_signed().await, (vec![3], 1));

    assert_eq!(world.read.lanes_found.load(Ordering::SeqCst), loads);
    world.engine.stop(Duration::ZERO).await;
}

/// The row of a lane is on its way to it when the rotation commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_read_before_a_rotation_does_not_bring_the_earlier_secret_back() {
    let mut world = world("rotation").await;
    let until = world.clock.now();
    world.read.lane_late.store(300, Ordering::SeqCst);
    world.set(true).await;
    while world.read.lanes_found.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }

    world.rotate(2, until).await;
    world.create("a@e.example").await;

    assert_eq!(world.next_signed().await, (vec![2], 1));
    world.engine.stop(Duration::ZERO).await;
}

#[path = "engine_shards_tests.rs"]
mod shards;

mod pure {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::delivery::lane::{Effect, Input, Lane, Progress, Settings};
    use crate::delivery::outcome::Outcome;
    use crate::delivery::slots::{Report, Slots};
    use crate::domain::clock::Moment;
    use crate::domain::id::ContactId;

    fn contact(byte: u8) -> ContactId {
        ContactId::from_bytes([byte; 16])
    }

    /// Event 1 is of a poisoned contact; two minutes later others are committed. Runs six days.
    fn run_poisoned(
        first: usize,
        others: u64,
    ) -> (BTreeMap<u64, i64>, Option<(i64, &'static str)>, usize) {
        let mut log: Vec<ContactId> = vec![contact(1); first];
        let mut lane = Lane::new(Arc::new(Settings::default()), 1);
        let mut effects = Vec::new();
        let head = log.len() as u64;
        let mut now = Moment(0);
        lane.step(
            now,
            Input::Restart(Progress { generation: 1, head, ..Progress::default() }),
            &mut effects,
        );
        let (mut delivered, mut disabled, mut poison) = (BTreeMap::new(), None, 0);
        while now.0 < 6 * 86_400_000 {
            loop {
                let wanted = lane.wanted(now);
                lane.take_surplus();
                if wanted > 0 {
                    lane.step(now, Input::Granted(wanted), &mut effects);
                }
                if effects.is_empty() {
                    break;
                }
                for effect in std::mem::take(&mut effects) {
                    match effect {
                        Effect::Load { after, limit } => {
                            let events: Vec<(u64, ContactId)> = (after + 1..)
                                .zip(log.iter().copied().skip(after as usize).take(limit as usize))
                                .collect();
                            lane.step(now, Input::Loaded { after, events: &events }, &mut effects);
                        }
                        Effect::Record(plan) => {
                            if let Some(reason) = plan.disable {
                                disabled.get_or_insert((now.0 / 1000, reason));
                            }
                            lane.step(now, Input::Recorded { number: plan.number }, &mut effects);
                        }
                        Effect::Start { sequence, contact: of, .. } => {
                            let outcome = if of == contact(1) {
                                poison += 1;
                                Outcome::Failed
                            } else {
                                delivered.insert(sequence, now.0 / 1000);
                                Outcome::Delivered
                            };
                            lane.step(
                                now,
                                Input::Ended { contact: of, outcome, keep_permit: false },
                                &mut effects,
                            );
                        }
                    }
                }
            }
            now = now.plus(Duration::from_millis(500));
            if now.0 == 120_000 {
                log.extend((0..others).map(|n| contact(10 + n as u8)));
                lane.step(now, Input::Head(log.len() as u64), &mut effects);
            } else {
                lane.step(now, Input::Tick, &mut effects);
            }
        }
        (delivered, disabled, poison)
    }

    #[test]
    fn a_poisoned_event_does_not_keep_the_circuit_open() {
        let (delivered, disabled, poison) = run_poisoned(1, 5);
        assert_eq!(
            delivered.len(),
            5,
            "delivered {delivered:?}; disabled at second {disabled:?}; attempts of the poisoned event {poison}"
        );
    }

    #[test]
    fn a_window_full_of_one_poisoned_contact_does_not_keep_the_circuit_open() {
        let (delivered, disabled, poison) = run_poisoned(1100, 5);
        assert_eq!(
            delivered.len(),
            5,
            "delivered {delivered:?}; disabled at second {disabled:?}; attempts of the poisoned event {poison}"
        );
    }

    #[test]
    fn a_lane_is_doubtful_while_its_first_attempt_hangs_and_from_a_failure_to_a_success() {
        let mut lane = Lane::new(Arc::new(Settings::default()), 1);
        let doubtful =
            |lane: &Lane, at| lane.last_failed() || lane.hangs(Moment(at), Duration::from_secs(1));
        let mut effects = Vec::new();
        let progress = Progress { generation: 1, head: 2, ..Progress::default() };
        lane.step(Moment(0), Input::Restart(progress), &mut effects);
        let events = [(1, contact(1)), (2, contact(2))];
        lane.step(Moment(0), Input::Loaded { after: 0, events: &events }, &mut effects);
        lane.step(Moment(0), Input::Granted(1), &mut effects);
        assert!(!doubtful(&lane, 900));
        assert!(doubtful(&lane, 1_100));

        let end =
            |number, outcome| Input::Ended { contact: contact(number), outcome, keep_permit: true };
        lane.step(Moment(1_200), end(1, Outcome::Failed), &mut effects);
        assert!(doubtful(&lane, 1_300));
        lane.step(Moment(1_400), end(2, Outcome::Delivered), &mut effects);
        assert!(!doubtful(&lane, 1_500));
    }

    const fn report(permits: usize, doubtful: bool, wanted: usize) -> Report {
        Report { permits, doubtful, wanted }
    }

    #[test]
    fn a_doubtful_lane_that_wants_more_than_it_may_have_still_lets_the_healthy_in() {
        let slots = Slots::new(4);
        assert_eq!(slots.settle(1, &1, report(0, false, 4)).0, 4);
        assert_eq!(slots.settle(2, &2, report(0, false, 1)).0, 0);
        let (granted, called) = slots.settle(1, &1, report(3, true, 1));
        assert_eq!((granted, called), (0, vec![2]));
    }

    #[test]
    fn a_lane_that_recovered_waits_with_the_healthy() {
        let slots = Slots::new(4);
        // 8 is doubtful and has the whole quarter; 9 is healthy and has the rest; 1 is doubtful and waits.
        assert_eq!(slots.settle(8, &8, report(0, true, 1)).0, 1);
        assert_eq!(slots.settle(9, &9, report(0, false, 3)).0, 3);
        assert_eq!(slots.settle(1, &1, report(0, true, 1)).0, 0);
        // 1 recovers (enabled anew, for example) and still wants one; then 9 gives one back.
        assert_eq!(slots.settle(1, &1, report(0, false, 1)).0, 0);
        let (_, called) = slots.settle(9, &9, report(2, false, 0));
        assert_eq!(called, vec![1]);
    }
}
