//! The target guard with random addresses, notations and lists.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::{
    Just, Strategy, any, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest,
};
use proptest::{collection, sample};

use super::{Lookup, LookupFuture, Resolve, Settings, Step, TargetGuard};

/// Addresses around which most random ones lie: the edges of what is special.
const LANDMARKS: &str = "
    0.0.0.0 1.0.0.0 10.0.0.0 11.0.0.0 100.64.0.0 100.128.0.0 127.0.0.1 128.0.0.0 169.254.169.254 172.16.0.0 172.32.0.0
    192.0.0.0 192.0.2.0 192.88.99.0 192.168.0.0 192.169.0.0 198.18.0.0 198.20.0.0 198.51.100.0 203.0.113.0 224.0.0.0
    240.0.0.0 255.255.255.255 8.8.8.8
    :: ::1 ::ffff:0:0 64:ff9b:: 64:ff9b:1:: 100:: 2000:: 2001:: 2001:200:: 2001:db8:: 2001:db9:: 2002:: 2003:: 2606:4700::1
    2620:4f:8000:: 3fff:: 3fff:1000:: 4000:: 5f00:: fc00:: fe00:: fe80:: fec0:: ff00:: ff02::1
";

fn v4() -> impl Strategy<Value = Ipv4Addr> {
    let landmarks: Vec<Ipv4Addr> =
        LANDMARKS.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    prop_oneof![
        any::<u32>().prop_map(Ipv4Addr::from_bits),
        (sample::select(landmarks), -300..300_i32)
            .prop_map(|(at, by)| Ipv4Addr::from_bits(at.to_bits().wrapping_add_signed(by))),
    ]
}

fn v6() -> impl Strategy<Value = Ipv6Addr> {
    let landmarks: Vec<Ipv6Addr> =
        LANDMARKS.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    prop_oneof![
        any::<u128>().prop_map(Ipv6Addr::from_bits),
        (0x2000..0x4000_u128, any::<u128>())
            .prop_map(|(high, low)| Ipv6Addr::from_bits(high << 112 | low >> 16)),
        (sample::select(landmarks), -300..300_i128)
            .prop_map(|(at, by)| Ipv6Addr::from_bits(at.to_bits().wrapping_add_signed(by))),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![v4().prop_map(IpAddr::V4), v6().prop_map(IpAddr::V6)]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), any::<u8>()).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (most + 1)).unwrap()
    })
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    collection::vec(net(), 0..4)
}

/// An octet as some parsers read it.
fn octet(value: u8, base: u8) -> String {
    match base % 3 {
        0 => value.to_string(),
        1 => format!("0{value:o}"),
        _ => format!("0x{value:x}"),
    }
}

/// Every text of an IPv4 address that is not its plain one.
fn odd_texts(address: Ipv4Addr, bases: [u8; 4]) -> Vec<String> {
    let number = address.to_bits();
    let [a, b, c, d] = address.octets();
    let plain = address.to_string();
    let mixed: Vec<String> =
        address.octets().iter().zip(bases).map(|(value, base)| octet(*value, base)).collect();
    let full_width = plain.chars().map(|c| match c {
        '.' => '。',
        digit => char::from_u32(u32::from(digit) - u32::from('0') + u32::from('０')).unwrap(),
    });
    let percent = plain.bytes().map(|byte| format!("%{byte:02x}"));
    let mut texts = vec![
        number.to_string(),
        format!("0{number:o}"),
        format!("0x{number:x}"),
        format!("0X{number:08X}"),
        format!("{a}.{}", number & 0xff_ffff),
        format!("{a}.{b}.{}", number & 0xffff),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("{a:03}.{b:03}.{c:03}.{d:03}."),
        format!("{plain}."),
        format!("{}.{plain}", a),
        full_width.collect(),
        percent.collect(),
        format!("[::ffff:{plain}]"),
        format!("[::{plain}]"),
        format!("[64:ff9b::{plain}]"),
        format!("[{plain}]"),
        format!("user@{plain}"),
        mixed.join("."),
    ];
    texts.retain(|text| *text != plain);
    texts
}

/// The IPv6 addresses that embed an IPv4 address.
fn embeddings(inner: Ipv4Addr, other: u64) -> Vec<Ipv6Addr> {
    let low = u128::from(inner.to_bits());
    let other = u128::from(other);
    let pair = |prefix: u128| Ipv6Addr::from_bits(prefix | low);
    vec![
        pair(0xffff << 32),                                                   // mapped
        pair(0xffff << 48),                                                   // translated
        pair(0x64_ff9b << 96),                                                // NAT64
        pair(0x64_ff9b_0001 << 80 | (other >> 16) << 32),                     // NAT64, local
        Ipv6Addr::from_bits(0x2002 << 112 | low << 80 | other),               // 6to4
        Ipv6Addr::from_bits(0x2001 << 112 | other << 32 | low ^ 0xffff_ffff), // Teredo
        pair(0x2606_4700 << 96 | (other >> 32) << 64 | 0x5efe << 32),         // ISATAP
    ]
}

/// Answers every question with the same addresses.
struct Always(Vec<IpAddr>);

impl fmt::Debug for Always {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Always")
    }
}

impl Resolve for Always {
    fn lookup<'a>(&'a self, _: &'a str) -> LookupFuture<'a> {
        let answer = Lookup { addresses: self.0.clone(), ttl: Duration::from_secs(1) };
        Box::pin(async move { Ok(answer) })
    }
}

fn guard(settings: Settings) -> TargetGuard {
    TargetGuard::new(settings, Always(Vec::new()))
}

fn with_lists(allow_targets: Vec<IpNet>, deny_targets: Vec<IpNet>) -> Settings {
    Settings { allow_targets, deny_targets, ..Settings::default() }
}

/// The step at which a name with these addresses is refused.
fn decide_name(settings: Settings, addresses: Vec<IpAddr>) -> Option<Step> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let guard = TargetGuard::new(settings, Always(addresses));
    runtime.block_on(async {
        let target = guard.check_url("https://example.com/").unwrap();
        guard.resolve(&target).await.err().map(|refusal| refusal.step)
    })
}

fn plain_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        // The standard library writes mapped and compatible ones with dots, which is not the form of URLs.
        IpAddr::V6(address) => url::Host::<String>::Ipv6(address).to_string(),
    }
}

proptest! {
    #[test]
    fn a_literal_is_judged_as_its_address(address in address(), allow in nets(), deny in nets()) {
        let guard = guard(with_lists(allow, deny));

        let url = format!("https://{}/", plain_text(address));

        let decision = guard.check_url(&url).map(drop);
        prop_assert_eq!(decision, guard.judge(address), "{}", url);
    }

    #[test]
    fn no_other_notation_of_an_address_passes(
        inner in v4(), bases in any::<[u8; 4]>(), path in "(/[a-z]{0,3})?",
    ) {
        let everything = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        for settings in [Settings::default(), with_lists(everything, Vec::new())] {
            let guard = guard(settings);
            for text in odd_texts(inner, bases) {
                let refused = guard.check_url(&format!("https://{text}{path}")).unwrap_err();
                prop_assert_eq!(refused.step, Step::Url, "{}", text);
            }
        }
    }

    #[test]
    fn what_embeds_an_address_is_judged_as_that_address(
        inner in v4(), other in any::<u64>(), allow in nets(), deny in nets(),
    ) {
        let of_v4 = |nets: &[IpNet]| -> Vec<IpNet> {
            nets.iter().copied().filter(|net| matches!(net, IpNet::V4(_))).collect()
        };
        let (mut allow, deny) = (of_v4(&allow), of_v4(&deny));
        let closed = guard(with_lists(allow.clone(), deny.clone()));
        allow.push("::/0".parse().unwrap());
        let open = guard(with_lists(allow, deny));
        for outer in embeddings(inner, other) {
            prop_assert!(closed.judge(outer.into()).is_err(), "{}", outer);
            prop_assert_eq!(
                open.judge(outer.into()).is_ok(), open.judge(inner.into()).is_ok(), "{}", outer
            );
        }
    }

    #[test]
    fn deny_wins_whatever_is_allowed(
        address in address(), length in any::<u8>(), allow in nets(), mut deny in nets(),
        excused in any::<bool>(),
    ) {
        let most = if address.is_ipv4() { 32 } else { 128 };
        deny.push(IpNet::new(address, length % (most + 1)).unwrap());
        let everything: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let allow = [allow, everything].concat();
        let allow_hosts = if excused { vec!["example.com".to_owned()] } else { Vec::new() };
        let settings = Settings { allow_hosts, ..with_lists(allow, deny) };

        prop_assert!(guard(settings.clone()).judge(address).is_err());
        prop_assert_eq!(decide_name(settings, vec![address]), Some(Step::Address));
    }

    #[test]
    fn a_denied_host_is_refused_under_every_name_and_every_other_list(
        label in "([a-z0-9]{1,8}\\.){0,3}", upper in any::<bool>(), allow in nets(),
    ) {
        let settings = Settings {
            allow_hosts: vec!["bad.example".to_owned(), "example".to_owned()],
            deny_hosts: vec!["bad.example".to_owned()],
            ..with_lists(allow, Vec::new())
        };
        let name = format!("{label}bad.example");
        let name = if upper { name.to_ascii_uppercase() } else { name };

        let refused = guard(settings).check_url(&format!("https://{name}/")).unwrap_err();

        prop_assert_eq!(refused.step, Step::Name);
    }

    /// The standard library's predicates are another hand's reading of the same registries.
    #[test]
    fn nothing_but_global_unicast_is_allowed_by_default(address in address()) {
        prop_assume!(guard(Settings::default()).judge(address).is_ok());
        match address {
            IpAddr::V4(ip) => prop_assert!(
                !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_broadcast()
                    || ip.is_documentation() || ip.is_multicast() || ip.is_unspecified()),
                "{}", ip
            ),
            IpAddr::V6(ip) => prop_assert!(
                ip.segments()[0] & 0xe000 == 0x2000
                    && !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified()
                        || ip.is_unique_local() || ip.is_unicast_link_local())
                    && ip.to_ipv4().is_none(),
                "{}", ip
            ),
        }
    }

    #[test]
    fn a_name_is_as_bad_as_the_worst_of_its_addresses(
        addresses in collection::vec(prop_oneof![
            Just("8.8.8.8".parse::<IpAddr>().unwrap()),
            Just("2606:4700::1111".parse().unwrap()),
            address(),
        ], 1..6),
        allow in nets(), deny in nets(),
    ) {
        let settings = with_lists(allow, deny);
        let guard = guard(settings.clone());
        let all_good = addresses.iter().all(|address| guard.judge(*address).is_ok());

        let refused = decide_name(settings, addresses);

        prop_assert_eq!(refused, (!all_good).then_some(Step::Address));
    }

    /// What is called is read once more, as after a restart, and is the same.
    #[test]
    fn what_was_taken_from_a_url_reads_the_same_again(
        host in r"([a-zA-Z0-9_-]{1,6}\.){1,3}[a-z]{2,4}|8\.8\.[1-9]\.8|\[2606:4700::[1-9a-f]{1,4}\]",
        port in "(:[1-9][0-9]{0,4})?",
        rest in "(/[a-zA-Z0-9.%2/@:-]{0,12})?([?][a-z0-9=&/]{0,8})?",
    ) {
        let guard = guard(Settings::default());
        let checked = guard.check_url(&format!("https://{host}{port}{rest}"));
        if let Ok(target) = checked {
            let again = format!("https://{}{}", target.authority, target.path_and_query);
            prop_assert_eq!(guard.check_url(&again), Ok(target), "{}", again);
        }
    }
}
