//! The target guard: tables of URLs and addresses, accepted ones beside their refused neighbours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Lookup, LookupError, LookupFuture, NAMES_MAX, Resolve, Settings, Step, Target, TargetGuard,
    TargetHost,
};

/// Answers from a table and counts the questions.
#[derive(Clone, Debug, Default)]
struct Table {
    answers: Arc<Mutex<HashMap<String, Lookup>>>,
    asked: Arc<AtomicUsize>,
}

impl Table {
    fn set(&self, name: &str, addresses: &[&str], ttl_seconds: u64) {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let answer = Lookup { addresses, ttl: Duration::from_secs(ttl_seconds) };
        self.answers.lock().unwrap().insert(name.to_owned(), answer);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Resolve for Table {
    fn lookup<'a>(&'a self, name: &'a str) -> LookupFuture<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answers.lock().unwrap().get(name).cloned();
        Box::pin(async move { answer.ok_or(LookupError::NotFound) })
    }
}

fn guard(change: impl FnOnce(&mut Settings)) -> TargetGuard {
    let mut settings = Settings::default();
    change(&mut settings);
    TargetGuard::new(settings, Table::default())
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn hosts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn step(guard: &TargetGuard, url: &str) -> Option<Step> {
    guard.check_url(url).err().map(|refusal| refusal.step)
}

#[test]
fn names_of_the_inside_are_refused() {
    for url in [
        "https://localhost/",
        "https://LocalHost:8443/",
        "https://a.localhost/",
        "https://a.b.LOCALHOST/",
        "https://intranet/",
        "https://db/",
        "https://com/",
        "https://printer.local/",
        "https://a.b.LOCAL/",
        "https://metadata.google.internal/",
        "https://a.internal/",
        "https://internal/",
        "https://local/",
    ] {
        assert_eq!(step(&guard(|_| ()), url), Some(Step::Name), "{url}");
    }
}

#[test]
fn http_and_localhost_need_the_operator() {
    let dev = guard(|settings| {
        settings.allow_http = true;
        settings.allow_targets = nets(&["127.0.0.0/8", "::1/128"]);
    });
    for url in [
        "http://localhost:8080/hook",
        "http://a.localhost/",
        "http://127.0.0.1:9999/",
        "http://127.255.255.255/",
        "http://[::1]:9999/",
        "https://localhost/",
        "http://example.com/",
    ] {
        assert_eq!(step(&dev, url), None, "{url}");
        assert!(step(&guard(|_| ()), url).is_some(), "{url}");
    }
    assert_eq!(dev.check_url("http://example.com/").unwrap().port, 80);
    assert_eq!(dev.check_url("http://example.com:443/").unwrap().authority, "example.com:443");
    for url in ["http://10.0.0.1/", "http://[::ffff:7f00:1]/", "http://128.0.0.0.0/", "http://db/"]
    {
        assert!(step(&dev, url).is_some(), "{url}");
    }
    // Only http was allowed: loopback stays refused, and the other way round.
    assert_eq!(step(&guard(|s| s.allow_http = true), "http://localhost/"), Some(Step::Name));
    let loopback = guard(|settings| settings.allow_targets = nets(&["127.0.0.0/8"]));
    assert_eq!(step(&loopback, "http://127.0.0.1/"), Some(Step::Url));
    assert_eq!(step(&loopback, "https://localhost/"), None);
}

#[test]
fn ports_of_services_without_passwords_are_refused() {
    let default = guard(|settings| settings.allow_http = true);
    for port in [0, 22, 25, 2375, 5432, 6379, 9200, 11211] {
        assert_eq!(step(&default, &format!("https://example.com:{port}/")), Some(Step::Url));
        assert_eq!(step(&default, &format!("http://8.8.8.8:{port}/")), Some(Step::Url));
    }
    for port in [1, 21, 23, 24, 26, 2374, 2376, 5431, 5433, 6380, 9201, 11210, 11212] {
        assert_eq!(step(&default, &format!("https://example.com:{port}/")), None);
    }
    let closed = guard(|settings| settings.deny_ports = vec![443]);
    assert_eq!(step(&closed, "https://example.com/"), Some(Step::Url));
    assert_eq!(step(&closed, "https://example.com:22/"), None);
}

#[test]
fn literal_addresses_in_urls_pass_the_same_judge() {
    let guard = guard(|_| ());
    for url in [
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://0.0.0.0/",
        "https://255.255.255.255/",
        "https://[::1]/",
        "https://[::]/",
        "https://[fd00:ec2::254]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[2002:7f00:1::]/",
    ] {
        assert_eq!(step(&guard, url), Some(Step::Address), "{url}");
    }
}

#[test]
fn deny_wins_over_allow_and_allow_over_the_table() {
    let guard = guard(|settings| {
        settings.allow_targets = nets(&["10.0.0.0/8", "64:ff9b::/96", "::ffff:0:0/96"]);
        settings.deny_targets = nets(&["10.1.0.0/16", "8.8.4.4/32", "2606:4700::/32"]);
    });
    for (address, accepted) in [
        ("10.0.0.1", true),
        ("10.1.0.1", false),
        ("10.2.0.1", true),
        ("11.0.0.1", true),
        ("192.168.0.1", false),
        ("8.8.8.8", true),
        ("8.8.4.4", false),
        ("2606:4700::1", false),
        ("2606:4701::1", true),
        // What is embedded is judged as well, on either side of the list.
        ("64:ff9b::8.8.8.8", true),
        ("64:ff9b::8.8.4.4", false),
        ("64:ff9b::10.0.0.1", true),
        ("64:ff9b::10.1.0.1", false),
        ("64:ff9b::192.168.0.1", false),
        ("::ffff:10.0.0.1", true),
        ("::ffff:127.0.0.1", false),
        ("2002:a00:1::1", false),
    ] {
        assert_eq!(guard.judge(address.parse().unwrap()).is_ok(), accepted, "{address}");
    }
}

#[test]
fn lists_of_hosts_are_suffixes_by_label_and_deny_wins() {
    let guard = guard(|settings| {
        settings.allow_hosts = hosts(&["corp.internal", " *.Lab.Local. ", "receiver", "10.0.0.7"]);
        settings.deny_hosts = hosts(&[".bad.example", "secret.corp.internal", "8.8.8.8", ""]);
    });
    for (url, refused) in [
        ("https://corp.internal/", None),
        ("https://a.corp.internal/", None),
        ("https://A.CORP.internal/", None),
        ("https://acorp.internal/", Some(Step::Name)),
        ("https://secret.corp.internal/", Some(Step::Name)),
        ("https://a.secret.corp.internal/", Some(Step::Name)),
        ("https://notsecret.corp.internal/", None),
        ("https://x.lab.local/", None),
        ("https://receiver/", None),
        ("https://receivers/", Some(Step::Name)),
        ("https://bad.example/", Some(Step::Name)),
        ("https://a.bad.example/", Some(Step::Name)),
        ("https://notbad.example/", None),
        ("https://anybody.example/", None),
        ("https://10.0.0.7/", None),
        ("https://10.0.0.8/", Some(Step::Address)),
        ("https://8.8.8.8/", Some(Step::Address)),
        ("https://8.8.8.9/", None),
    ] {
        assert_eq!(step(&guard, url), refused, "{url}");
    }
}

#[test]
fn messages_name_the_rule_in_lower_case() {
    let strict = guard(|_| ());
    for (url, message) in [
        ("http://example.com/", "url must begin with https://"),
        ("https://u:p@example.com/", "url must not contain user info"),
        ("https://example.com/#a", "url must not contain a fragment"),
        ("https://example.com:22/", "the port of the url is not allowed"),
        ("https://0x7f.1/", "the host of the url must be written in its plain form"),
        ("https://10.0.0.1/", "the address is not globally reachable"),
    ] {
        assert_eq!(strict.check_url(url).unwrap_err().to_string(), message, "{url}");
    }
    let of_development = guard(|settings| settings.allow_http = true);
    let refused = of_development.check_url("127.0.0.1:9000").unwrap_err();
    assert_eq!(refused.to_string(), "url must begin with https:// or http://");
    assert_eq!(Step::Tls.to_string(), "tls");
}

fn target(url: &str) -> Target {
    guard(|_| ()).check_url(url).unwrap()
}

#[tokio::test]
async fn one_bad_address_refuses_the_name_and_is_not_named() {
    for (addresses, refused) in [
        (&["8.8.8.8"][..], None),
        (&["8.8.8.8", "2606:4700::1"], None),
        (&["8.8.8.8", "10.0.0.1"], Some(Step::Address)),
        (&["::1", "8.8.8.8"], Some(Step::Address)),
        (&["169.254.169.254"], Some(Step::Address)),
        (&["::ffff:8.8.8.8"], Some(Step::Address)),
        (&[], Some(Step::Name)),
    ] {
        let table = Table::default();
        table.set("example.com", addresses, 60);
        let guard = TargetGuard::new(Settings::default(), table);

        let answer = guard.resolve(&target("https://Example.com/")).await;

        assert_eq!(answer.as_ref().err().map(|refusal| refusal.step), refused, "{addresses:?}");
        if let Err(refusal) = answer {
            assert!(!refusal.message.contains(|c: char| c.is_ascii_digit()), "{refusal}");
        }
    }
}

#[tokio::test]
async fn an_allowed_host_may_stand_for_any_address_that_is_not_denied() {
    let table = Table::default();
    table.set("a.corp.internal", &["10.0.0.1"], 60);
    table.set("b.corp.internal", &["10.0.0.2"], 60);
    table.set("c.corp.internal", &["64:ff9b::10.0.0.2"], 60);
    let settings = Settings {
        allow_hosts: hosts(&["corp.internal"]),
        deny_targets: nets(&["10.0.0.2/32"]),
        ..Settings::default()
    };
    let guard = TargetGuard::new(settings, table);
    let resolve = async |name: &str| {
        let url = format!("https://{name}.corp.internal/");
        guard.resolve(&guard.check_url(&url).unwrap()).await
    };

    assert!(resolve("a").await.is_ok());
    assert_eq!(resolve("b").await.unwrap_err().step, Step::Address);
    assert_eq!(resolve("c").await.unwrap_err().step, Step::Address);
    assert_eq!(resolve("d").await.unwrap_err().step, Step::Name);
}

#[tokio::test]
async fn literals_and_names_that_slipped_past_the_check_are_refused_at_connect() {
    let table = Table::default();
    table.set("db.internal", &["8.8.8.8"], 60);
    let guard = TargetGuard::new(Settings::default(), table);
    let with = |host| Target { host, ..target("https://example.com/") };

    let literal = guard.resolve(&with(TargetHost::Address("127.0.0.1".parse().unwrap()))).await;
    let name = guard.resolve(&with(TargetHost::Name("db.internal".to_owned()))).await;
    let localhost = guard.resolve(&with(TargetHost::Name("localhost".to_owned()))).await;

    assert_eq!(literal.unwrap_err().step, Step::Address);
    assert_eq!(name.unwrap_err().step, Step::Name);
    assert_eq!(localhost.unwrap_err().step, Step::Name);
}

#[tokio::test]
async fn localhost_is_loopback_as_far_as_allowed_without_asking() {
    for (allowed, addresses) in [
        (&["127.0.0.0/8", "::1/128"][..], &["127.0.0.1", "::1"][..]),
        (&["127.0.0.0/8"], &["127.0.0.1"]),
        (&["::1/128"], &["::1"]),
    ] {
        let table = Table::default();
        table.set("a.localhost", &["8.8.8.8"], 60);
        let settings = Settings { allow_targets: nets(allowed), ..Settings::default() };
        let guard = TargetGuard::new(settings, table.clone());
        let target = guard.check_url("https://a.localhost/").unwrap();

        let expected: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(*guard.resolve(&target).await.unwrap(), expected[..]);
        assert_eq!(table.asked(), 0);
    }
}

#[tokio::test]
async fn answers_are_kept_for_their_ttl_between_one_second_and_one_minute() {
    for (ttl, kept_for_seconds) in [(0, 1), (1, 1), (5, 5), (60, 60), (61, 60), (86_400, 60)] {
        let guard = guard(|_| ());
        let start = Instant::now();
        let verdict = guard.judge_answer("example.com", &["8.8.8.8".parse().unwrap()]);
        guard.keep_answer("example.com", verdict, Duration::from_secs(ttl), start);

        let end = start + Duration::from_secs(kept_for_seconds);
        assert!(guard.find_answer("example.com", end - Duration::from_millis(1)).is_some());
        assert!(guard.find_answer("example.com", end).is_none());
    }
}

#[tokio::test]
async fn a_kept_answer_is_used_without_asking_again() {
    for (address, accepted) in [("8.8.8.8", true), ("10.0.0.1", false)] {
        let table = Table::default();
        table.set("example.com", &[address], 60);
        let guard = TargetGuard::new(Settings::default(), table.clone());

        for _ in 0..3 {
            let answer = guard.resolve(&target("https://example.com/")).await;
            assert_eq!(answer.is_ok(), accepted);
        }

        assert_eq!(table.asked(), 1);
    }
}

#[tokio::test]
async fn failures_of_the_name_servers_are_not_kept() {
    let table = Table::default();
    let guard = TargetGuard::new(Settings::default(), table.clone());
    let target = target("https://example.com/");
    assert_eq!(guard.resolve(&target).await.unwrap_err().step, Step::Name);

    table.set("example.com", &["8.8.8.8"], 60);

    assert!(guard.resolve(&target).await.is_ok());
}

#[tokio::test]
async fn the_number_of_kept_answers_is_bounded() {
    let guard = guard(|_| ());
    let now = Instant::now();
    for number in 0..=NAMES_MAX {
        let answer = guard.judge_answer("a.example", &["8.8.8.8".parse().unwrap()]);
        guard.keep_answer(&format!("{number}.example.com"), answer, Duration::from_secs(60), now);
        assert!(guard.answers.lock().unwrap().len() <= NAMES_MAX);
    }
    assert!(guard.find_answer(&format!("{NAMES_MAX}.example.com"), now).is_some());
}
