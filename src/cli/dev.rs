//! `rollcall dev`: a server for the laptop, with a service and an app ready to use.
//!
//! Makes them through its own HTTP API, as anybody would, and keeps their credentials in `dev.json`. Later starts
//! reuse them as long as the server still knows them.

use clap::Args;
use http::{Method, StatusCode};
use serde_json::json;

use super::client::{Client, Refused};
use super::dev_credentials::DevCredentials;
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
    credentials.admin_token = admin_token(&settings, &credentials)?;
    settings.admin_token = Some(Token::from_text(&credentials.admin_token));
    let signals = serve::Signals::new()?;
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
    kept.base_url = serve::base_url(running.address);
    kept.data_dir.clone_from(&running.data_dir);
    prepare(kept).await?;
    if json {
        return output::print_json(kept);
    }
    output::print(&text(kept))
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

fn text(kept: &DevCredentials) -> String {
    let DevCredentials { base_url, admin_token, service_id, app_id, app_token, data_dir } = kept;
    let data_dir = data_dir.display();
    format!(
        r#"rollcall dev listens on {base_url}
  data directory  {data_dir}
  admin token     {admin_token}
  service "Demo"  {service_id}
  app "Demo app"  {app_id}
  AppToken        {app_token}

1. In a second terminal, print every notification:
  rollcall listen --url {base_url} --app {app_id} --token {app_token}

2. In a third terminal, change the roll:
  export TOKEN={app_token} STAFF={base_url}/v1/api/apps/{app_id}/contacts
  curl -s -H "Authorization: Bearer $TOKEN" $STAFF/staff -d '{{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}}'
  curl -s -H "Authorization: Bearer $TOKEN" $STAFF/staffcontact-list
  curl -s -H "Authorization: Bearer $TOKEN" -X PATCH $STAFF/staff/<id> -d '{{"jobTitle":"Team lead"}}'
  curl -s -H "Authorization: Bearer $TOKEN" -X DELETE $STAFF/staff/<id>

Started in this directory, `rollcall listen`, `rollcall staff list` and the others need no options."#
    )
}

#[cfg(test)]
#[path = "dev_tests.rs"]
mod tests;
