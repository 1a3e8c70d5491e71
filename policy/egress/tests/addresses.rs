//! Classes of addresses, held against a table of their own: IPv4 address by address, IPv6 at every edge of a prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_policy::{Class, class};
use ipnet::IpNet;

/// Has proofs run at their full length, which takes minutes: `cargo xtask conformance network` sets it.
const LONG: &str = "LONG_PROOFS";

/// All that is closed, from the registries of special-purpose addresses (RFC 6890 and later).
const CLOSED: [(&str, Class); 26] = [
    ("0.0.0.0/8", Class::Unspecified),
    ("10.0.0.0/8", Class::Private),
    ("100.64.0.0/10", Class::Shared),
    ("127.0.0.0/8", Class::Loopback),
    ("169.254.0.0/16", Class::LinkLocal),
    ("172.16.0.0/12", Class::Private),
    ("192.0.0.0/24", Class::Special),
    ("192.88.99.0/24", Class::Special),
    ("192.168.0.0/16", Class::Private),
    ("198.18.0.0/15", Class::Benchmark),
    ("224.0.0.0/4", Class::Multicast),
    ("240.0.0.0/4", Class::Reserved),
    ("255.255.255.255/32", Class::Reserved),
    ("::/128", Class::Unspecified),
    ("::1/128", Class::Loopback),
    ("64:ff9b:1::/48", Class::Private),
    ("100::/64", Class::Special),
    ("5f00::/16", Class::Special),
    ("fc00::/7", Class::Private),
    ("fe80::/10", Class::LinkLocal),
    ("fec0::/10", Class::Private),
    ("ff00::/8", Class::Multicast),
    // Mapped and the like are judged by what they carry; these are examples of it.
    ("::ffff:10.0.0.0/104", Class::Private),
    ("64:ff9b::a9fe:0/112", Class::LinkLocal),
    ("2002:7f00::/24", Class::Loopback),
    ("2002:c0a8::/32", Class::Private),
];

/// The intervals of IPv4, in order, as (first, class); each ends before the next begins.
fn intervals() -> Vec<(u32, Class)> {
    let mut edges = vec![(0, Class::Public)];
    for (text, class) in CLOSED {
        if let Ok(IpNet::V4(network)) = text.parse::<IpNet>() {
            edges.retain(|(first, _)| *first != u32::from(network.network()));
            edges.push((u32::from(network.network()), class));
            if let Some(after) = u32::from(network.broadcast()).checked_add(1) {
                edges.push((after, Class::Public));
            }
        }
    }
    edges.sort_unstable_by_key(|(first, _)| *first);
    // Where one network ends and another begins, the latter counts.
    edges.dedup_by(|next, before| {
        let same = next.0 == before.0;
        if same && before.1 == Class::Public {
            before.1 = next.1;
        }
        same
    });
    edges
}

/// Checks addresses in ascending order; the count of those that are public.
fn check(addresses: impl Iterator<Item = u32>) -> u64 {
    let intervals = intervals();
    let mut at = 0;
    let mut public = 0;
    for number in addresses {
        while intervals.get(at + 1).is_some_and(|(first, _)| *first <= number) {
            at += 1;
        }
        let (found, expected) = (class(IpAddr::V4(Ipv4Addr::from(number))), intervals[at].1);
        assert_eq!(found, expected, "{}", Ipv4Addr::from(number));
        public += u64::from(found == Class::Public);
    }
    public
}

#[test]
fn every_network_of_256_addresses_and_every_edge() {
    let networks = (0..=u32::MAX >> 8).map(|network| network << 8);
    let edges =
        intervals().into_iter().flat_map(|(first, _)| first.saturating_sub(1)..=first.saturating_add(1));
    let mut numbers: Vec<u32> = networks.chain(edges).chain([u32::MAX]).collect();
    numbers.sort_unstable();
    assert!(check(numbers.into_iter()) > 0);
}

#[test]
fn every_address_of_ipv4() {
    if std::env::var_os(LONG).is_none() {
        return skip::skip("long-proofs", "2^32 addresses take minutes; set LONG_PROOFS");
    }
    let public: u64 = std::thread::scope(|scope| {
        let halves = [0..=u32::MAX / 2, u32::MAX / 2 + 1..=u32::MAX].map(|half| scope.spawn(|| check(half)));
        halves.into_iter().map(|half| half.join().expect("no panic")).sum()
    });
    // By hand, from the lengths of the networks: what is closed is all of 2^32 but this.
    let closed = (3_u64 << 24) + (1 << 22) + (2 << 16) + (1 << 20) + (2 << 8) + (1 << 17) + (2 << 28);
    assert_eq!(public, (1 << 32) - closed);
}

/// The class of an address of IPv6 by the table alone, and by what the table says of the address it carries.
fn expected(address: Ipv6Addr) -> Class {
    let by_table = |address: IpAddr| {
        let of = |(text, class): (&str, Class)| {
            text.parse::<IpNet>().ok().filter(|net| net.contains(&address)).map(|_| class)
        };
        CLOSED.into_iter().filter_map(of).max().unwrap_or(Class::Public)
    };
    let bits = u128::from(address);
    let inside = |prefix: &str| prefix.parse::<IpNet>().expect(prefix).contains(&IpAddr::V6(address));
    let four = |shift: u32| Ipv4Addr::from(u32::try_from(bits >> shift & 0xffff_ffff).expect("32 bits"));
    let mut carried = Vec::new();
    if ["::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"].into_iter().any(inside)
    {
        carried.push(four(0));
    }
    if inside("64:ff9b:1::/48") {
        // bits 48 to 63 and 72 to 87 from the left
        let (high, low) = (bits >> 64 & 0xffff, bits >> 40 & 0xffff);
        carried.push(Ipv4Addr::from(u32::try_from(high << 16 | low).expect("32 bits")));
    }
    if inside("2002::/16") {
        carried.push(four(80));
    }
    if inside("2001::/32") {
        carried.extend([four(64), Ipv4Addr::from(!u32::from(four(0)))]);
    }
    if [0x5efe, 0x0200_5efe].contains(&(bits >> 32 & 0xffff_ffff)) {
        carried.push(four(0));
    }
    let carried = carried.into_iter().map(|address| by_table(IpAddr::V4(address)));
    carried.fold(by_table(IpAddr::V6(address)), Class::max)
}

/// A class is a union of prefixes, so that edges are enough: of each prefix that is closed or carries, and of each closed
/// network of IPv4 within each form that carries one.
#[test]
fn every_edge_of_ipv6() {
    let forms = [
        "::",
        "::ffff:0:0",
        "::ffff:0:0:0",
        "64:ff9b::",
        "64:ff9b:1::",
        "2002::",
        "2001::",
        "2600::5efe:0:0",
        "fe80::200:5efe:0:0",
    ];
    let mut edges: Vec<u128> = vec![0, u128::MAX];
    let mut networks: Vec<IpNet> = CLOSED.iter().map(|(text, _)| text.parse().expect(text)).collect();
    networks.extend(
        [
            "::/96",
            "::ffff:0:0/96",
            "::ffff:0:0:0/96",
            "64:ff9b::/96",
            "2002::/16",
            "2001::/32",
            "2001:db8::/32",
        ]
        .map(|text| text.parse::<IpNet>().expect(text)),
    );
    for network in networks {
        match network {
            IpNet::V6(network) => edges.extend([network.network(), network.broadcast()].map(u128::from)),
            IpNet::V4(network) => {
                for four in [network.network(), network.broadcast()].map(u32::from) {
                    for near in [four.wrapping_sub(1), four, four.wrapping_add(1)] {
                        let (four, turned) = (u128::from(near), u128::from(!near));
                        let high = (four >> 16) << 64 | (four & 0xffff) << 40;
                        let shifted = [
                            four,
                            turned,
                            four << 80,
                            four << 64,
                            high,
                            four << 80 | four,
                            high | 0x0808_0808,
                        ];
                        edges.extend(forms.iter().flat_map(|form| {
                            let form = u128::from(form.parse::<Ipv6Addr>().expect(form));
                            shifted.map(|carried| form | carried)
                        }));
                    }
                }
            }
        }
    }
    let near = edges.iter().flat_map(|edge| [edge.wrapping_sub(1), *edge, edge.wrapping_add(1)]);
    let mut classes = std::collections::BTreeSet::new();
    for address in near.map(Ipv6Addr::from) {
        let found = class(IpAddr::V6(address));
        assert_eq!(found, expected(address), "{address}");
        classes.insert(found);
    }
    // All but the one that depends on the host.
    assert_eq!(classes.len(), 10, "{classes:?}");
}
