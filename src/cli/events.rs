//! `rollcall events`: the event log of an app's service, one page of it or followed for ever.
//!
//! Following asks again and again, each time with a wait. The first request must succeed, so that a mistake is told at
//! once; later ones are repeated, slower and slower, until the server is there again or refuses.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::client::{Client, Refused};
use super::connection::{AppConnection, items};
use super::ordered::Ordered;
use super::output::{self, plain};
use super::serve::Signals;
use crate::domain::page::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX};

/// Seconds that a request waits for the next event. Well below the time that the client gives a request; shorter
/// asks an idle server more often.
const FOLLOW_WAIT_SECONDS: u64 = 20;

/// First wait after a request that failed. It doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// Longest wait: longer lets a person wait for a server that is back, shorter adds to the load of one that starts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The arguments of `rollcall events`.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only events with higher numbers; 0 is the beginning of the log.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    after: u64,
    /// Most events to list, 1 to 500; with --follow, most in one request [default: 50; with --follow 500].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_LIMIT_MAX)))]
    limit: Option<u32>,
    /// Go on with what comes next, until Ctrl-C; a server that goes away is waited for.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    connection: AppConnection,
}

/// Runs the command.
pub(super) async fn run(args: EventsArgs) -> anyhow::Result<()> {
    let (client, app) = args.connection.client()?;
    let default = if args.follow { PAGE_LIMIT_MAX } else { PAGE_LIMIT_DEFAULT };
    let feed = Feed {
        client,
        app,
        limit: args.limit.unwrap_or(default),
        json: args.connection.connection.json,
    };
    if args.follow {
        return follow(&feed, args.after).await;
    }
    let page = feed.ask(args.after, 0).await?;
    feed.print(&page)?;
    let (next, newest) = (number(&page, "next"), number(&page, "newest"));
    if let Some(more @ 1..) = newest.checked_sub(next) {
        output::complain(&format!("{more} more; go on with --after {next}"));
    }
    Ok(())
}

/// What every request has in common.
struct Feed {
    client: Client,
    app: String,
    limit: u32,
    json: bool,
}

impl Feed {
    async fn ask(&self, after: u64, wait_seconds: u64) -> anyhow::Result<Ordered> {
        let path = ["v1", "api", "apps", &self.app, "staff-contact-events"];
        let query = [
            ("after", after.to_string()),
            ("limit", self.limit.to_string()),
            ("wait", wait_seconds.to_string()),
        ];
        self.client.query(&path, &query).await
    }

    fn print(&self, page: &Ordered) -> anyhow::Result<()> {
        let gap = &page["gap"];
        if gap.get("from").is_some() {
            if self.json {
                output::print_json(&GapLine { gap })?;
            } else {
                let (from, to) = (number(gap, "from"), number(gap, "to"));
                output::complain(&format!("the events {from} to {to} are not kept any more"));
            }
        }
        for item in items(page) {
            if self.json { output::print_json(item)? } else { output::print(&line(item))? }
        }
        Ok(())
    }
}

/// The line for programs that stands where events are missing.
#[derive(Serialize)]
struct GapLine<'a> {
    gap: &'a Ordered,
}

async fn follow(feed: &Feed, after: u64) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut after = after;
    let mut asked_before = false;
    // Whether the last request failed; then the next one does not wait, so that a server that is back is told at once.
    let mut down = false;
    let mut backoff = None;
    loop {
        let wait_seconds = if asked_before && !down { FOLLOW_WAIT_SECONDS } else { 0 };
        let from = Instant::now();
        let answer = tokio::select! {
            answer = feed.ask(after, wait_seconds) => answer,
            _ = signals.next() => return Ok(()),
        };
        let pause = match answer {
            Ok(page) => {
                if !asked_before {
                    output::complain(&format!(
                        "following the events after {after}; end with Ctrl-C"
                    ));
                }
                if std::mem::take(&mut down) {
                    output::complain("connected again");
                }
                asked_before = true;
                feed.print(&page)?;
                after = number(&page, "next");
                let empty = items(&page).is_empty();
                // A server that answers only those who do not wait is still too busy.
                if wait_seconds > 0 || !empty {
                    backoff = None;
                }
                // A server that stops ends the wait before its time; asking at once would go in a circle.
                let early = wait_seconds > 0 && from.elapsed() < BACKOFF_MIN;
                (empty && early).then_some(BACKOFF_MIN)
            }
            Err(error) if !asked_before || !may_pass(&error) => return Err(error),
            Err(error) => {
                let pause = next_backoff(backoff);
                backoff = Some(pause);
                down = true;
                output::complain(&format!("{error:#}; trying again in {} s", pause.as_secs()));
                Some(pause)
            }
        };
        if let Some(pause) = pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = signals.next() => return Ok(()),
            }
        }
    }
}

/// Whether the same request may succeed later: the server was not reached, is busy, or is at fault itself.
fn may_pass(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<Refused>().map(|refused| refused.status.as_u16());
    status.is_none_or(|status| status == 408 || status == 429 || status >= 500)
}

fn next_backoff(before: Option<Duration>) -> Duration {
    before.map_or(BACKOFF_MIN, |before| (before * 2).min(BACKOFF_MAX))
}

/// One aligned line for people.
fn line(item: &Ordered) -> String {
    let message = &item["notification"]["message"];
    let text = |value: &Ordered| plain(value.as_str().unwrap_or("?"));
    format!(
        "{}  {:<11}  {:<24}  {:<35}  #{}",
        text(&item["time"]),
        text(&message["status"]),
        text(&message["fullName"]),
        text(&message["id"]),
        number(item, "sequence"),
    )
}

/// A number of the answer; a server that left it out is one that has no events.
fn number(object: &Ordered, name: &str) -> u64 {
    object[name].as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::{BACKOFF_MAX, Ordered, line, may_pass, next_backoff};
    use crate::cli::client::Refused;

    #[test]
    fn line_tells_time_status_name_id_and_number() {
        let item: Ordered = serde_json::from_str(
            r#"{"sequence":7,"id":"evt_1","time":"2026-01-02T03:04:05.678Z","notification":
            {"message":{"status":"staffEdit","fullName":"Ana\u001b B","id":"sc_1"}}}"#,
        )
        .unwrap();

        let words: Vec<String> = line(&item).split_whitespace().map(str::to_owned).collect();

        assert_eq!(words.join(" "), "2026-01-02T03:04:05.678Z staffEdit Ana\u{fffd} B sc_1 #7");
    }

    #[test]
    fn waits_double_up_to_their_limit() {
        let mut waits = Vec::new();
        let mut wait = None;
        for _ in 0..7 {
            wait = Some(next_backoff(wait));
            waits.extend(wait.map(|wait: Duration| wait.as_secs()));
        }

        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(wait, Some(BACKOFF_MAX));
    }

    #[test]
    fn only_what_may_pass_is_asked_again() {
        let refused = |status| {
            may_pass(&Refused::new(StatusCode::from_u16(status).unwrap(), 1, String::new()).into())
        };

        assert!(may_pass(&anyhow::anyhow!("connection refused")));
        assert_eq!([429, 500, 503].map(refused), [true; 3]);
        assert_eq!([400, 401, 403, 404].map(refused), [false; 4]);
    }
}
