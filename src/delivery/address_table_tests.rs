//! Both sides of every edge of the table.

use std::net::IpAddr;

use super::{embedded_v4, is_global};

const GLOBAL: &str = "
    1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0
    126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0
    191.255.255.255 192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255
    192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255
    203.0.114.0 223.255.255.255 2000::1 2001:200::1 2001:4860:4860::8888
    2001:db7:ffff::1 2001:db9::1 2003::1 2606:4700::1111 2620:4f:7fff::1 2620:4f:8001::1
    2a00:1450::1 3ffe:ffff::1 3fff:1000::1
";

const SPECIAL: &str = "
    0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200
    100.127.255.255 127.0.0.0 127.0.0.1 127.255.255.255 169.254.0.0 169.254.169.254
    169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.9 192.0.0.170
    192.0.0.255 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.0
    192.168.255.255 192.175.48.1 198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1
    224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.254 255.255.255.255 :: ::1 ::2
    ::7f00:1 ::8.8.8.8 ::ffff:8.8.8.8 ::ffff:127.0.0.1 ::ffff:0:8.8.8.8 64:ff9b::8.8.8.8
    64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff::1 100::1 100:0:0:1::1 1fff::1
    2001::1 2001:0:4136:e378::1 2001:1::1 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1
    2001:20::1 2001:30::1 2001:1ff:ffff::1 2001:db8::1 2001:db8:ffff::1 2002::1
    2002:808:808::1 2002:7f00:1::1 2620:4f:8000::1 3fff::1 3fff:fff::1 4000::1 5f00::1
    8000::1 fc00::1 fd00::1 fd00:ec2::254 fe80::1 febf::1 fec0::1 ff02::1 ff0e::1
    2606:4700::5efe:808:808 2606:4700::200:5efe:a00:1
";

#[test]
fn only_globally_reachable_unicast_addresses_are_global() {
    for (addresses, global) in [(GLOBAL, true), (SPECIAL, false)] {
        for text in addresses.split_whitespace() {
            assert_eq!(is_global(text.parse::<IpAddr>().unwrap()), global, "{text}");
        }
    }
}

#[test]
fn the_table_is_a_list_of_networks_and_not_of_hosts() {
    let networks = super::SPECIAL_V6.iter().chain([&super::GLOBAL_V6]);
    assert!(super::SPECIAL_V4.iter().all(|(net, length)| net.to_bits() << length == 0));
    assert!(networks.into_iter().all(|(net, length)| net.to_bits() << length == 0));
}

#[test]
fn every_form_that_embeds_ipv4_gives_it_up() {
    for text in [
        "::10.1.2.3",
        "::ffff:10.1.2.3",
        "::ffff:0:10.1.2.3",
        "64:ff9b::10.1.2.3",
        "64:ff9b:1::10.1.2.3",
        "64:ff9b:1:2:3:4:10.1.2.3",
        "2002:a01:203::1",
        "2001:0:4136:e378:8000:63bf:f5fe:fdfc",
        "2606:4700::5efe:10.1.2.3",
        "fe80::200:5efe:10.1.2.3",
    ] {
        let inner = embedded_v4(text.parse().unwrap());
        assert_eq!(inner.map(|ip| ip.to_string()).as_deref(), Some("10.1.2.3"), "{text}");
    }
    for text in ["::", "::1", "2606:4700::a01:203", "64:ff9b:2::a01:203", "2001:1::a01:203"] {
        assert_eq!(embedded_v4(text.parse().unwrap()), None, "{text}");
    }
}
