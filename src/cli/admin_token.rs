//! `rollcall admin-token`: rotating the stored admin token, and what to do when it is lost.

use anyhow::Context;
use clap::Subcommand;
use http::Method;
use serde_json::json;

use super::connection::Connection;
use super::dev_credentials::{DataDir, DevCredentials};
use super::output;
use super::store_setting::{StoreSetting, remedy};
use super::table::fields;
use crate::app::{self, ClosedStore};

/// The commands about the admin token.
#[derive(Debug, Subcommand)]
pub(super) enum AdminTokenCommand {
    /// Make a new admin token on a running server; the old one works 24 h longer.
    Rotate {
        /// Only 0: the old token stops working at once. Leave it out for the 24 h.
        #[arg(long, value_name = "0", value_parser = clap::value_parser!(u8).range(0..=0))]
        overlap: Option<u8>,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the admin tokens of a running server by their ids, with their last use.
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Give a data directory, or a PostgreSQL, a new admin token, printed once; no server may run on it.
    Reset {
        #[command(flatten)]
        data_dir: DataDir,
        #[command(flatten)]
        store: StoreSetting,
    },
}

/// Runs the command.
pub(super) async fn run(command: AdminTokenCommand) -> anyhow::Result<()> {
    match command {
        AdminTokenCommand::Rotate { overlap, connection } => {
            let body = overlap.map_or_else(|| json!({}), |overlap| json!({ "overlap": overlap }));
            let path = ["v1", "admin", "token", "rotate"];
            let result = connection.admin()?.tell(Method::POST, &path, &body, None).await?;
            connection.show(&result, |result| {
                format!("{}\n\nthe admin token is shown only this once", fields(result))
            })
        }
        AdminTokenCommand::List { connection } => {
            let result = connection.admin()?.list(&["v1", "admin", "token"]).await?;
            let columns = [
                ("TOKEN", "id"),
                ("CREATED", "createdAt"),
                ("LAST USED", "lastUsedAt"),
                ("EXPIRES", "expiresAt"),
            ];
            connection.show_list(&result, &columns)
        }
        AdminTokenCommand::Reset { data_dir, store } => {
            reset(&store.closed_store(&data_dir)?).await
        }
    }
}

async fn reset(store: &ClosedStore) -> anyhow::Result<()> {
    let token = app::reset_admin_token(store)
        .await
        .with_context(|| format!("cannot reset the admin token in {store}; {}", remedy(store)))?;
    // First of all, so that it is not lost when something fails below.
    let printed = output::print(token.reveal());
    // `rollcall dev` takes its token from there, and gives it to the server as a setting, which wins.
    if let ClosedStore::DataDir(data_dir) = store
        && let Some(mut credentials) = DevCredentials::find(data_dir)
    {
        token.reveal().clone_into(&mut credentials.admin_token);
        credentials.store(data_dir)?;
    }
    printed?;
    output::complain(&format!(
        "this is the new admin token of the store in {store}, shown only this once; the old one no longer works"
    ));
    Ok(())
}
