//! `rollcall audit`: who changed what, when and from where.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::connection::{Connection, items};
use super::ordered::Ordered;
use super::output;
use super::table::{cell, table};
use crate::domain::page::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX};

/// The commands about the audit log.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// List entries, oldest first: those of a service, or without --service those about the whole server.
    List(ListArgs),
}

/// Which entries.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// The service's identifier, also of one that was deleted.
    #[arg(long, value_name = "ID")]
    service: Option<String>,
    /// Only entries after this number.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    after: u64,
    /// Only entries of this time or later, such as 2026-11-23T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only this action, such as tokenRotate.
    #[arg(long)]
    action: Option<String>,
    /// Most entries to list, 1 to 500.
    #[arg(long, default_value_t = PAGE_LIMIT_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_LIMIT_MAX)))]
    limit: u32,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(super) async fn run(command: AuditCommand) -> anyhow::Result<()> {
    let AuditCommand::List(args) = command;
    let path = match &args.service {
        Some(service) => vec!["v1", "admin", "services", service, "audit"],
        None => vec!["v1", "admin", "audit"],
    };
    let mut query = vec![("after", args.after.to_string()), ("limit", args.limit.to_string())];
    query.extend(args.since.map(|since| ("since", since)));
    query.extend(args.action.map(|action| ("action", action)));
    let result = args.connection.admin()?.query(&path, &query).await?;
    args.connection.show(&result, |result| list(items(result)))?;
    if let Ordered::Plain(Value::Number(next)) = &result["next"] {
        output::complain(&format!("there may be more: --after {next}"));
    }
    Ok(())
}

/// What the last column has, each with its name in front.
const SUBJECTS: [(&str, &str); 7] = [
    ("service", "serviceId"),
    ("app", "appID"),
    ("contact", "contact"),
    ("event", "sequence"),
    ("token", "token"),
    ("target", "target"),
    ("reason", "reason"),
];

fn list(entries: &[Ordered]) -> String {
    let row = |entry: &Ordered| {
        let mut row: Vec<String> =
            ["number", "time", "by", "from", "action"].map(|field| cell(&entry[field])).into();
        let there = SUBJECTS.iter().filter(|(_, field)| entry.get(field).is_some());
        // Identifiers say by themselves what they are.
        let subjects: Vec<String> = there
            .map(|(name, field)| match cell(&entry[*field]) {
                id if id.contains('_') && !id.contains(' ') => id,
                other => format!("{name} {other}"),
            })
            .collect();
        row.push(subjects.join(", "));
        row
    };
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    table(&["NUMBER", "TIME", "BY", "FROM", "ACTION", "SUBJECT"], &rows)
}

#[cfg(test)]
mod tests {
    use super::list;

    #[test]
    fn an_entry_is_a_line_with_what_it_is_about_at_the_end() {
        let entries = [
            r#"{"number":1,"time":"t","by":"tok_1","from":"192.0.2.7","action":"contactEdit","contact":"sc_1","sequence":9}"#,
            r#"{"number":2,"time":"t","by":"system","from":null,"action":"subscriptionDisable","appID":"app_1","reason":"gone"}"#,
        ]
        .map(|text| serde_json::from_str(text).unwrap());

        assert_eq!(
            list(&entries),
            "NUMBER  TIME  BY      FROM       ACTION               SUBJECT\n\
             1       t     tok_1   192.0.2.7  contactEdit          sc_1, event 9\n\
             2       t     system  -          subscriptionDisable  app_1, reason gone"
        );
    }
}
