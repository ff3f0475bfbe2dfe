//! The table for people and the one line of JSON for scripts.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Figures by the key of their [`Metric`].
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// What a figure ought to be.
enum Target {
    None,
    AtLeast(f64),
    AtMost(f64),
}

/// One row of the table.
struct Metric {
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    digits: usize,
    target: Target,
}

const fn row(key: &'static str, label: &'static str, unit: &'static str, digits: usize) -> Metric {
    Metric { key, label, unit, digits, target: Target::None }
}

/// The rows of so many nodes and services.
macro_rules! of_nodes {
    ($key:literal, $label:literal) => {
        [
            row(concat!("nodes_", $key, "_accepted_per_s"), concat!($label, ": accepted"), "/s", 0),
            row(concat!("nodes_", $key, "_delivered_per_s"), "  delivered", "/s", 0),
            row(concat!("nodes_", $key, "_life_per_s"), "  create, edit, edit, delete", "/s", 0),
            row(concat!("nodes_", $key, "_p50_ms"), "  100/s: sent to notified, p50", "ms", 2),
            row(concat!("nodes_", $key, "_p99_ms"), "  p99", "ms", 2),
            row(concat!("nodes_", $key, "_cpu"), "  CPU of the nodes, per 1,000 events", "s", 4),
            row(concat!("nodes_", $key, "_cpu_db"), "  CPU of PostgreSQL, per 1,000", "s", 4),
            row(concat!("nodes_", $key, "_log_bytes"), "  its log, per event", "B", 0),
            row(concat!("nodes_", $key, "_hwm"), "  the most of a node's memory", "MiB", 1),
            row(concat!("nodes_", $key, "_others"), "  CPU that others used", "%", 1),
        ]
    };
}

static NODE_METRICS: [[Metric; 10]; 6] = [
    of_nodes!("1_1", "1 node, 1 service"),
    of_nodes!("2_1", "2 nodes, 1 service"),
    of_nodes!("3_1", "3 nodes, 1 service"),
    of_nodes!("1_3", "1 node, 3 services"),
    of_nodes!("2_3", "2 nodes, 3 services"),
    of_nodes!("3_3", "3 nodes, 3 services"),
];

/// The keys of those rows: one, two and three nodes with one service, then with three.
pub(crate) static NODE_KEYS: std::sync::LazyLock<[[&str; 10]; 6]> =
    std::sync::LazyLock::new(|| {
        std::array::from_fn(|of| std::array::from_fn(|at| NODE_METRICS[of][at].key))
    });

/// Every row, in the order in which they are shown.
fn metrics() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(NODE_METRICS.iter().flatten())
}

static METRICS: &[Metric] = &[
    row("bare_per_s", "bare HTTP limit: requests", "/s", 0),
    row("bare_cpu", "  CPU of both ends, per 1,000", "s", 4),
    row("pooled_per_s", "the same by hyper-util's client: requests", "/s", 0),
    row("pooled_cpu", "  CPU of both ends, per 1,000", "s", 4),
    row("one_accepted_per_s", "one subscriber: accepted", "/s", 0),
    row("one_delivered_per_s", "  delivered", "/s", 0),
    row("one_share", "  delivered, share of the bare limit", "%", 1).at_least(20.0),
    row("one_share_pooled", "  share of what hyper-util's client does", "%", 1),
    row("one_cpu_pooled", "  CPU of the server by that of a request", "", 2),
    row("one_drain_ms", "  from last answer to last delivery", "ms", 0),
    row("one_cpu", "  CPU of the server, per 1,000 events", "s", 4).at_most(0.06),
    row("one_cpu_driver", "  CPU of the driver, per 1,000 events", "s", 4),
    row("one_cpu_receiver", "  CPU of the receiver, per 1,000 events", "s", 4),
    row("one_others", "  CPU of the machine that others used", "%", 1),
    row("one_rss", "  resident memory, VmRSS", "MiB", 1),
    row("one_hwm", "  the most of it, VmHWM", "MiB", 1).at_most(64.0),
    row("one_pss", "  proportional, PSS", "MiB", 1),
    row("store_bytes", "  store after the stop, per event", "B", 0),
    row("life_per_s", "create, edit, edit, delete: delivered", "/s", 0),
    row("life_cpu", "  CPU of the server, per 1,000 events", "s", 4),
    row("five_accepted_per_s", "five subscribers: accepted", "/s", 0),
    row("five_delivered_per_s", "  deliveries", "/s", 0),
    row("five_share", "  deliveries, share of the bare limit", "%", 1).at_least(45.0),
    row("five_share_pooled", "  share of what hyper-util's client does", "%", 1),
    row("five_drain_ms", "  from last answer to last delivery", "ms", 0),
    row("five_cpu", "  CPU of the server, per 1,000 deliveries", "s", 4),
    row("five_others", "  CPU of the machine that others used", "%", 1),
    row("five_hwm", "  the most of memory, VmHWM", "MiB", 1).at_most(64.0),
    row("five_pss", "  proportional, PSS", "MiB", 1),
    row("notified_p50_ms", "100/s: sent to notified, p50", "ms", 2).at_most(1.0),
    row("notified_p99_ms", "  p99", "ms", 2).at_most(3.0),
    row("notified_p999_ms", "  p99.9", "ms", 2),
    row("notified_max_ms", "  max", "ms", 2),
    row("answered_p50_ms", "  sent to answered, p50", "ms", 2),
    row("answered_p99_ms", "  p99", "ms", 2),
    row("late_max_ms", "  latest request, after its time", "ms", 2),
    row("idle_rss", "  resident memory, VmRSS", "MiB", 1),
    row("ready_empty_s", "start to ready, empty directory", "s", 3).at_most(0.2),
    row("ready_after_s", "  after the run", "s", 3),
    row("stop_s", "stop after the run", "s", 3),
    row("isolation_setup_s", "10,000 subscriptions: set-up", "s", 1),
    row("isolation_p50_without_ms", "  healthy without bad ones, p50", "ms", 2),
    row("isolation_p50_with_ms", "  healthy with 10 % bad ones, p50", "ms", 2),
    row("isolation_p99_first_ms", "  without, p99, before", "ms", 2),
    row("isolation_p99_second_ms", "  without, p99, after", "ms", 2),
    row("isolation_p99_with_ms", "  with, p99", "ms", 2),
    row("isolation_ratio", "  p99 with : mean of p99 without", "", 2).at_most(1.5),
    row("isolation_cpu_without", "  CPU per 1,000 deliveries, without", "s", 4),
    row("isolation_cpu_with", "  CPU per 1,000 deliveries, with", "s", 4),
    row("isolation_hwm", "  the most of memory, VmHWM", "MiB", 1),
    row("isolation_others", "  CPU of the machine that others used", "%", 1),
    row("refusing_burst_per_s", "30 % refused: burst, accepted ones", "/s", 0),
    row("refusing_p50_without_ms", "  100/s, none refused: p50", "ms", 2),
    row("refusing_p50_with_ms", "  100/s, 30 % refused: p50 of the others", "ms", 2),
    row("refusing_p99_without_ms", "  100/s, none refused: p99", "ms", 2),
    row("refusing_p99_with_ms", "  100/s, 30 % refused: p99 of the others", "ms", 2),
    row("refusing_ratio", "  p99 with : without", "", 2).at_most(1.5),
    row("refusing_held", "  held rows", "", 0).at_most(10_000.0),
    row("refusing_failed_attempts", "  rows of failed attempts", "", 0).at_most(1000.0),
    row("refusing_exhausted", "  exhausted rows", "", 0),
    row("refusing_hwm", "  the most of memory, VmHWM", "MiB", 1).at_most(256.0),
    row("refusing_beyond_held", "  held rows beyond the limit", "", 0).at_most(10_000.0),
    row("refusing_beyond_attempts", "  rows of failed attempts then", "", 0).at_most(1000.0),
    row("refusing_beyond_hwm", "  the most of memory then", "MiB", 1).at_most(256.0),
    row("backlog_events", "backlog: events", "", 0),
    row("backlog_fill_s", "  set-up", "s", 1),
    row("backlog_filled_hwm", "  the most of memory until owed, VmHWM", "MiB", 1).at_most(256.0),
    row("backlog_restart_hwm", "  after the restart", "MiB", 1).at_most(256.0),
    row("backlog_drain_hwm", "  until drained", "MiB", 1).at_most(256.0),
    row("backlog_ready_s", "  start to ready after SIGTERM", "s", 3).at_most(5.0),
    row("backlog_ready_crash_s", "  start to ready after SIGKILL", "s", 3).at_most(5.0),
    row("backlog_first_ms", "  slowest of the first creates after it", "ms", 1),
    row("backlog_normal_per_s", "  normal rate", "/s", 0),
    row("backlog_drain_per_s", "  drained at", "/s", 0),
    row("backlog_drain_share", "  share of the normal rate", "%", 1).at_least(50.0),
    row("backlog_drain_cpu", "  CPU of the server, per 1,000 drained", "s", 4),
    row("backlog_other_p50_ms", "  other service: p50 without", "ms", 2),
    row("backlog_other_p50_draining_ms", "  p50 while drained", "ms", 2),
    row("backlog_answered_draining_ms", "  request to answer while drained, p99", "ms", 2),
    row("backlog_other_p99_ms", "  other service: p99 without", "ms", 2),
    row("backlog_other_aside", "  p99 while owed : without", "", 2).at_most(1.5),
    row("backlog_other_draining", "  p99 while drained : without", "", 2).at_most(1.5),
    row("backlog_same_p99_ms", "  same service: p99 without", "ms", 2),
    row("backlog_same_aside", "  p99 while owed : without", "", 2).at_most(1.5),
    row("backlog_same_draining", "  p99 while drained : without", "", 2).at_most(1.5),
    row("backlog_others", "  CPU of the machine that others used", "%", 1),
    row("idle_setup_s", "100,000 idle: set-up", "s", 1),
    row("idle_empty_rss", "  resident memory without any", "MiB", 1),
    row("idle_setup_rss", "  resident memory after the set-up", "MiB", 1).at_most(200.0),
    row("idle_restart_rss", "  after a restart", "MiB", 1).at_most(200.0),
    row("idle_restart_hwm", "  the most of it, VmHWM", "MiB", 1),
    row("idle_empty_cpu", "  CPU in 30 s without any", "s", 2),
    row("idle_cpu", "  CPU in 30 s after the set-up", "s", 2),
    row("idle_cpu_restarted", "  CPU in 30 s after a restart", "s", 2),
    row("idle_cpu_more", "  more than without any, at most", "s", 2).at_most(0.1),
    row("idle_ready_s", "  start to ready after SIGTERM", "s", 3),
    row("idle_ready_crash_s", "  start to ready after SIGKILL", "s", 3),
    row("idle_others", "  CPU of the machine that others used", "%", 1),
    row("claims_per_s", "claimed from a queue by 4 workers, in order", "/s", 0),
    row("groups_per_s", "group commit, 256 that wait: creates", "/s", 0).at_least(20_000.0),
    row("groups_p50_ms", "  wait, p50", "ms", 2),
    row("groups_p99_ms", "  wait, p99", "ms", 2),
    row("groups_ratio", "  by claims", "", 1),
    row("held_open_s", "a transaction held open on PostgreSQL for", "s", 0),
    row("held_open_before_per_s", "  three nodes before: delivered", "/s", 0),
    row("held_open_last_per_s", "  in the last 30 s of it", "/s", 0),
    row("held_open_lowest_per_s", "  in the slowest 10 s of it", "/s", 0),
    row("held_open_after_per_s", "  in the 30 s after it", "/s", 0),
    row("held_open_share", "  last by before", "%", 1).at_least(80.0),
    row("lookups_foreign_us", "look-up of another service's id: p50", "us", 2),
    row("lookups_near_us", "  of an id that nobody has, next to it: p50", "us", 2),
    row("lookups_random_us", "  of a random id: p50", "us", 2),
    row("lookups_near_difference", "  another's by next to it, difference", "%", 2).at_most(5.0),
    row("lookups_random_difference", "  another's by random, difference", "%", 2).at_most(5.0),
];

/// The measured ones as parts of what a program with hyper-util's client gets from this machine.
pub(crate) fn compare_with_pooled(figures: &mut Figures) {
    let part = |of: &str, by: &str| Some(figures.get(of)? / figures.get(by)?);
    let one = part("one_delivered_per_s", "pooled_per_s").map(|part| part * 100.0);
    let five = part("five_delivered_per_s", "pooled_per_s").map(|part| part * 100.0);
    let cpu = part("one_cpu", "pooled_cpu");
    let all = [("one_share_pooled", one), ("five_share_pooled", five), ("one_cpu_pooled", cpu)];
    figures.extend(all.into_iter().filter_map(|(key, figure)| Some((key, figure?))));
}

impl Metric {
    const fn at_least(self, target: f64) -> Self {
        Self { target: Target::AtLeast(target), ..self }
    }

    const fn at_most(self, target: f64) -> Self {
        Self { target: Target::AtMost(target), ..self }
    }

    fn number(&self, figure: Option<f64>) -> String {
        figure.map_or_else(|| "-".to_owned(), |figure| self.grouped(figure))
    }

    /// With commas between thousands, as the targets are written.
    fn grouped(&self, figure: f64) -> String {
        let text = format!("{figure:.*}", self.digits);
        let whole = text.find('.').unwrap_or(text.len());
        let mut grouped = String::new();
        for (at, character) in text.char_indices() {
            if at > 0 && at < whole && (whole - at).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(character);
        }
        grouped
    }

    fn target(&self) -> String {
        match self.target {
            Target::None => String::new(),
            Target::AtLeast(target) => format!(">= {target}"),
            Target::AtMost(target) => format!("<= {target}"),
        }
    }

    /// Whether the target is met; none without a target or a figure.
    fn met(&self, figure: Option<f64>) -> Option<bool> {
        match self.target {
            Target::None => None,
            Target::AtLeast(target) => figure.map(|figure| figure >= target),
            Target::AtMost(target) => figure.map(|figure| figure <= target),
        }
    }
}

/// The middle of each figure over all rounds.
pub(crate) fn medians(rounds: &[Figures]) -> Figures {
    let mut medians = Figures::new();
    for metric in metrics() {
        let figures = rounds.iter().filter_map(|round| round.get(metric.key));
        let mut figures: Vec<f64> = figures.copied().collect();
        figures.sort_by(f64::total_cmp);
        if let Some(middle) = figures.get(figures.len().saturating_sub(1) / 2) {
            medians.insert(metric.key, *middle);
        }
    }
    medians
}

/// The table; with a column for the baseline and the ratio to it when there is one.
pub(crate) fn table(measured: &Figures, baseline: Option<&Figures>) -> String {
    let mut text = format!("{:<42}{:>5}{:>12}", "", "", "measured");
    if baseline.is_some() {
        text += &format!("{:>12}{:>8}", "baseline", "ratio");
    }
    text += &format!("{:>12}\n", "target");
    for metric in metrics() {
        let figure = measured.get(metric.key).copied();
        if figure.is_none() {
            continue;
        }
        let number = metric.number(figure);
        text += &format!("{:<42}{:>5}{number:>12}", metric.label, metric.unit);
        if let Some(baseline) = baseline {
            let before = baseline.get(metric.key).copied();
            let ratio = figure.zip(before).filter(|(_, before)| *before != 0.0);
            let ratio =
                ratio.map_or_else(|| "-".to_owned(), |(now, was)| format!("{:.3}", now / was));
            text += &format!("{:>12}{ratio:>8}", metric.number(before));
        }
        let met = match metric.met(figure) {
            None => "",
            Some(true) => "  met",
            Some(false) => "  MISSED",
        };
        text += &format!("{:>12}{met}", metric.target());
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Keys of the targets that were missed.
pub(crate) fn missed(measured: &Figures) -> Vec<&'static str> {
    let missed =
        |metric: &&'static Metric| metric.met(measured.get(metric.key).copied()) == Some(false);
    metrics().filter(missed).map(|metric| metric.key).collect()
}

/// The figures, rounded to what is worth reading.
pub(crate) fn json(figures: &Figures) -> Value {
    let round = |figure: f64| (figure * 1e6).round() / 1e6;
    figures.iter().map(|(key, figure)| ((*key).to_owned(), json!(round(*figure)))).collect()
}
