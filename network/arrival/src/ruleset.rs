//! The rules of the namespace, in nftables: a table of three chains, loaded at once.
//!
//! ```text
//! chain from_guest (prerouting, drop): see `from_guest`
//! chain forward    (forward, drop):    nothing
//! chain to_guest   (output, drop):     what goes to the guest, or to this host itself
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate,
    InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
    RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::addresses::{GATEWAY4, GATEWAY6, GUEST4, GUEST6};
use super::answers::{ICMP, ICMPV6, UDP};
use super::links::MARK;
use super::netlink::Netlink;
use super::sockets::PORT;
use super::{Error, INTERFACE};

const TABLE: &str = "matchlock";
const FROM_GUEST: &str = "from_guest";
const TO_GUEST: &str = "to_guest";

/// Verdicts and policies (Linux `netfilter.h`).
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// The priority of chains that change packets, before routing.
const MANGLE: i32 = -150;
/// The number of nftables among the parts of netfilter.
const NFTABLES: u16 = 10;

/// Versions of IP, as netfilter numbers them.
const V4: u8 = 2;
const V6: u8 = 10;
const TCP: u8 = 6;

/// An expression; a rule is some of them, one after the other, until one does not match.
type Expression = Expressions;

/// Loads the table into this thread's network namespace.
pub(crate) fn load() -> Result<(), Error> {
    let name = || TABLE.to_owned();
    let mut messages = vec![(
        NLM_F_CREATE,
        NfTablesMessage::NewTable(TableMessage { attributes: vec![TableAttribute::Name(name())] }),
    )];
    let chains = [
        (FROM_GUEST, InetHookNumber::PreRouting, MANGLE),
        ("forward", InetHookNumber::Forward, 0),
        (TO_GUEST, InetHookNumber::LocalOut, 0),
    ];
    messages.extend(chains.map(|(chain, hook, priority)| (NLM_F_CREATE, new_chain(chain, hook, priority))));
    let mut rule = |chain: &str, expressions: Vec<Expression>| {
        let expressions = expressions.into_iter().map(ListAttribute::from).collect();
        let attributes = vec![
            RuleAttribute::Table(name()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        messages.push((NLM_F_CREATE | NLM_F_APPEND, NfTablesMessage::NewRule(RuleMessage { attributes })));
    };
    from_guest().into_iter().for_each(|expressions| rule(FROM_GUEST, expressions));
    for interface in ["lo", INTERFACE] {
        rule(TO_GUEST, [meta(MetaKey::Oifname, is(name_of(interface))), verdict(ACCEPT)].concat());
    }
    let wrap = |inner: NfTablesMessage| {
        NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), inner)
    };
    let border = |inner: ControlMessage| {
        (0, NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES), inner))
    };
    let mut batch = vec![border(ControlMessage::BatchBegin)];
    batch.extend(messages.into_iter().map(|(flags, inner)| (flags | NLM_F_ACK, wrap(inner))));
    batch.push(border(ControlMessage::BatchEnd));
    Netlink::open(NETLINK_NETFILTER).and_then(|netlink| netlink.ask(batch)).map_err(refused)
}

fn refused(error: io::Error) -> Error {
    // An expression or a part of the kernel that is not there is not found; a kernel without netlink for netfilter does
    // not know the protocol.
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL) => {
            Error::NoNftables(error)
        }
        _ => Error::of("load the rules of the sandbox's network")(error),
    }
}

fn new_chain(name: &str, hook: InetHookNumber, priority: i32) -> NfTablesMessage {
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(name.to_owned()),
        ChainAttribute::Type("filter".to_owned()),
        ChainAttribute::Hook(vec![
            Hook::Number(HookNumber::Inet(hook)),
            Hook::Priority(priority.cast_unsigned()),
        ]),
        ChainAttribute::Policy(DROP),
    ];
    NfTablesMessage::NewChain(ChainMessage { attributes })
}

/// The rules for what the guest sends, in order.
fn from_guest() -> Vec<Vec<Expression>> {
    let mut rules: Vec<Vec<Expression>> = vec![
        [meta(MetaKey::Iifname, is(name_of("lo"))), verdict(ACCEPT)].concat(),
        [meta(MetaKey::Iifname, is_not(name_of(INTERFACE))), verdict(DROP)].concat(),
        // Packets with another's address as their source, and those of IPv4 with options (RFC 7126: source routes).
        [version(V4), source4(is_not(GUEST4.octets())), verdict(DROP)].concat(),
        [version(V4), first_byte(0x0f, is_not([5])), verdict(DROP)].concat(),
    ];
    // Neighbours look for each other, from addresses of their link, too; nothing else comes from those.
    rules.extend(DISCOVERY.map(|kind| [version(V6), link_local(), discovery(kind)].concat()));
    rules.push([version(V6), link_local(), verdict(DROP)].concat());
    rules.push([version(V6), source6(is_not(GUEST6.octets())), verdict(DROP)].concat());
    rules.extend(DISCOVERY.map(discovery));
    for protocol_number in [TCP, UDP] {
        let to = [(V4, IpAddr::V4(Ipv4Addr::LOCALHOST)), (V6, IpAddr::V6(Ipv6Addr::LOCALHOST))];
        for (number, address) in to {
            rules.push(
                [
                    version(number),
                    protocol(protocol_number),
                    to_socket(number, address),
                    mark(),
                    verdict(ACCEPT),
                ]
                .concat(),
            );
        }
    }
    rules.push(
        [version(V4), destination4(is(GATEWAY4.octets())), protocol(ICMP), icmp_type(8), verdict(ACCEPT)]
            .concat(),
    );
    rules.push(
        [version(V6), destination6(is(GATEWAY6.octets())), protocol(ICMPV6), icmp_type(128), verdict(ACCEPT)]
            .concat(),
    );
    rules.push(vec![refuse()]);
    rules
}

/// Solicitations of routers and of neighbours, and neighbours' advertisements (RFC 4861).
const DISCOVERY: [u8; 3] = [133, 135, 136];

fn discovery(kind: u8) -> Vec<Expression> {
    [version(V6), protocol(ICMPV6), icmp_type(kind), verdict(ACCEPT)].concat()
}

const REGISTER: Register = Register::Reg1;

/// A comparison of what was loaded.
struct Expected(Operator, Vec<u8>);

fn is(value: impl Into<Vec<u8>>) -> Expected {
    Expected(Operator::Equal, value.into())
}

fn is_not(value: impl Into<Vec<u8>>) -> Expected {
    Expected(Operator::NotEqual, value.into())
}

fn compare(Expected(operator, value): Expected) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(REGISTER),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// The name of an interface, as the kernel compares it.
fn name_of(interface: &str) -> [u8; 16] {
    let mut name = [0; 16];
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    name
}

fn meta(key: MetaKey, expected: Expected) -> Vec<Expression> {
    vec![Expressions::Meta(vec![Meta::DestinationRegister(REGISTER), Meta::Key(key)]), compare(expected)]
}

fn version(number: u8) -> Vec<Expression> {
    meta(MetaKey::Nfproto, is([number]))
}

fn protocol(number: u8) -> Vec<Expression> {
    meta(MetaKey::L4Proto, is([number]))
}

/// Bytes of the header of IP, or of the one after it.
fn load_bytes(base: u32, offset: u32, len: u32) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(REGISTER),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
}

const IP_HEADER: u32 = 1;
const NEXT_HEADER: u32 = 2;

fn source4(expected: Expected) -> Vec<Expression> {
    vec![load_bytes(IP_HEADER, 12, 4), compare(expected)]
}

fn destination4(expected: Expected) -> Vec<Expression> {
    vec![load_bytes(IP_HEADER, 16, 4), compare(expected)]
}

fn source6(expected: Expected) -> Vec<Expression> {
    vec![load_bytes(IP_HEADER, 8, 16), compare(expected)]
}

fn destination6(expected: Expected) -> Vec<Expression> {
    vec![load_bytes(IP_HEADER, 24, 16), compare(expected)]
}

fn icmp_type(number: u8) -> Vec<Expression> {
    vec![load_bytes(NEXT_HEADER, 0, 1), compare(is([number]))]
}

/// Some bits of the first byte of the header of IP.
fn first_byte(mask: u8, expected: Expected) -> Vec<Expression> {
    vec![load_bytes(IP_HEADER, 0, 1), masked(vec![mask]), compare(expected)]
}

/// The source is an address of the link (fe80::/10).
fn link_local() -> Vec<Expression> {
    vec![load_bytes(IP_HEADER, 8, 2), masked(vec![0xff, 0xc0]), compare(is([0xfe, 0x80]))]
}

fn masked(mask: Vec<u8>) -> Expression {
    let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    let nothing = vec![0; mask.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(REGISTER),
        Bitwise::DestinationRegister(REGISTER),
        Bitwise::Length(len),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(nothing)),
    ])
}

fn load_value(register: Register, value: impl Into<Vec<u8>>) -> Expression {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(register),
        Immediate::Data(DataAttribute::Value(value.into())),
    ])
}

fn verdict(code: u32) -> Vec<Expression> {
    vec![Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(code))])),
    ])]
}

fn mark() -> Vec<Expression> {
    vec![
        load_value(REGISTER, MARK.to_ne_bytes()),
        Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(REGISTER)]),
    ]
}

/// Gives the packet to the socket that listens at `address`, whatever address it is for (`NFTA_TPROXY_*`).
fn to_socket(version: u8, address: IpAddr) -> Vec<Expression> {
    let address = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let numbers = [(1, u32::from(version)), (2, Register::Reg1.into()), (3, Register::Reg2.into())];
    vec![
        load_value(Register::Reg1, address),
        load_value(Register::Reg2, PORT.to_be_bytes()),
        Expressions::Other {
            expression_type: "tproxy".to_owned(),
            attributes: numbers.map(|(kind, value)| number(kind, value)).to_vec(),
        },
    ]
}

/// Drops the packet, and says that an administrator forbids it (`NFTA_REJECT_*`, for either version of IP).
fn refuse() -> Expression {
    Expressions::Other {
        expression_type: "reject".to_owned(),
        attributes: vec![number(1, 2), DefaultNla::new(2, vec![3])],
    }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}
