//! `rollcall app`: the API clients of a service, and their tokens.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::client::Client;
use super::connection::{Connection, items};
use super::ordered::Ordered;
use super::table::{cell, fields, table};
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
            of.connection.show(&result, |result| list(items(result)))
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

/// One line for each token, which repeats its app.
fn list(apps: &[Ordered]) -> String {
    let headings = ["APP", "NAME", "SCOPES", "TOKEN", "LAST USED", "EXPIRES"];
    let mut rows = Vec::new();
    for app in apps {
        let of_app = ["appID", "name", "scopes"].map(|field| cell(&app[field]));
        let tokens = app["tokens"].as_list().unwrap_or_default();
        for token in tokens {
            let of_token = ["id", "lastUsedAt", "expiresAt"].map(|field| cell(&token[field]));
            rows.push(of_app.iter().cloned().chain(of_token).collect());
        }
        if tokens.is_empty() {
            rows.push(of_app.into());
        }
    }
    table(&headings, &rows)
}

fn path<'a>(service: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["v1", "admin", "services", service, "apps"].iter().chain(rest).copied().collect()
}

fn parse_scope(text: &str) -> Result<String, String> {
    Scope::parse(text)
        .map(|scope| scope.name().to_owned())
        .ok_or_else(|| "a scope is one of events, directory:read, directory:write".to_owned())
}

#[cfg(test)]
mod tests {
    use super::list;

    #[test]
    fn every_token_has_a_line_with_its_app() {
        let apps = [
            r#"{"appID":"app_1","name":"CRM","scopes":["events"],"tokens":[
                {"id":"tok_1","lastUsedAt":null,"expiresAt":"t"},
                {"id":"tok_2","lastUsedAt":"u","expiresAt":null}]}"#,
            r#"{"appID":"app_2","name":"X","scopes":["events"]}"#,
        ]
        .map(|text| serde_json::from_str(text).unwrap());

        assert_eq!(
            list(&apps),
            "APP    NAME  SCOPES  TOKEN  LAST USED  EXPIRES\n\
             app_1  CRM   events  tok_1  -          t\n\
             app_1  CRM   events  tok_2  u          -\n\
             app_2  X     events"
        );
    }
}
