//! The guest: a network namespace with a TAP, and a thread that carries frames between that and the sandbox's.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use arrival::{Arrival, Sockets};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use tap::Tap;
use virtio::net::{Frames, MAX_PACKET};
use vm_memory::VolatileSlice;

/// How long anything may take on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whether namespaces and TAPs can be made here.
pub(crate) fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "network namespaces of a thread take root");
        return false;
    }
    let there = std::path::Path::new("/dev/net/tun").exists();
    if !there {
        skip::skip("/dev/net/tun", tap::Error::NoDevice);
    }
    there
}

/// Runs `test` on a thread in the guest's namespace, with what arrives.
pub(crate) fn apart(test: impl FnOnce(Sockets) + Send + 'static) {
    if !possible() {
        return;
    }
    behind(std::thread::spawn(Arrival::enter).join().unwrap().unwrap(), test);
}

/// Does the same as [`apart`], with a network that was made already.
pub(crate) fn behind(arrival: Arrival, test: impl FnOnce(Sockets) + Send + 'static) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let Arrival { tap, sockets } = arrival;
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let guest = Tap::create("eth0").unwrap();
        for command in [
            "link set lo up",
            "link set eth0 address 02:00:00:00:00:02",
            "link set eth0 mtu 1500 up",
            "addr add 198.18.0.2/30 dev eth0",
            "addr add fd6d:6c6b::2/126 dev eth0 nodad",
            "route add default via 198.18.0.1",
            "-6 route add default via fd6d:6c6b::1",
        ] {
            let output = Command::new("ip").args(command.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let (stop, stopped) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(move || relay(guest, tap, &stopped));
        test(sockets);
        drop(stop);
        relay.join().unwrap();
    });
    thread.unwrap().join().unwrap();
}

/// Whether a descriptor is readable within `patience`.
pub(crate) fn readable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    process::wait_readable(fd, Some(Instant::now() + patience)).unwrap()
}

/// Carries packets both ways until `stopped` hangs up.
fn relay(mut guest: Tap, mut sandbox: Tap, stopped: &UnixStream) {
    for tap in [&mut guest, &mut sandbox] {
        tap.set_offloads(tap.offloads()).unwrap();
    }
    let mut packet = vec![0; MAX_PACKET];
    loop {
        let mut fds = [guest.event(), sandbox.event(), stopped.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        poll(&mut fds, None).unwrap();
        if !fds[2].revents().is_empty() {
            return;
        }
        carry(&mut guest, &mut sandbox, &mut packet);
        carry(&mut sandbox, &mut guest, &mut packet);
    }
}

fn carry(from: &mut Tap, to: &mut Tap, packet: &mut [u8]) {
    loop {
        let len = match from.receive(&[VolatileSlice::from(&mut *packet)]) {
            Ok(len) => len,
            Err(error) => return assert_eq!(error.kind(), ErrorKind::WouldBlock),
        };
        // An interface that is down, or full, loses the packet.
        let _ = to.send(&[VolatileSlice::from(&mut packet[..len])]);
    }
}
