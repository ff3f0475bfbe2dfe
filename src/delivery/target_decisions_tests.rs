//! The whole way from the text of a URL to the decision, as one table (`target_decisions_urls_tests.rs`): the check at
//! subscription, then the judgement of what the name servers say at connect, under three sets of settings. The name
//! servers are a table too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{Lookup, LookupError, LookupFuture, Resolve, Settings, TargetGuard};

#[path = "target_decisions_urls_tests.rs"]
mod urls;

use urls::{Decision, rows};

/// Least rows; the table is to grow.
const ROWS_MIN: usize = 250;

/// What the name servers say: a name in each line, and its addresses; there may be none. Names that are not here do not
/// exist. The last five are never asked for: they are refused before, or known without name servers.
const ANSWERS: &str = "
    example.com 93.184.215.14 2606:2800:21f:cb07:6820:80da:af6b:8b2c
    a.example.com 8.8.8.8
    a-b.example.com 8.8.8.8
    a_b.example.com 8.8.8.8
    xn--bcher-kva.example 8.8.8.8
    1e100.net 142.250.74.110
    127.0.0.1.example.com 8.8.8.8
    localhost.example.com 8.8.8.8
    internal.example.com 8.8.8.8
    notlocalhost.com 8.8.8.8
    only6.example.com 2606:4700::1111
    loopback.example.com 127.0.0.1
    loopback6.example.com ::1
    private.example.com 10.0.0.1
    private1.example.com 10.1.0.1
    home.example.com 192.168.1.1
    metadata.example.com 169.254.169.254
    metadata6.example.com fd00:ec2::254
    carrier.example.com 100.64.0.1
    unspecified.example.com 0.0.0.0
    unspecified6.example.com ::
    multicast.example.com 224.0.0.1
    broadcast.example.com 255.255.255.255
    link6.example.com fe80::1
    site6.example.com fec0::1
    doc6.example.com 2001:db8::1
    segments.example.com 5f00::1
    mapped.example.com ::ffff:8.8.8.8
    mapped-loopback.example.com ::ffff:127.0.0.1
    compatible.example.com ::8.8.8.8
    nat64.example.com 64:ff9b::8.8.8.8
    nat64-loopback.example.com 64:ff9b::127.0.0.1
    nat64-local.example.com 64:ff9b:1::8.8.8.8
    sixtofour.example.com 2002:808:808::1
    teredo.example.com 2001:0:4136:e378:8000:63bf:f7f7:f7f7
    isatap.example.com 2606:4700::5efe:8.8.8.8
    mixed-last.example.com 8.8.8.8 8.8.4.1 1.1.1.1 192.168.1.1
    mixed-first.example.com 192.168.1.1 8.8.8.8
    mixed-families.example.com 8.8.8.8 fe80::1
    mixed-mapped.example.com 8.8.8.8 ::ffff:192.168.1.1
    mixed-loopback.example.com 8.8.8.8 127.0.0.1
    mixed-denied.example.com 8.8.8.8 8.8.4.4
    denied.example.com 8.8.4.4
    empty.example.com
    corp.internal 10.0.0.1
    a.corp.internal 192.168.1.1 8.8.8.8
    loopback.corp.internal 127.0.0.1
    denied.corp.internal 10.0.0.1 10.1.0.1
    denied64.corp.internal 64:ff9b::10.1.0.1
    secret.corp.internal 8.8.8.8
    receiver 10.0.0.1
    bad.example 8.8.8.8
    a.bad.example 8.8.8.8
    notbad.example 8.8.8.8
    localhost 8.8.8.8
    a.localhost 8.8.8.8
    intranet 8.8.8.8
    printer.local 8.8.8.8
    metadata.google.internal 8.8.8.8
";

fn production() -> Settings {
    Settings::default()
}

/// As `rollcall dev`.
fn development() -> Settings {
    Settings {
        allow_http: true,
        allow_targets: nets(&["127.0.0.0/8", "::1/128"]),
        ..Settings::default()
    }
}

/// An operator with an inside of his own, and somebody whom he does not want to call.
fn lists() -> Settings {
    Settings {
        allow_targets: nets(&["10.0.0.0/8", "64:ff9b::/96", "::ffff:0:0/96"]),
        deny_targets: nets(&["10.1.0.0/16", "8.8.4.4/32", "2606:4700:1::/48"]),
        allow_hosts: ["corp.internal", "receiver"].map(str::to_owned).to_vec(),
        deny_hosts: ["bad.example", "secret.corp.internal"].map(str::to_owned).to_vec(),
        deny_ports: vec![8443],
        allow_http: false,
    }
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Answers from [`ANSWERS`].
#[derive(Debug)]
struct NameServers;

impl Resolve for NameServers {
    fn lookup<'a>(&'a self, name: &'a str) -> LookupFuture<'a> {
        let answer = addresses_of(name)
            .map(|addresses| Lookup { addresses, ttl: Duration::from_secs(60) })
            .ok_or(LookupError::NotFound);
        Box::pin(async move { answer })
    }
}

fn addresses_of(name: &str) -> Option<Vec<IpAddr>> {
    let mut rows = ANSWERS.lines().map(str::split_whitespace);
    let mut row = rows.find(|row| row.clone().next() == Some(name))?;
    Some(row.by_ref().skip(1).map(|address| address.parse().unwrap()).collect())
}

async fn decide(guard: &TargetGuard, url: &str) -> Decision {
    let target = match guard.check_url(url) {
        Ok(target) => target,
        Err(refusal) => return Decision::Checked(refusal.step),
    };
    match guard.resolve(&target).await {
        Ok(addresses) => {
            assert!(!addresses.is_empty(), "{url}: nobody to call");
            Decision::Called
        }
        Err(refusal) => Decision::Connected(refusal.step),
    }
}

#[tokio::test]
async fn every_url_gets_its_decision_under_every_settings() {
    let guards = [production(), development(), lists()].map(|it| TargetGuard::new(it, NameServers));
    let mut faults = Vec::new();
    for (expected, url) in rows() {
        let mut decisions = Vec::new();
        for guard in &guards {
            decisions.push(decide(guard, url).await);
        }
        if decisions != expected {
            faults.push(format!("{url:?}: expected {expected:?}, not {decisions:?}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn table_is_long_and_says_nothing_twice() {
    let rows = rows();
    let urls: BTreeSet<_> = rows.iter().map(|(_, url)| url).collect();

    assert!(rows.len() >= ROWS_MIN, "only {} rows", rows.len());
    assert_eq!(urls.len(), rows.len());
}

#[tokio::test]
async fn called_are_exactly_the_addresses_of_the_answer() {
    let guard = TargetGuard::new(production(), NameServers);
    for (url, addresses) in [
        ("https://EXAMPLE.com:9000/", addresses_of("example.com").unwrap()),
        ("https://8.8.8.8/", vec!["8.8.8.8".parse().unwrap()]),
        ("https://[2606:4700::1111]/", vec!["2606:4700::1111".parse().unwrap()]),
    ] {
        let called = guard.resolve(&guard.check_url(url).unwrap()).await.unwrap();

        assert_eq!(*called, addresses[..], "{url}");
    }
}
