//! Throughput, CPU, memory and latency of the release program, against what the machine itself can do; isolation and
//! scale, against the same run without what disturbs.
//!
//! `docs/benchmarks.md` says what is measured and how to read it. Everything is on the loopback interface, in
//! processes of this program's own, bounded in count and time; whatever happens, nothing is left running.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table and the JSON line are the purpose; progress goes to standard error"
)]

mod contact;
mod driver;
mod helper;
mod ledger;
mod lookups;
mod measure;
mod postgres;
mod process;
mod protocol;
mod receiver;
mod report;
mod scale;
mod server;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use crate::measure::{Bench, Times};
use crate::report::Figures;

/// As in the server, so that both ends are as fast as what is between them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After this time every process of a run ends itself.
const LIFETIME: Duration = Duration::from_secs(900);

/// Measures `rollcall` on this machine. Exits with 1 when an event was lost, repeated or out of order.
#[derive(Debug, Parser)]
#[command(name = "throughput")]
struct Options {
    /// About 15 seconds in all, for a first impression.
    #[arg(long)]
    quick: bool,
    /// The build of `rollcall` that is measured, if not the one that Cargo has just made.
    #[arg(long, value_name = "PROGRAM", default_value = env!("CARGO_BIN_EXE_rollcall"))]
    program: PathBuf,
    /// Another build of `rollcall` to compare with, in turns in the same run.
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,
    /// How often everything is measured; the table shows medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5))]
    rounds: u32,
    /// Only this measurement; may be repeated. Without it: one, five and latency.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Keep-alive connections of the driver.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Threads of the driver, and of the receiver.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Creates per second while latency is measured.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// Where the data directories are made; it must be on a real disk.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// A further argument for the server, such as `--server-arg=--max-in-flight=64`; may be repeated.
    #[arg(long)]
    server_arg: Vec<String>,
    /// Given by `cargo bench`. Without it (`cargo test --all-targets`) nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One subscriber.
    One,
    /// Five subscribers.
    Five,
    /// Latency at a low rate.
    Latency,
    /// 10,000 subscriptions of which a tenth hang, refuse or fail; about two minutes.
    Isolation,
    /// A receiver that refuses 30 % of the contacts for good; about two minutes.
    Refusing,
    /// A receiver that comes back with 1,000,000 events owed; about six minutes.
    Backlog,
    /// 100,000 idle subscriptions; about five minutes.
    Idle,
    /// The group commit on a PostgreSQL, and a queue that workers claim from; about 30 seconds.
    Groups,
    /// One, two and three nodes on a PostgreSQL; about five minutes.
    Nodes,
    /// Three nodes while somebody leaves a transaction open on their PostgreSQL; about five minutes.
    HeldOpen,
    /// Look-ups of ids that another service has, and of ids that nobody has; about 20 seconds.
    Lookups,
}

impl Part {
    const DEFAULT: [Self; 3] = [Self::One, Self::Five, Self::Latency];

    /// Whether its figures are shares of the bare limit.
    fn needs_bare(self) -> bool {
        matches!(self, Self::One | Self::Five)
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(helper::ROLE) {
        return exit_code(helper::run().map(|()| true));
    }
    // Before the options are read: test runners ask in ways of their own.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!(
            "nothing is measured without --bench; start it with: cargo bench --bench throughput"
        );
        return ExitCode::SUCCESS;
    }
    exit_code(run(&Options::parse()))
}

fn exit_code(good: anyhow::Result<bool>) -> ExitCode {
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<bool> {
    std::thread::spawn(|| {
        std::thread::sleep(LIFETIME);
        eprintln!("error: not finished after {LIFETIME:?}");
        std::process::exit(1);
    });
    let directory = options.dir.join(format!("throughput-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let measured = measured(options, &directory);
    if measured.as_ref().is_ok_and(|good| *good) {
        std::fs::remove_dir_all(&directory)?;
    } else {
        eprintln!("the servers' logs are kept in {}", directory.display());
    }
    measured
}

/// Measures everything and prints it; whether nothing went wrong.
fn measured(options: &Options, directory: &Path) -> anyhow::Result<bool> {
    let machine = machine(directory)?;
    let parts = if options.only.is_empty() { &Part::DEFAULT[..] } else { &options.only };
    let times = if options.quick { Times::QUICK } else { Times::FULL };
    let mut bench = Bench::new(
        times,
        options.threads.into(),
        options.connections.into(),
        options.rate,
        options.server_arg.clone(),
        directory.to_owned(),
    )?;
    // Servers are started in directories of their own.
    let current = &options.program.canonicalize()?;
    let baseline = options.baseline.as_ref().map(|path| path.canonicalize()).transpose()?;
    let mut rounds = Vec::new();
    let mut baselines = Vec::new();
    let began = Instant::now();
    for round in 0..options.rounds {
        let progress = |text: &str| {
            eprintln!("[{:5.1} s] round {}: {text}", began.elapsed().as_secs_f64(), round + 1);
        };
        let bare = if parts.iter().any(|part| part.needs_bare()) {
            progress("bare HTTP limit");
            bench.bare()?
        } else {
            Figures::new()
        };
        let mut programs = vec![(current, "", bare.clone())];
        if let Some(baseline) = &baseline {
            // In turns, so that neither always runs on the warmer machine.
            programs.insert((round % 2) as usize, (baseline, " (baseline)", bare));
        }
        for part in parts {
            for (program, name, figures) in &mut programs {
                progress(&format!("{part:?}{name}"));
                let limit = figures.get("bare_per_s").copied().unwrap_or_default();
                figures.extend(match part {
                    Part::One => bench.one(program, limit)?,
                    Part::Five => bench.five(program, limit)?,
                    Part::Latency => bench.latency(program)?,
                    Part::Groups | Part::Nodes | Part::HeldOpen => {
                        let place = directory.join(format!("{part:?}{name}-{round}"));
                        let (quick, faults) = (options.quick, &mut bench.faults);
                        postgres::measure(*part, program, &place, quick, faults)?
                    }
                    Part::Lookups => {
                        let place = directory.join(format!("{part:?}{name}-{round}"));
                        let (arguments, faults) = (&options.server_arg, &mut bench.faults);
                        lookups::measure(program, &place, arguments, options.quick, faults)?
                    }
                    Part::Isolation | Part::Refusing | Part::Backlog | Part::Idle => {
                        let ground = scale::Ground {
                            program,
                            directory: directory.join(format!("{part:?}{name}")),
                            arguments: &options.server_arg,
                            quick: options.quick,
                        };
                        scale::measure(*part, &ground, &mut bench.faults)?
                    }
                });
                report::compare_with_pooled(figures);
            }
        }
        for (_, name, figures) in programs {
            let all = if name.is_empty() { &mut rounds } else { &mut baselines };
            all.push(figures);
        }
    }
    print(options, &machine, &rounds, &baselines, &bench.faults);
    Ok(bench.faults.is_empty())
}

fn print(
    options: &Options,
    machine: &Value,
    rounds: &[Figures],
    baselines: &[Figures],
    faults: &[String],
) {
    let figures = report::medians(rounds);
    let baseline = options.baseline.as_ref().map(|_| report::medians(baselines));
    println!("rollcall throughput");
    for (name, fact) in machine.as_object().into_iter().flatten() {
        let text = fact.as_str().map_or_else(|| fact.to_string(), str::to_owned);
        println!("  {:<22}{text}", name.replace('_', " "));
    }
    println!("\n{}", report::table(&figures, baseline.as_ref()));
    for fault in faults {
        println!("FAULT {fault}");
    }
    if faults.is_empty() {
        println!("nothing lost, nothing twice, every contact in order");
    }
    let line = json!({
        "bench": "throughput",
        "quick": options.quick,
        "rounds": options.rounds,
        "machine": machine,
        "figures": report::json(&figures),
        "baseline": baseline.as_ref().map(report::json),
        "missed": report::missed(&figures),
        "faults": faults,
    });
    println!("{line}");
}

/// What the figures depend on.
fn machine(directory: &Path) -> anyhow::Result<Value> {
    let (p50, p99) = measure::sync_ms(directory)?;
    Ok(json!({
        "cores": process::cores(),
        "processor": process::cpu_model(),
        "kernel": process::kernel(),
        "file_system": process::file_system(directory)?,
        "fdatasync_of_4_kib": format!("p50 {p50:.2} ms, p99 {p99:.2} ms"),
        "sqlite": format!("WAL, synchronous={}", synchronous()),
    }))
}

/// How the embedded store syncs, as the source of this build has it: a program cannot be asked from outside.
fn synchronous() -> &'static str {
    let source = include_str!("../../src/store/sqlite/mod.rs");
    let setting = source.split_once("PRAGMA synchronous=");
    let value = setting.and_then(|(_, rest)| rest.split_once('"'));
    value.map_or("unknown", |(value, _)| value)
}
