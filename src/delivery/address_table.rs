//! Which IP addresses are globally reachable unicast.
//!
//! **Source.** The IANA IPv4 and IPv6 Special-Purpose Address Registries (made by RFC 6890, as they stood in October
//! 2025), and for multicast and the unicast space of IPv6 the IANA registries of the whole address spaces. Each row
//! names its RFC. `address_table_tests.rs` holds every row of both registries and looks at both sides of each edge.
//!
//! **Stricter than its source.** A special-purpose block is refused even where its entry says that it is globally
//! reachable (anycast relays, AS112, ORCHID, drone identifiers), because no receiver lives there; so an entry inside
//! another one needs no row here. For IPv6 only `2000::/3`, the space from which unicast addresses are assigned, is
//! taken at all. That alone refuses loopback (`::1`), unspecified (`::`), the mapped, compatible and NAT64 forms of
//! IPv4 (`::ffff:0:0/96`, `64:ff9b::/96`, `64:ff9b:1::/48`), discard-only (`100::/64`), the dummy prefix
//! (`100:0:0:1::/64`), segment routing (`5f00::/16`), unique local (`fc00::/7`), link-local (`fe80::/10`), site-local
//! (`fec0::/10`), multicast (`ff00::/8`), and everything that nobody has been given yet.
//!
//! [`super::TargetGuard`] asks for every address before a connection is opened to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 blocks that are not globally reachable unicast: network and prefix length.
const SPECIAL_V4: [(Ipv4Addr, u32); 18] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8), // this network (RFC 791), and the unspecified address (RFC 1122)
    (Ipv4Addr::new(10, 0, 0, 0), 8), // private (RFC 1918)
    (Ipv4Addr::new(100, 64, 0, 0), 10), // shared by carriers, CGNAT (RFC 6598)
    (Ipv4Addr::new(127, 0, 0, 0), 8), // loopback (RFC 1122)
    (Ipv4Addr::new(169, 254, 0, 0), 16), // link-local (RFC 3927), and the metadata services of clouds
    (Ipv4Addr::new(172, 16, 0, 0), 12),  // private (RFC 1918)
    // Protocol assignments (RFC 6890): DS-Lite (RFC 7335), dummy (RFC 7600), PCP (RFC 7723), TURN (RFC 8155), discovery
    // of NAT64 (RFC 7050).
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24), // documentation (RFC 5737)
    (Ipv4Addr::new(192, 31, 196, 0), 24), // AS112 (RFC 7535)
    (Ipv4Addr::new(192, 52, 193, 0), 24), // AMT relays (RFC 7450)
    (Ipv4Addr::new(192, 88, 99, 0), 24), // 6to4 relays, deprecated (RFC 7526); 6a44 relays (RFC 6751)
    (Ipv4Addr::new(192, 168, 0, 0), 16), // private (RFC 1918)
    (Ipv4Addr::new(192, 175, 48, 0), 24), // AS112 (RFC 7534)
    (Ipv4Addr::new(198, 18, 0, 0), 15),  // benchmarking (RFC 2544)
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation (RFC 5737)
    (Ipv4Addr::new(203, 0, 113, 0), 24), // documentation (RFC 5737)
    (Ipv4Addr::new(224, 0, 0, 0), 4),    // multicast (RFC 5771)
    (Ipv4Addr::new(240, 0, 0, 0), 4),    // reserved (RFC 1112), and limited broadcast (RFC 919)
];

/// The space from which IPv6 unicast addresses are assigned (RFC 4291, RFC 3587).
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Blocks inside [`GLOBAL_V6`] that are not globally reachable unicast.
const SPECIAL_V6: [(Ipv6Addr, u32); 5] = [
    // Protocol assignments (RFC 2928): Teredo (RFC 4380), PCP (RFC 7723), TURN (RFC 8155), SRP (RFC 9665), benchmarking
    // (RFC 5180), AMT (RFC 7450), AS112 (RFC 7535), ORCHID (RFC 4843, RFC 7343), drones (RFC 9374).
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation (RFC 3849)
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),     // 6to4 (RFC 3056)
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), // AS112 (RFC 7534)
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),     // documentation (RFC 9637)
];

/// Whether the address is globally reachable unicast and embeds no IPv4 address.
pub(super) fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4
            .iter()
            .any(|&(net, length)| (address.to_bits() ^ net.to_bits()) >> (32 - length) == 0),
        IpAddr::V6(address) => {
            covers_v6(GLOBAL_V6, address)
                && !SPECIAL_V6.iter().any(|&block| covers_v6(block, address))
                && embedded_v4(address).is_none()
        }
    }
}

/// The IPv4 address inside an IPv6 address, for every form that a translator or tunnel on the way may unwrap.
///
/// The local prefix `64:ff9b:1::/48` may carry it at any of the places that RFC 6052 knows; the last 32 bits
/// are taken. Loopback and unspecified are not the deprecated compatible form.
pub(super) fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let pair = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // Compatible (::a.b.c.d), mapped (::ffff:a.b.c.d), translated (::ffff:0:a.b.c.d, RFC 2765).
        [0, 0, 0, 0, 0, 0 | 0xffff, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] => Some(pair(a, b)),
        // NAT64, well-known and local prefix (RFC 6052, RFC 8215).
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x64, 0xff9b, 1, _, _, _, a, b] => Some(pair(a, b)),
        // 6to4 (RFC 3056).
        [0x2002, a, b, ..] => Some(pair(a, b)),
        // Teredo: the client's address is stored inverted (RFC 4380).
        [0x2001, 0, _, _, _, _, a, b] => Some(pair(!a, !b)),
        // ISATAP interface identifiers, below any prefix (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, a, b] => Some(pair(a, b)),
        _ => None,
    }
}

fn covers_v6((net, length): (Ipv6Addr, u32), address: Ipv6Addr) -> bool {
    (address.to_bits() ^ net.to_bits()) >> (128 - length) == 0
}

#[cfg(test)]
#[path = "address_table_tests.rs"]
mod tests;
