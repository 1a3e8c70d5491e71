//! The network is set up in a network namespace of the test's own, where a TAP stands for the device: the test reads the
//! frames that the gateway would get.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::UnshareFlags;

use super::*;

const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Addresses of the world outside.
const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
const PATIENCE: Duration = Duration::from_secs(20);

/// linux/if_tun.h and linux/sockios.h; libc's own constants are not of the type that its ioctl takes everywhere.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const SIOCGIFMTU: libc::Ioctl = 0x8921;

fn network(mtu: u16) -> Network {
    let gateway6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    Network {
        mtu,
        gateway_station: STATION,
        v4: Ends { guest: GUEST4, prefix: 30, gateway: Ipv4Addr::new(198, 18, 0, 1) },
        v6: Ends { guest: GUEST6, prefix: 126, gateway: gateway6 },
    }
}

/// Runs `test` on a thread in a network namespace of its own.
fn apart(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "network namespaces of a thread take root");
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return skip::skip("/dev/net/tun", "there is no such device");
    }
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        // SAFETY: the thread has its own network from here on, and shares no memory that would mind.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        test();
    });
    thread.unwrap().join().unwrap();
}

fn ask(file: &impl AsRawFd, request: libc::Ioctl, flags: i32) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    interface.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: the request reads and writes one ifreq.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut interface) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    interface
}

fn tap() -> File {
    let mut options = OpenOptions::new();
    let tap = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    ask(&tap, TUNSETIFF, libc::IFF_TAP | libc::IFF_NO_PI);
    tap
}

/// The next frame for a single station.
fn frame(mut tap: &File) -> Vec<u8> {
    loop {
        let mut frame = vec![0; 2048];
        match tap.read(&mut frame) {
            Ok(len) => frame.truncate(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
                let mut waited = [PollFd::new(&tap, PollFlags::IN)];
                assert_eq!(rustix::event::poll(&mut waited, Some(&patience)).unwrap(), 1, "no frame");
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        if frame[0] & 1 == 0 {
            return frame;
        }
    }
}

/// Sends a datagram from `guest`, which is an address of the interface at once.
fn send(guest: impl Into<IpAddr>, outside: impl Into<IpAddr>) {
    let socket = UdpSocket::bind(SocketAddr::new(guest.into(), 0)).unwrap();
    socket.send_to(b"hello", SocketAddr::new(outside.into(), 53)).unwrap();
}

fn assert_sent4(tap: &File) {
    send(GUEST4, OUTSIDE4);
    let frame = frame(tap);
    assert_eq!((&frame[..6], &frame[12..14]), (&STATION[..], &[8, 0][..]));
    assert_eq!(frame[26..34], [GUEST4.octets(), OUTSIDE4.octets()].concat());
}

fn assert_sent6(tap: &File) {
    send(GUEST6, OUTSIDE6);
    let frame = frame(tap);
    assert_eq!((&frame[..6], &frame[12..14]), (&STATION[..], &[0x86, 0xdd][..]));
    assert_eq!(frame[22..54], [GUEST6.octets(), OUTSIDE6.octets()].concat());
}

#[test]
fn both_versions_of_ip_go_to_the_gateway_at_once() {
    apart(|| {
        let tap = tap();
        set_up(&network(1400)).unwrap();
        assert_sent4(&tap);
        assert_sent6(&tap);
        let socket = UdpSocket::bind("[::]:0").unwrap();
        // SAFETY: SIOCGIFMTU has written this member.
        assert_eq!(unsafe { ask(&socket, SIOCGIFMTU, 0).ifr_ifru.ifru_mtu }, 1400);
    });
}

fn assert_no_address6() {
    let error = UdpSocket::bind(SocketAddr::new(GUEST6.into(), 0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
}

#[test]
fn a_link_that_is_too_narrow_for_ipv6_has_the_other_one() {
    apart(|| {
        let tap = tap();
        set_up(&network(576)).unwrap();
        assert_sent4(&tap);
        assert_no_address6();
    });
}

#[test]
fn a_kernel_that_has_ipv6_switched_off_has_the_other_one() {
    apart(|| {
        if let Err(error) = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
            return skip::skip("sysctl", error);
        }
        let tap = tap();
        set_up(&network(1500)).unwrap();
        assert_sent4(&tap);
        assert_no_address6();
    });
}

#[test]
fn failures_name_their_step() {
    let failed = |network: &Network| set_up(network).unwrap_err().to_string();
    apart(move || {
        assert_eq!(failed(&network(1500)), "find the network device: no such device");
        let _tap = tap();
        let mut wrong = network(1500);
        wrong.v4.prefix = 33;
        assert_eq!(failed(&wrong), "set up IPv4: invalid argument");
        wrong = network(1500);
        wrong.v6.prefix = 129;
        assert_eq!(failed(&wrong), "set up IPv6: invalid argument");
    });
}

#[test]
fn answers() {
    let answer = |kind: u16, error: i32| {
        [&36u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &error.to_ne_bytes(), &[0; 16]].concat()
    };
    assert_eq!(done(&answer(2, 0)), Ok(()));
    assert_eq!(done(&answer(2, -libc::EEXIST)), Err(Errno::EXIST));
    assert_eq!(done(&answer(3, 0)), Err(Errno::BADMSG));
    for len in 0..HEADER + 4 {
        assert_eq!(done(&answer(2, 0)[..len]), Err(Errno::BADMSG));
    }
}
