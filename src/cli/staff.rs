//! `rollcall staff`: the roll, in the name of an app.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value};

use super::Usage;
use super::connection::AppConnection;
use super::staff_fields::{StaffFields, field_name};
use super::table::fields;

/// The commands about staff contacts.
#[derive(Debug, Subcommand)]
pub(super) enum StaffCommand {
    /// List staff contacts, oldest first.
    List(ListArgs),
    /// Show one staff contact.
    Show {
        /// The contact's identifier.
        id: String,
        #[command(flatten)]
        connection: AppConnection,
    },
    /// Create a staff contact.
    Create(Box<CreateArgs>),
    /// Edit a staff contact; what is not named stays.
    Edit(Box<EditArgs>),
    /// Delete a staff contact for good.
    Delete {
        /// The contact's identifier.
        id: String,
        /// Only if this is still its version.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
        #[command(flatten)]
        connection: AppConnection,
    },
}

/// Which part of the list.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only contacts whose full name contains this, in any case.
    #[arg(long)]
    name: Option<String>,
    /// Most contacts to list, at most 500.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Contacts to leave out at the start.
    #[arg(long, default_value_t = 0)]
    offset: u32,
    #[command(flatten)]
    connection: AppConnection,
}

/// A new staff contact.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The first name.
    #[arg(long)]
    first_name: String,
    /// The last name.
    #[arg(long)]
    last_name: String,
    /// The e-mail address; unique in the service, it cannot be edited later.
    #[arg(long)]
    email: String,
    #[command(flatten)]
    fields: StaffFields,
    #[command(flatten)]
    connection: AppConnection,
}

/// A change to a staff contact.
#[derive(Debug, Args)]
pub(super) struct EditArgs {
    /// The contact's identifier.
    id: String,
    /// The first name.
    #[arg(long)]
    first_name: Option<String>,
    /// The last name.
    #[arg(long)]
    last_name: Option<String>,
    #[command(flatten)]
    fields: StaffFields,
    /// Remove this field, for example job-title; may be repeated.
    #[arg(long, value_name = "FIELD")]
    unset: Vec<String>,
    /// Only if this is still its version.
    #[arg(long, value_name = "VERSION")]
    if_match: Option<u64>,
    #[command(flatten)]
    connection: AppConnection,
}

/// Runs the command.
pub(super) async fn run(command: StaffCommand) -> anyhow::Result<()> {
    match command {
        StaffCommand::List(args) => list(args).await,
        StaffCommand::Show { id, connection } => {
            let (client, app) = connection.client()?;
            let result = client.ask(Method::GET, &path(&app, &["staff", &id])).await?;
            connection.connection.show(&result, fields)
        }
        StaffCommand::Create(args) => create(*args).await,
        StaffCommand::Edit(args) => edit(*args).await,
        StaffCommand::Delete { id, if_match, connection } => {
            let (client, app) = connection.client()?;
            let path = path(&app, &["staff", &id]);
            let result = client.ask_if(Method::DELETE, &path, if_match).await?;
            connection.connection.show(&result, |_| format!("deleted {id}"))
        }
    }
}

fn path<'a>(app: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["v1", "api", "apps", app, "contacts"].iter().chain(rest).copied().collect()
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let (client, app) = args.connection.client()?;
    let mut query = vec![("offset", args.offset.to_string()), ("limit", args.limit.to_string())];
    query.extend(args.name.map(|name| ("fullName", name)));
    let result = client.query(&path(&app, &["staffcontact-list"]), &query).await?;
    let columns = [
        ("CONTACT", "id"),
        ("FIRST NAME", "firstName"),
        ("LAST NAME", "lastName"),
        ("E-MAIL", "email"),
        ("STATUS", "status"),
        ("EXTENSION", "extensionNumber"),
        ("VERSION", "version"),
    ];
    args.connection.connection.show_list(&result, &columns)
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let (client, app) = args.connection.client()?;
    let mut body = args.fields.into_object();
    body.insert("firstName".to_owned(), args.first_name.into());
    body.insert("lastName".to_owned(), args.last_name.into());
    body.insert("email".to_owned(), args.email.into());
    let path = path(&app, &["staff"]);
    let result = client.tell(Method::POST, &path, &Value::Object(body), None).await?;
    args.connection.connection.show(&result, fields)
}

async fn edit(args: EditArgs) -> anyhow::Result<()> {
    let names = [("firstName", args.first_name), ("lastName", args.last_name)];
    let body = merge_patch(args.fields.into_object(), names, &args.unset)?;
    let (client, app) = args.connection.client()?;
    let path = path(&app, &["staff", &args.id]);
    let result = client.tell(Method::PATCH, &path, &Value::Object(body), args.if_match).await?;
    args.connection.connection.show(&result, fields)
}

fn merge_patch(
    mut body: Map<String, Value>,
    names: [(&str, Option<String>); 2],
    unset: &[String],
) -> anyhow::Result<Map<String, Value>> {
    for (name, value) in names {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.into());
        }
    }
    for field in unset {
        if body.insert(field_name(field), Value::Null).is_some_and(|before| !before.is_null()) {
            return Err(Usage(format!("{field} is both set and unset")).into());
        }
    }
    if body.is_empty() {
        return Err(Usage("nothing to edit: name a field, or --unset one".to_owned()).into());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::merge_patch;

    #[test]
    fn unset_fields_become_null_and_contradictions_are_refused() {
        let job = || Map::from_iter([("jobTitle".to_owned(), json!("Lead"))]);
        let none = || [("firstName", None), ("lastName", None)];

        let body = merge_patch(job(), none(), &["role".to_owned()]).unwrap();

        assert_eq!(Value::Object(body), json!({"jobTitle": "Lead", "role": null}));
        assert!(merge_patch(job(), none(), &["job-title".to_owned()]).is_err());
        assert!(merge_patch(Map::new(), none(), &[]).is_err());
    }
}
