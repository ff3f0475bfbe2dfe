//! The address that a caller calls from, also through proxies: the one place that decides it.
//!
//! The listener notes with each request who holds the connection. Only when that is a trusted proxy is
//! `X-Forwarded-For` looked at, because anybody can send that header. Each proxy appends the address that it saw, so
//! it is read from the right, and what stands left of the first address that is no proxy was written by the caller.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ::http::HeaderMap;
use ::http::header::HeaderName;
use ::http::request::Parts;
use ipnet::IpNet;

use super::connection::Arrival;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Tells where requests come from.
#[derive(Clone, Debug)]
pub struct CallerAddresses {
    trusted_proxies: Vec<IpNet>,
}

impl CallerAddresses {
    /// Proxies in these networks are believed.
    #[must_use]
    pub fn new(trusted_proxies: Vec<IpNet>) -> Self {
        Self { trusted_proxies }
    }

    /// The address of the caller. A request that came through no listener has the unspecified one.
    #[must_use]
    pub fn find(&self, head: &Parts) -> IpAddr {
        let arrival = head.extensions.get::<Arrival>();
        let peer = arrival.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |arrival| arrival.peer);
        self.behind(peer, &head.headers)
    }

    /// The first address from the right that is no trusted proxy. An entry that is no address ends the walk, and the
    /// last address before it is taken; so does the left end of the header.
    fn behind(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut address = peer;
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        while self.is_trusted(address) {
            match entries.next().and_then(parse_entry) {
                Some(next) => address = next,
                None => break,
            }
        }
        address
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}

/// An address, alone or with a port; IPv6 with or without brackets.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    let address = bare.parse().or_else(|_| with_port()).ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::{CallerAddresses, X_FORWARDED_FOR};
    use ::http::HeaderMap;

    const TRUSTED: [&str; 3] = ["10.0.0.0/8", "192.0.2.7/32", "fd00::/16"];

    #[track_caller]
    fn check(peer: &str, lines: &[&str], expected: &str) {
        let networks = TRUSTED.map(|network| network.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, line.parse().unwrap());
        }

        let found = CallerAddresses::new(networks.to_vec()).behind(peer.parse().unwrap(), &headers);

        assert_eq!(found.to_string(), expected, "{peer} {lines:?}");
    }

    #[test]
    fn header_of_an_untrusted_peer_is_ignored() {
        check("198.51.100.1", &[], "198.51.100.1");
        check("198.51.100.1", &["203.0.113.9"], "198.51.100.1");
        check("192.0.2.8", &["203.0.113.9, 10.0.0.1"], "192.0.2.8");
    }

    #[test]
    fn first_untrusted_address_from_the_right_is_the_caller() {
        check("10.0.0.1", &["203.0.113.9"], "203.0.113.9");
        check("192.0.2.7", &["203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["1.1.1.1, 203.0.113.9, 10.2.3.4"], "203.0.113.9");
        check("10.0.0.1", &["1.1.1.1,203.0.113.9 ,\t192.0.2.7,10.2.3.4"], "203.0.113.9");
        check("fd00::1", &["2001:db8::9"], "2001:db8::9");
    }

    #[test]
    fn several_headers_are_one_list_in_their_order() {
        check("10.0.0.1", &["1.1.1.1", "203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["1.1.1.1, 203.0.113.9", "10.2.3.4", "10.2.3.5"], "203.0.113.9");
    }

    #[test]
    fn without_an_untrusted_address_the_leftmost_is_taken() {
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["10.9.9.9, 10.2.3.4"], "10.9.9.9");
    }

    #[test]
    fn entry_that_is_no_address_ends_the_walk_at_the_last_good_one() {
        for bad in
            ["", " ", "unknown", "203.0.113", "203.0.113.9 x", "\"203.0.113.9\"", "fe80::1%1"]
        {
            check("10.0.0.1", &[bad], "10.0.0.1");
            check("10.0.0.1", &[&format!("203.0.113.9, {bad}")], "10.0.0.1");
            check("10.0.0.1", &[&format!("203.0.113.9, {bad}, 10.2.3.4")], "10.2.3.4");
            check("10.0.0.1", &[&format!("{bad}, 203.0.113.9")], "203.0.113.9");
        }
        check("10.0.0.1", &["203.0.113.9", "\u{e9}"], "10.0.0.1");
    }

    #[test]
    fn ports_and_brackets_and_mapped_addresses_are_understood() {
        check("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9");
        check("10.0.0.1", &["[2001:db8::9]:4711"], "2001:db8::9");
        check("10.0.0.1", &["[2001:db8::9]"], "2001:db8::9");
        check("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9, ::ffff:10.2.3.4"], "203.0.113.9");
    }
}
