//! Events on Linux: eventfd(2) and epoll(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A signal that can be given, taken, waited for and polled. Neither giving nor taking a signal blocks.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// An event that nobody has signalled.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Another handle on the same event.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes the event readable until somebody takes the signal.
    pub fn signal(&self) {
        // The only error of a non-blocking event is a full counter, and then the event is already signalled.
        let _ = self.0.write(1);
    }

    /// Takes every signal back; returns whether there was one.
    #[allow(clippy::must_use_candidate, reason = "often called to make it unreadable")]
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let number = self.0.as_raw_fd();
        #[allow(unsafe_code, reason = "EventFd does not implement AsFd")]
        // SAFETY: `self` owns the open descriptor `number` and is borrowed for as long as the result lives.
        unsafe {
            BorrowedFd::borrow_raw(number)
        }
    }
}

/// The vhost crate's interface takes an eventfd.
impl AsRef<EventFd> for Event {
    fn as_ref(&self) -> &EventFd {
        &self.0
    }
}

/// A descriptor that becomes readable when a member does.
#[derive(Debug)]
pub(crate) struct EventSet(OwnedFd);

/// The way in which a member makes the set readable.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trigger {
    /// As long as the member is readable itself.
    Level,
    /// Once for each arrival at the member, until [`EventSet::acknowledge`].
    Edge,
}

impl EventSet {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, member: BorrowedFd<'_>, trigger: Trigger) -> io::Result<()> {
        let flags = match trigger {
            Trigger::Level => epoll::EventFlags::IN,
            Trigger::Edge => epoll::EventFlags::IN | epoll::EventFlags::ET,
        };
        Ok(epoll::add(&self.0, member, epoll::EventData::new_u64(0), flags)?)
    }

    /// Takes a member out of the set; a descriptor that is not in the set is left alone.
    pub(crate) fn remove(&self, member: BorrowedFd<'_>) {
        // ENOENT is the only error of valid descriptors.
        let _ = epoll::delete(&self.0, member);
    }

    /// Consumes the edges that have arrived. Does not wait.
    pub(crate) fn acknowledge(&self) {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        // With a valid set and buffer the only error is EINTR, which a call that does not wait never returns.
        let _ = epoll::wait(&self.0, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
}

impl AsFd for EventSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
