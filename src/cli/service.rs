//! `rollcall service`: the tenants of a server.

use clap::Subcommand;
use http::Method;
use serde_json::json;

use super::connection::Connection;
use super::table::fields;

/// The commands about services.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Create a service.
    Create {
        /// What it is called; at most 50 characters.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the services.
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a service with its apps, contacts and events, for good and without notifications.
    Delete {
        /// The service's identifier.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

const SERVICES: [&str; 3] = ["v1", "admin", "services"];

/// Runs the command.
pub(super) async fn run(command: ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Create { name, connection } => {
            let body = json!({ "name": name });
            let result = connection.admin()?.tell(Method::POST, &SERVICES, &body, None).await?;
            connection.show(&result, fields)
        }
        ServiceCommand::List { connection } => {
            let result = connection.admin()?.list(&SERVICES).await?;
            connection.show_list(&result, &[("SERVICE", "serviceId"), ("NAME", "name")])
        }
        ServiceCommand::Delete { id, connection } => {
            let path = ["v1", "admin", "services", &id];
            let result = connection.admin()?.ask(Method::DELETE, &path).await?;
            connection.show(&result, |_| format!("deleted {id}"))
        }
    }
}
