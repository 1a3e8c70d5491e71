//! Classes of addresses: the public internet, and what is closed by default.
//!
//! An address that carries another one is judged by both, and the worse class wins. Not here: the rules of users.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The class of an address, from the harmless to the worst.
///
/// The ranges for documentation (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32) are public: nothing lives
/// there, and tests need addresses that count as public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The internet.
    Public,
    /// Networks of a site: 10/8, 172.16/12, 192.168/16, fc00::/7, fec0::/10, and 64:ff9b:1::/48, which translates to
    /// those.
    Private,
    /// Between a carrier and its customers: 100.64/10.
    Shared,
    /// Benchmarks of networks: 198.18/15.
    Benchmark,
    /// Protocols' own: 192.0.0/24, 192.88.99/24, 100::/64, 5f00::/16.
    Special,
    /// 240/4, with the broadcast address.
    Reserved,
    /// 224/4, ff00::/8.
    Multicast,
    /// One link, and with it the metadata service of a cloud: 169.254/16, fe80::/10.
    LinkLocal,
    /// This host, unspecified: 0/8, ::.
    Unspecified,
    /// 127/8, ::1.
    Loopback,
    /// An address of the host's own.
    Host,
}

impl Class {
    /// Whether this class is open once private networks are.
    pub(crate) fn is_private(self) -> bool {
        matches!(self, Self::Private | Self::Shared)
    }

    /// The word for the class in a rule's id.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Shared => "carrier-grade-nat",
            Self::Benchmark => "benchmark",
            Self::Special => "special",
            Self::Reserved => "reserved",
            Self::Multicast => "multicast",
            Self::LinkLocal => "link-local",
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The class of an address, whoever the host is.
#[must_use]
pub fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class4(address),
        IpAddr::V6(address) => embedded(address).map(class4).fold(class6(address), Class::max),
    }
}

/// The class of an address on a host that has the addresses `own`, all of them canonical.
pub(crate) fn class_on(own: &BTreeSet<IpAddr>, address: IpAddr) -> Class {
    if forms(address).any(|form| own.contains(&form)) { Class::Host } else { class(address) }
}

/// The address, canonical, and those that it carries.
pub(crate) fn forms(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let carried = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(embedded(address).map(IpAddr::V4)),
    };
    std::iter::once(address.to_canonical()).chain(carried.into_iter().flatten())
}

fn class4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Class::Private,
        [100, 64..=127, ..] => Class::Shared,
        [127, ..] => Class::Loopback,
        [169, 254, ..] => Class::LinkLocal,
        [192, 0, 0, _] | [192, 88, 99, _] => Class::Special,
        [198, 18..=19, ..] => Class::Benchmark,
        [224..=239, ..] => Class::Multicast,
        [240..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

/// The class of an address of IPv6 by itself.
fn class6(address: Ipv6Addr) -> Class {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        [0x64, 0xff9b, 1, ..] | [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Class::Private,
        [0x100, 0, 0, 0, ..] | [0x5f00, ..] => Class::Special,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        _ => Class::Public,
    }
}

/// The addresses of IPv4 that an address of IPv6 carries.
fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let s = address.segments();
    let at = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    let last = at(s[6], s[7]);
    let by_prefix = match s {
        // compatible (RFC 4291 §2.5.5.1), mapped (§2.5.5.2), translated (RFC 2765 §2.1), NAT64 (RFC 6052 §2.1)
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            [last, None]
        }
        // NAT64 of a site (RFC 8215): the address is the last 32 bits, or where RFC 6052 §2.2 has it under 48 bits.
        [0x64, 0xff9b, 1, ..] => [last, at(s[3], s[4] << 8 | s[5] >> 8)],
        // 6to4 (RFC 3056 §2)
        [0x2002, high, low, ..] => [at(high, low), None],
        // Teredo (RFC 4380 §4): the server's, and the client's with every bit turned
        [0x2001, 0, high, low, ..] => [at(high, low), at(!s[6], !s[7])],
        _ => [None, None],
    };
    // ISATAP (RFC 5214 §6.1), below any prefix
    let by_interface = if matches!(s, [_, _, _, _, 0 | 0x200, 0x5efe, ..]) { last } else { None };
    by_prefix.into_iter().chain([by_interface]).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_outer_and_inner_wins() {
        for (text, expected) in [
            ("8.8.8.8", Class::Public),
            ("203.0.113.30", Class::Public),
            ("2001:db8::1", Class::Public),
            ("::ffff:8.8.8.8", Class::Public),
            ("::ffff:127.0.0.1", Class::Loopback),
            ("::ffff:0:10.0.0.1", Class::Private),
            ("::127.0.0.1", Class::Loopback),
            ("64:ff9b::8.8.8.8", Class::Public),
            ("64:ff9b::7f00:1", Class::Loopback),
            ("64:ff9b:1::8.8.8.8", Class::Unspecified),
            ("64:ff9b:1:a9fe:a9:fe00::", Class::Unspecified),
            ("64:ff9b:1:a9fe:a9:fe00:808:808", Class::LinkLocal),
            ("2002:7f00:1::", Class::Loopback),
            ("2002:808:808::1", Class::Public),
            ("2002:808:808::5efe:10.0.0.1", Class::Private),
            ("2001:0:808:808::f5ff:fffe", Class::Private),
            ("2001:0:a00:1::f7f7:f7f7", Class::Private),
            ("2001:0:808:808::f7f7:f7f7", Class::Public),
            ("fe80::5efe:127.0.0.1", Class::Loopback),
            ("2600::200:5efe:169.254.169.254", Class::LinkLocal),
            ("fd00:ec2::254", Class::Private),
            ("fec0::1", Class::Private),
            ("::", Class::Unspecified),
            ("::1", Class::Loopback),
        ] {
            assert_eq!(class(text.parse().expect(text)), expected, "{text}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_in_any_form() {
        let own = BTreeSet::from(["203.0.113.7", "2001:db8::7"].map(|text| text.parse().expect(text)));
        for text in
            ["203.0.113.7", "::ffff:203.0.113.7", "64:ff9b::203.0.113.7", "2002:cb00:7107::", "2001:db8::7"]
        {
            assert_eq!(class_on(&own, text.parse().expect(text)), Class::Host, "{text}");
        }
        assert_eq!(class_on(&own, [203, 0, 113, 8].into()), Class::Public);
    }
}
