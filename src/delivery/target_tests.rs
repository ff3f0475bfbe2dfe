//! Texts of URLs: those with one reading beside everything that two parsers could read differently.

use std::net::IpAddr;

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

use super::{Step, Target, TargetHost};

/// URL, authority, port, path and query.
const ACCEPTED: &[(&str, &str, u16, &str)] = &[
    ("https://example.com", "example.com", 443, "/"),
    ("https://example.com/", "example.com", 443, "/"),
    ("https://example.com?x=1", "example.com", 443, "/?x=1"),
    ("https://example.com/?", "example.com", 443, "/?"),
    ("https://example.com/a/../b", "example.com", 443, "/a/../b"),
    ("https://example.com/./a", "example.com", 443, "/./a"),
    ("https://example.com//a//b", "example.com", 443, "//a//b"),
    ("https://example.com/%2e%2e/%2F", "example.com", 443, "/%2e%2e/%2F"),
    ("https://example.com/a?b='c'&d=%20", "example.com", 443, "/a?b='c'&d=%20"),
    ("https://example.com/a?b?c/d", "example.com", 443, "/a?b?c/d"),
    ("https://example.com/@user", "example.com", 443, "/@user"),
    ("https://example.com/a:b@c", "example.com", 443, "/a:b@c"),
    ("https://example.com/~a-b_c.d!$&()*+,;=", "example.com", 443, "/~a-b_c.d!$&()*+,;="),
    ("https://example.com/http://10.0.0.1/", "example.com", 443, "/http://10.0.0.1/"),
    ("https://example.com:443/", "example.com", 443, "/"),
    ("https://example.com:8443/", "example.com:8443", 8443, "/"),
    ("https://example.com:65535/", "example.com:65535", 65535, "/"),
    ("https://example.com:80/", "example.com:80", 80, "/"),
    ("HTTPS://EXAMPLE.com/A", "EXAMPLE.com", 443, "/A"),
    ("https://a.b.c.d.example.co.uk/x", "a.b.c.d.example.co.uk", 443, "/x"),
    ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
    ("https://a_b.example.com/", "a_b.example.com", 443, "/"),
    ("https://1e100.net/", "1e100.net", 443, "/"),
    ("https://127.0.0.1.example.com/", "127.0.0.1.example.com", 443, "/"),
    ("https://local.example.com/", "local.example.com", 443, "/"),
    ("https://localhost.example.com/", "localhost.example.com", 443, "/"),
    ("https://mylocal.example/", "mylocal.example", 443, "/"),
    ("https://notlocalhost.com/", "notlocalhost.com", 443, "/"),
    ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
    ("https://8.8.8.8:8443/x", "8.8.8.8:8443", 8443, "/x"),
    ("https://[2606:4700::1111]/", "[2606:4700::1111]", 443, "/"),
    ("https://[2606:4700::ABCD]:8443/", "[2606:4700::ABCD]:8443", 8443, "/"),
];

const REFUSED: &[&str] = &[
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
];

fn step(url: &str) -> Option<Step> {
    Target::parse(url, true).err().map(|refusal| refusal.step)
}

#[test]
fn plain_urls_are_accepted_and_taken_apart_byte_for_byte() {
    for &(url, authority, port, path) in ACCEPTED {
        let target = Target::parse(url, false).unwrap_or_else(|error| panic!("{url}: {error}"));

        let parts = (target.authority.as_str(), target.port, target.path_and_query.as_str());
        assert_eq!(parts, (authority, port, path), "{url}");
        assert!(target.tls, "{url}");
    }
}

#[test]
fn urls_with_more_than_one_reading_are_refused() {
    for url in REFUSED {
        assert_eq!(step(url), Some(Step::Url), "{url:?}");
    }
}

#[test]
fn length_is_limited_to_2048_bytes_and_names_to_253() {
    let url = |length: usize| format!("https://example.com/{}", "a".repeat(length - 20));
    let name =
        |labels: usize, last: &str| format!("https://{}{last}/", "a123456789.".repeat(labels));

    assert_eq!(step(&url(2048)), None);
    assert_eq!(step(&url(2049)), Some(Step::Url));
    assert_eq!(
        Target::parse(&url(2049), false).unwrap_err().message,
        "url must have at most 2048 bytes"
    );
    assert_eq!(step(&name(22, "example.com")), None); // 253 bytes
    assert_eq!(step(&name(22, "examples.com")), Some(Step::Url));
    assert_eq!(step(&format!("https://{}.com/", "a".repeat(63))), None);
    assert_eq!(step(&format!("https://{}.com/", "a".repeat(64))), Some(Step::Url));
}

proptest! {
    #[test]
    fn the_host_of_an_accepted_url_is_the_text_that_was_sent(
        host in r"([a-zA-Z0-9._%:\[\]-]|0x|127|xn--|ä|１){1,16}",
        rest in r"(:[0-9]{0,5})?[/?\\@#]?[a-z0-9@:.\[\]-]{0,12}",
    ) {
        let url = format!("https://{host}{rest}");
        if let Ok(target) = Target::parse(&url, false) {
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
    fn a_plain_name_is_accepted(host in r"[a-z]{1,8}\.[a-z]{2,6}", path in "(/[a-z.]{0,5}){0,3}") {
        let target = Target::parse(&format!("https://{host}{path}"), false).unwrap();

        prop_assert_eq!(target.authority, host);
        prop_assert_eq!(target.path_and_query, if path.is_empty() { "/".to_owned() } else { path });
    }
}
