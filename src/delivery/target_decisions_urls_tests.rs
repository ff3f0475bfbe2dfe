//! The table of `target_decisions_tests.rs`: URLs, and what is decided about them.

use crate::delivery::target_guard::Step;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Every address may be called.
    Called,
    /// Refused when it is subscribed, at this step.
    Checked(Step),
    /// Passes the check and is refused at each connect, at this step.
    Connected(Step),
}

const OK: Decision = Decision::Called;
const URL: Decision = Decision::Checked(Step::Url);
const NAME: Decision = Decision::Checked(Step::Name);
const ADDRESS: Decision = Decision::Checked(Step::Address);
/// The name servers know no address.
const NOWHERE: Decision = Decision::Connected(Step::Name);
/// An address of the name is refused.
const INSIDE: Decision = Decision::Connected(Step::Address);

/// What is expected with the settings of production, of development, and with an operator's lists; and of which URLs, with
/// blanks between them.
type Rows = ([Decision; 3], &'static str);

const PLAIN: &[Rows] = &[
    (
        [OK, OK, OK],
        "
        https://example.com https://example.com/ https://EXAMPLE.com/ HTTPS://example.com/
        https://example.com:443/ https://example.com:80/ https://example.com:1/ https://example.com:65535/
        https://example.com/hook?key=1&k=%2F https://example.com?x https://example.com/a/../b
        https://example.com/%2e%2e/ https://example.com//127.0.0.1/ https://example.com/@127.0.0.1/
        https://example.com/?u=http://127.0.0.1/ https://a.example.com/ https://a-b.example.com/
        https://a_b.example.com/ https://xn--bcher-kva.example/ https://1e100.net/
        https://127.0.0.1.example.com/ https://localhost.example.com/ https://internal.example.com/
        https://notlocalhost.com/ https://only6.example.com/ https://notbad.example/ https://8.8.8.8/
        https://8.8.8.8:9000/x https://[2606:4700::1111]/ https://[2606:4700::1111]:9000/
        https://[2001:4860:4860::8888]/
        ",
    ),
    (
        [URL, OK, URL],
        "
        http://example.com/ http://example.com:8080/ HTTP://8.8.8.8/ http://a.example.com/
        ",
    ),
    (
        [URL, URL, URL],
        "
        https https:// https:/// https:example.com https:/example.com/ //example.com/ /hook example.com
        ftp://example.com/ file:///etc/passwd gopher://example.com/ ws://example.com/ data:text/plain,x
        javascript:alert(1) unix:/var/run/docker.sock http+unix://example.com/ httpss://example.com/
        ",
    ),
];

const PORTS: &[Rows] = &[
    // The operator's list stands in place of the default one.
    (
        [URL, URL, OK],
        "
        https://example.com:0/ https://example.com:22/ https://example.com:25/ https://example.com:2375/
        https://example.com:5432/ https://example.com:6379/ https://example.com:9200/
        https://example.com:11211/ https://8.8.8.8:22/ https://[2606:4700::1111]:6379/
        ",
    ),
    ([OK, OK, URL], "https://example.com:8443/ https://8.8.8.8:8443/"),
    (
        [URL, URL, URL],
        "
        https://example.com:/ https://example.com:0443/ https://example.com:022/ https://example.com:0x16/
        https://example.com:65536/ https://example.com:65558/ https://example.com:4294967318/
        https://example.com:-22/ https://example.com:+443/ https://example.com:443:22/
        https://example.com:22a/ https://example.com:%32%32/ https://example.com:２２/
        ",
    ),
];

const NAMES: &[Rows] = &[
    (
        [NAME, NAME, NAME],
        "
        https://intranet/ https://com/ https://printer.local/ https://PRINTER.LOCAL/ https://local/
        https://metadata.google.internal/ https://internal/ https://notcorp.internal/ https://receivers/
        ",
    ),
    ([NAME, OK, NAME], "https://localhost/ https://LOCALHOST:9000/ https://a.localhost/"),
    ([URL, OK, URL], "http://localhost/ http://localhost:8080/hook http://a.localhost/"),
    // Let in by name, and still not everywhere.
    (
        [NAME, NAME, OK],
        "
        https://corp.internal/ https://a.corp.internal/ https://A.CORP.INTERNAL/
        https://loopback.corp.internal/ https://receiver/
        ",
    ),
    ([NAME, NAME, INSIDE], "https://denied.corp.internal/ https://denied64.corp.internal/"),
    ([NAME, NAME, NOWHERE], "https://unknown.corp.internal/"),
    ([NAME, NAME, NAME], "https://secret.corp.internal/ https://a.secret.corp.internal/"),
    ([OK, OK, NAME], "https://bad.example/ https://a.bad.example/ https://A.Bad.Example/"),
    (
        [NOWHERE, NOWHERE, NOWHERE],
        "
        https://unknown.example.com/ https://empty.example.com/ https://example.invalid/ https://127.0.0.1e0/
        ",
    ),
    // Names that stand for the inside, alone or among good addresses.
    (
        [INSIDE, INSIDE, INSIDE],
        "
        https://home.example.com/ https://metadata.example.com/ https://metadata6.example.com/
        https://carrier.example.com/ https://unspecified.example.com/ https://unspecified6.example.com/
        https://multicast.example.com/ https://broadcast.example.com/ https://link6.example.com/
        https://site6.example.com/ https://doc6.example.com/ https://segments.example.com/
        https://mapped-loopback.example.com/ https://compatible.example.com/
        https://nat64-loopback.example.com/ https://nat64-local.example.com/ https://sixtofour.example.com/
        https://teredo.example.com/ https://isatap.example.com/ https://mixed-last.example.com/
        https://mixed-first.example.com/ https://mixed-families.example.com/
        https://mixed-mapped.example.com/ https://private1.example.com/
        ",
    ),
    (
        [INSIDE, OK, INSIDE],
        "
        https://loopback.example.com/ https://loopback6.example.com/ https://mixed-loopback.example.com/
        ",
    ),
    (
        [INSIDE, INSIDE, OK],
        "
        https://private.example.com/ https://mapped.example.com/ https://nat64.example.com/
        ",
    ),
    ([OK, OK, INSIDE], "https://denied.example.com/ https://mixed-denied.example.com/"),
];

const LITERALS: &[Rows] = &[
    (
        [ADDRESS, ADDRESS, ADDRESS],
        "
        https://0.0.0.0/ https://0.1.2.3/ https://10.1.0.1/ https://100.64.0.1/ https://100.100.100.200/
        https://169.254.169.254/latest/meta-data/ https://169.254.170.2/ https://172.16.0.1/
        https://172.31.255.255/ https://192.0.0.1/ https://192.0.0.192/ https://192.0.2.1/
        https://192.31.196.1/ https://192.52.193.1/ https://192.88.99.1/ https://192.168.1.1/
        https://192.175.48.1/ https://198.18.0.1/ https://198.51.100.1/ https://203.0.113.1/
        https://224.0.0.1/ https://239.255.255.255/ https://240.0.0.1/ https://255.255.255.255/
        https://[::]/ https://[::2]/ https://[100::1]/ https://[100:0:0:1::1]/ https://[2001:2::1]/
        https://[2001:20::1]/ https://[2001:30::1]/ https://[2001:db8::1]/ https://[3fff::1]/
        https://[4000::1]/ https://[5f00::1]/ https://[fc00::1]/ https://[fd00:ec2::254]/ https://[fe80::1]/
        https://[fec0::1]/ https://[ff02::1]/ https://[::808:808]/ https://[::7f00:1]/
        https://[::ffff:0:808:808]/ https://[::ffff:0:7f00:1]/ https://[64:ff9b:1::7f00:1]/
        https://[2002:7f00:1::]/ https://[2002:808:808::1]/ https://[2002:a9fe:a9fe::1]/
        https://[2001::f7f7:f7f7]/ https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/
        https://[2606:4700::5efe:7f00:1]/ https://[2606:4700::200:5efe:a00:1]/
        https://[fe80::5efe:a9fe:a9fe]/ https://[::ffff:7f00:1]/ https://[::ffff:a9fe:a9fe]/
        https://[::ffff:a01:1]/ https://[64:ff9b::7f00:1]/ https://[64:ff9b::a9fe:a9fe]/
        https://[64:ff9b::a01:1]/ https://[64:ff9b::808:404]/
        ",
    ),
    (
        [ADDRESS, OK, ADDRESS],
        "
        https://127.0.0.1/ https://127.0.0.1:8080/ https://127.255.255.254/ https://[::1]/
        https://[::1]:9000/
        ",
    ),
    ([URL, OK, URL], "http://127.0.0.1/ http://127.9.9.9:8080/ http://[::1]:8080/"),
    ([URL, ADDRESS, URL], "http://10.0.0.1/ http://169.254.169.254/ http://[::ffff:7f00:1]/"),
    (
        [ADDRESS, ADDRESS, OK],
        "
        https://10.0.0.1/ https://10.255.255.255/ https://[::ffff:808:808]/ https://[::ffff:a00:1]/
        https://[64:ff9b::808:808]/ https://[64:ff9b::a00:1]/
        ",
    ),
    ([OK, OK, ADDRESS], "https://8.8.4.4/ https://[2606:4700:1::1]/ https://[2606:4700:1:ffff::]/"),
];

/// Notations that some parser reads as an address or name that another one does not. No settings let them pass.
const NOTATIONS: &[Rows] = &[
    // Decimal, octal, hexadecimal, short and mixed forms; of an allowed address too.
    (
        [URL; 3],
        "
        https://2130706433/ https://134744072/ https://2852039166/ https://017700000001/ https://0177.0.0.1/
        https://0251.0376.0251.0376/ https://010.010.010.010/ https://0x7f000001/ https://0X7F000001/
        https://0x8080808/ https://0x7f.0x0.0x0.0x1/ https://0xa9.0xfe.0xa9.0xfe/ https://0x7f.1/
        https://127.1/ https://127.0.1/ https://8.8.2056/ https://169.254.43518/ https://0/ https://0x/
        https://00/ https://127.0.0.01/ https://127.0x0.00.1/ https://4294967296/
        https://0x17f000001/ https://256.256.256.256/ https://127.0.0.1.1/ https://127.0.0/
        https://127..0.1/ https://127.0.0.256/ https://example.1/ https://example.0x1/
        ",
    ),
    // Long and mixed texts of IPv6.
    (
        [URL; 3],
        "
        https://[0:0:0:0:0:0:0:1]/ https://[0000:0000:0000:0000:0000:0000:0000:0001]/ https://[::0001]/
        https://[::127.0.0.1]/ https://[::ffff:127.0.0.1]/ https://[0:0:0:0:0:ffff:127.0.0.1]/
        https://[::ffff:8.8.8.8]/ https://[64:ff9b::127.0.0.1]/ https://[::ffff:0x7f.1]/
        https://[::ffff:127.1]/ https://[2606:4700:0:0:0:0:0:1111]/ https://[2606:4700::0:1111]/
        https://[1::2::3]/ https://[1:2:3:4:5:6:7:8:9]/ https://[]/ https://[::1/ https://::1/
        https://[[::1]]/ https://[127.0.0.1]/ https://[example.com]/ https://[v1.fe80]/ https://[::1]a/
        https://a[::1]/ https://[::1]:/
        ",
    ),
    // Zone ids.
    (
        [URL; 3],
        "
        https://[fe80::1%eth0]/ https://[fe80::1%25eth0]/ https://[::1%25lo]/ https://[2606:4700::1111%251]/
        ",
    ),
    // Trailing dots and empty labels.
    (
        [URL; 3],
        "
        https://example.com./ https://example.com.:443/ https://localhost./ https://127.0.0.1./
        https://2130706433./ https://example.com../ https://.example.com/ https://example..com/ https://./
        ",
    ),
    // Other scripts, and characters that are mapped away.
    (
        [URL; 3],
        "
        https://１２７.0.0.1/ https://①②⑦.⓪.⓪.①/ https://127。0。0。1/ https://127．0．0．1/ https://127｡0｡0｡1/
        https://ｌｏｃａｌｈｏｓｔ/ https://ⓛocalhost/ https://ℓocalhost/ https://localhoſt/ https://bücher.example/
        https://ехample.com/ https://[：：1]/ https://١٢٧.0.0.1/
        ",
    ),
    // Percent-encoding in the host.
    (
        [URL; 3],
        "
        https://%31%32%37.0.0.1/ https://127.0.0%2e1/ https://127%2E0%2E0%2E1/ https://%6cocalhost/
        https://example%2ecom/ https://%65xample.com/ https://%5b::1%5d/ https://example.com%2f@127.0.0.1/
        https://example.com%00.evil.example/ https://127.0.0.1%20/
        https://%ef%bc%91%ef%bc%92%ef%bc%97.0.0.1/
        ",
    ),
    // User info, and texts whose host depends on the parser.
    (
        [URL; 3],
        "
        https://user@example.com/ https://user:password@example.com/ https://@example.com/
        https://:@example.com/ https://example.com@127.0.0.1/ https://127.0.0.1@example.com/
        https://example.com:443@127.0.0.1/ https://a@b@example.com/ https://example.com:@127.0.0.1/
        https://example.com#@127.0.0.1/ https://example.com# https://example.com/#fragment
        https://example.com?#x
        ",
    ),
    // Characters that no host name has.
    (
        [URL; 3],
        "
        https://*.example.com/ https://-a.example.com/ https://a-.example.com/ https://exam$ple.com/
        https://exam,ple.com/ https://exam|ple.com/ https://<example>.com/ https://example.com;127.0.0.1/
        https://example.com&127.0.0.1/ https://example.com,127.0.0.1/
        ",
    ),
    // Paths that would have to be encoded before they can be sent.
    (
        [URL; 3],
        "
        https://example.com/% https://example.com/%zz https://example.com/<x> https://example.com/{x}
        https://example.com/ü
        ",
    ),
];

/// As [`NOTATIONS`]: CR, LF, blanks, control and invisible characters, and what else cannot stand in a list of words.
const BLANK_AND_ESCAPED: &[&str] = &[
    "",
    "https://example.com: 22/",
    "https://exam\u{ad}ple.com/",
    "https://exam\u{200b}ple.com/",
    "https://exam\u{200d}ple.com/",
    "https://127.0.0.1\\@example.com/",
    "https://example.com\\@127.0.0.1/",
    "https:\\\\example.com\\",
    "https://example.com\\",
    "https:/\\example.com/",
    "https://example.com/\r\nHost: 127.0.0.1",
    "https://example.com/\nX: y",
    "https://example.com/\r",
    "https://exam\nple.com/",
    "https://exam\tple.com/",
    "ht\ttps://example.com/",
    "https://example.com\0/",
    "https://example.com/\0",
    "https://example.com/\u{1}",
    "https://example.com/\u{1f}",
    "https://example.com/\u{7f}",
    "https://example.com/\u{85}",
    "https://example.com/\u{2028}",
    "https://example.com/\u{feff}",
    " https://example.com/",
    "https://example.com/ ",
    "https://example.com/a b",
    "https://exa mple.com/",
    "https://example.com /",
    "\u{feff}https://example.com/",
    "https://example.com/\"",
];

/// Every URL with what is expected.
pub(super) fn rows() -> Vec<([Decision; 3], &'static str)> {
    let groups = [PLAIN, PORTS, NAMES, LITERALS, NOTATIONS].into_iter().flatten();
    let words =
        groups.flat_map(|(expected, urls)| urls.split_whitespace().map(|it| (*expected, it)));
    words.chain(BLANK_AND_ESCAPED.iter().map(|url| ([URL; 3], *url))).collect()
}
