//! Somebody leaves a transaction open on the PostgreSQL of three nodes: every dead version of every row is then kept, also of
//! the rows that each group writes anew.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::claims::connect;
use super::cluster::Cluster;
use super::nodes::{Changed, Run};
use crate::protocol::Work;
use crate::report::Figures;

/// Nodes, which all write to one service.
const NODES: usize = 3;
/// How long each part of the measurement drives.
const WINDOW: Duration = Duration::from_secs(10);
/// Windows in which a roll is made, of tens of thousands of contacts that then stay as they are.
const CREATING: usize = 2;
/// Windows in which everything warms up: the first vacuums come.
const WARM_UP: usize = 1;
/// Windows that are compared: before the transaction, and the last ones of it.
const COMPARED: usize = 3;
/// Windows during the transaction: more than two minutes.
const HELD: usize = 15;

/// One after the other: throughput before, meanwhile and afterwards.
pub(super) fn measure(
    program: &Path,
    directory: &Path,
    quick: bool,
    faults: &mut Vec<String>,
) -> anyhow::Result<Figures> {
    let runtime = Runtime::new()?;
    let run = Run::start(&runtime, program, directory, quick, faults)?;
    let window = if quick { WINDOW / 10 } else { WINDOW };
    let mut held = Held { run, window, changed: Changed::default() };
    let (cluster, url) = held.run.nodes(NODES, 1, "held_open")?;
    let client = runtime.block_on(connect(&url))?;
    held.windows("create", Work::Create, CREATING, &cluster, &client)?;
    held.windows("warm-up", Work::Life, WARM_UP, &cluster, &client)?;
    let before = held.windows("before", Work::Life, COMPARED, &cluster, &client)?;

    let holder = runtime.block_on(connect(&url))?;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM services";
    runtime.block_on(holder.batch_execute(begin))?;
    let began = Instant::now();
    let meanwhile = held.windows("held", Work::Life, HELD, &cluster, &client)?;
    runtime.block_on(holder.batch_execute("COMMIT"))?;
    let seconds = began.elapsed().as_secs_f64();
    let after = held.windows("after", Work::Life, COMPARED, &cluster, &client)?;
    held.run.check("a transaction held open", &held.changed)?;
    cluster.stop()?;

    let (before, last) = (mean(&before), mean(&meanwhile[HELD - COMPARED..]));
    Ok(Figures::from([
        ("held_open_s", seconds),
        ("held_open_before_per_s", before),
        ("held_open_last_per_s", last),
        ("held_open_lowest_per_s", meanwhile.iter().copied().fold(f64::INFINITY, f64::min)),
        ("held_open_after_per_s", mean(&after)),
        ("held_open_share", last / before * 100.0),
    ]))
}

fn mean(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / crate::measure::count(rates.len() as u64)
}

struct Held<'a> {
    run: Run<'a>,
    window: Duration,
    changed: Changed,
}

impl Held<'_> {
    /// Events delivered per second in each window.
    fn windows(
        &mut self,
        what: &str,
        work: Work,
        count: usize,
        cluster: &Cluster<'_>,
        client: &Client,
    ) -> anyhow::Result<Vec<f64>> {
        let mut rates = Vec::new();
        for _ in 0..count {
            let load = self.run.load(cluster, &mut self.changed, work, self.window)?;
            let rate = load.events / load.delivering;
            let dead = self.run.runtime.block_on(dead_rows(client))?;
            eprintln!("  {what:<8} {rate:>7.0} events/s   dead rows: {dead}");
            rates.push(rate);
        }
        Ok(rates)
    }
}

/// The tables with most of them.
async fn dead_rows(client: &Client) -> anyhow::Result<String> {
    let sql = "SELECT string_agg(relname || ' ' || n_dead_tup, ', ' ORDER BY n_dead_tup DESC) \
               FROM pg_stat_user_tables WHERE n_dead_tup > 1000";
    let row = client.query_one(sql, &[]).await?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_else(|| "few".to_owned()))
}
