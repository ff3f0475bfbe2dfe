//! Power cuts: what a disk may hold that forgets what was not synced is opened again, and nothing acknowledged is
//! missing. A copy of the program in which `synchronous` is lowered to `NORMAL` fails the same checks.
//!
//! In each round the real server works on a watched disk (`harness/disk.rs`), and every answer and every request
//! at the receiver is noted with the position of the disk's log. Then disks are made as cuts at random places of
//! that log would leave them (`harness/power.rs`). Every one is read with SQLite; on some the real server is
//! started first and must deliver what is owed. The next round usually starts on one of these disks, so recovery is
//! cut too. The short form belongs to every run of the tests; `make power-cut CUTS=1000` is the long one.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::chance::{Chance, number_from};
use crate::harness::disk::{Disk, DiskLog, Operation};
use crate::harness::power::DiskModel;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::say;
use crate::harness::server::{Builder, Credentials, TestServer};
use crate::harness::stored::{Stored, find_faults};
use crate::harness::writers::{Acknowledged, start_editors, start_writers};

/// The variable that says how many cuts there are.
const CUTS: &str = "ROLLCALL_TEST_CUTS";
/// Cuts in the short form.
const CUTS_SHORT: u64 = 60;
/// Cuts with `synchronous` lowered; in most of them something is missing.
const CUTS_LOWERED: u64 = 20;
/// Cuts of one recorded round: more find more in it, fewer see more rounds.
const CUTS_PER_ROUND: u64 = 20;
/// The server itself is started on every so many-th of the disks that are left.
const SERVER_EVERY: u64 = 5;
/// After so many rounds one begins on an empty disk, so that the first start is cut too.
const EMPTY_EVERY: u64 = 4;
/// Where the data directory is below the root: two directories that the first start makes.
const DATA_DIR: &str = "var/data";
/// Of a hundred cuts, those that come before everything is set up, on an empty disk.
const SET_UP_PERCENT: u64 = 15;
/// Contacts that are edited all the time.
const KEPT_CONTACTS: usize = 10;
/// Most events that come twice after a cut.
const REPEATED_MAX: usize = 256;
/// Pause of a caller after each change.
const PAUSE: Duration = Duration::from_millis(2);

/// One request at the receiver.
#[derive(Clone)]
struct Arrival {
    position: u64,
    contact: String,
    version: u64,
    sequence: u64,
    kind: String,
}

impl Arrival {
    fn new(position: u64, seen: &Seen) -> Self {
        Self {
            position,
            contact: seen.contact(),
            version: seen.version(),
            sequence: seen.sequence(),
            kind: seen.kind(),
        }
    }
}

/// What is known of a disk on which a round begins.
struct Base {
    folder: Folder,
    credentials: Credentials,
    kept: Arc<Vec<String>>,
    acknowledged: Stored,
    arrivals: Vec<Arrival>,
}

/// A directory that goes away with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rollcall-cut-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn data_dir(&self) -> PathBuf {
        self.0.join(DATA_DIR)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What one round of work left: everything a cut at any place of it is judged by.
struct Recording {
    log: DiskLog,
    model: DiskModel,
    credentials: Credentials,
    kept: Arc<Vec<String>>,
    acknowledged: Stored,
    arrivals: Vec<Arrival>,
    /// From here on service, app, subscription and kept contacts are acknowledged.
    ready_at: u64,
}

#[derive(Default)]
struct Figures {
    rounds: u64,
    cuts: u64,
    cut_before_set_up: u64,
    by_server: u64,
    changes: usize,
    checked: usize,
    pending_bytes: usize,
    pending_bytes_most: usize,
    repeated_most: usize,
    ready: Duration,
    cuts_with_loss: u64,
    lost: usize,
}

struct PowerCuts {
    name: &'static str,
    program: Option<PathBuf>,
    chance: Chance,
    receiver: Receiver,
    base: Option<Base>,
    figures: Figures,
}

impl PowerCuts {
    async fn new(name: &'static str, program: Option<PathBuf>, seed: u64) -> Self {
        Self {
            name,
            program,
            chance: Chance::new(seed),
            receiver: Receiver::start().await,
            base: None,
            figures: Figures::default(),
        }
    }

    fn builder(&self, data_dir: &Path) -> Builder {
        let builder = TestServer::builder()
            .serve()
            .flag("--allow-http", "true")
            .flag("--allow-targets", "127.0.0.0/8")
            .flag("--requests-per-minute", "0")
            .flag("--log", "warn")
            .data_dir(data_dir);
        match &self.program {
            Some(program) => builder.program(program),
            None => builder,
        }
    }

    /// Lets the server work on a watched disk and stops it in order.
    async fn record(&mut self) -> Recording {
        self.figures.rounds += 1;
        let base = self.base.take();
        let disk = Arc::new(Disk::new());
        if let Some(base) = &base {
            copy_files(&base.folder.0, &disk.root());
        }
        let model = DiskModel::of(&disk.root());
        let (arrivals, watched) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(&disk));
        let noted = Arc::clone(&arrivals);
        self.receiver.answer(move |seen| {
            noted.lock().unwrap().push(Arrival::new(watched.position(), seen));
            Reply::status(200)
        });
        let watched = Arc::clone(&disk);
        let told = Arc::new(Acknowledged::at(move || watched.position()));
        let builder = self.builder(&disk.root().join(DATA_DIR)).environment(disk.environment());
        let mut acknowledged = Stored::default();
        let (mut server, kept, ready_at) = if let Some(base) = base {
            acknowledged = base.acknowledged;
            arrivals.lock().unwrap().extend(base.arrivals);
            (builder.start_as(&base.credentials), base.kept, 0)
        } else {
            let server = builder.start().await;
            server.app().subscribe(true, &self.receiver.url()).await.expect(200);
            let kept = create_kept(&server, &told).await;
            (server, Arc::new(kept), disk.position())
        };
        self.write_for_a_while(&server, &kept, &told, 0).await;
        if self.chance.percent(30) {
            self.stop(&mut server).await;
            server.restart().await;
            self.write_for_a_while(&server, &kept, &told, 1).await;
        }
        self.stop(&mut server).await;
        let log = disk.log();
        let mut whole = model.clone();
        whole.advance(&log, log.operations.len(), &mut self.chance);
        whole.assert_is(&disk.root());
        self.receiver.take_notifications();
        let before = acknowledged.len();
        acknowledged.add(&told);
        self.figures.changes += acknowledged.len() - before;
        let arrivals = std::mem::take(&mut *arrivals.lock().unwrap());
        let credentials = server.credentials();
        Recording { log, model, credentials, kept, acknowledged, arrivals, ready_at }
    }

    async fn stop(&self, server: &mut TestServer) {
        server.terminate(Duration::from_secs(14)).await.expect("it must end after its grace");
        self.receiver.wait_until_quiet().await;
    }

    /// Load, a moment of quiet in which the writer checkpoints, and load again.
    async fn write_for_a_while(
        &mut self,
        server: &TestServer,
        kept: &Arc<Vec<String>>,
        told: &Arc<Acknowledged>,
        part: u32,
    ) {
        for phase in 0..2 {
            let load = Arc::new(Acknowledged::at({
                let told = Arc::clone(told);
                move || told.position()
            }));
            let name = format!("r{}p{part}.{phase}", self.figures.rounds);
            let writers = start_writers(&server.app(), &name, PAUSE, &load);
            let editors = start_editors(&server.app(), kept, &mut self.chance, PAUSE, &load);
            tokio::time::sleep(Duration::from_millis(60 + self.chance.below(200))).await;
            load.stop();
            writers.join_all().await;
            editors.join_all().await;
            told.take_over(&load);
            tokio::time::sleep(Duration::from_millis(self.chance.below(150))).await;
        }
    }

    /// One round of work and the cuts in it; `true` as long as no cut has lost anything.
    async fn cut_round(&mut self, cuts: u64) {
        let mut recording = self.record().await;
        let places = self.choose_places(&recording, cuts);
        let next_base = self.chance.index(places.len());
        let mut base = None;
        for (number, place) in places.into_iter().enumerate() {
            recording.model.advance(&recording.log, place, &mut self.chance);
            let position = place.checked_sub(1).map_or(0, |last| recording.log.operations[last].0);
            self.check_cut(&recording, position).await;
            if number >= next_base && base.is_none() && position >= recording.ready_at {
                let folder = Folder::new(&format!("{}-base{}", self.name, self.figures.rounds));
                recording.model.cut(&folder.0, &mut self.chance);
                base = Some(recording.base_at(position, folder));
            }
        }
        self.base = base.filter(|_| !self.figures.rounds.is_multiple_of(EMPTY_EVERY));
    }

    /// Numbers of operations, rising: half of them anywhere, half beside a sync, few before the set-up is done.
    fn choose_places(&mut self, recording: &Recording, cuts: u64) -> Vec<usize> {
        let all = &recording.log.operations;
        let set_up = all.partition_point(|(position, _)| *position < recording.ready_at);
        let is_sync = |at: &usize| matches!(all[*at].1, Operation::Sync { .. });
        let chance = &mut self.chance;
        let mut places = Vec::new();
        for _ in 0..cuts {
            let anywhere = if set_up > 0 && chance.percent(SET_UP_PERCENT) {
                chance.index(set_up)
            } else {
                set_up + chance.index(all.len() - set_up + 1)
            };
            let beside = chance.percent(50);
            let sync = (anywhere..all.len()).find(is_sync).filter(|_| beside);
            places.push(sync.map_or(anywhere, |sync| sync + chance.index(2)));
        }
        places.sort_unstable();
        places
    }

    async fn check_cut(&mut self, recording: &Recording, position: u64) {
        self.figures.cuts += 1;
        let folder = Folder::new(&format!("{}-{}", self.name, self.figures.cuts));
        recording.model.cut(&folder.0, &mut self.chance);
        let pending = recording.model.pending_bytes();
        self.figures.pending_bytes += pending;
        self.figures.pending_bytes_most = self.figures.pending_bytes_most.max(pending);
        let acknowledged = recording.acknowledged.until(position);
        self.figures.checked += acknowledged.len();
        let is_set_up = position >= recording.ready_at;
        self.figures.cut_before_set_up += u64::from(!is_set_up);
        if self.program.is_none() && self.figures.cuts.is_multiple_of(SERVER_EVERY) {
            self.check_with_server(recording, &acknowledged, position, &folder).await;
        }
        let database = folder.data_dir().join("rollcall.db");
        let faults = find_faults(&database, &acknowledged, is_set_up);
        assert!(
            faults.broken.is_empty(),
            "round {}, cut {} at {position}: {:#?}",
            self.figures.rounds,
            self.figures.cuts,
            faults.broken
        );
        if self.program.is_none() {
            assert!(faults.lost.is_empty(), "cut at {position}, lost: {:#?}", faults.lost);
        }
        self.figures.cuts_with_loss += u64::from(!faults.lost.is_empty());
        self.figures.lost += faults.lost.len();
    }

    /// Starts the real server on the disk that was left: it delivers what is owed, and no contact goes back.
    async fn check_with_server(
        &mut self,
        recording: &Recording,
        acknowledged: &Stored,
        position: u64,
        folder: &Folder,
    ) {
        self.figures.by_server += 1;
        let builder = self.builder(&folder.data_dir());
        self.receiver.answer(|_| Reply::status(200));
        let started = Instant::now();
        let mut server = if position >= recording.ready_at {
            builder.start_as(&recording.credentials)
        } else {
            builder.start().await
        };
        server.anyone(None).get("/readyz").await.expect(200);
        self.figures.ready = self.figures.ready.max(started.elapsed());
        if position >= recording.ready_at {
            server.app().wait_until_idle().await;
        }
        server.kill();
        self.receiver.wait_until_quiet().await;
        let before = recording.arrivals.iter().filter(|arrival| arrival.position <= position);
        let mut all: Vec<Arrival> = before.cloned().collect();
        let mut newest: HashMap<String, u64> = HashMap::new();
        for arrival in &all {
            let newest = newest.entry(arrival.contact.clone()).or_default();
            *newest = arrival.version.max(*newest);
        }
        let known: BTreeSet<u64> = all.iter().map(|arrival| arrival.sequence).collect();
        let mut repeated = 0;
        for seen in self.receiver.take_notifications() {
            let newest = newest.entry(seen.contact()).or_default();
            assert!(seen.version() >= *newest, "at {position}: after {newest}: {seen:?}");
            *newest = seen.version();
            repeated += usize::from(known.contains(&seen.sequence()));
            all.push(Arrival::new(position, &seen));
        }
        assert!(repeated <= REPEATED_MAX, "at {position}: {repeated} came twice");
        self.figures.repeated_most = self.figures.repeated_most.max(repeated);
        if position >= recording.ready_at {
            assert_all_told(acknowledged, &all);
        }
    }

    fn print_figures(&self, seed: u64) {
        let Figures { rounds, cuts, by_server, changes, checked, ready, .. } = &self.figures;
        let f = &self.figures;
        say(&format!("power cuts, synchronous {}, seed {seed}", self.name));
        say(&format!("  cuts                               {cuts} in {rounds} recorded rounds"));
        say(&format!("  of these before anything was told  {}", f.cut_before_set_up));
        say(&format!("  read with SQLite / real server     {cuts} / {by_server}"));
        say(&format!("  acknowledged changes               {changes}"));
        say(&format!("  looked for in all cuts together    {checked}"));
        say(&format!("  lost / in so many cuts             {} / {}", f.lost, f.cuts_with_loss));
        let kib = |bytes: usize| bytes / 1024;
        let average = kib(f.pending_bytes / usize::try_from(*cuts).unwrap());
        let most = kib(f.pending_bytes_most);
        say(&format!("  not synced, average / most         {average} KiB / {most} KiB"));
        if *by_server > 0 {
            say(&format!("  came twice, at most                {}", f.repeated_most));
            say(&format!("  server ready within                {ready:.0?}"));
        }
    }
}

impl Recording {
    /// What is known when the next round begins on a disk that was cut here.
    fn base_at(&self, position: u64, folder: Folder) -> Base {
        let is_before = |arrival: &&Arrival| arrival.position <= position;
        let arrivals = self.arrivals.iter().filter(is_before).cloned();
        Base {
            folder,
            credentials: self.credentials.clone(),
            kept: Arc::clone(&self.kept),
            acknowledged: self.acknowledged.until(position),
            arrivals: arrivals.map(|arrival| Arrival { position: 0, ..arrival }).collect(),
        }
    }
}

async fn create_kept(server: &TestServer, told: &Acknowledged) -> Vec<String> {
    let mut kept = Vec::new();
    for number in 0..KEPT_CONTACTS {
        let email = format!("kept{number}@example.com");
        let contact = json!({"firstName": "Ana", "lastName": "Kept", "email": email});
        let created: Value = server.app().post("/contacts/staff", contact).await.expect(201);
        told.note(&created);
        kept.push(created["id"].as_str().unwrap().to_owned());
    }
    kept
}

/// Everything that was acknowledged reached the receiver, before the cut or after it.
fn assert_all_told(acknowledged: &Stored, arrivals: &[Arrival]) {
    let told: BTreeSet<(&str, u64)> =
        arrivals.iter().map(|a| (a.contact.as_str(), a.version)).collect();
    for (id, version) in acknowledged.changes.keys() {
        assert!(told.contains(&(id.as_str(), *version)), "{id} {version} never arrived");
    }
    let deletes = arrivals.iter().filter(|arrival| arrival.kind == "staffDelete");
    let deleted: BTreeSet<&str> = deletes.map(|arrival| arrival.contact.as_str()).collect();
    for id in acknowledged.deletes.keys() {
        assert!(deleted.contains(id.as_str()), "the delete of {id} never arrived");
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir_all(&copy).unwrap();
            copy_files(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}

async fn run(name: &'static str, program: Option<PathBuf>, cuts: u64, seed: u64) -> Figures {
    let mut power_cuts = PowerCuts::new(name, program, seed).await;
    while power_cuts.figures.cuts < cuts {
        let left = cuts - power_cuts.figures.cuts;
        power_cuts.cut_round(left.min(CUTS_PER_ROUND)).await;
        say(&format!("{} of {cuts} cuts", power_cuts.figures.cuts));
    }
    power_cuts.print_figures(seed);
    power_cuts.figures
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let cuts = number_from(CUTS).unwrap_or(CUTS_SHORT);
    let seed = Chance::seed();
    say(&format!("{cuts} cuts, seed {seed}"));

    let figures = run("FULL", None, cuts, seed).await;

    assert!(figures.checked > 0, "nothing was acknowledged before a cut");
}

/// A copy of the program with `synchronous` at `NORMAL`: SQLite reads `TRUE` as 1, which is `NORMAL`. The program
/// itself offers no way to lower it, so the copy is changed where the text stands.
fn program_with_lowered_sync(folder: &Folder) -> PathBuf {
    const HIGH: &[u8] = b"PRAGMA synchronous=FULL";
    const LOW: &[u8] = b"PRAGMA synchronous=TRUE";
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_rollcall")).unwrap();
    let places: Vec<usize> = bytes
        .windows(HIGH.len())
        .enumerate()
        .filter(|(_, text)| *text == HIGH)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "the program no longer says {HIGH:?}");
    for at in places {
        bytes[at..at + LOW.len()].copy_from_slice(LOW);
    }
    let program = folder.0.join("rollcall");
    fs::copy(env!("CARGO_BIN_EXE_rollcall"), &program).unwrap();
    fs::write(&program, bytes).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_loses_acknowledged_changes_when_synchronous_is_lowered_to_normal() {
    let folder = Folder::new("lowered");
    let program = program_with_lowered_sync(&folder);
    let seed = Chance::seed();

    let figures = run("NORMAL", Some(program), CUTS_LOWERED, seed).await;

    assert!(figures.lost > 0, "the check sees no difference, seed {seed}");
}
