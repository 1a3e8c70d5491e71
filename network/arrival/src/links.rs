//! Interfaces, addresses, neighbours and routes of the namespace.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::addresses::{
    GATEWAY_STATION, GATEWAY4, GATEWAY6, GUEST_STATION, GUEST4, GUEST6, PREFIX4, PREFIX6,
};
use super::netlink::Netlink;
use super::{Error, INTERFACE};

/// The mark of packets that a rule takes to a socket.
pub(crate) const MARK: u32 = 1;
/// The table of routes for such packets: every address is this host's.
const TABLE: u8 = 100;
/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;
/// Most bytes of a packet on the TAP. Only the guest's end has a shorter limit, which holds for what the guest sends:
/// its network device takes any packet, so a long datagram for it comes whole.
pub(crate) const MTU: u32 = 65_521;

/// Brings the interfaces up, and makes every address the host's for packets that the rules have marked.
pub(crate) fn set_up() -> Result<(), Error> {
    let name = |error: rustix::io::Errno| Error::of("look for the TAP")(error.into());
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .map_err(name)?;
    let interface = rustix::net::netdevice::name_to_index(&socket, INTERFACE).map_err(name)?;
    let mut requests = vec![
        up(LOOPBACK, Vec::new()),
        up(interface, vec![LinkAttribute::Address(GATEWAY_STATION.to_vec()), LinkAttribute::Mtu(MTU)]),
    ];
    for (gateway, guest, prefix) in [
        (IpAddr::V4(GATEWAY4), IpAddr::V4(GUEST4), PREFIX4),
        (IpAddr::V6(GATEWAY6), IpAddr::V6(GUEST6), PREFIX6),
    ] {
        requests.push(address(interface, gateway, prefix));
        requests.push(neighbour(interface, guest));
        requests.push(rule(family(gateway)));
        requests.push(route(family(gateway)));
    }
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let act = "set up the interfaces of the sandbox's network";
    let requests = requests.into_iter().map(|request| (flags, request)).collect();
    Netlink::open(NETLINK_ROUTE).and_then(|netlink| netlink.ask(requests)).map_err(Error::of(act))
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn up(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

fn address(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    (message.header.index, message.header.prefix_len) = (index, prefix);
    // Nobody else is there who could have the address.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    RouteNetlinkMessage::NewAddress(message)
}

/// The guest's Ethernet address, which no packet of its changes.
fn neighbour(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    (message.header.ifindex, message.header.state) = (index, NeighbourState::Permanent);
    let place = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(place),
        NeighbourAttribute::LinkLayerAddress(GUEST_STATION.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn rule(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    (message.header.family, message.header.table) = (family, TABLE);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::FwMark(MARK)];
    RouteNetlinkMessage::NewRule(message)
}

fn route(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        table: TABLE,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Oif(LOOPBACK)];
    RouteNetlinkMessage::NewRoute(message)
}
