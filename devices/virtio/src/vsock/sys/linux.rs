//! Watching sockets on Linux: epoll(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// The changes of a socket since it was last reported.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Arrival {
    /// The socket's token.
    pub(in super::super) token: u64,
    /// There are bytes, an end of stream, or an error to be had.
    pub(in super::super) readable: bool,
    /// There may be room to write, which is reported only for sockets watched for writing.
    pub(in super::super) writable: bool,
    /// The other end takes no more bytes.
    pub(in super::super) hung_up: bool,
}

/// A set of sockets. Each change is reported once (edge-triggered): the receiver of a report reads until there is no
/// more.
#[derive(Debug)]
pub(in super::super) struct Watch(OwnedFd);

impl Watch {
    /// Most arrivals of one [`Self::take`].
    pub(in super::super) const BATCH: usize = 64;

    pub(in super::super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `socket` for reading. A socket that is closed leaves the set.
    pub(in super::super) fn add(&self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, socket, epoll::EventData::new_u64(token), flags(false))?)
    }

    /// Watches `socket` for reading, and for writing if `writing`; a socket that is ready now is reported again.
    pub(in super::super) fn change(
        &self,
        socket: BorrowedFd<'_>,
        token: u64,
        writing: bool,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.0, socket, epoll::EventData::new_u64(token), flags(writing))?)
    }

    /// Takes `socket` out of the set; one that is not in the set is left alone.
    pub(in super::super) fn remove(&self, socket: BorrowedFd<'_>) {
        // ENOENT is the only error of valid descriptors.
        let _ = epoll::delete(&self.0, socket);
    }

    /// The next arrivals; none if nothing has happened. Does not wait.
    pub(in super::super) fn take(&self) -> Vec<Arrival> {
        let mut events = Vec::with_capacity(Self::BATCH);
        // With a valid set and buffer the only error is EINTR, which a call that does not wait never returns.
        let _ = epoll::wait(
            &self.0,
            rustix::buffer::spare_capacity(&mut events),
            Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
        );
        events.into_iter().map(arrival).collect()
    }
}

fn flags(writing: bool) -> epoll::EventFlags {
    let reading = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    if writing { reading | epoll::EventFlags::OUT } else { reading }
}

fn arrival(event: epoll::Event) -> Arrival {
    let flags = event.flags;
    Arrival {
        token: event.data.u64(),
        readable: flags.intersects(!epoll::EventFlags::OUT),
        writable: flags.contains(epoll::EventFlags::OUT),
        hung_up: flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
