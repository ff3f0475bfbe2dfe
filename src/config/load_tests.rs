//! Precedence, limits, and every fault at once.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::{CorsOrigins, Loaded, LogFormat, Settings, Store, load};
use crate::config::document;
use crate::config::fault::Faults;
use crate::config::raw::{Source, Sources};
use crate::config::table::SETTINGS;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A file below the system's temporary directory that goes away with the value.
struct TestFile(PathBuf);

impl TestFile {
    fn new(name: &str, text: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("rollcall-config-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn with_flags(flags: &[(&'static str, &str)]) -> Result<Loaded, Faults> {
    let flags = flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    load(&Sources { flags, ..Sources::default() })
}

fn with_environment(variables: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load(&Sources { environment: environment(variables), ..Sources::default() })
}

fn check(name: &'static str, accepted: &[&str], refused: &[&str]) {
    for value in accepted {
        let flags = [(name, *value), ("request_timeout", "5m")];
        let flags = if name == "request_timeout" { &flags[..1] } else { &flags[..] };
        let partner = match name {
            "tls_cert" => "tls_key",
            "tls_key" => "tls_cert",
            _ => "",
        };
        let flags = [flags, &[(partner, *value)]].concat();
        let flags: Vec<_> = flags.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        with_flags(&flags).unwrap_or_else(|faults| panic!("{name} = {value}: {faults}"));
    }
    for value in refused {
        let faults = with_flags(&[(name, value)]).expect_err(&format!("{name} = {value}"));
        assert!(faults.to_string().contains(&format!("{name} from the flag --")), "{faults}");
    }
}

#[test]
fn later_sources_win() {
    let file = TestFile::new(
        "precedence",
        "max_in_flight = 1\nconnect_timeout = \"1s\"\ndeny_ports = [1, 2]\nlog = \"warn\"\nallow_http = true",
    );
    let sources = Sources {
        file: Some(file.0.clone()),
        environment: environment(&[
            ("ROLLCALL_MAX_IN_FLIGHT", "2"),
            ("ROLLCALL_CONNECT_TIMEOUT", "2s"),
            ("ROLLCALL_DENY_PORTS", ""),
            ("PATH", "/bin"),
        ]),
        flags: vec![("max_in_flight", "3".to_owned())],
        development: false,
    };

    let loaded = load(&sources).unwrap();

    assert_eq!(loaded.settings.max_in_flight, 3);
    assert_eq!(loaded.settings.connect_timeout, Duration::from_secs(2));
    assert_eq!(loaded.settings.deny_ports, [] as [u16; 0]);
    assert_eq!(loaded.settings.log, "warn");
    assert!(loaded.settings.allow_http);
    let source = |name| loaded.shown.iter().find(|shown| shown.0 == name).unwrap().2.clone();
    assert_eq!(source("max_in_flight"), Source::Flag("--max-in-flight".to_owned()));
    assert_eq!(source("deny_ports"), Source::Variable("ROLLCALL_DENY_PORTS".to_owned()));
    assert_eq!(source("log"), Source::File(file.0.clone()));
    assert_eq!(source("listen"), Source::Default);
}

#[test]
fn all_faults_are_reported_together_and_name_key_source_value_rule_and_example() {
    let file = TestFile::new("faults", "max_inflight = 1\nlog = 3\nadmin_token = \"short-secret\"");
    let sources = Sources {
        environment: environment(&[
            ("ROLLCALL_CONFIG", file.0.to_str().unwrap()),
            ("ROLLCALL_ALLOW_TARGETS", "10.0.0.0/8,10.0.0.1/8"),
            ("ROLLCALL_ADMIN_TOKN", "another-secret"),
            ("ROLLCALL_URL", "not a setting, and accepted"),
            ("ROLLCALL_SERVICE_HOST", "10.1.2.3"),
            ("ROLLCALL_PORT_8080_TCP_ADDR", "10.1.2.3"),
            ("ROLLCALL_PORT", "tcp://10.1.2.3:8080"),
        ]),
        flags: vec![("listen", "localhost".to_owned()), ("connect_timeout", "20s".to_owned())],
        ..Sources::default()
    };

    let text = load(&sources).unwrap_err().to_string();

    assert_eq!(text.lines().count(), 8, "{text}");
    for part in [
        "7 faults in the configuration",
        "for example: max_in_flight",
        "log from the file",
        "admin_token from the file",
        "allow_targets from the environment variable ROLLCALL_ALLOW_TARGETS: \"10.0.0.0/8,10.0.0.1/8\" is refused \
         (entry \"10.0.0.1/8\"); accepted: networks in CIDR form or single addresses, with commas between them; \
         for example: 10.20.0.0/16,fd00:20::/32",
        "for example: ROLLCALL_ADMIN_TOKEN",
        "listen from the flag --listen: \"localhost\"",
        "(request_timeout is 15s)",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn values_at_their_limits_are_accepted_and_their_neighbours_refused() {
    let day = "1s,".repeat(19);
    check(
        "connect_timeout",
        &["10ms", "1m", "60s"],
        &["9ms", "61s", "5", "5 s", "", "1.5s", "-1s"],
    );
    check("request_timeout", &["5s", "5m"], &["301s", "4999ms", "9ms"]);
    check(
        "retry_schedule",
        &["1s", "7d", "1s, 2s", &format!("{day}1s")],
        &["999ms", "8d", "604801s", "", &format!("{day}1s,1s"), "1s,,2s", "99999999999999999999d"],
    );
    check("max_in_flight", &["1", "256"], &["0", "257", "-1", "x"]);
    check("event_retention", &["1h", "3650d"], &["59m", "3651d", "30", ""]);
    check("attempt_retention", &["1h", "60m", "3650d"], &["59m", "3651d"]);
    check("audit_retention", &["1h", "365d", "3650d"], &["59m", "3651d"]);
    check("requests_per_minute", &["0", "1000000"], &["1000001", ""]);
    check("connections_per_address", &["0", "1000000"], &["1000001", "-1", ""]);
    check("failed_tokens_per_minute", &["0", "1000000"], &["1000001", "-1", ""]);
    check(
        "trusted_proxies",
        &["", "10.0.0.5", "10.0.0.0/8, fd00::/16", "::1"],
        &["10.0.0.0/33", "10.0.0.1/8", "proxy.example", "10.0.0.5:80", "10.0.0.5,,::1"],
    );
    check("tls_cert", &["", "a.pem"], &["a.pem"]);
    check("tls_key", &["", "a.pem"], &["a.pem"]);
    check("deny_ports", &["", "0,65535"], &["65536", "22,,25"]);
    check("allow_targets", &["", "10.0.0.1", "::/0"], &["10.0.0.0/33", "example.com"]);
    check("allow_hosts", &["a.example", ""], &[".example", "*.example", "a..b", "über.example"]);
    check("allow_http", &["true", "false"], &["yes", "1", ""]);
    check(
        "proxy",
        &[
            "",
            "http://proxy:3128",
            "http://proxy",
            "http://u%65:p%3A@[::1]:3128/",
            "http://10.0.0.1:1",
        ],
        &[
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1",
            "http://proxy/a",
            "http://proxy?a",
            "http://proxy#a",
            "http://u%zz:p@proxy",
            "http://:p@proxy",
        ],
    );
    check("listen", &["[::1]:0", "0.0.0.0:65535"], &["0.0.0.0", "0.0.0.0:65536", ""]);
    let (name, long) = ("ü".repeat(100), "ü".repeat(101));
    check("node_name", &["", "a", "web 1", &name], &[&long, "a\nb", "\u{7f}"]);
    check("data_dir", &["x"], &[""]);
    check("admin_token", &["", TOKEN], &[&TOKEN[1..], &format!("{TOKEN} "), &format!("{TOKEN}é")]);
    check(
        "cors_origins",
        &["", "*", "https://a.example,http://b.example:3000"],
        &[
            "a.example",
            "https://a.example/",
            "*,https://a.example",
            "https://a.example:443",
            "null",
        ],
    );
    check("log", &["off", "info,rollcall=debug"], &["", "rollcall=loud"]);
    check("log_format", &["text", "json"], &["TEXT", ""]);
}

#[test]
fn secrets_are_never_shown() {
    let loaded = with_environment(&[("ROLLCALL_ADMIN_TOKEN", TOKEN)]).unwrap();
    assert_eq!(loaded.settings.admin_token.as_ref().unwrap().reveal(), TOKEN);
    assert!(!format!("{loaded:?}").contains(TOKEN));

    let loaded = with_flags(&[("proxy", "http://me:hunter2@proxy:3128")]).unwrap();
    assert_eq!(loaded.settings.proxy.as_deref(), Some("http://me:hunter2@proxy:3128"));
    assert!(!format!("{loaded:?}").contains("hunter2"), "{loaded:?}");
    assert!(loaded.shown.iter().any(|shown| shown.1 == "http://(hidden)@proxy:3128"));
    for refused in
        ["http://me:hunter2/@x:1@proxy", "me:hunter2@proxy:3128", "http://me:hunter2@proxy:x"]
    {
        let faults = with_flags(&[("proxy", refused)]).unwrap_err().to_string();
        assert!(!faults.contains("hunter2"), "{faults}");
    }
}

#[test]
fn keys_of_secrets_are_read_from_the_setting_or_a_file_and_never_shown() {
    let (new, old) = ("A".repeat(43) + "=", "B".repeat(42) + "A=");
    check(
        "secret_key",
        &["", &new, &format!("{new},{old}")],
        &["A", &new[1..], &format!("{new},{new}")],
    );
    let file =
        TestFile::new("key", &format!("# note\nrollcall-key-1 {new}\nrollcall-key-1 {old}\n"));
    let path = file.0.to_str().unwrap();

    let loaded = with_flags(&[("secret_key_file", path)]).unwrap();

    assert_eq!(loaded.settings.secret_key.as_ref().unwrap().ids().count(), 2);
    assert!(!format!("{:?} {:?}", loaded.settings, loaded.shown).contains(&new[..20]));
    let shown = with_flags(&[("secret_key", &new)]).unwrap().shown;
    assert!(shown.iter().any(|(name, text, _)| *name == "secret_key" && text == "(hidden)"));
    assert!(with_flags(&[("secret_key_file", path), ("secret_key", &new)]).is_err());
    let Err(faults) = with_flags(&[("secret_key", "hunter2-hunter2")]) else { panic!("accepted") };
    assert!(!faults.to_string().contains("hunter2"));
}

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

#[test]
fn store_is_embedded_or_a_postgresql_whose_url_is_never_shown() {
    let url = "postgres://me:hunter2@db.example:5433/roll";
    let file = TestFile::new("store", &format!("{url}?sslmode=disable\n"));
    let path = file.0.to_str().unwrap();
    for embedded in ["", "embedded"] {
        let loaded = with_flags(&[("store", embedded)]).unwrap();
        assert!(matches!(loaded.settings.store, Store::Embedded));
    }

    for given in [("store", url), ("store_file", path)] {
        let loaded = with_flags(&[given, ("secret_key", KEY)]).unwrap();

        let Store::Postgres(target) = &loaded.settings.store else { panic!("embedded") };
        assert!(format!("{target:?}").contains("db.example"), "{target:?}");
        assert!(!format!("{loaded:?} {:?}", loaded.shown).contains("hunter2"), "{loaded:?}");
    }
    let shown = with_flags(&[("store", url), ("secret_key", KEY)]).unwrap().shown;
    assert!(shown.iter().any(|shown| shown.1 == "postgres://(hidden)"));
    for refused in [
        "sqlite",
        "mysql://me:hunter2@h/d",
        "me:hunter2@h",
        "host=h user=me password=hunter2 dbname=d",
        "hunter2@h",
        "/hunter2",
        "postgres://me:hunter2@h/d?sslmode=prefer",
        "postgres://me:hunter2@h:port/d",
        "postgres://me:hun?hunter2@h/d",
        "postgres://me:1?hunter2@h/d",
        "postgres://me:hun@hunter2@h/d",
        "postgres://me@h/d?password=hunter2&what=1",
        "postgres://me@h/d?password=hunter2&options=1",
        "postgres://me@h/d?hunter2",
    ] {
        let loaded = with_flags(&[("store", refused), ("secret_key", KEY)]);
        let text = loaded.expect_err(refused).to_string();
        assert!(text.starts_with("1 fault in"), "{refused}: {text}");
        assert!(
            text.contains("store from the flag --store") && !text.contains("hunter2"),
            "{text}"
        );
    }
    let both = with_flags(&[("store", url), ("store_file", path), ("secret_key", KEY)]);
    assert!(both.unwrap_err().to_string().contains("store is set too"));
}

#[test]
fn postgresql_needs_the_key_of_all_nodes_and_is_not_for_dev() {
    let url = "postgres://me@127.0.0.1/roll";
    let key = TestFile::new("store-key", KEY);

    let faults = with_flags(&[("store", url)]).unwrap_err().to_string();
    assert!(faults.starts_with("1 fault in"), "{faults}");
    assert!(faults.contains("secret_key from the defaults") && faults.contains("key generate"));
    // A key that is there and wrong is one fault, not two.
    for given in [("secret_key", "A"), ("secret_key_file", "/nowhere/key")] {
        let faults = with_flags(&[("store", url), given]).unwrap_err().to_string();
        assert!(faults.starts_with("1 fault in"), "{faults}");
    }
    with_flags(&[("store", url), ("secret_key_file", key.0.to_str().unwrap())]).unwrap();

    let environment = environment(&[("ROLLCALL_STORE", url)]);
    let in_dev = load(&Sources { environment, development: true, ..Sources::default() });
    let faults = in_dev.unwrap_err().to_string();
    assert!(faults.starts_with("1 fault in"), "{faults}");
    assert!(faults.contains("`rollcall dev` has the embedded store only"), "{faults}");
}

#[test]
fn admin_token_is_read_from_a_file_but_not_together_with_one() {
    let file = TestFile::new("token", &format!("{TOKEN}\n"));
    let path = file.0.to_str().unwrap();

    let loaded = with_flags(&[("admin_token_file", path)]).unwrap();

    assert_eq!(loaded.settings.admin_token.unwrap().reveal(), TOKEN);
    assert!(with_flags(&[("admin_token_file", path), ("admin_token", TOKEN)]).is_err());
    assert!(with_flags(&[("admin_token_file", "/nowhere/token")]).is_err());
}

#[test]
fn certificate_and_key_are_given_together() {
    let loaded = with_flags(&[("tls_cert", "cert.pem"), ("tls_key", "key.pem")]).unwrap();
    let files = loaded.settings.tls.unwrap();
    assert_eq!((files.cert, files.key), ("cert.pem".into(), "key.pem".into()));
    assert!(with_flags(&[]).unwrap().settings.tls.is_none());

    for (alone, missing) in [("tls_cert", "tls_key"), ("tls_key", "tls_cert")] {
        let faults = with_flags(&[(alone, "a.pem"), (missing, "")]).unwrap_err().to_string();
        assert!(faults.starts_with("1 fault in"), "{faults}");
        assert!(faults.contains(&format!("{alone} from the flag")), "{faults}");
        assert!(faults.contains(&format!("({missing} is not set, give both or")), "{faults}");
    }
}

#[test]
fn defaults_of_dev_are_local_and_unlimited_and_can_be_overridden() {
    let settings = Settings::for_development();
    assert_eq!(settings.allow_targets.len(), 2);
    assert!(settings.allow_http);
    assert_eq!(settings.requests_per_minute + settings.verifications_per_app, 0);
    assert_eq!(settings.verifications_per_host + settings.verifications_total, 0);
    assert_eq!(settings.failed_tokens_per_minute, 0);
    assert_eq!(settings.connections_per_address, 0);
    assert_eq!(settings.log, "warn");

    let environment = environment(&[("ROLLCALL_ALLOW_HTTP", "false")]);
    let loaded = load(&Sources { environment, development: true, ..Sources::default() }).unwrap();
    assert!(!loaded.settings.allow_http);
}

#[test]
fn defaults_of_serve_are_those_of_the_contract() {
    let settings = Settings::default();

    assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(settings.deny_ports, [0, 22, 25, 2375, 5432, 6379, 9200, 11211]);
    assert_eq!(settings.retry_schedule.len(), 11);
    assert_eq!(settings.retry_schedule[2], Duration::from_secs(120));
    assert_eq!(settings.cors_origins, CorsOrigins::List(Vec::new()));
    assert_eq!(settings.log_format, LogFormat::Text);
    assert_eq!(settings.requests_per_minute, 500);
    assert_eq!(settings.failed_tokens_per_minute, 60);
    assert_eq!(settings.connections_per_address, 256);
    assert!(settings.tls.is_none() && settings.trusted_proxies.is_empty());
    assert!(settings.admin_token.is_none() && !settings.allow_http);
}

#[test]
fn file_that_cannot_be_read_is_a_fault() {
    let broken = TestFile::new("broken", "listen = \"127.0.0.1:1\"\nadmin_token = \"hunter2");
    for path in [broken.0.clone(), PathBuf::from("/nowhere/rollcall.toml")] {
        let faults = load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err();
        assert!(!faults.to_string().contains("hunter2"), "{faults}");
    }
}

#[test]
fn default_file_holds_every_setting_at_its_default() {
    let text = document::default_file();
    let uncommented: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' '))
        .collect();
    assert_eq!(uncommented.len(), SETTINGS.len());
    let file = TestFile::new("defaults", &uncommented.join("\n"));

    let loaded = load(&Sources { file: Some(file.0.clone()), ..Sources::default() }).unwrap();

    assert_eq!(format!("{:?}", loaded.settings), format!("{:?}", Settings::default()));
    assert!(loaded.shown.iter().all(|shown| matches!(shown.2, Source::File(_))));
}

/// Secrets have no examples, and their files must be there; PostgreSQL needs a key besides.
fn is_secret(name: &str) -> bool {
    ["admin_token", "secret_key", "store"].iter().any(|secret| name.starts_with(secret))
}

#[test]
fn examples_of_the_table_are_accepted() {
    for setting in SETTINGS.iter().filter(|setting| !is_secret(setting.name)) {
        check(setting.name, &[setting.example], &[]);
    }
}

#[test]
fn page_on_configuration_is_up_to_date() {
    let page = include_str!("../../docs/configuration.md");

    assert!(page == document::markdown(), "run: rollcall config docs > docs/configuration.md");
}
