//! Many seeds on every core: what `make test` and `make simulate` run.
//!
//! `SEEDS` is how many worlds to run and `FROM` the first of them; with `SEEDS` set, progress is printed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::checks::Broken;
use super::shrink::{as_test, run, shrink, trace};
use super::steps::draw;
use super::world::Counts;

/// Worlds of a run that nobody has set otherwise: some seconds on two cores in a debug build.
const SEEDS_DEFAULT: u64 = 10_000;
/// Seeds that a thread takes at a time. Larger delays the end, smaller makes the threads meet more often.
const BLOCK: u64 = 100;
/// How often progress is printed.
const PRINT_EVERY: Duration = Duration::from_secs(5);

impl Counts {
    fn rows(&self) -> [(&'static str, u64); 21] {
        [
            ("attempts", self.attempts),
            ("successes", self.successes),
            ("results of an earlier life of the lane", self.old_results),
            ("timeouts", self.timeouts),
            ("pauses asked for", self.pauses),
            ("circuit openings", self.circuits),
            ("exhausted", self.exhausted),
            ("records", self.records),
            ("records refused: generation over", self.refused_records),
            ("records failed: outcome unknown", self.failed_records),
            ("crashes", self.crashes),
            ("subscriptions and changes of URL", self.subscribes),
            ("unsubscribes", self.unsubscribes),
            ("redelivers", self.redelivers),
            ("replays", self.replays),
            ("removals that left a gap", self.prunes),
            ("disabled by the system", self.disabled),
            ("of these, failing for 5 days", self.given_up),
            ("clock jumps", self.clock_jumps),
            ("unloads", self.unloads),
            ("worlds that reached 256 unrecorded", self.full),
        ]
    }

    fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.successes += other.successes;
        self.old_results += other.old_results;
        self.timeouts += other.timeouts;
        self.pauses += other.pauses;
        self.circuits += other.circuits;
        self.exhausted += other.exhausted;
        self.records += other.records;
        self.refused_records += other.refused_records;
        self.failed_records += other.failed_records;
        self.crashes += other.crashes;
        self.subscribes += other.subscribes;
        self.unsubscribes += other.unsubscribes;
        self.redelivers += other.redelivers;
        self.replays += other.replays;
        self.prunes += other.prunes;
        self.disabled += other.disabled;
        self.given_up += other.given_up;
        self.clock_jumps += other.clock_jumps;
        self.unloads += other.unloads;
        self.full += other.full;
    }
}

/// What the threads share.
struct Race {
    from: u64,
    to: u64,
    next: AtomicU64,
    total: Mutex<(u64, Counts)>,
    /// The first seed that broke a promise.
    broken: Mutex<Option<(u64, Broken)>>,
}

impl Race {
    fn run(&self) {
        loop {
            let first = self.next.fetch_add(BLOCK, Ordering::Relaxed);
            if first >= self.to || self.broken.lock().expect("no holder panics").is_some() {
                return;
            }
            let mut counts = Counts::default();
            let last = (first + BLOCK).min(self.to);
            for seed in first..last {
                match run(&draw(seed)) {
                    Ok(of_world) => counts.add(&of_world),
                    Err(found) => {
                        let mut broken = self.broken.lock().expect("no holder panics");
                        if broken.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *broken = Some((seed, found));
                        }
                        return;
                    }
                }
            }
            let mut total = self.total.lock().expect("no holder panics");
            total.0 += last - first;
            total.1.add(&counts);
        }
    }

    fn print_progress(&self, started: Instant) {
        let mut printed = started;
        while !self.is_over() {
            std::thread::sleep(Duration::from_millis(50));
            if printed.elapsed() < PRINT_EVERY {
                continue;
            }
            printed = Instant::now();
            let (seeds, counts) = *self.total.lock().expect("no holder panics");
            say(&format!(
                "{seeds} of {} seeds, {:.0} seeds/s, {} attempts, {} crashes\n",
                self.to - self.from,
                rate(seeds, started),
                counts.attempts,
                counts.crashes,
            ));
        }
    }

    fn is_over(&self) -> bool {
        let done = self.total.lock().expect("no holder panics").0 >= self.to - self.from;
        done || self.broken.lock().expect("no holder panics").is_some()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
fn rate(seeds: u64, started: Instant) -> f64 {
    seeds as f64 / started.elapsed().as_secs_f64()
}

/// Written to the terminal itself: what is printed by the macros appears only after the test.
fn say(text: &str) {
    // Nobody may be looking.
    let _unseen = std::io::stderr().write_all(text.as_bytes());
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.replace('_', "").parse().expect("SEEDS and FROM are whole numbers"))
}

#[test]
fn no_seed_breaks_a_promise() {
    let wanted = number_of("SEEDS");
    let seeds = wanted.unwrap_or(SEEDS_DEFAULT);
    let from = number_of("FROM").unwrap_or(0);
    let race = Race {
        from,
        to: from + seeds,
        next: AtomicU64::new(from),
        total: Mutex::default(),
        broken: Mutex::default(),
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| race.run());
        }
        if wanted.is_some() {
            race.print_progress(started);
        }
    });

    if let Some((seed, broken)) = race.broken.into_inner().expect("no holder panics") {
        let story = shrink(&draw(seed), broken.check);
        let shown = run(&story).expect_err("a shrunken story breaks the same promise");
        panic!(
            "seed {seed} breaks a promise: {}: {}\nthe shortest story has {} steps ({}):\n{}what happens in it:\n{}",
            broken.check.words(),
            broken.detail,
            story.len(),
            shown.detail,
            as_test(&story),
            trace(&story)
        );
    }
    let (_, counts) = race.total.into_inner().expect("no holder panics");
    let mut table = format!("{seeds} seeds from {from}, {:.0} seeds/s\n", rate(seeds, started));
    for (what, count) in counts.rows() {
        writeln!(table, "{count:>12} {what}").expect("a string takes everything");
    }
    if wanted.is_some() {
        say(&table);
    }
    let quiet = counts.rows().into_iter().find(|(_, count)| *count == 0);
    assert!(seeds < SEEDS_DEFAULT || quiet.is_none(), "too quiet: {quiet:?}\n{table}");
}
