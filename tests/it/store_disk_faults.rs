//! Disks that fail: errors at writes and syncs, a full and a read-only disk, injected under load.
//!
//! Callers get 503 and nothing else, what was acknowledged is there, every contact has its event, and when the disk
//! works again the server does so by itself. A sync that fails gives up what waited for it, as Linux does it: so the
//! power is cut in each case too, during the fault, during the recovery, and after it (`harness/power.rs`). A disk
//! that is really full stands in `store_disk_full.rs`; `make disk-faults` runs both, with more faults in a row.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::harness::chance::{Chance, number_from};
use crate::harness::disk::{Disk, DiskLog, Fault};
use crate::harness::power::DiskModel;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;
use crate::harness::stored::{Stored, find_faults};
use crate::harness::writers::{Acknowledged, start_stubborn_writers};
use crate::harness::{PATIENCE, eventually, say};

/// The variable that says how many random faults follow each other.
const FAULTS: &str = "ROLLCALL_TEST_FAULTS";
/// Random faults in the short form.
const FAULTS_SHORT: u64 = 10;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
/// More often than anything is tried in one case.
const ALWAYS: u32 = 1_000_000_000;
/// Answers of 503 after which a case has seen enough of a fault that lasts.
const REFUSED: usize = 20;
/// Reads that are made while the disk fails.
const READS: usize = 8;
/// Longest wait for an answer to a read while the disk fails: the promise is "at once".
const READ_WITHIN: Duration = Duration::from_secs(1);
/// Longest time from the end of a fault until the server is ready.
const RECOVERED_WITHIN: Duration = Duration::from_secs(3);
/// Shortest time between two attempts to open the store.
const REOPEN_WAIT: Duration = Duration::from_millis(200);
/// How long a fault lasts at least.
const FAULT_TIME: Duration = Duration::from_millis(600);
/// Power cuts of each case.
const CUTS: u64 = 15;
/// Power cuts in a recovery, which is a few dozen operations of the disk.
const CUTS_IN_RECOVERY: u64 = 100;
/// Contacts in one batch: enough to touch pages that no other change has touched.
const BATCH: u32 = 100;
/// Pause of a caller after each change.
const PAUSE: Duration = Duration::from_millis(5);
/// How long the receiver takes, so that attempts are under way when a fault begins.
const ANSWER_AFTER: Duration = Duration::from_millis(20);

/// One kind of fault, and whether the roll can be read while it lasts.
struct Case {
    name: &'static str,
    fault: Fault,
    reads: bool,
}

const fn case(
    name: &'static str,
    (operations, files): (&'static str, &'static str),
    error: i32,
    times: u32,
    reads: bool,
) -> Case {
    Case { name, fault: Fault { operations, files, error, skip: 0, times, torn: false }, reads }
}

const fn torn(mut case: Case) -> Case {
    case.fault.torn = true;
    case
}

const ALL: (&str, &str) = ("wstou", "wdsjo/");

const CASES: [Case; 12] = [
    case("EIO, one write of the log", ("w", "w"), EIO, 1, true),
    case("EIO, writes of the log", ("w", "w"), EIO, ALWAYS, true),
    torn(case("EIO, torn writes of the log", ("w", "w"), EIO, ALWAYS, true)),
    case("EIO, one sync of the log", ("s", "w"), EIO, 1, true),
    case("EIO, one write and one sync", ("ws", "w"), EIO, 2, true),
    case("EIO, syncs of the log", ("s", "w"), EIO, ALWAYS, false),
    case("ENOSPC, syncs of the log", ("s", "w"), ENOSPC, ALWAYS, false),
    case("EIO, all syncs", ("s", "wd/"), EIO, ALWAYS, false),
    case("EIO, everything", ALL, EIO, ALWAYS, false),
    case("ENOSPC, writes", ("wt", "wdsj"), ENOSPC, ALWAYS, true),
    torn(case("ENOSPC, torn writes", ("wt", "wdsj"), ENOSPC, ALWAYS, true)),
    case("EROFS, read-only disk", ALL, EROFS, ALWAYS, false),
];

/// A server under load on a disk that can fail.
struct Faulty {
    disk: Arc<Disk>,
    server: TestServer,
    receiver: Receiver,
    told: Arc<Acknowledged>,
    /// Where the log was when service, app and subscription had been acknowledged.
    set_up: u64,
    writers: tokio::task::JoinSet<()>,
}

/// What came of one case.
#[derive(Default)]
struct Outcome {
    acknowledged: usize,
    unavailable: usize,
    recovered: Duration,
    repeated: usize,
    cuts: u64,
}

impl Faulty {
    async fn start() -> Self {
        let disk = Arc::new(Disk::new());
        let watched = Arc::clone(&disk);
        let told = Arc::new(Acknowledged::at(move || watched.position()));
        let builder = TestServer::builder()
            .data_dir(&disk.root().join("data"))
            .environment(disk.environment())
            .tolerate_errors();
        let server = builder.start().await;
        let receiver = Receiver::start().await;
        receiver.work(|_| async {
            tokio::time::sleep(ANSWER_AFTER).await;
            Reply::status(200)
        });
        server.app().subscribe(true, &receiver.url()).await.expect(200);
        let set_up = disk.position();
        let writers = start_stubborn_writers(&server.app(), "w", PAUSE, &told);
        told.wait_for(100).await;
        Self { disk, server, receiver, told, set_up, writers }
    }

    async fn is_ready(&self) -> bool {
        self.server.anyone(None).get("/readyz").await.status == 200
    }

    fn has_logged(&self, message: &str) -> usize {
        self.server.log().matches(message).count()
    }

    /// Waits until the server says so by itself; changes then succeed again.
    async fn wait_until_recovered(&self) -> Duration {
        let healed = Instant::now();
        eventually("the server is ready", || async { self.is_ready().await.then_some(()) }).await;
        let recovered = healed.elapsed();
        assert!(recovered <= RECOVERED_WITHIN, "ready {recovered:?} after the fault");
        self.told.wait_for(self.told.count() + 100).await;
        recovered
    }

    /// Everything was delivered and is there after a crash; gives what was acknowledged and how often an event came
    /// again.
    async fn finish(&mut self) -> (Stored, usize) {
        self.told.stop();
        while let Some(writer) = self.writers.join_next().await {
            writer.expect("a caller got another answer than 2xx or 503");
        }
        self.server.app().wait_until_idle().await;
        let listed = self.server.app().list_contact_ids().await;
        self.server.kill();
        self.server.restart().await;
        assert_eq!(self.server.app().list_contact_ids().await, listed);
        self.server.terminate(PATIENCE).await.expect("it must end");
        assert_eq!(self.has_logged("panicked"), 0, "{}", self.server.log());
        let mut stored = Stored::default();
        stored.add(&self.told);
        let data_dir = self.disk.root().join("data");
        let faults = find_faults(&data_dir.join("rollcall.db"), &stored, true);
        assert!(faults.lost.is_empty() && faults.broken.is_empty(), "{faults:#?}");
        self.receiver.assert_contacts_in_order();
        let mut arrivals: BTreeMap<(String, u64), usize> = BTreeMap::new();
        for seen in self.receiver.delivered() {
            *arrivals.entry((seen.contact(), seen.version())).or_default() += 1;
        }
        for change in stored.changes.keys() {
            assert!(arrivals.contains_key(change), "{change:?} was not delivered");
        }
        (stored, arrivals.values().sum::<usize>() - arrivals.len())
    }
}

/// Cuts the power at places between these positions of the log.
fn cut_power(
    name: &str,
    log: &DiskLog,
    stored: &Stored,
    (from, to): (u64, u64),
    chance: &mut Chance,
) {
    let first = log.operations.partition_point(|(position, _)| *position < from);
    let last = log.operations.partition_point(|(position, _)| *position < to);
    let place = first + chance.index(last - first + 1);
    let position = place.checked_sub(1).map_or(0, |last| log.operations[last].0);
    let mut model = DiskModel::default();
    model.advance(log, place, chance);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = format!("rollcall-fault-cut-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    fs::create_dir_all(&folder).unwrap();
    model.cut(&folder, chance);
    let known = stored.until(position);
    let faults = find_faults(&folder.join("data/rollcall.db"), &known, true);
    fs::remove_dir_all(&folder).unwrap();
    assert!(
        faults.lost.is_empty() && faults.broken.is_empty(),
        "{name}, cut at {position}, which lies in {from} to {to}: {faults:#?}"
    );
}

async fn check(case: &Case, chance: &mut Chance) -> Outcome {
    let mut faulty = Faulty::start().await;
    let lasts = case.fault.times == ALWAYS;
    let failing = faulty.disk.position();
    let began = Instant::now();

    faulty.disk.fail(&case.fault);
    eventually("the server says what is wrong", || async {
        (faulty.has_logged("store failed in a group") > 0).then_some(())
    })
    .await;
    if lasts {
        let told = &faulty.told;
        eventually("changes are refused", || async {
            (told.unavailable() >= REFUSED && began.elapsed() > FAULT_TIME).then_some(())
        })
        .await;
        assert!(!faulty.is_ready().await, "{}: ready", case.name);
        check_reads(case, &faulty).await;
        let reason = std::io::Error::from_raw_os_error(case.fault.error).to_string();
        assert!(case.reads || faulty.has_logged(&reason) > 0, "no {reason:?} in the log");
        assert!(!faulty.is_ready().await, "{}: ready", case.name);
    }
    let healed = faulty.disk.position();
    faulty.disk.heal();
    let opened_most = began.elapsed().as_millis() / REOPEN_WAIT.as_millis() + 2;
    let recovered = faulty.wait_until_recovered().await;
    let healthy = faulty.disk.position();
    let opened = faulty.has_logged("store opened again");
    assert!(opened as u128 <= opened_most, "{}: opened {opened} times", case.name);

    let (stored, repeated) = faulty.finish().await;
    let log = faulty.disk.log();
    for cut in 0..CUTS {
        let end = log.operations[log.operations.len() - 1].0;
        let span = match cut % 3 {
            0 => (failing, healed),
            1 => (healed, healthy),
            _ => (healthy, end),
        };
        cut_power(case.name, &log, &stored, span, chance);
    }
    Outcome {
        acknowledged: stored.len(),
        unavailable: faulty.told.unavailable(),
        recovered,
        repeated,
        cuts: CUTS,
    }
}

/// A read is answered at once. Where reads go on, single ones may meet the moment in which the file is opened again, and
/// are refused; while the store cannot even be opened, all are.
async fn check_reads(case: &Case, faulty: &Faulty) {
    let mut answered = 0;
    for _ in 0..READS {
        let asked = Instant::now();
        let answer = faulty.server.app().get("/contacts/staffcontact-list?limit=1").await;
        let took = asked.elapsed();
        assert!(took < READ_WITHIN, "{}: {} after {took:?}", case.name, answer.status);
        assert!([200, 503].contains(&answer.status), "{}: {answer:?}", case.name);
        answered += usize::from(answer.status == 200);
    }
    let wanted = if case.reads { answered >= READS / 2 } else { answered == 0 };
    assert!(wanted, "{}: {answered} of {READS} reads were answered", case.name);
}

fn print_head() {
    say(
        "  fault                          acknowledged    503  ready after  came twice  cuts  lost",
    );
}

fn print_row(name: &str, o: &Outcome) {
    say(&format!(
        "  {name:<30} {:>12} {:>6} {:>12} {:>11} {:>5}     0",
        o.acknowledged,
        o.unavailable,
        format!("{:.0?}", o.recovered),
        o.repeated,
        o.cuts
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_fails_costs_503_and_nothing_that_was_acknowledged() {
    let seed = Chance::seed();
    let mut chance = Chance::new(seed);
    say(&format!("disk faults, seed {seed}"));
    print_head();

    for case in &CASES {
        print_row(case.name, &check(case, &mut chance).await);
    }
}

/// Any operations on any files, one or many, at once or later, for a random time.
fn random_fault(chance: &mut Chance) -> Fault {
    const OPERATIONS: [&str; 7] = ["w", "s", "t", "ws", "wt", "wst", "wstou"];
    const FILES: [&str; 6] = ["w", "d", "wd", "s", "w/", "wdsjo/"];
    const ERRORS: [i32; 3] = [EIO, ENOSPC, EROFS];
    Fault {
        operations: OPERATIONS[chance.index(OPERATIONS.len())],
        files: FILES[chance.index(FILES.len())],
        error: ERRORS[chance.index(ERRORS.len())],
        skip: u32::try_from(chance.below(20)).unwrap(),
        times: if chance.percent(50) { 1 } else { ALWAYS },
        torn: chance.percent(30),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_in_a_row_cost_nothing_that_was_acknowledged() {
    let count = number_from(FAULTS).unwrap_or(FAULTS_SHORT);
    let seed = Chance::seed();
    let mut chance = Chance::new(seed);
    say(&format!("{count} random disk faults, seed {seed}"));
    let mut faulty = Faulty::start().await;
    let mut outcome = Outcome::default();

    for number in 1..=count {
        let fault = random_fault(&mut chance);
        faulty.disk.fail(&fault);
        tokio::time::sleep(Duration::from_millis(chance.below(300))).await;
        faulty.disk.heal();
        // Some begin before the server has recovered from the one before.
        if chance.percent(50) {
            outcome.recovered = outcome.recovered.max(faulty.wait_until_recovered().await);
        }
        if number.is_multiple_of(25) {
            say(&format!("{number} of {count} faults, the last {fault:?}"));
        }
    }

    outcome.recovered = outcome.recovered.max(faulty.wait_until_recovered().await);
    let (stored, repeated) = faulty.finish().await;
    let log = faulty.disk.log();
    for _ in 0..count {
        cut_power(&format!("seed {seed}"), &log, &stored, (faulty.set_up, u64::MAX), &mut chance);
    }
    outcome.acknowledged = stored.len();
    outcome.unavailable = faulty.told.unavailable();
    (outcome.repeated, outcome.cuts) = (repeated, count);
    print_head();
    print_row(&format!("{count} random faults in a row"), &outcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_does_not_start_on_a_disk_that_it_cannot_write_and_says_why() {
    let disk = Disk::new();
    let builder = TestServer::builder()
        .data_dir(&disk.root().join("data"))
        .environment(disk.environment())
        .tolerate_errors();
    let mut server = builder.clone().start().await;
    let id = server.app().create_contact("Ana", "Reyes").await;
    server.kill();

    for error in [EROFS, EIO, ENOSPC] {
        let (operations, files) = ALL;
        disk.fail(&Fault { operations, files, error, skip: 0, times: ALWAYS, torn: false });
        let starting = builder.clone();
        let start = tokio::task::spawn_blocking(move || starting.start_and_fail());
        let (code, said) = start.await.unwrap();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("cannot start on"), "{said}");
        let reason = std::io::Error::from_raw_os_error(error).to_string();
        assert!(said.contains(&reason), "no {reason:?} in: {said}");
    }

    disk.heal();
    server.restart().await;
    server.app().get(&format!("/contacts/staff/{id}")).await.expect(200);
}

/// The sync of a commit fails, and that of the checkpoint when the file is closed.
const SYNCS: Fault =
    Fault { operations: "s", files: "w", error: EIO, skip: 0, times: ALWAYS, torn: false };

/// Adds so many contacts in one change, which is one group; gives whether it was acknowledged.
async fn create_batch(faulty: &Faulty, name: &str) -> bool {
    let item = |number: u32| {
        let email = format!("{name}.{number}@example.com");
        let contact = json!({"firstName": "Ana", "lastName": "Batch", "email": email});
        json!({"op": "create", "contact": contact})
    };
    let items: Vec<Value> = (0..BATCH).map(item).collect();
    let body = json!({"items": items}).to_string();
    let answer = faulty.server.app().try_send(Method::POST, "/contacts/staff-batch", body).await;
    let answer = answer.expect("there is always an answer");
    if answer.status != 200 {
        return false;
    }
    for result in answer.json()["result"]["items"].as_array().unwrap() {
        faulty.told.note(&result["result"]);
    }
    true
}

/// A server whose log ends with one change that is on the disk and one that is not, and that nobody was told of.
async fn start_with_failed_sync() -> Faulty {
    let mut faulty = Faulty::start().await;
    faulty.told.stop();
    while let Some(writer) = faulty.writers.join_next().await {
        writer.unwrap();
    }
    faulty.server.app().wait_until_idle().await;
    // The writer checkpoints after 50 ms of quiet and cannot announce it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    faulty.server.app().create_contact("Ana", "First").await;
    faulty.disk.fail(&SYNCS);
    assert!(!create_batch(&faulty, "failed").await, "the sync must fail");
    faulty
}

/// What the sync gave up may be readable for the running system and not be on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn power_cut_in_the_recovery_from_a_failed_sync_leaves_a_whole_store() {
    let seed = Chance::seed();
    let mut chance = Chance::new(seed);
    let mut faulty = start_with_failed_sync().await;

    let healed = faulty.disk.position();
    faulty.disk.heal();
    eventually("the server is ready", || async { faulty.is_ready().await.then_some(()) }).await;
    assert!(create_batch(&faulty, "later").await);

    let (stored, _) = faulty.finish().await;
    let log = faulty.disk.log();
    for _ in 0..CUTS_IN_RECOVERY {
        cut_power(&format!("seed {seed}"), &log, &stored, (healed, u64::MAX), &mut chance);
    }
}

/// The start finds in the log what another process wrote and could not sync.
#[tokio::test(flavor = "multi_thread")]
async fn restart_after_a_failed_sync_does_not_build_on_what_is_not_on_the_disk() {
    let seed = Chance::seed();
    let mut chance = Chance::new(seed);
    let mut faulty = start_with_failed_sync().await;

    faulty.server.kill();
    faulty.disk.heal();
    let healed = faulty.disk.position();
    faulty.server.restart().await;
    assert!(create_batch(&faulty, "later").await);

    let (stored, _) = faulty.finish().await;
    let log = faulty.disk.log();
    for _ in 0..CUTS_IN_RECOVERY {
        cut_power(&format!("seed {seed}"), &log, &stored, (healed, u64::MAX), &mut chance);
    }
}
