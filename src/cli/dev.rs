//! `rollcall dev`: a server for the laptop, with a service and an app ready to use.
//!
//! Makes them through its own HTTP API, as anybody would, and keeps their credentials in `dev.json`. Later starts
//! reuse them as long as the server still knows them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use http::{Method, StatusCode};
use serde_json::json;

use super::client::{Client, Refused};
use super::dev_credentials::{DataDir, DevCredentials};
use super::ordered::Ordered;
use super::settings_flags::SettingsFlags;
use super::{log, output, serve};
use crate::app::Running;
use crate::config;
use crate::domain::tenancy::{Scopes, Token};

/// The arguments of `rollcall dev`.
#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Print one JSON object with everything a client needs, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsFlags,
}

/// Runs the command.
pub(super) async fn run(args: DevArgs) -> anyhow::Result<()> {
    let mut settings = config::load(&args.settings.sources(true))?.settings;
    log::install(&settings);
    let mut credentials = DevCredentials::find(&settings.data_dir).unwrap_or_default();
    credentials.data_dir = std::path::absolute(&settings.data_dir)?;
    credentials.admin_token = admin_token(&settings, &credentials)?;
    settings.admin_token = Some(Token::from_text(&credentials.admin_token));
    let signals = serve::Signals::of_development(&settings)?;
    let running = serve::start(settings).await?;
    let printed = welcome(&running, &mut credentials, args.json).await;
    serve::wait(running, signals, printed).await
}

/// The operator's token, else the one of the last start, else a new one.
fn admin_token(settings: &config::Settings, kept: &DevCredentials) -> anyhow::Result<String> {
    if let Some(token) = &settings.admin_token {
        return Ok(token.reveal().to_owned());
    }
    if !kept.admin_token.is_empty() {
        return Ok(kept.admin_token.clone());
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    Ok(Token::from_random(Token::ADMIN_PREFIX, random).reveal().to_owned())
}

async fn welcome(running: &Running, kept: &mut DevCredentials, json: bool) -> anyhow::Result<()> {
    kept.base_url = serve::base_url(running.scheme(), running.address);
    prepare(kept).await.with_context(|| match running.scheme() {
        "https" => format!(
            "cannot call {}; the certificate must be valid for that address and trusted by this machine",
            kept.base_url
        ),
        _ => format!("cannot call {}", kept.base_url),
    })?;
    if json {
        return output::print_json(kept);
    }
    output::print(&text(kept, &program(), &elsewhere(&kept.data_dir)))
}

/// Makes service and app unless those of the last start still work, and keeps the credentials.
async fn prepare(kept: &mut DevCredentials) -> anyhow::Result<()> {
    if !still_good(kept).await? {
        make_demo(kept).await?;
    }
    kept.store(&kept.data_dir)
}

/// Whether the server still knows the app and its token.
async fn still_good(kept: &DevCredentials) -> anyhow::Result<bool> {
    if kept.app_id.is_empty() || kept.app_token.is_empty() {
        return Ok(false);
    }
    let client = Client::new(&kept.base_url, Token::from_text(&kept.app_token))?;
    let answer = client.ask(Method::GET, &["v1", "api", "apps", &kept.app_id, "event-hooks"]).await;
    let unknown = |error: &anyhow::Error| {
        error.downcast_ref::<Refused>().is_some_and(|refused| {
            [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&refused.status)
        })
    };
    match answer {
        Ok(_) => Ok(true),
        Err(error) if unknown(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn make_demo(kept: &mut DevCredentials) -> anyhow::Result<()> {
    let admin = Client::new(&kept.base_url, Token::from_text(&kept.admin_token))?;
    let services = ["v1", "admin", "services"];
    let service = admin.tell(Method::POST, &services, &json!({"name": "Demo"}), None).await?;
    kept.service_id = text_of(&service, "serviceId")?;
    let scopes: Vec<&str> = Scopes::all().names().collect();
    let apps = ["v1", "admin", "services", &kept.service_id, "apps"];
    let body = json!({"name": "Demo app", "scopes": scopes});
    let app = admin.tell(Method::POST, &apps, &body, None).await?;
    kept.app_id = text_of(&app, "appID")?;
    kept.app_token = text_of(&app, "appToken")?;
    Ok(())
}

fn text_of(answer: &Ordered, field: &str) -> anyhow::Result<String> {
    let text = answer[field].as_str().map(str::to_owned);
    text.ok_or_else(|| anyhow::anyhow!("the server's answer has no {field}"))
}

/// The welcome. `program` and `elsewhere` are ready for a shell: how to call this program again, and what to put
/// before the short commands, if they do not find the data directory by themselves.
fn text(kept: &DevCredentials, program: &str, elsewhere: &str) -> String {
    let DevCredentials { base_url, admin_token, service_id, app_id, app_token, data_dir } = kept;
    let dev_json = DevCredentials::path(data_dir);
    let dev_json = dev_json.display();
    let data_dir = data_dir.display();
    format!(
        r#"rollcall dev listens on {base_url}
  data directory  {data_dir}
  credentials     {dev_json}
  admin token     {admin_token}
  service "Demo"  {service_id}
  app "Demo app"  {app_id}
  AppToken        {app_token}

1. In a second terminal, subscribe a receiver that prints every notification:
  {program} listen --url {base_url} --app {app_id} --token {app_token}

2. In a third terminal, change the roll:
  export TOKEN={app_token} APP={base_url}/v1/api/apps/{app_id}
  curl -w '\n' $APP/contacts/staff -H "Authorization: Bearer $TOKEN" -d '{{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}}'
  curl -w '\n' $APP/contacts/staffcontact-list -H "Authorization: Bearer $TOKEN"
  ID=$(curl -s $APP/contacts/staffcontact-list -H "Authorization: Bearer $TOKEN" | grep -o 'sc_[0-9a-f]*' | tail -n 1)
  curl -w '\n' -X PATCH $APP/contacts/staff/$ID -H "Authorization: Bearer $TOKEN" -d '{{"jobTitle":"Team lead"}}'
  curl -w '\n' -X DELETE $APP/contacts/staff/$ID -H "Authorization: Bearer $TOKEN"

To subscribe a receiver of your own, which must answer the challenge:
  curl -w '\n' -X PATCH $APP/staff-contact-event-sub -H "Authorization: Bearer $TOKEN" -d '{{"enabled":true,"url":"http://127.0.0.1:9000/"}}'

In this directory the commands find those credentials by themselves, for example:
  {elsewhere}{program} staff list"#
    )
}

/// How to call this program again, for a shell: relative where it lies below the working directory.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "rollcall".to_owned() };
    let here = std::env::current_dir().unwrap_or_default();
    quoted(&called(&path, &here))
}

/// The path of a program as a shell in that directory finds it.
fn called(path: &Path, here: &Path) -> PathBuf {
    match path.strip_prefix(here) {
        // A name without a slash would be looked up in PATH.
        Ok(below) if below.components().count() == 1 => Path::new(".").join(below),
        Ok(below) => below.to_owned(),
        Err(_) => path.to_owned(),
    }
}

/// What the short commands need before them when the data directory is not where they look.
fn elsewhere(data_dir: &Path) -> String {
    let usual = std::path::absolute(DataDir::default().path());
    if usual.is_ok_and(|usual| usual == data_dir) {
        return String::new();
    }
    format!("ROLLCALL_DATA_DIR={} ", quoted(data_dir))
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@%".contains(&byte);
    if text.bytes().all(harmless) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
#[path = "dev_tests.rs"]
mod tests;
