//! The confinement of the process: it handles a guest's bytes and may open connections, so it may do nothing else.
//!
//! * A user of its own, if it is started as root ([`confinement::take_own_user`]), no capability, and nobody looks into it.
//! * Landlock: no file, no listening socket of TCP's.
//! * seccomp: sockets of TCP and UDP, which it connects; none is bound. No program, no thread, no file, no signal. The
//!   audit's file is only written to: it can be neither emptied, nor mapped, nor be made one that is not appended to.
//!
//! Not here: where it may connect to. The filter sees no addresses, so a process that its guest has taken over reaches
//! what any process of the host's network reaches.

use anyhow::Context;
use confinement::calls::{self, Call};
use confinement::{Conditional, Domain, FIONBIO, Forbidden, Limits, Profile, Reachable, Report, Test};
use egress::audit::MAX_FILE;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Most bytes that the process may have mapped: what it takes for all flows at their limits, for policies before and
/// after a change, and for its code and stacks.
const MAX_MEMORY: u64 = 1 << 30;

/// Leaves this process, which must have one thread, no files and no privilege.
pub(crate) fn walls() -> anyhow::Result<Report> {
    raise_descriptor_limit()?;
    let reachable = Reachable { connections: true, ..Reachable::default() };
    let limits = Limits { file_bytes: Some(MAX_FILE), mapped_bytes: Some(MAX_MEMORY) };
    let report = confinement::enter(Domain::new(reachable)?, limits)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("not to be looked into")?;
    Ok(report)
}

/// Lets this process have as many descriptors as its user may give it: a flow has two.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("limit of descriptors")
}

/// Leaves this process the system calls that carrying takes. To be called when all of its threads run.
pub(crate) fn close_the_last_door() -> anyhow::Result<()> {
    // A statically linked program asks the kernel where the clock is, by prctl(2), when the clock is first read.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    PROFILE.filter().install_for_all_threads().context("seccomp")
}

/// Events, and what is done with sockets.
const SOCKETS: &[Call] = &[
    calls::EPOLL_CTL,
    calls::EPOLL_WAIT,
    calls::EPOLL_PWAIT,
    calls::ACCEPT4,
    calls::CONNECT,
    calls::GETSOCKNAME,
    calls::GETPEERNAME,
    calls::READV,
    calls::WRITEV,
    calls::SENDTO,
    calls::RECVFROM,
    calls::SHUTDOWN,
];

/// The kinds of sockets that the standard library and tokio make.
const STREAM: i32 = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
const DATAGRAM: i32 = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;

/// Sockets, their options, and what the runtime of a program of ours does. In place of [`confinement::RUNTIME_IF`], which
/// allows the mapping of files.
const SOME: &[Conditional] = &[
    (calls::SOCKET, &[Test::is(0, libc::AF_INET), Test::is(1, STREAM), Test::is(2, 0)]),
    (calls::SOCKET, &[Test::is(0, libc::AF_INET6), Test::is(1, STREAM), Test::is(2, 0)]),
    (calls::SOCKET, &[Test::is(0, libc::AF_INET), Test::is(1, DATAGRAM), Test::is(2, 0)]),
    (calls::SOCKET, &[Test::is(0, libc::AF_INET6), Test::is(1, DATAGRAM), Test::is(2, 0)]),
    (calls::SETSOCKOPT, &[Test::is(1, libc::SOL_SOCKET), Test::is(2, libc::SO_LINGER)]),
    (calls::SETSOCKOPT, &[Test::is(1, libc::IPPROTO_TCP), Test::is(2, libc::TCP_NODELAY)]),
    (calls::GETSOCKOPT, &[Test::is(1, libc::SOL_SOCKET), Test::is(2, libc::SO_ERROR)]),
    (calls::MMAP, &[Test::lacks(2, libc::PROT_EXEC), Test::has(3, libc::MAP_ANONYMOUS)]),
    (calls::MPROTECT, &[Test::lacks(2, libc::PROT_EXEC)]),
    (calls::TGKILL, &[Test::is_own_process(0)]),
];

const PROFILE: Profile<'_> = Profile {
    calls: &[calls::RUNTIME, SOCKETS],
    conditional: &[SOME],
    ioctls: &[FIONBIO],
    // In debug builds the standard library checks that a descriptor is open, and tokio that it does not block.
    fcntls: &[libc::F_GETFD, libc::F_GETFL],
    absent: &[],
    otherwise: Forbidden::Kill,
};

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use confinement::testing::{Fate, asked, try_everything};

    use super::*;

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined() {
        let asked = asked();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        walls().unwrap();
        close_the_last_door().unwrap();
        asked.end(|| {
            drop(vec![1u8; 1 << 20]);
            runtime.block_on(async {
                let address = listener.local_addr().unwrap();
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_zero_linger().unwrap();
                let other: TcpStream = listener.accept().unwrap().0;
                assert_eq!(stream.local_addr().unwrap(), other.peer_addr().unwrap());
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
                socket.connect(&server.into()).unwrap();
                let socket = UdpSocket::from(socket);
                socket.set_nonblocking(true).unwrap();
                tokio::net::UdpSocket::from_std(socket).unwrap().send(b"x").await.unwrap();
            });
        });
    }

    #[test]
    fn forbidden_calls_kill_the_process() {
        // Its work is connections.
        try_everything("confine::tests::confined", &[("connect", Fate::Could)], &Fate::Killed);
    }
}
