//! From what was written to what the program uses: typed, complete, in range.
//!
//! Every fault of every source is reported together; rules between two settings are judged here too. Called by
//! `cli`, which hands [`Settings`] to `app`.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::fault::{Fault, Faults};
use super::parse;
use super::raw::{Raw, Source, Sources, Written, collect};
use super::table::{SETTINGS, find, shown_proxy};
use crate::domain::tenancy::Token;
use crate::http::tls::TlsFiles;
use crate::store::keyring::Keyring;
use crate::store::postgres::Target;

/// Where contacts, events and progress are kept.
#[derive(Clone, Debug)]
pub enum Store {
    /// In files below the data directory.
    Embedded,
    /// In a PostgreSQL, together with other nodes; `secret_key` is set then.
    Postgres(Box<Target>),
}

/// Which web origins may call the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    /// Every origin; it is echoed.
    Any,
    /// Exactly these; empty is none.
    List(Vec<String>),
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For readers.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything the program may be told, already validated. Each field is explained in the table of settings.
#[derive(Clone)]
pub struct Settings {
    /// Where requests are accepted.
    pub listen: SocketAddr,
    /// Certificate and key, when callers are to speak TLS; from `tls_cert` and `tls_key`.
    pub tls: Option<TlsFiles>,
    /// Proxies that are believed when they say for whom they ask.
    pub trusted_proxies: Vec<IpNet>,
    /// The directory of the embedded store, as written.
    pub data_dir: PathBuf,
    /// Which store; from `store` or `store_file`.
    pub store: Store,
    /// The name of this server among the nodes of a PostgreSQL, when the operator chose one.
    pub node_name: Option<String>,
    /// The admin token, when the operator chose one; from `admin_token` or `admin_token_file`.
    pub admin_token: Option<Token>,
    /// Where it was read from, if from a file.
    pub admin_token_file: Option<PathBuf>,
    /// The keys of signing secrets, when the operator gave them; from `secret_key` or `secret_key_file`.
    pub secret_key: Option<Keyring>,
    /// Networks that may be called although they are not public.
    pub allow_targets: Vec<IpNet>,
    /// Networks that are never called.
    pub deny_targets: Vec<IpNet>,
    /// Host names that are excused from the rules for names and addresses (not from `deny_targets`), in lower case,
    /// each with all names below it; nobody else is restricted.
    pub allow_hosts: Vec<String>,
    /// Host names that are refused, in lower case, each with all names below it.
    pub deny_hosts: Vec<String>,
    /// Ports that are never called.
    pub deny_ports: Vec<u16>,
    /// Whether receivers may have `http` URLs.
    pub allow_http: bool,
    /// `http://[user:password@]host:port` of a proxy that opens tunnels; hidden in the debug form.
    pub proxy: Option<String>,
    /// Requests of one service in a minute; 0 is off.
    pub requests_per_minute: u32,
    /// Requests without a good token from one address in a minute; 0 is off.
    pub failed_tokens_per_minute: u32,
    /// Connections that one address may have open; 0 is off.
    pub connections_per_address: u32,
    /// Challenges of one app in a minute; 0 is off.
    pub verifications_per_app: u32,
    /// Challenges to one host in a minute; 0 is off.
    pub verifications_per_host: u32,
    /// Challenges in a minute; 0 is off.
    pub verifications_total: u32,
    /// Longest wait for a connection; at most `request_timeout`.
    pub connect_timeout: Duration,
    /// Longest time of one attempt.
    pub request_timeout: Duration,
    /// Waits between the attempts of one delivery; 1 to 20 of them.
    pub retry_schedule: Vec<Duration>,
    /// Attempts of one subscription under way at once; 1 to 256.
    pub max_in_flight: u32,
    /// Age at which events are removed; 1 hour to 10 years.
    pub event_retention: Duration,
    /// Age at which failed attempts are removed; 1 hour to 10 years.
    pub attempt_retention: Duration,
    /// Age at which entries of the audit log are removed; 1 hour to 10 years.
    pub audit_retention: Duration,
    /// Web origins that may call the API.
    pub cors_origins: CorsOrigins,
    /// What is logged, in the filter syntax of `tracing-subscriber`.
    pub log: String,
    /// How it is written.
    pub log_format: LogFormat,
}

impl fmt::Debug for Settings {
    /// All fields, the proxy without its password. Taken apart, so that a new field is not forgotten.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            listen,
            tls,
            trusted_proxies,
            data_dir,
            store,
            node_name,
            admin_token,
            admin_token_file,
            secret_key,
            allow_targets,
            deny_targets,
            allow_hosts,
            deny_hosts,
            deny_ports,
            allow_http,
            proxy,
            requests_per_minute,
            failed_tokens_per_minute,
            connections_per_address,
            verifications_per_app,
            verifications_per_host,
            verifications_total,
            connect_timeout,
            request_timeout,
            retry_schedule,
            max_in_flight,
            event_retention,
            attempt_retention,
            audit_retention,
            cors_origins,
            log,
            log_format,
        } = self;
        f.debug_struct("Settings")
            .field("listen", listen)
            .field("tls", tls)
            .field("trusted_proxies", trusted_proxies)
            .field("data_dir", data_dir)
            .field("store", store)
            .field("node_name", node_name)
            .field("admin_token", admin_token)
            .field("admin_token_file", admin_token_file)
            .field("secret_key", secret_key)
            .field("allow_targets", allow_targets)
            .field("deny_targets", deny_targets)
            .field("allow_hosts", allow_hosts)
            .field("deny_hosts", deny_hosts)
            .field("deny_ports", deny_ports)
            .field("allow_http", allow_http)
            .field("proxy", &proxy.as_deref().map(shown_proxy))
            .field("requests_per_minute", requests_per_minute)
            .field("failed_tokens_per_minute", failed_tokens_per_minute)
            .field("connections_per_address", connections_per_address)
            .field("verifications_per_app", verifications_per_app)
            .field("verifications_per_host", verifications_per_host)
            .field("verifications_total", verifications_total)
            .field("connect_timeout", connect_timeout)
            .field("request_timeout", request_timeout)
            .field("retry_schedule", retry_schedule)
            .field("max_in_flight", max_in_flight)
            .field("event_retention", event_retention)
            .field("attempt_retention", attempt_retention)
            .field("audit_retention", audit_retention)
            .field("cors_origins", cors_origins)
            .field("log", log)
            .field("log_format", log_format)
            .finish()
    }
}

impl Default for Settings {
    /// The defaults of `rollcall serve`.
    fn default() -> Self {
        built_in(false)
    }
}

impl Settings {
    /// The defaults of `rollcall dev`: receivers on this machine over `http`, and no rate limits.
    #[must_use]
    pub fn for_development() -> Self {
        built_in(true)
    }
}

fn built_in(development: bool) -> Settings {
    load(&Sources { development, ..Sources::default() })
        .expect("the defaults of the table keep its rules, as a test shows")
        .settings
}

/// A valid configuration and where each part of it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the program uses.
    pub settings: Settings,
    /// Name, value as it may be shown, and source of every setting, in the table's order.
    pub shown: Vec<(&'static str, String, Source)>,
    /// The configuration file, if one was named.
    pub file: Option<PathBuf>,
}

/// Reads all sources.
///
/// # Errors
///
/// All faults of all sources together.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let mut reader = Reader { raw: collect(sources) };
    let settings = reader.read_all();
    reader.judge_timeouts(&settings);
    reader.judge_store(&settings, sources.development);
    let shown = reader.shown();
    if reader.raw.faults.is_empty() {
        return Ok(Loaded { settings, shown, file: sources.config_file() });
    }
    Err(Faults(reader.raw.faults))
}

struct Reader {
    raw: Raw,
}

impl Reader {
    fn read_all(&mut self) -> Settings {
        let limit = 0..=1_000_000;
        let (admin_token, admin_token_file) =
            self.read_text_or_file("admin_token", parse::admin_token);
        Settings {
            listen: self.read("listen", parse::simple),
            tls: self.read_tls_files(),
            trusted_proxies: self.read("trusted_proxies", |text| parse::list(text, parse::network)),
            data_dir: self.read("data_dir", parse::path),
            store: self
                .read_text_or_file("store", parse::store)
                .0
                .map_or(Store::Embedded, |target| Store::Postgres(Box::new(target))),
            node_name: self.read("node_name", parse::node_name),
            admin_token,
            admin_token_file,
            secret_key: self.read_text_or_file("secret_key", parse::secret_key).0,
            allow_targets: self.read("allow_targets", |text| parse::list(text, parse::network)),
            deny_targets: self.read("deny_targets", |text| parse::list(text, parse::network)),
            allow_hosts: self.read("allow_hosts", |text| parse::list(text, parse::host)),
            deny_hosts: self.read("deny_hosts", |text| parse::list(text, parse::host)),
            deny_ports: self.read("deny_ports", |text| parse::list(text, |port| port.parse().ok())),
            allow_http: self.read("allow_http", parse::simple),
            proxy: self.read("proxy", parse::proxy),
            requests_per_minute: self.read("requests_per_minute", |t| parse::number(t, &limit)),
            failed_tokens_per_minute: self
                .read("failed_tokens_per_minute", |text| parse::number(text, &limit)),
            connections_per_address: self
                .read("connections_per_address", |text| parse::number(text, &limit)),
            verifications_per_app: self.read("verifications_per_app", |t| parse::number(t, &limit)),
            verifications_per_host: self
                .read("verifications_per_host", |text| parse::number(text, &limit)),
            verifications_total: self.read("verifications_total", |t| parse::number(t, &limit)),
            connect_timeout: self.read("connect_timeout", |text| parse::timeout(text, 60)),
            request_timeout: self.read("request_timeout", |text| parse::timeout(text, 300)),
            retry_schedule: self.read("retry_schedule", parse::retry_schedule),
            max_in_flight: self.read("max_in_flight", |text| parse::number(text, &(1..=256))),
            event_retention: self.read("event_retention", parse::retention),
            attempt_retention: self.read("attempt_retention", parse::retention),
            audit_retention: self.read("audit_retention", parse::retention),
            cors_origins: self.read("cors_origins", parse::cors_origins),
            log: self.read("log", parse::log_filter),
            log_format: self.read("log_format", parse::log_format),
        }
    }

    /// Reads one setting. A refused value is noted and the default stands in, so that the others are judged too.
    fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> parse::Parsed<T>) -> T {
        let setting = find(name).expect("every field has its row in the table");
        let written = &self.raw.values[setting.name];
        match parse(&written.text) {
            Ok(value) => value,
            Err(why) => {
                let fault = Fault::value(setting, &written.source, &written.text, &why);
                self.raw.faults.push(fault);
                parse(setting.default)
                    .unwrap_or_else(|why| panic!("the default of {name} breaks its rule: {why}"))
            }
        }
    }

    fn read_tls_files(&mut self) -> Option<TlsFiles> {
        let cert = self.read("tls_cert", parse::optional_path);
        let key = self.read("tls_key", parse::optional_path);
        let (alone, missing) = match (cert, key) {
            (Some(cert), Some(key)) => return Some(TlsFiles { cert, key }),
            (None, None) => return None,
            (Some(_), None) => ("tls_cert", "tls_key"),
            (None, Some(_)) => ("tls_key", "tls_cert"),
        };
        self.refuse(alone, &format!("{missing} is not set, give both or neither"));
        None
    }

    /// A secret that stands in a setting, or in the file that the setting of this name and `_file` names; then with
    /// that file.
    fn read_text_or_file<T>(
        &mut self,
        name: &'static str,
        parse: fn(&str) -> parse::Parsed<Option<T>>,
    ) -> (Option<T>, Option<PathBuf>) {
        let name_of_file = format!("{name}_file");
        let chosen = self.read(name, parse);
        let file = self.read(&name_of_file, parse::optional_path);
        let Some(path) = file else { return (chosen, None) };
        let why = if !self.raw.values[name].text.is_empty() {
            format!("{name} is set too, give one of the two")
        } else {
            match read_secret_file(&path, parse) {
                Ok(value) => return (Some(value), Some(path)),
                Err(why) => why,
            }
        };
        self.refuse(&name_of_file, &why);
        (None, None)
    }

    fn judge_timeouts(&mut self, settings: &Settings) {
        if settings.connect_timeout <= settings.request_timeout {
            return;
        }
        // The one that somebody wrote is to blame, not a default.
        let written = |name: &str| self.raw.values[name].source != Source::Default;
        let (blamed, other) = if written("request_timeout") && !written("connect_timeout") {
            ("request_timeout", "connect_timeout")
        } else {
            ("connect_timeout", "request_timeout")
        };
        let why = format!("{other} is {}", self.raw.values[other].text);
        self.refuse(blamed, &why);
    }

    /// What PostgreSQL asks of the other settings.
    fn judge_store(&mut self, settings: &Settings, development: bool) {
        if !matches!(settings.store, Store::Postgres(_)) {
            return;
        }
        let is_written = |name: &str| !self.raw.values[name].text.is_empty();
        if development {
            let blamed = if is_written("store_file") { "store_file" } else { "store" };
            self.refuse(
                blamed,
                "`rollcall dev` has the embedded store only; `rollcall serve` can use PostgreSQL",
            );
        } else if !is_written("secret_key") && !is_written("secret_key_file") {
            self.refuse(
                "secret_key",
                "with PostgreSQL it must be set, the same for all nodes, because each opens what another has sealed; \
                 `rollcall key generate` makes one, and secret_key_file may name a file with it",
            );
        }
    }

    fn refuse(&mut self, name: &str, why: &str) {
        let setting = find(name).expect("only names of the table are refused");
        let Written { text, source } = &self.raw.values[setting.name];
        let fault = Fault::value(setting, source, text, why);
        self.raw.faults.push(fault);
    }

    fn shown(&self) -> Vec<(&'static str, String, Source)> {
        let shown = |setting: &'static super::table::Setting| {
            let written = &self.raw.values[setting.name];
            (setting.name, setting.shown(&written.text), written.source.clone())
        };
        SETTINGS.iter().map(shown).collect()
    }
}

/// The admin token in a file; at start, and whenever the server is told to read it again.
///
/// # Errors
///
/// What is wrong with the file, without what is in it.
pub fn read_admin_token_file(path: &Path) -> Result<Token, String> {
    read_secret_file(path, parse::admin_token)
}

fn read_secret_file<T>(
    path: &Path,
    parse: fn(&str) -> parse::Parsed<Option<T>>,
) -> parse::Parsed<T> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(text.trim_end())?.ok_or_else(|| "the file is empty".to_owned())
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
