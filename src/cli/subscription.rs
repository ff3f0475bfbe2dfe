//! `rollcall subscription`: where the notifications of an app go.

use clap::{ArgAction, Subcommand};
use http::Method;
use serde_json::json;

use super::connection::AppConnection;
use super::table::fields;

/// The commands about the subscription of an app.
#[derive(Debug, Subcommand)]
pub(super) enum SubscriptionCommand {
    /// Show the subscription and where it stands.
    Show {
        #[command(flatten)]
        connection: AppConnection,
    },
    /// Subscribe a URL, which is challenged first, or unsubscribe.
    Set {
        /// The receiver's URL.
        #[arg(long, value_name = "URL")]
        target: String,
        /// Whether notifications are sent; false drops what is pending.
        #[arg(long, action = ArgAction::Set, value_name = "true|false")]
        enabled: bool,
        #[command(flatten)]
        connection: AppConnection,
    },
    /// Challenge the stored URL again and change nothing: a test of the receiver; exit code 1 when it fails.
    Verify {
        #[command(flatten)]
        connection: AppConnection,
    },
    /// Make a new signing secret; the earlier ones sign 24 h longer, at most three in all.
    RotateSecret {
        #[command(flatten)]
        connection: AppConnection,
    },
}

/// Runs the command.
pub(super) async fn run(command: SubscriptionCommand) -> anyhow::Result<()> {
    match command {
        SubscriptionCommand::Show { connection } => {
            let (client, app) = connection.client()?;
            let result = client.ask(Method::GET, &path(&app, &[])).await?;
            connection.connection.show(&result, fields)
        }
        SubscriptionCommand::Set { target, enabled, connection } => {
            let (client, app) = connection.client()?;
            let body = json!({"enabled": enabled, "url": target});
            let result = client.tell(Method::PATCH, &path(&app, &[]), &body, None).await?;
            connection.connection.show(&result, fields)
        }
        SubscriptionCommand::Verify { connection } => {
            let (client, app) = connection.client()?;
            let result = client.ask(Method::POST, &path(&app, &["verify"])).await?;
            connection.connection.show(&result, fields)
        }
        SubscriptionCommand::RotateSecret { connection } => {
            let (client, app) = connection.client()?;
            let result = client.ask(Method::POST, &path(&app, &["secret", "rotate"])).await?;
            connection.connection.show(&result, |result| {
                format!("{}\n\nthe earlier secrets sign 24 h longer", fields(result))
            })
        }
    }
}

fn path<'a>(app: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["v1", "api", "apps", app, "staff-contact-event-sub"].iter().chain(rest).copied().collect()
}
