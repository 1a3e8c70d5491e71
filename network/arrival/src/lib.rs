//! The network of one sandbox on Linux: a TAP in a network namespace of its own, in which every connection and every
//! datagram that the guest sends arrives at a socket of the host, whatever address it is for.
//!
//! ```text
//!  guest ── TAP ── namespace of the sandbox's own: two addresses, no route out, no forwarding
//!                    │  nftables: TCP and UDP of both versions of IP ─▶ transparent sockets ─▶ descriptors
//!                    │            ping of the gateway answered, all else refused or dropped
//! ```
//!
//! The namespace has no name. It lives as long as one of its descriptors is open, and everything that was made goes
//! with it, so nothing is to be taken back, whichever process is killed. The host's own network is not touched. The
//! program `matchlock-arrival` makes all of it ([`serve`]) for the process that starts it ([`start`]). Not
//! here: what may leave (`egress_policy`), and connections to the world outside.

#![cfg(target_os = "linux")]

mod answers;
mod carry;
mod links;
mod netlink;
mod program;
mod ruleset;
mod sockets;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use nix::sched::{CloneFlags, unshare};
use tap::Tap;

pub use answers::{Answers, MAX_ANSWER};
pub use program::{Lack, ReceiveError, Refusal, serve, start};
pub use sockets::{Datagram, Datagrams, MAX_DATAGRAM, wanted};

/// The interface in the namespace.
const INTERFACE: &str = "net0";

/// The addresses of both ends, the same in every sandbox: no two of them see each other. RFC 2544's range for
/// measurements is in nobody's network, and the other is a unique local one (RFC 4193).
pub mod addresses {
    use super::{Ipv4Addr, Ipv6Addr};

    /// The host's end, and the guest's way out.
    pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    /// The guest.
    pub const GUEST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    /// Length of the network's prefix.
    pub const PREFIX4: u8 = 30;
    /// The host's end, and the guest's way out.
    pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6c6b, 0, 0, 0, 0, 0, 1);
    /// The guest.
    pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6c6b, 0, 0, 0, 0, 0, 2);
    /// Length of the network's prefix.
    pub const PREFIX6: u8 = 126;
    /// The Ethernet address of the host's end.
    pub const GATEWAY_STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
    /// The Ethernet address of the guest.
    pub const GUEST_STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];
}

/// Where all that a guest sends arrives.
#[derive(Debug)]
pub struct Arrival {
    /// The guest's frames, for the process that has the network device.
    pub tap: Tap,
    /// All that comes of them, for the process that carries it on.
    pub sockets: Sockets,
}

/// Where connections and datagrams arrive.
#[derive(Debug)]
pub struct Sockets {
    /// Connections over IPv4 and over IPv6; for whom one is, its socket says ([`wanted`]).
    pub connections: [TcpListener; 2],
    /// Datagrams over IPv4 and over IPv6.
    pub datagrams: [Datagrams; 2],
    /// The way back for datagrams.
    pub answers: Answers,
}

impl Arrival {
    /// Moves this thread, for good, into a network namespace of its own, and makes everything there. A thread for
    /// nothing else should call this function.
    ///
    /// That takes CAP_SYS_ADMIN. Without it, a process with one thread gets a user namespace, too, where the host lets
    /// its user have one; it has all powers in there, and no more than before outside.
    pub fn enter() -> Result<Self, Error> {
        unshare(CloneFlags::CLONE_NEWNET)
            .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET))
            .map_err(|error| Error::NoNamespace(error.into()))?;
        let tap = Tap::create(INTERFACE)?;
        links::set_up()?;
        ruleset::load()?;
        Ok(Self { tap, sockets: sockets::open()? })
    }
}

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no namespace.
    #[error(
        "no network namespace for the sandbox: that takes root, CAP_SYS_ADMIN, or a host that lets users have \
         namespaces ({0})"
    )]
    NoNamespace(#[source] io::Error),
    /// There is no TAP.
    #[error(transparent)]
    Tap(#[from] tap::Error),
    /// The kernel has no nftables, or no transparent proxies in them.
    #[error("the kernel lacks nf_tables with tproxy and reject (CONFIG_NF_TABLES, CONFIG_NFT_TPROXY): {0}")]
    NoNftables(#[source] io::Error),
    /// A system call failed.
    #[error("{act}: {source}")]
    System {
        /// The call.
        act: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl Error {
    fn of(act: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { act, source }
    }
}
