//! A TCP connection to a port of the guest's loopback, carried over a service stream.
//!
//! ```text
//!          ┌──── to_guest: one buffer ───▶┐
//!  stream ─┤                              ├─ TCP 127.0.0.1, or ::1 if that is refused
//!          └◀─── to_host:  one buffer ────┘
//! ```
//!
//! Each direction reads only when its buffer is empty, so a slow receiver slows its sender. Each direction ends by
//! itself: the end of the source is passed on after its last byte. When both have ended, so has the connection. After a
//! reset of the TCP connection the stream is closed without an end.
//!
//! A host that is gone altogether has ended `to_host`; bytes that it sent before are still delivered.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_protocol::ConnectReply;
use guest_protocol::frame::Splitter;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};

use crate::sending;
use crate::stream::{ENDED, HungUp, Stream};
use crate::words;

/// Most bytes that wait in one direction.
const BUFFER: usize = 64 << 10;

/// Serves one connection to its end. `input` holds the bytes that came after the request.
pub(crate) fn serve(stream: BorrowedFd<'_>, input: &Splitter, port: u16) {
    let host = Stream::new(stream);
    // The host's bytes follow `Connected`; before it they have no receiver.
    let answer = match input.at_boundary() {
        false => Ok(Err("bytes came before the connection".to_owned())),
        true => connect(host, port),
    };
    let answer = answer.and_then(|connected| match connected {
        Ok(tcp) => host.reply(&ConnectReply::Ok(())).map(|()| Some(tcp)),
        Err(reason) => host.reply(&ConnectReply::Err(reason)).map(|()| None),
    });
    if let Ok(Some(tcp)) = answer {
        let _ = Relay::new(stream, tcp).run();
    }
}

/// Connects to the port, or returns the reason why not.
fn connect(host: Stream<'_>, port: u16) -> Result<Result<OwnedFd, String>, HungUp> {
    let first = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let refusal = match connect_to(host, first)? {
        Ok(tcp) => return Ok(Ok(tcp)),
        Err(errno) => errno,
    };
    if refusal == Errno::CONNREFUSED
        && let Ok(tcp) = connect_to(host, SocketAddr::from((Ipv6Addr::LOCALHOST, port)))?
    {
        return Ok(Ok(tcp));
    }
    Ok(Err(format!("connect to {first}: {}", words(refusal))))
}

/// Connects, unless the host hangs up meanwhile: a listener whose queue is full answers late.
fn connect_to(host: Stream<'_>, address: SocketAddr) -> Result<Result<OwnedFd, Errno>, HungUp> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let started = rustix::net::socket_with(family, SocketType::STREAM, flags, None).and_then(|tcp| {
        // The relay sends whatever it has; waiting for more would only delay it.
        sockopt::set_tcp_nodelay(&tcp, true)?;
        match rustix::net::connect(&tcp, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(tcp),
            Err(errno) => Err(errno),
        }
    });
    let tcp = match started {
        Ok(tcp) => tcp,
        Err(errno) => return Ok(Err(errno)),
    };
    host.wait_for(tcp.as_fd(), PollFlags::OUT)?;
    Ok(outcome(&tcp).map(|()| tcp))
}

/// The result of an attempt to connect.
fn outcome(tcp: &OwnedFd) -> Result<(), Errno> {
    sockopt::socket_error(tcp)??;
    // RFC 9293 §3.5: simultaneous open. A socket whose own port happens to be the requested one connects to itself,
    // although nobody listens there.
    match (rustix::net::getsockname(tcp)?, rustix::net::getpeername(tcp)?) {
        (own, Some(peer)) if own == peer => Err(Errno::CONNREFUSED),
        _ => Ok(()),
    }
}

/// Bytes on their way from one socket to the other.
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Whether the source has ended.
    ended: bool,
    /// Whether this direction is over: its end has been passed on, or the sink is gone.
    done: bool,
    /// Whether the source ended by a reset, which is not passed on as an end.
    reset: bool,
}

impl Direction {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER], start: 0, end: 0, ended: false, done: false, reset: false }
    }

    fn wants_more(&self) -> bool {
        !self.done && !self.ended && self.start == self.end
    }

    fn has_bytes(&self) -> bool {
        !self.done && self.start < self.end
    }

    /// Reads from the source once. An error is an end too, which the bytes before it precede.
    fn fill(&mut self, source: BorrowedFd<'_>) -> Result<(), Errno> {
        match rustix::net::recv(source, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => (self.start, self.end) = (0, count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) => self.ended = true,
            Err(errno) => {
                self.ended = true;
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Writes the bytes that the sink takes, and then the end.
    fn drain(&mut self, sink: BorrowedFd<'_>) -> Result<(), Errno> {
        while self.has_bytes() {
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            match sending::send(sink, rest, SendFlags::DONTWAIT) {
                Ok(sent) => self.start += sent,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    self.done = true;
                    return Err(errno);
                }
            }
        }
        if self.ended && !self.done {
            self.done = true;
            if !self.reset {
                // The call fails if the sink is gone, which has the same effect.
                let _ = rustix::net::shutdown(sink, Shutdown::Write);
            }
        }
        Ok(())
    }

    /// Whether a reset has been reached, with nothing left to deliver before it.
    fn broke(&self) -> bool {
        self.done && self.reset
    }
}

struct Relay<'a> {
    stream: BorrowedFd<'a>,
    tcp: OwnedFd,
    to_guest: Direction,
    to_host: Direction,
    /// Becomes readable with every event of the stream, once the host has ended its direction. poll(2) cannot do
    /// that: it reports that end for ever, and reports nothing else for a vsock peer that is gone.
    later: Option<OwnedFd>,
}

impl<'a> Relay<'a> {
    fn new(stream: BorrowedFd<'a>, tcp: OwnedFd) -> Self {
        Self { stream, tcp, to_guest: Direction::new(), to_host: Direction::new(), later: None }
    }

    fn run(mut self) -> Result<(), Errno> {
        while !(self.to_guest.done && self.to_host.done || self.to_host.broke()) {
            self.round()?;
        }
        Ok(())
    }

    /// Waits for an event and handles it.
    fn round(&mut self) -> Result<(), Errno> {
        let [stream, tcp, later] = self.wait()?;
        match &self.later {
            None if stream.intersects(ENDED) => {
                self.later = Some(every_event(self.stream)?);
                self.look_for_host();
            }
            Some(events) if !later.is_empty() => {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                epoll::wait(events, &mut [MaybeUninit::uninit(); 1], Some(&now))?;
                self.look_for_host();
            }
            _ => {}
        }
        if self.to_guest.wants_more() && !stream.is_empty() {
            let _ = self.to_guest.fill(self.stream);
        }
        if self.to_host.wants_more() && !tcp.is_empty() {
            let filled = self.to_host.fill(self.tcp.as_fd());
            self.note_reset(filled);
        }
        let drained = self.to_guest.drain(self.tcp.as_fd());
        self.note_reset(drained);
        let _ = self.to_host.drain(self.stream);
        Ok(())
    }

    /// The kernel reports a reset once, to the first caller that asks. A reset after the end of the guest program's
    /// data is another error (EPIPE), and cuts nothing short.
    fn note_reset(&mut self, outcome: Result<(), Errno>) {
        self.to_host.reset |= outcome.is_err_and(|errno| errno != Errno::PIPE);
    }

    /// The ready events of stream, TCP and `later`. Only events that can be handled now are polled for, as others
    /// would be ready again and again.
    fn wait(&self) -> Result<[PollFlags; 3], Errno> {
        let (mut stream, mut tcp) = (PollFlags::empty(), PollFlags::empty());
        stream.set(PollFlags::IN, self.to_guest.wants_more());
        stream.set(PollFlags::OUT, self.to_host.has_bytes());
        stream.set(PollFlags::RDHUP, self.later.is_none());
        tcp.set(PollFlags::IN, self.to_host.wants_more());
        tcp.set(PollFlags::OUT, self.to_guest.has_bytes());
        let mut later = PollFlags::empty();
        later.set(PollFlags::IN, !self.to_host.done);
        let all = [
            Some((self.stream, stream)),
            Some((self.tcp.as_fd(), tcp)),
            self.later.as_ref().map(|fd| (fd.as_fd(), later)),
        ];
        let wanted = |of: &Option<(_, PollFlags)>| of.is_some_and(|(_, events)| !events.is_empty());
        let asked = all.iter().filter(|of| wanted(of)).flatten();
        let mut fds: Vec<_> = asked.map(|(fd, events)| PollFd::from_borrowed_fd(*fd, *events)).collect();
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        let mut ready = fds.iter().map(PollFd::revents);
        let mut result = || ready.next().unwrap_or(PollFlags::empty());
        Ok(all.map(|of| if wanted(&of) { result() } else { PollFlags::empty() }))
    }

    /// Notices a host that is gone altogether: then even sending nothing fails.
    fn look_for_host(&mut self) {
        match rustix::net::send(self.stream, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.to_host.done = true,
        }
    }
}

/// A descriptor that is readable after any event of a socket. epoll(7): edge-triggered, each event is reported once.
fn every_event(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let every = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(&events, socket, EventData::new_u64(0), every)?;
    Ok(events)
}
