//! The target guard: tables of URLs and addresses, accepted ones beside their refused neighbours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
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
        let answer = Lookup {
            addresses,
            ttl: Duration::from_secs(ttl_seconds),
        };
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
fn plain_urls_are_accepted_and_taken_apart_byte_for_byte() {
    for (url, authority, port, path) in [
        ("https://example.com", "example.com", 443, "/"),
        ("https://example.com/", "example.com", 443, "/"),
        ("https://example.com?x=1", "example.com", 443, "/?x=1"),
        ("https://example.com/?", "example.com", 443, "/?"),
        ("https://example.com/a/../b", "example.com", 443, "/a/../b"),
        ("https://example.com/./a", "example.com", 443, "/./a"),
        ("https://example.com//a//b", "example.com", 443, "//a//b"),
        (
            "https://example.com/%2e%2e/%2F",
            "example.com",
            443,
            "/%2e%2e/%2F",
        ),
        (
            "https://example.com/a?b='c'&d=%20",
            "example.com",
            443,
            "/a?b='c'&d=%20",
        ),
        (
            "https://example.com/a?b?c/d",
            "example.com",
            443,
            "/a?b?c/d",
        ),
        ("https://example.com/@user", "example.com", 443, "/@user"),
        ("https://example.com/a:b@c", "example.com", 443, "/a:b@c"),
        (
            "https://example.com/~a-b_c.d!$&()*+,;=",
            "example.com",
            443,
            "/~a-b_c.d!$&()*+,;=",
        ),
        (
            "https://example.com/http://10.0.0.1/",
            "example.com",
            443,
            "/http://10.0.0.1/",
        ),
        ("https://example.com:443/", "example.com", 443, "/"),
        ("https://example.com:8443/", "example.com:8443", 8443, "/"),
        (
            "https://example.com:65535/",
            "example.com:65535",
            65535,
            "/",
        ),
        ("https://example.com:80/", "example.com:80", 80, "/"),
        ("HTTPS://EXAMPLE.com/A", "EXAMPLE.com", 443, "/A"),
        (
            "https://a.b.c.d.example.co.uk/x",
            "a.b.c.d.example.co.uk",
            443,
            "/x",
        ),
        (
            "https://xn--bcher-kva.example/",
            "xn--bcher-kva.example",
            443,
            "/",
        ),
        ("https://a_b.example.com/", "a_b.example.com", 443, "/"),
        ("https://1e100.net/", "1e100.net", 443, "/"),
        (
            "https://127.0.0.1.example.com/",
            "127.0.0.1.example.com",
            443,
            "/",
        ),
        ("https://local.example.com/", "local.example.com", 443, "/"),
        (
            "https://localhost.example.com/",
            "localhost.example.com",
            443,
            "/",
        ),
        ("https://mylocal.example/", "mylocal.example", 443, "/"),
        ("https://notlocalhost.com/", "notlocalhost.com", 443, "/"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
        ("https://8.8.8.8:8443/x", "8.8.8.8:8443", 8443, "/x"),
        ("https://[2606:4700::1111]/", "[2606:4700::1111]", 443, "/"),
        (
            "https://[2606:4700::ABCD]:8443/",
            "[2606:4700::ABCD]:8443",
            8443,
            "/",
        ),
    ] {
        let target = guard(|_| ())
            .check_url(url)
            .unwrap_or_else(|error| panic!("{url}: {error}"));

        let parts = (
            target.authority.as_str(),
            target.port,
            target.path_and_query.as_str(),
        );
        assert_eq!(parts, (authority, port, path), "{url}");
        assert!(target.tls, "{url}");
    }
}

#[test]
fn urls_with_more_than_one_reading_are_refused() {
    let guard = guard(|settings| {
        settings.allow_http = true;
        settings.allow_targets = nets(&["0.0.0.0/0", "::/0"]);
    });
    for url in [
        "",
        " ",
        "https",
        "https:",
        "https:/",
        "https://",
        "https:///",
        "https:///example.com/",
        "https:example.com",
        "https:/example.com",
        "https:\\\\example.com\\",
        "https://example.com\\@evil.example/",
        "https://example.com/a\\b",
        "//example.com/",
        "/a",
        "example.com",
        "ftp://example.com/",
        "ws://example.com/",
        "wss://example.com/",
        "file:///etc/passwd",
        "file://example.com/",
        "javascript:alert(1)",
        "data:text/plain,x",
        "gopher://example.com/",
        "unix://example.com/",
        "httpss://example.com/",
        "http+unix://example.com/",
        " https://example.com/",
        "https://example.com/ ",
        "https://example.com/a b",
        "https://exa mple.com/",
        "https://example.com/\t",
        "ht\ntps://example.com/",
        "https://example.com/\r\nX: y",
        "https://example.com/\0",
        "https://example.com/\u{7f}",
        "https://example.com/\u{85}",
        "https://example.com/\u{a0}",
        "https://example.com/\u{2028}",
        "https://example.com/\u{feff}",
        "https://example.com/ü",
        "https://bücher.example/",
        "https://example。com/",
        "https://ｅxample.com/",
        "https://１２７.0.0.1/",
        "https://①②⑦.0.0.1/",
        "https://ex\u{ad}ample.com/",
        "https://exa%6dple.com/",
        "https://%31%32%37.0.0.1/",
        "https://example.com%2f@evil.example/",
        "https://example.com%00.evil.example/",
        "https://user@example.com/",
        "https://user:pass@example.com/",
        "https://@example.com/",
        "https://:@example.com/",
        "https://example.com@10.0.0.1/",
        "https://a@b@example.com/",
        "https://example.com/#",
        "https://example.com/#a",
        "https://example.com#@10.0.0.1/",
        "https://example.com./",
        "https://example.com.:443/",
        "https://1.2.3.4./",
        "https://.example.com/",
        "https://example..com/",
        "https://./",
        "https://-a.example.com/",
        "https://a-.example.com/",
        "https://*.example.com/",
        "https://ex!ample.com/",
        "https://ex$ample.com/",
        "https://ex'ample.com/",
        "https://ex,ample.com/",
        "https://a;b.example.com/",
        "https://<example>.com/",
        "https://exam|ple.com/",
        "https://exam^ple.com/",
        "https://example.com:/",
        "https://example.com:0443/",
        "https://example.com:+443/",
        "https://example.com:-1/",
        "https://example.com:65536/",
        "https://example.com:4294967739/",
        "https://example.com:443:80/",
        "https://example.com:a/",
        "https://example.com:80a/",
        "https://example.com:４４３/",
        "http://example.com:080/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://0/",
        "https://017700000001/",
        "https://127.0.0.01/",
        "https://8.8.8.8.8/",
        "https://256.1.1.1/",
        "https://1.2.3/",
        "https://1.2.3.4.5/",
        "https://foo.0x4/",
        "https://foo.1/",
        "https://0x/",
        "https://0xffffffff1/",
        "https://[::1/",
        "https://::1/",
        "https://[]/",
        "https://[:]/",
        "https://[::1]a/",
        "https://[::1]:/",
        "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://[0:0:0:0:0:0:0:1]/",
        "https://[2606:4700:0:0:0:0:0:1111]/",
        "https://[2606:4700::01111]/",
        "https://[2606:4700::0111]/",
        "https://[::ffff:8.8.8.8]/",
        "https://[::8.8.8.8]/",
        "https://[v1.a]/",
        "https://8.8.8.8]/",
        "https://example.com/a[b]",
        "https://example.com/{a}",
        "https://example.com/<a>",
        "https://example.com/\"",
        "https://example.com/`",
        "https://example.com/^",
        "https://example.com/|",
        "https://example.com/%",
        "https://example.com/%zz",
        "https://example.com/%2",
        "https://example.com/?%g0",
        "https://example.com/?a=<b>",
    ] {
        assert_eq!(step(&guard, url), Some(Step::Url), "{url:?}");
    }
}

#[test]
fn length_is_limited_to_2048_bytes_and_names_to_253() {
    let guard = guard(|_| ());
    let url = |length: usize| format!("https://example.com/{}", "a".repeat(length - 20));
    let name =
        |labels: usize, last: &str| format!("https://{}{last}/", "a123456789.".repeat(labels));

    assert_eq!(step(&guard, &url(2048)), None);
    assert_eq!(step(&guard, &url(2049)), Some(Step::Url));
    assert_eq!(
        guard.check_url(&url(2049)).unwrap_err().message,
        "url must have at most 2048 bytes"
    );
    assert_eq!(step(&guard, &name(22, "example.com")), None); // 253 bytes
    assert_eq!(step(&guard, &name(22, "examples.com")), Some(Step::Url));
    assert_eq!(
        step(&guard, &format!("https://{}.com/", "a".repeat(63))),
        None
    );
    assert_eq!(
        step(&guard, &format!("https://{}.com/", "a".repeat(64))),
        Some(Step::Url)
    );
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
    assert_eq!(
        dev.check_url("http://example.com:443/").unwrap().authority,
        "example.com:443"
    );
    for url in [
        "http://10.0.0.1/",
        "http://[::ffff:7f00:1]/",
        "http://128.0.0.0.0/",
        "http://db/",
    ] {
        assert!(step(&dev, url).is_some(), "{url}");
    }
    // Only http was allowed: loopback stays refused, and the other way round.
    assert_eq!(
        step(&guard(|s| s.allow_http = true), "http://localhost/"),
        Some(Step::Name)
    );
    let loopback = guard(|settings| settings.allow_targets = nets(&["127.0.0.0/8"]));
    assert_eq!(step(&loopback, "http://127.0.0.1/"), Some(Step::Url));
    assert_eq!(step(&loopback, "https://localhost/"), None);
}

#[test]
fn ports_of_services_without_passwords_are_refused() {
    let default = guard(|settings| settings.allow_http = true);
    for port in [0, 22, 25, 2375, 5432, 6379, 9200, 11211] {
        assert_eq!(
            step(&default, &format!("https://example.com:{port}/")),
            Some(Step::Url)
        );
        assert_eq!(
            step(&default, &format!("http://8.8.8.8:{port}/")),
            Some(Step::Url)
        );
    }
    for port in [
        1, 21, 23, 24, 26, 2374, 2376, 5431, 5433, 6380, 9201, 11210, 11212,
    ] {
        assert_eq!(
            step(&default, &format!("https://example.com:{port}/")),
            None
        );
    }
    let closed = guard(|settings| settings.deny_ports = vec![443]);
    assert_eq!(step(&closed, "https://example.com/"), Some(Step::Url));
    assert_eq!(step(&closed, "https://example.com:22/"), None);
}

#[test]
fn only_globally_reachable_unicast_addresses_are_accepted() {
    let guard = guard(|_| ());
    let check = |text: &str| guard.judge(text.parse::<IpAddr>().unwrap()).is_ok();
    for address in [
        "1.0.0.0",
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::1",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2001:db7:ffff::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700::1111",
        "2620:4f:7fff::1",
        "2620:4f:8001::1",
        "2a00:1450::1",
        "3ffe:ffff::1",
        "3fff:1000::1",
    ] {
        assert!(check(address), "{address}");
    }
    for address in [
        "0.0.0.0",
        "0.0.0.1",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.0",
        "192.0.0.9",
        "192.0.0.170",
        "192.0.0.255",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.168.0.0",
        "192.168.255.255",
        "192.175.48.1",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.0",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.254",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "::7f00:1",
        "::8.8.8.8",
        "::ffff:8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:0:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::8.8.8.8",
        "64:ff9b:1:ffff::1",
        "100::1",
        "100:0:0:1::1",
        "1fff::1",
        "2001::1",
        "2001:0:4136:e378::1",
        "2001:1::1",
        "2001:2::1",
        "2001:3::1",
        "2001:4:112::1",
        "2001:10::1",
        "2001:20::1",
        "2001:30::1",
        "2001:1ff:ffff::1",
        "2001:db8::1",
        "2001:db8:ffff::1",
        "2002::1",
        "2002:808:808::1",
        "2002:7f00:1::1",
        "2620:4f:8000::1",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "8000::1",
        "fc00::1",
        "fd00::1",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "2606:4700::5efe:808:808",
        "2606:4700::200:5efe:a00:1",
    ] {
        assert!(!check(address), "{address}");
    }
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
        assert_eq!(
            guard.judge(address.parse().unwrap()).is_ok(),
            accepted,
            "{address}"
        );
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
    let guard = guard(|_| ());
    for (url, message) in [
        ("http://example.com/", "url must begin with https://"),
        ("https://u:p@example.com/", "url must not contain user info"),
        ("https://example.com/#a", "url must not contain a fragment"),
        (
            "https://example.com:22/",
            "the port of the url is not allowed",
        ),
        (
            "https://0x7f.1/",
            "the host of the url must be written in its plain form",
        ),
        ("https://10.0.0.1/", "the address is not globally reachable"),
    ] {
        assert_eq!(
            guard.check_url(url).unwrap_err().to_string(),
            message,
            "{url}"
        );
    }
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

        assert_eq!(
            answer.as_ref().err().map(|refusal| refusal.step),
            refused,
            "{addresses:?}"
        );
        if let Err(refusal) = answer {
            assert!(
                !refusal.message.contains(|c: char| c.is_ascii_digit()),
                "{refusal}"
            );
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
    let with = |host| Target {
        host,
        ..target("https://example.com/")
    };

    let literal = guard
        .resolve(&with(TargetHost::Address("127.0.0.1".parse().unwrap())))
        .await;
    let name = guard
        .resolve(&with(TargetHost::Name("db.internal".to_owned())))
        .await;
    let localhost = guard
        .resolve(&with(TargetHost::Name("localhost".to_owned())))
        .await;

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
        let settings = Settings {
            allow_targets: nets(allowed),
            ..Settings::default()
        };
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
        assert!(
            guard
                .find_answer("example.com", end - Duration::from_millis(1))
                .is_some()
        );
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
        guard.keep_answer(
            &format!("{number}.example.com"),
            answer,
            Duration::from_secs(60),
            now,
        );
        assert!(guard.answers.lock().unwrap().len() <= NAMES_MAX);
    }
    assert!(
        guard
            .find_answer(&format!("{NAMES_MAX}.example.com"), now)
            .is_some()
    );
}

proptest! {
    #[test]
    fn the_host_of_an_accepted_url_is_the_text_that_was_sent(
        host in r"([a-zA-Z0-9._%:\[\]-]|0x|127|xn--|ä|１){1,16}",
        rest in r"(:[0-9]{0,5})?[/?\\@#]?[a-z0-9@:.\[\]-]{0,12}",
    ) {
        let guard = guard(|settings| settings.allow_targets = nets(&["0.0.0.0/0", "::/0"]));
        let url = format!("https://{host}{rest}");
        if let Ok(target) = guard.check_url(&url) {
            let after = &url["https://".len()..];
            prop_assert!(after.starts_with(target.authority.as_str()));
            let name = match target.host {
                TargetHost::Name(name) => name,
                TargetHost::Address(IpAddr::V4(ip)) => ip.to_string(),
                TargetHost::Address(IpAddr::V6(ip)) => format!("[{ip}]"),
            };
            let sent = after[..name.len()].to_ascii_lowercase();
            prop_assert_eq!(&sent, &name);
            let next = after[name.len()..].chars().next();
            prop_assert!(matches!(next, None | Some(':' | '/' | '?')), "{}", url);
        }
    }

    #[test]
    fn an_accepted_plain_name_is_never_lost(host in r"[a-z]{1,8}\.[a-z]{2,6}", path in "(/[a-z.]{0,5}){0,3}") {
        let url = format!("https://{host}{path}");
        let outcome = guard(|_| ()).check_url(&url);
        if !host.ends_with(".local") {
            prop_assert!(outcome.is_ok(), "{}", url);
        }
    }
}
