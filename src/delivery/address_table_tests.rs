//! Every row of the registries, and both sides of every edge of the table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

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

/// The rows of the IANA IPv4 and IPv6 Special-Purpose Address Registries, with multicast, site-local and compatible
/// addresses, which other registries have: block, whether its entry says that it is globally reachable (`-`, which has no
/// answer there, stands for "depends on what is embedded" and "deprecated"), and whether the addresses right before and
/// right behind it are to be called. A special-purpose entry itself is refused whatever it says.
const REGISTRIES: &str = "
    0.0.0.0/8            no   none yes
    0.0.0.0/32           no   none no
    10.0.0.0/8           no   yes  yes
    100.64.0.0/10        no   yes  yes
    127.0.0.0/8          no   yes  yes
    169.254.0.0/16       no   yes  yes
    172.16.0.0/12        no   yes  yes
    192.0.0.0/24         no   yes  yes
    192.0.0.0/29         no   yes  no
    192.0.0.8/32         no   no   no
    192.0.0.9/32         yes  no   no
    192.0.0.10/32        yes  no   no
    192.0.0.170/32       no   no   no
    192.0.0.171/32       no   no   no
    192.0.2.0/24         no   yes  yes
    192.31.196.0/24      yes  yes  yes
    192.52.193.0/24      yes  yes  yes
    192.88.99.0/24       -    yes  yes
    192.88.99.2/32       no   no   no
    192.168.0.0/16       no   yes  yes
    192.175.48.0/24      yes  yes  yes
    198.18.0.0/15        no   yes  yes
    198.51.100.0/24      no   yes  yes
    203.0.113.0/24       no   yes  yes
    224.0.0.0/4          no   yes  no
    240.0.0.0/4          no   no   none
    255.255.255.255/32   no   no   none

    ::/128               no   none no
    ::1/128              no   no   no
    ::/96                -    none no
    ::ffff:0:0/96        no   no   no
    64:ff9b::/96         yes  no   no
    64:ff9b:1::/48       no   no   no
    100::/64             no   no   no
    100:0:0:1::/64       no   no   no
    2001::/23            no   yes  yes
    2001::/32            -    yes  no
    2001:1::1/128        yes  no   no
    2001:1::2/128        yes  no   no
    2001:1::3/128        yes  no   no
    2001:2::/48          no   no   no
    2001:3::/32          yes  no   no
    2001:4:112::/48      yes  no   no
    2001:10::/28         -    no   no
    2001:20::/28         yes  no   no
    2001:30::/28         yes  no   no
    2001:db8::/32        no   yes  yes
    2002::/16            -    yes  yes
    2620:4f:8000::/48    yes  yes  yes
    3fff::/20            no   yes  yes
    5f00::/16            no   no   no
    fc00::/7             no   no   no
    fe80::/10            no   no   no
    fec0::/10            -    no   no
    ff00::/8             no   no   none
";

/// The neighbour of an address, `None` beyond the last and before the first.
fn next_to(address: IpAddr, by: i8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits().checked_add_signed(by.into())?;
            Some(Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits().checked_add_signed(by.into())?;
            Some(Ipv6Addr::from_bits(bits).into())
        }
    }
}

#[test]
fn every_row_of_the_registries_is_refused_from_its_first_address_to_its_last_and_no_further() {
    let rows = REGISTRIES.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<_> = rows.filter(|row| !row.is_empty()).collect();
    assert_eq!(rows.len(), 55);
    for row in rows {
        let [block, _, before, behind] = row[..] else { panic!("{row:?}") };
        let net: IpNet = block.parse().unwrap();
        let (first, last) = (net.network(), net.broadcast());
        let judge = |address| if is_global(address) { "yes" } else { "no" };

        assert_eq!(first, net.addr(), "{block}");
        assert_eq!((judge(first), judge(last)), ("no", "no"), "{block}");
        assert_eq!(next_to(first, -1).map_or("none", judge), before, "before {block}");
        assert_eq!(next_to(last, 1).map_or("none", judge), behind, "behind {block}");
    }
}

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
