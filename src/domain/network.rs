//! Addresses that count as one: where something is limited for each address.

use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that count: commonly one site, one customer or one machine has all addresses behind them.
/// More lets it count as many, fewer makes neighbours share.
const IPV6_PREFIX_BITS: u32 = 64;

/// An IPv4 address as it is; the first address of its network of an IPv6 address.
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let kept = u128::MAX << (u128::BITS - IPV6_PREFIX_BITS);
            Ipv6Addr::from_bits(v6.to_bits() & kept).into()
        }
    }
}
