//! The agent's end of a stream: bytes and messages in and out, and noticing the host's hang-up.
//!
//! Not here: the messages' meaning (`service`, `exec`, `file_service`, `connection`).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use guest_protocol::Answer;
use guest_protocol::frame::{self, DATA_CHUNK, FrameError, HEAD, Splitter};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::sending;

/// Bytes received at once where little is expected.
pub(crate) const MESSAGE_CHUNK: usize = 4096;

/// Bytes received at once where much is expected: a whole frame of data.
pub(crate) const INPUT_CHUNK: usize = HEAD + DATA_CHUNK;

/// The events of poll(2) for a stream that the host has ended, in either direction.
pub(crate) const ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);

/// The host is gone, or breaks the protocol, so there is nobody to tell.
#[derive(Debug)]
pub(crate) struct HungUp;

impl From<FrameError> for HungUp {
    fn from(_: FrameError) -> Self {
        Self
    }
}

/// A service stream during an act that ends as soon as the host hangs up.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a>(BorrowedFd<'a>);

impl<'a> Stream<'a> {
    /// The stream behind a descriptor.
    pub(crate) fn new(fd: BorrowedFd<'a>) -> Self {
        Self(fd)
    }

    /// Sends bytes, waiting until the host takes them or hangs up.
    pub(crate) fn send(self, mut rest: &[u8]) -> Result<(), HungUp> {
        while !rest.is_empty() {
            if self.wait(PollFlags::OUT)?.contains(PollFlags::OUT) {
                match sending::send(self.0, rest, SendFlags::DONTWAIT) {
                    Ok(sent) => rest = rest.get(sent..).ok_or(HungUp)?,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Err(HungUp),
                }
            }
        }
        Ok(())
    }

    /// Sends an answer of the request's dialogue.
    pub(crate) fn reply(self, reply: &impl Answer) -> Result<(), HungUp> {
        self.send(&frame::encode_reply(reply)?)
    }

    /// Waits for one of `events`, or the end of the stream.
    fn wait(self, events: PollFlags) -> Result<PollFlags, HungUp> {
        let mut fds = [PollFd::from_borrowed_fd(self.0, events | PollFlags::RDHUP)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Err(HungUp),
        }
        let [stream] = fds.map(|fd| fd.revents());
        if stream.intersects(ENDED) { Err(HungUp) } else { Ok(stream) }
    }

    /// Waits until `other` is ready for `events`, or the stream ends.
    pub(crate) fn wait_for(self, other: BorrowedFd<'_>, events: PollFlags) -> Result<(), HungUp> {
        loop {
            let mut fds =
                [PollFd::from_borrowed_fd(self.0, PollFlags::RDHUP), PollFd::from_borrowed_fd(other, events)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return Err(HungUp),
            }
            match fds.map(|fd| fd.revents()) {
                [stream, _] if stream.intersects(ENDED) => return Err(HungUp),
                [_, other] if !other.is_empty() => return Ok(()),
                _ => {}
            }
        }
    }

    /// Checks that the host is still there, during work that sends nothing for long.
    pub(crate) fn check(self) -> Result<(), HungUp> {
        let mut fds = [PollFd::from_borrowed_fd(self.0, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut fds, Some(&now));
        let [stream] = fds.map(|fd| fd.revents());
        if stream.intersects(ENDED) { Err(HungUp) } else { Ok(()) }
    }

    /// Waits for bytes and adds them to `input`; `room` bounds how many at once.
    pub(crate) fn receive(self, input: &mut Splitter, room: &mut [MaybeUninit<u8>]) -> Result<(), HungUp> {
        if receive(self.0, input, room) { Ok(()) } else { Err(HungUp) }
    }
}

/// Waits for bytes and adds them to `input`; false at the stream's end.
pub(crate) fn receive(stream: BorrowedFd<'_>, input: &mut Splitter, room: &mut [MaybeUninit<u8>]) -> bool {
    loop {
        match rustix::net::recv(stream, &mut *room, RecvFlags::empty()) {
            Ok(((bytes, _), _)) => {
                input.push(bytes);
                return !bytes.is_empty();
            }
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Sends an answer of the request's dialogue, waiting until the host takes it.
pub(crate) fn send_reply(stream: impl AsFd, reply: &impl Answer) -> Result<(), FrameError> {
    send_all(stream, &frame::encode_reply(reply)?)
}

/// Sends bytes, waiting until the host takes them.
pub(crate) fn send_all(stream: impl AsFd, mut rest: &[u8]) -> Result<(), FrameError> {
    while !rest.is_empty() {
        let sent = rustix::io::retry_on_intr(|| sending::send(&stream, rest, SendFlags::empty()));
        rest = sent.ok().and_then(|sent| rest.get(sent..)).ok_or(FrameError::Truncated)?;
    }
    Ok(())
}
