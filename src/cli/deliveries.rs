//! `rollcall deliveries` and `rollcall replay`: what failed, and sending it again.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::json;

use super::connection::AppConnection;
use super::ordered::Ordered;
use super::output;
use super::table::{cell, fields, rows, table};

/// The commands about single deliveries.
#[derive(Debug, Subcommand)]
pub(super) enum DeliveriesCommand {
    /// List what is held or exhausted, by number.
    List(ListArgs),
    /// Show one delivery with its last failed attempts.
    Show {
        /// The event's number in the log (`rollcall-sequence`).
        sequence: u64,
        #[command(flatten)]
        connection: AppConnection,
    },
    /// Send one event again now.
    Redeliver {
        /// The event's number in the log (`rollcall-sequence`).
        sequence: u64,
        #[command(flatten)]
        connection: AppConnection,
    },
}

/// Which deliveries.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kept {
    /// Waits for a retry, or behind an earlier event of its contact.
    Held,
    /// Given up after the last retry.
    Exhausted,
}

/// Which part of the list.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only these; both unless given.
    #[arg(long)]
    state: Option<Kept>,
    /// Only events after this number.
    #[arg(long, default_value_t = 0)]
    after: u64,
    /// Most deliveries to list, 1 to 100.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    connection: AppConnection,
}

/// From where.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("point").required(true).args(["since", "after"]))]
pub(super) struct ReplayArgs {
    /// Everything that happened at this time or later, such as 2026-11-23T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Everything after this number of the log.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    #[command(flatten)]
    connection: AppConnection,
}

fn path<'a>(app: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["v1", "api", "apps", app, "staff-contact-event-sub"].iter().chain(rest).copied().collect()
}

/// Runs the command.
pub(super) async fn run(command: DeliveriesCommand) -> anyhow::Result<()> {
    match command {
        DeliveriesCommand::List(args) => list(args).await,
        DeliveriesCommand::Show { sequence, connection } => {
            let (client, app) = connection.client()?;
            let number = sequence.to_string();
            let result = client.ask(Method::GET, &path(&app, &["deliveries", &number])).await?;
            connection.connection.show(&result, describe)
        }
        DeliveriesCommand::Redeliver { sequence, connection } => {
            let (client, app) = connection.client()?;
            let number = sequence.to_string();
            let path = path(&app, &["deliveries", &number, "redeliver"]);
            let result = client.ask(Method::POST, &path).await?;
            connection.connection.show(&result, describe)
        }
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let (client, app) = args.connection.client()?;
    let mut query = vec![("after", args.after.to_string()), ("limit", args.limit.to_string())];
    let state = args.state.and_then(|state| state.to_possible_value());
    query.extend(state.map(|state| ("state", state.get_name().to_owned())));
    let result = client.query(&path(&app, &["deliveries"]), &query).await?;
    let columns = [
        ("NUMBER", "sequence"),
        ("STATE", "state"),
        ("STATUS", "status"),
        ("NAME", "fullName"),
        ("CONTACT", "contact"),
        ("ATTEMPTS", "attempts"),
        ("NEXT ATTEMPT", "nextAttemptAt"),
    ];
    args.connection.connection.show_list(&result, &columns)?;
    if let Ordered::Plain(next) = &result["next"]
        && let Some(next) = next.as_u64()
    {
        output::complain(&format!("there are more: --after {next}"));
    }
    Ok(())
}

/// The fields of a delivery, and its failed attempts as a table.
fn describe(delivery: &Ordered) -> String {
    let Ordered::Object(all) = delivery else { return cell(delivery) };
    let (failed, own): (Vec<_>, Vec<_>) =
        all.iter().cloned().partition(|(name, _)| name == "failedAttempts");
    let mut text = fields(&Ordered::Object(own));
    if let Some((_, Ordered::List(failed))) = failed.first()
        && !failed.is_empty()
    {
        let headings = ["ATTEMPT", "TIME", "STATUS", "STEP", "ANSWER"];
        let columns = ["attempt", "time", "status", "step", "answer"];
        text.push_str("\n\n");
        text.push_str(&table(&headings, &rows(failed, &columns)));
    }
    text
}

/// Runs `rollcall replay`.
pub(super) async fn replay(args: ReplayArgs) -> anyhow::Result<()> {
    let (client, app) = args.connection.client()?;
    let body = match (args.since, args.after) {
        (Some(since), _) => json!({ "since": since }),
        (None, after) => json!({ "after": after }),
    };
    let result = client.tell(Method::POST, &path(&app, &["replay"]), &body, None).await?;
    args.connection.connection.show(&result, |result| {
        format!(
            "sends again what follows {}, up to {}",
            cell(&result["after"]),
            cell(&result["newest"])
        )
    })
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn failed_attempts_are_a_table_below_the_fields() {
        let delivery = serde_json::from_str(
            r#"{"sequence":7,"state":"held","failedAttempts":[{"attempt":1,"time":"t","status":null,"step":"connect","answer":""}]}"#,
        )
        .unwrap();

        let text = describe(&delivery);

        assert_eq!(
            text,
            "sequence  7\nstate     held\n\nATTEMPT  TIME  STATUS  STEP     ANSWER\n1        t     -       connect"
        );
    }
}
