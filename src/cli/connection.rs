//! How a command finds its server: `--url`, `--token`, `--app`, their variables, or what `rollcall dev` left.
//!
//! The credentials of `dev.json` go only to the server that wrote them: another URL or another app needs a token
//! of its own.

use clap::Args;

use super::client::Client;
use super::dev_credentials::{DataDir, DevCredentials};
use super::ordered::Ordered;
use super::{Usage, output, table};
use crate::domain::tenancy::Token;

/// Where the server is unless said otherwise.
pub(super) const URL_DEFAULT: &str = "http://127.0.0.1:8080";

/// What every command that calls the server takes.
#[derive(Args)]
pub(super) struct Connection {
    /// The server; without it and without dev.json the one on this machine.
    #[arg(
        long,
        env = "ROLLCALL_URL",
        value_name = "URL",
        help = "The server [default: http://127.0.0.1:8080]"
    )]
    url: Option<String>,
    /// The token; without it the credentials that `rollcall dev` left in dev.json are used, if they are there.
    #[arg(long, env = "ROLLCALL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    data_dir: DataDir,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What a command in the name of an app takes besides.
#[derive(Debug, Args)]
pub(super) struct AppConnection {
    /// The app's identifier.
    #[arg(long, env = "ROLLCALL_APP", value_name = "ID")]
    pub(super) app: Option<String>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

impl Connection {
    /// A client with the admin token.
    pub(super) fn admin(&self) -> anyhow::Result<Client> {
        self.find_admin().map(|(client, _)| client)
    }

    /// A client with the admin token, and the service: the one that is given, or the one that came with the token
    /// in dev.json.
    pub(super) fn admin_of(&self, service: Option<&String>) -> anyhow::Result<(Client, String)> {
        let (client, left) = self.find_admin()?;
        let service = given(service).map(str::to_owned).or(left).ok_or_else(|| {
            Usage("no service: give --service or set ROLLCALL_SERVICE".to_owned())
        })?;
        Ok((client, service))
    }

    /// The client, and the service in dev.json if the token is from there.
    fn find_admin(&self) -> anyhow::Result<(Client, Option<String>)> {
        if let Some(token) = given(self.token.as_ref()) {
            return Ok((Client::new(self.url_or_default(), Token::from_text(token))?, None));
        }
        let credentials = self.credentials().ok_or_else(|| {
            Usage("no admin token: give --token or set ROLLCALL_TOKEN".to_owned())
        })?;
        let client = Client::new(&credentials.base_url, Token::from_text(credentials.admin_token))?;
        Ok((client, Some(credentials.service_id)))
    }

    /// Prints a result: as JSON, or as `human` lays it out.
    pub(super) fn show(
        &self,
        result: &Ordered,
        human: impl Fn(&Ordered) -> String,
    ) -> anyhow::Result<()> {
        if self.json { output::print_json(result) } else { output::print(&human(result)) }
    }

    /// Prints a list with these columns: heading and field.
    pub(super) fn show_list(
        &self,
        result: &Ordered,
        columns: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let (headings, fields): (Vec<&str>, Vec<&str>) = columns.iter().copied().unzip();
        let items = items(result);
        self.show(result, |_| table::table(&headings, &table::rows(items, &fields)))
    }

    fn url_or_default(&self) -> &str {
        given(self.url.as_ref()).unwrap_or(URL_DEFAULT)
    }

    /// What `rollcall dev` left, if it belongs to the server that is meant.
    fn credentials(&self) -> Option<DevCredentials> {
        let credentials = DevCredentials::find(&self.data_dir.path())?;
        let same = given(self.url.as_ref())
            .is_none_or(|url| url.trim_end_matches('/') == credentials.base_url);
        same.then_some(credentials)
    }
}

impl AppConnection {
    /// A client with the `AppToken`, and the app.
    pub(super) fn client(&self) -> anyhow::Result<(Client, String)> {
        self.find_client()?.ok_or_else(|| {
            Usage(
                "no AppToken: give --app and --token, or set ROLLCALL_APP and ROLLCALL_TOKEN"
                    .to_owned(),
            )
            .into()
        })
    }

    /// As [`Self::client`]; none when no credentials are given or left by `rollcall dev`.
    pub(super) fn find_client(&self) -> anyhow::Result<Option<(Client, String)>> {
        let app = given(self.app.as_ref());
        if let Some(token) = given(self.connection.token.as_ref()) {
            let app = app.ok_or_else(|| {
                Usage("a token without its app: give --app or set ROLLCALL_APP".to_owned())
            })?;
            let client = Client::new(self.connection.url_or_default(), Token::from_text(token))?;
            return Ok(Some((client, app.to_owned())));
        }
        let Some(credentials) = self.connection.credentials() else {
            return match app {
                Some(_) => Err(Usage(
                    "an app without its token: give --token or set ROLLCALL_TOKEN".to_owned(),
                )
                .into()),
                None => Ok(None),
            };
        };
        if app.is_some_and(|app| app != credentials.app_id) {
            return Err(
                Usage("that app is not the one in dev.json: give its --token".to_owned()).into()
            );
        }
        let client = Client::new(&credentials.base_url, Token::from_text(credentials.app_token))?;
        Ok(Some((client, credentials.app_id)))
    }
}

/// The entries of a list, with or without the envelope of a page.
pub(super) fn items(result: &Ordered) -> &[Ordered] {
    result["items"].as_list().or_else(|| result.as_list()).unwrap_or_default()
}

/// An option that is there and not empty; an empty variable is as good as none.
fn given(option: Option<&String>) -> Option<&str> {
    option.map(String::as_str).filter(|text| !text.is_empty())
}
