//! The guest's network: its one interface, with the addresses that the host gives and all routes through the gateway.
//!
//! ```text
//!  eth0: MTU, up ─▶ for each version of IP: address ─▶ the gateway's Ethernet address ─▶ default route
//! ```
//!
//! Set over rtnetlink(7), where an address of IPv6 can be had at once: nobody else is there who could have it, too. Not
//! here: the driver (`modules`), and names (`mounts`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use guest_protocol::{Ends, Network};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::boot::{AtStep, Failure};
use crate::{log, words};

/// The name that Linux gives to the first network device.
const INTERFACE: &str = "eth0";

/// RFC 8200 §5: "IPv6 requires that every link in the Internet have an MTU of 1280 octets or greater".
const MIN_MTU_6: u16 = 1280;

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/neighbour.h: numbers of attributes.
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// linux/if_addr.h: an address that nobody else can have.
const IFA_F_NODAD: u8 = 2;

/// Length of `struct nlmsghdr`, and of an attribute's header.
const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// More bytes than an acknowledgement has, which repeats the request.
const ANSWER: usize = 1024;

/// Sets up the interface. A kernel without IPv6, or a link that is too narrow for it, does without.
pub(crate) fn set_up(network: &Network) -> Result<(), Failure> {
    const STEP: &str = "set up the network";
    let Network { mtu, gateway_station, v4, v6 } = network;
    let kernel = Kernel::open().at(STEP)?;
    let interface = kernel.index(INTERFACE).at("find the network device")?;
    kernel.ask(up(interface, *mtu)).at(STEP)?;
    add(&kernel, interface, *gateway_station, *v4).at("set up IPv4")?;
    if *mtu < MIN_MTU_6 {
        log::line(&format!("no IPv6: an MTU of {mtu} is less than {MIN_MTU_6}"));
        return Ok(());
    }
    match add(&kernel, interface, *gateway_station, *v6) {
        // IPv6 is not in the kernel, or is switched off by a parameter of the kernel's.
        Err(error @ (Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::ACCESS)) => {
            log::line(&format!("no IPv6: {}", words(error)));
            Ok(())
        }
        added => added.at("set up IPv6"),
    }
}

fn add<A: Into<IpAddr>>(
    kernel: &Kernel,
    interface: u32,
    station: [u8; 6],
    ends: Ends<A>,
) -> Result<(), Errno> {
    let (guest, gateway) = (Address::of(ends.guest), Address::of(ends.gateway));
    kernel.ask(address(interface, &guest, ends.prefix))?;
    kernel.ask(neighbour(interface, &gateway, station))?;
    kernel.ask(default_route(interface, &gateway))
}

/// An address, as the kernel takes it.
struct Address {
    family: u8,
    bytes: Vec<u8>,
}

impl Address {
    fn of(address: impl Into<IpAddr>) -> Self {
        let (family, bytes) = match address.into() {
            IpAddr::V4(address) => (libc::AF_INET, Ipv4Addr::octets(&address).to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, Ipv6Addr::octets(&address).to_vec()),
        };
        Self { family: u8::try_from(family).unwrap_or_default(), bytes }
    }
}

/// A request to the kernel: its type, and all of it but the header.
struct Request {
    kind: u16,
    body: Vec<u8>,
}

impl Request {
    fn new(kind: u16, header: &[&[u8]]) -> Self {
        Self { kind, body: header.concat() }
    }

    /// Adds an attribute, whose value is short.
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or_default();
        self.body.extend([len.to_ne_bytes(), kind.to_ne_bytes()].concat());
        self.body.extend(value);
        self.body.resize(self.body.len().next_multiple_of(ATTRIBUTE_HEADER), 0);
        self
    }

    /// The whole message: `struct nlmsghdr`, and the body.
    fn bytes(self) -> Vec<u8> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
        let len = u32::try_from(HEADER + self.body.len()).unwrap_or_default();
        let flags = u16::try_from(flags).unwrap_or_default();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend([self.kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        // Number and sender: one request is under way at a time, and only the kernel answers.
        bytes.extend([0; 8]);
        bytes.extend(self.body);
        bytes
    }
}

/// `struct ifinfomsg`: the interface is up from now on.
fn up(interface: u32, mtu: u16) -> Request {
    let flags = libc::IFF_UP.cast_unsigned().to_ne_bytes();
    let request = Request::new(libc::RTM_SETLINK, &[&[0; 4], &interface.to_ne_bytes(), &flags, &flags]);
    request.with(IFLA_MTU, &u32::from(mtu).to_ne_bytes())
}

/// `struct ifaddrmsg`.
fn address(interface: u32, address: &Address, prefix: u8) -> Request {
    let header = [address.family, prefix, IFA_F_NODAD, libc::RT_SCOPE_UNIVERSE];
    let request = Request::new(libc::RTM_NEWADDR, &[&header, &interface.to_ne_bytes()]);
    request.with(IFA_LOCAL, &address.bytes).with(IFA_ADDRESS, &address.bytes)
}

/// `struct ndmsg`: the Ethernet address of the gateway, for which nobody has to ask.
fn neighbour(interface: u32, gateway: &Address, station: [u8; 6]) -> Request {
    let state = libc::NUD_PERMANENT.to_ne_bytes();
    let header: [&[u8]; 4] = [&[gateway.family, 0, 0, 0], &interface.to_ne_bytes(), &state, &[0, 0]];
    let request = Request::new(libc::RTM_NEWNEIGH, &header);
    request.with(NDA_DST, &gateway.bytes).with(NDA_LLADDR, &station)
}

/// `struct rtmsg`.
fn default_route(interface: u32, gateway: &Address) -> Request {
    let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
    let (scope, kind) = (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
    let header: [&[u8]; 2] = [&[gateway.family, 0, 0, 0, table, protocol, scope, kind], &[0; 4]];
    let request = Request::new(libc::RTM_NEWROUTE, &header);
    request.with(RTA_GATEWAY, &gateway.bytes).with(RTA_OIF, &interface.to_ne_bytes())
}

/// The kernel, in this thread's network namespace.
struct Kernel(OwnedFd);

impl Kernel {
    fn open() -> Result<Self, Errno> {
        // NETLINK_ROUTE is protocol 0.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// The number of an interface.
    fn index(&self, name: &str) -> Result<u32, Errno> {
        rustix::net::netdevice::name_to_index(&self.0, name)
    }

    /// Sends a request, and waits until it is done.
    fn ask(&self, request: Request) -> Result<(), Errno> {
        rustix::net::send(&self.0, &request.bytes(), SendFlags::empty())?;
        let mut answer = [0; ANSWER];
        let (len, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty()))?;
        done(answer.get(..len).unwrap_or_default())
    }
}

/// The outcome in an acknowledgement: `struct nlmsghdr`, and `struct nlmsgerr`, which begins with a negative error number.
fn done(answer: &[u8]) -> Result<(), Errno> {
    let word = |at: usize| answer.get(at..)?.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
    let kind = answer.get(4..).and_then(|rest| rest.first_chunk::<2>());
    let is_outcome = kind.is_some_and(|kind| i32::from(u16::from_ne_bytes(*kind)) == libc::NLMSG_ERROR);
    match word(HEADER) {
        Some(0) if is_outcome => Ok(()),
        Some(error) if is_outcome => Err(Errno::from_raw_os_error(error.saturating_neg())),
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests;
