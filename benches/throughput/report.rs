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

static METRICS: &[Metric] = &[
    row("bare_per_s", "bare HTTP limit: requests", "/s", 0),
    row("bare_cpu", "  CPU of both ends, per 1,000", "s", 4),
    row("one_accepted_per_s", "one subscriber: accepted", "/s", 0),
    row("one_delivered_per_s", "  delivered", "/s", 0),
    row("one_share", "  delivered, share of the bare limit", "%", 1).at_least(20.0),
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
];

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
    for metric in METRICS {
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
    for metric in METRICS {
        let figure = measured.get(metric.key).copied();
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
    let missed = |metric: &&Metric| metric.met(measured.get(metric.key).copied()) == Some(false);
    METRICS.iter().filter(missed).map(|metric| metric.key).collect()
}

/// The figures, rounded to what is worth reading.
pub(crate) fn json(figures: &Figures) -> Value {
    let round = |figure: f64| (figure * 1e6).round() / 1e6;
    figures.iter().map(|(key, figure)| ((*key).to_owned(), json!(round(*figure)))).collect()
}
