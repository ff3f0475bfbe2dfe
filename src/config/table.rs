//! The table of settings: the one place where a setting is named, explained and given its default.
//!
//! Flags, environment variables, file keys, the commented default file and `docs/configuration.md` all come from
//! here. A new setting needs a row here and a field with its line in `load.rs`; a test compares the two.

use crate::store::postgres::Target;

/// How a value is written; decides what the file may hold and how the flag is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A file or directory, relative to the working directory.
    Path,
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// A whole number.
    Number,
    /// A whole number with a unit: `500ms`, `5s`, `2m`, `1h`, `3d`.
    Duration,
    /// Entries with commas between them; an array in the file.
    List,
}

impl Kind {
    /// The name that stands for the value in help texts.
    #[must_use]
    pub const fn value_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Path => "PATH",
            Self::Switch => "true|false",
            Self::Number => "NUMBER",
            Self::Duration => "DURATION",
            Self::List => "LIST",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The key in the file; flag and environment variable are made from it.
    pub name: &'static str,
    /// How a value is written.
    pub kind: Kind,
    /// The default of `rollcall serve`, as text.
    pub default: &'static str,
    /// The default of `rollcall dev`, where it differs.
    pub development: Option<&'static str>,
    /// Meaning, in one paragraph.
    pub doc: &'static str,
    /// What is accepted: range, unit, form.
    pub rule: &'static str,
    /// A value that is accepted.
    pub example: &'static str,
}

impl Setting {
    /// The flag, with its two dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// The value as it may be shown: never a secret.
    #[must_use]
    pub fn shown(&self, value: &str) -> String {
        match self.name {
            "admin_token" | "secret_key" if !value.is_empty() => "(hidden)".to_owned(),
            // A database URL may carry a password, also where it is malformed, so only its scheme is shown.
            "store" if !value.is_empty() && value != "embedded" => {
                let scheme = Target::SCHEMES.iter().find(|scheme| value.starts_with(**scheme));
                format!("{}(hidden)", scheme.copied().unwrap_or_default())
            }
            "proxy" => shown_proxy(value),
            _ => value.to_owned(),
        }
    }
}

/// A proxy's URL without user and password, also when it is malformed: they end at the last @.
pub(super) fn shown_proxy(value: &str) -> String {
    match value.rsplit_once('@') {
        Some((before, host)) if before.starts_with("http://") => format!("http://(hidden)@{host}"),
        Some((_, host)) => format!("(hidden)@{host}"),
        None => value.to_owned(),
    }
}

/// What every environment variable of Rollcall starts with.
pub const VARIABLE_PREFIX: &str = "ROLLCALL_";

/// The variable that names the configuration file; the flag is `--config`.
pub const CONFIG_VARIABLE: &str = "ROLLCALL_CONFIG";

/// Variables that belong to the command line and are no settings.
pub const COMMAND_VARIABLES: [&str; 5] =
    ["ROLLCALL_URL", "ROLLCALL_TOKEN", "ROLLCALL_APP", "ROLLCALL_SERVICE", CONFIG_VARIABLE];

/// The setting of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

const fn row(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
    rule: &'static str,
    example: &'static str,
) -> Setting {
    Setting { name, kind, default, development: None, doc, rule, example }
}

const fn development(value: &'static str, setting: Setting) -> Setting {
    Setting { development: Some(value), ..setting }
}

const NETWORKS_RULE: &str = "networks in CIDR form or single addresses, with commas between them";
const HOSTS_RULE: &str = "host names without a leading dot, internationalised names in their xn-- form, with commas between them";
const RETENTION_RULE: &str = "a duration from 1h to 3650d";
const LIMIT_RULE: &str = "a whole number from 0 to 1000000";

/// Every setting, in the order in which they are explained.
pub static SETTINGS: [Setting; 35] = [
    row(
        "listen",
        Kind::Text,
        "127.0.0.1:8080",
        "The address and port on which the server accepts requests. Port 0 takes any free port and prints it.",
        "an IP address and a port",
        "0.0.0.0:8080",
    ),
    row(
        "tls_cert",
        Kind::Path,
        "",
        "A PEM file with the server's certificate, followed by those between it and its root. With it and `tls_key` \
         the server speaks TLS 1.2 and 1.3, and nothing else, to its callers. Both files are read at start and \
         again at SIGHUP. Empty: no TLS.",
        "a path, together with tls_key; the file at most 1 MiB",
        "/etc/rollcall/tls/fullchain.pem",
    ),
    row(
        "tls_key",
        Kind::Path,
        "",
        "A PEM file with the private key of the certificate in `tls_cert`: RSA, ECDSA or Ed25519, unencrypted.",
        "a path, together with tls_cert; the file at most 1 MiB",
        "/etc/rollcall/tls/privkey.pem",
    ),
    row(
        "trusted_proxies",
        Kind::List,
        "",
        "Proxies in front of the server. A request from one of them comes from the last address in its \
         `X-Forwarded-For` that is not itself in this list; from anybody else the header is ignored. List only \
         proxies that append the address they see. Empty: none.",
        NETWORKS_RULE,
        "10.0.0.5,fd00:20::/64",
    ),
    row(
        "data_dir",
        Kind::Path,
        "./rollcall-data",
        "The directory of the embedded store. It is made when it does not exist; one server at a time uses it.",
        "a path that is not empty",
        "/var/lib/rollcall",
    ),
    row(
        "store",
        Kind::Text,
        "",
        "Where contacts, events and progress are kept. Empty: in files below `data_dir`, by one server. With the URL of a \
         PostgreSQL database: there, by as many servers as are given the same URL and the same `secret_key`. Without \
         `sslmode` a host that is not this machine needs TLS with a certificate that this machine trusts; \
         `sslmode=disable` turns TLS off, `sslrootcert` names a file of certificates to trust. The URL is never shown. \
         A flag can be seen in the list of processes, so prefer the environment or `store_file` for a password.",
        "empty, embedded (the same), or postgres://user:password@host:port/database with special characters as %XX, several \
         hosts with commas between them",
        "postgres://rollcall@127.0.0.1/rollcall",
    ),
    row(
        "store_file",
        Kind::Path,
        "",
        "A file that holds the URL in place of `store`, read once at start; white space at its end is ignored. Not together \
         with `store`.",
        "a readable file with a URL as in store",
        "/run/secrets/rollcall-store",
    ),
    row(
        "node_name",
        Kind::Text,
        "",
        "The name of this server among those on the same PostgreSQL, for people: in the log and in the list of nodes. \
         Nothing depends on it. Empty: the host's name and the port of `listen`.",
        "1 to 100 characters without control characters, or empty",
        "rollcall-1",
    ),
    row(
        "admin_token",
        Kind::Text,
        "",
        "The token of the administration API. It overrides the stored one and is never printed. Without it the first \
         start makes a token and prints it once. A flag can be seen in the list of processes, so prefer the file \
         or `admin_token_file`.",
        "32 to 512 visible ASCII characters, without spaces",
        "rca_ and 64 random hexadecimal digits",
    ),
    row(
        "admin_token_file",
        Kind::Path,
        "",
        "A file that holds the admin token, read at start and at each SIGHUP; white space at its end is ignored. Not \
         together with `admin_token`.",
        "a readable file with 32 to 512 visible ASCII characters, without spaces",
        "/run/secrets/rollcall-admin-token",
    ),
    row(
        "secret_key",
        Kind::Text,
        "",
        "The key that seals signing secrets in the store. It is never printed. Empty: it is made at the first start and \
         kept in `secret.key` in the data directory; with PostgreSQL it must be set, the same for all nodes. To replace it put a new one in front of it and start again, which \
         seals everything with the first; then take the other away. `rollcall key generate` makes one. A flag can be \
         seen in the list of processes, so prefer the environment or `secret_key_file`.",
        "32 random bytes in base64, 44 characters; up to 8 such keys with commas between them, the newest first",
        "44 characters of base64",
    ),
    row(
        "secret_key_file",
        Kind::Path,
        "",
        "A file that holds the key in place of `secret_key`, read once at start: one key to a line, the newest first; \
         lines that begin with # are notes.",
        "a readable file with 1 to 8 keys; not together with secret_key",
        "/run/secrets/rollcall-secret-key",
    ),
    development(
        "127.0.0.0/8,::1/128",
        row(
            "allow_targets",
            Kind::List,
            "",
            "Networks that may be called although they are not public, for receivers inside your own network. Empty: only \
             public addresses are called.",
            NETWORKS_RULE,
            "10.20.0.0/16,fd00:20::/32",
        ),
    ),
    row(
        "deny_targets",
        Kind::List,
        "",
        "Networks that are never called, also when they are public or in `allow_targets`.",
        NETWORKS_RULE,
        "203.0.113.0/24,2001:db8::1",
    ),
    row(
        "allow_hosts",
        Kind::List,
        "",
        "Host names that are excused from the rules for names and addresses: each may have one label or end in \
         `.local` or `.internal`, and may stand for any address that `deny_targets` does not cover. Each entry covers \
         itself and every name below it. Other names are not restricted by this list. Empty: no name is excused.",
        HOSTS_RULE,
        "crm.internal,hooks.example.org",
    ),
    row(
        "deny_hosts",
        Kind::List,
        "",
        "Host names that receivers may not have, also when they are in `allow_hosts`; each entry covers itself and every \
         name below it.",
        HOSTS_RULE,
        "internal.example.com",
    ),
    row(
        "deny_ports",
        Kind::List,
        "0,22,25,2375,5432,6379,9200,11211",
        "Ports that are never called, because services that are not receivers live there.",
        "port numbers from 0 to 65535, with commas between them",
        "22,25,5432",
    ),
    development(
        "true",
        row(
            "allow_http",
            Kind::Switch,
            "false",
            "Whether receivers may have `http` URLs. Names and identifiers of staff then travel in the clear.",
            "true or false",
            "true",
        ),
    ),
    row(
        "proxy",
        Kind::Text,
        "",
        "A proxy through which receivers are called. It must open tunnels (CONNECT). While it is set, only `https` \
         receivers can be subscribed. Names are still resolved and judged by Rollcall; the proxy is asked for the \
         address. What stands before the @ is never shown. A flag can be seen in the list of processes, so prefer \
         the file for a password. Empty: receivers are called directly.",
        "a URL of the form http://[user:password@]host:port; special characters in user and password as %XX",
        "http://proxy.example.com:3128",
    ),
    development(
        "0",
        row(
            "requests_per_minute",
            Kind::Number,
            "500",
            "Requests that one service may make in a minute before it is answered 429, over all nodes together. 0 is off.",
            LIMIT_RULE,
            "500",
        ),
    ),
    development(
        "0",
        row(
            "failed_tokens_per_minute",
            Kind::Number,
            "60",
            "Requests with no, a malformed or an unknown token that one address (of IPv6: one /64) may make in a \
             minute before it is answered 429 in place of 401. Requests with a good token are not counted and not \
             affected. 0 is off.",
            LIMIT_RULE,
            "60",
        ),
    ),
    development(
        "0",
        row(
            "connections_per_address",
            Kind::Number,
            "256",
            "Connections that one address (of IPv6: one /64) may have open; the next one is closed at once, without TLS \
             with a 429. Addresses in `trusted_proxies` are not counted. All addresses together have 4,096. 0 is off.",
            LIMIT_RULE,
            "1000",
        ),
    ),
    development(
        "0",
        row(
            "verifications_per_app",
            Kind::Number,
            "6",
            "Challenges that one app may cause in a minute, so that nobody can be flooded with them. 0 is off.",
            LIMIT_RULE,
            "6",
        ),
    ),
    development(
        "0",
        row(
            "verifications_per_host",
            Kind::Number,
            "10",
            "Challenges that one receiving host may get in a minute, over all apps. Each name is a host, and each \
             address that it stands for (of IPv6: each /64), so many names of one receiver do not help. 0 is off.",
            LIMIT_RULE,
            "10",
        ),
    ),
    development(
        "0",
        row(
            "verifications_total",
            Kind::Number,
            "300",
            "Challenges that the server sends in a minute, over all apps and hosts. 0 is off.",
            LIMIT_RULE,
            "300",
        ),
    ),
    row(
        "connect_timeout",
        Kind::Duration,
        "5s",
        "How long an attempt waits for the connection to the receiver, name look-up and TLS included.",
        "a duration from 10ms to 1m, not longer than request_timeout",
        "5s",
    ),
    row(
        "request_timeout",
        Kind::Duration,
        "15s",
        "How long a whole attempt may take, from the look-up of the name to the end of the answer.",
        "a duration from 10ms to 5m, not shorter than connect_timeout",
        "15s",
    ),
    row(
        "retry_schedule",
        Kind::List,
        "5s,30s,2m,10m,30m,1h,3h,6h,12h,24h,24h",
        "The waits between the attempts of one delivery. After the last wait and one more attempt the delivery is \
         exhausted: kept and counted, and not sent again. While nothing reaches a receiver at all, probes take the \
         place of these waits.",
        "1 to 20 durations, each from 1s to 7d, with commas between them",
        "5s,30s,2m,10m",
    ),
    row(
        "max_in_flight",
        Kind::Number,
        "32",
        "Attempts that one subscription may have under way at once. More is faster for receivers with slow answers and \
         loads them more.",
        "a whole number from 1 to 256",
        "32",
    ),
    row(
        "event_retention",
        Kind::Duration,
        "30d",
        "How long events are kept, for the feed, for replays and for receivers that are off. What a subscription has not \
         got by then shows as its `gap`. The newest event of a service always stays.",
        RETENTION_RULE,
        "30d",
    ),
    row(
        "attempt_retention",
        Kind::Duration,
        "7d",
        "How long the failed attempts of a delivery can be looked at.",
        RETENTION_RULE,
        "7d",
    ),
    row(
        "audit_retention",
        Kind::Duration,
        "365d",
        "How long the audit log says who changed what. An entry of a contact takes about 20 bytes under load, others \
         about 100.",
        RETENTION_RULE,
        "365d",
    ),
    row(
        "cors_origins",
        Kind::List,
        "",
        "Web origins whose pages may call the API below `/v1/api`. `*` admits every origin. Empty: none.",
        "origins as browsers send them, with commas between them, or * alone",
        "https://app.example.com,http://localhost:3000",
    ),
    development(
        "warn",
        row(
            "log",
            Kind::Text,
            "info",
            "What is logged: a level, or levels by module.",
            "levels error, warn, info, debug, trace or off, alone or as module=level, with commas between them",
            "info,rollcall=debug",
        ),
    ),
    row(
        "log_format",
        Kind::Text,
        "text",
        "How log lines are written: `text` for readers, `json` for collectors.",
        "text or json",
        "json",
    ),
];
