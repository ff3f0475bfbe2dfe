//! `rollcall app`: the API clients of a service, and their tokens.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::client::Client;
use super::connection::Connection;
use super::table::fields;
use crate::domain::tenancy::Scope;

/// The commands about apps.
#[derive(Debug, Subcommand)]
pub(super) enum AppCommand {
    /// Create an app; its `AppToken` is printed once.
    Create {
        /// What it is called; at most 50 characters.
        name: String,
        /// What its token may do, with commas: events, directory:read, directory:write.
        #[arg(long, value_delimiter = ',', value_parser = parse_scope, default_value = "events,directory:read,directory:write")]
        scopes: Vec<String>,
        #[command(flatten)]
        of: OfService,
    },
    /// List the apps of a service.
    List {
        #[command(flatten)]
        of: OfService,
    },
    /// Delete an app with its subscription.
    Delete {
        /// The app's identifier.
        id: String,
        #[command(flatten)]
        of: OfService,
    },
    /// Make a new `AppToken`; the old one works 24 h longer.
    RotateToken {
        /// The app's identifier.
        id: String,
        /// Only 0: the old token stops working at once. Leave it out for the 24 h.
        #[arg(long, value_name = "0", value_parser = clap::value_parser!(u8).range(0..=0))]
        overlap: Option<u8>,
        #[command(flatten)]
        of: OfService,
    },
}

/// Which service, on which server.
#[derive(Debug, Args)]
pub(super) struct OfService {
    /// The service's identifier; without it and without --token the one in dev.json.
    #[arg(long, env = "ROLLCALL_SERVICE", value_name = "ID")]
    service: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(super) async fn run(command: AppCommand) -> anyhow::Result<()> {
    match command {
        AppCommand::Create { name, scopes, of } => {
            let body = json!({"name": name, "scopes": scopes});
            let (client, service) = of.client()?;
            let result = client.tell(Method::POST, &path(&service, &[]), &body, None).await?;
            of.connection.show(&result, |result| {
                format!("{}\n\nthe AppToken is shown only this once", fields(result))
            })
        }
        AppCommand::List { of } => {
            let (client, service) = of.client()?;
            let result = client.list(&path(&service, &[])).await?;
            let columns = [("APP", "appID"), ("NAME", "name"), ("SCOPES", "scopes")];
            of.connection.show_list(&result, &columns)
        }
        AppCommand::Delete { id, of } => {
            let (client, service) = of.client()?;
            let result = client.ask(Method::DELETE, &path(&service, &[&id])).await?;
            of.connection.show(&result, |_| format!("deleted {id}"))
        }
        AppCommand::RotateToken { id, overlap, of } => {
            let body = overlap.map_or_else(|| json!({}), |overlap| json!({ "overlap": overlap }));
            let (client, service) = of.client()?;
            let path = path(&service, &[&id, "token", "rotate"]);
            let result = client.tell(Method::POST, &path, &body, None).await?;
            of.connection.show(&result, |result| {
                format!("{}\n\nthe AppToken is shown only this once", fields(result))
            })
        }
    }
}

impl OfService {
    fn client(&self) -> anyhow::Result<(Client, String)> {
        self.connection.admin_of(self.service.as_ref())
    }
}

fn path<'a>(service: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["v1", "admin", "services", service, "apps"].iter().chain(rest).copied().collect()
}

fn parse_scope(text: &str) -> Result<String, String> {
    Scope::parse(text)
        .map(|scope| scope.name().to_owned())
        .ok_or_else(|| "a scope is one of events, directory:read, directory:write".to_owned())
}
