//! Linux: epoll(7), `CLOCK_MONOTONIC`, KVM.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::time::{ClockId, clock_gettime};

/// The host's hypervisor.
pub type Host = hypervisor_kvm::Kvm;

/// Requests of the ioctls it makes once a machine is made.
pub const IOCTLS: &[u32] = &hypervisor_kvm::IOCTLS_AFTER_CREATE;

/// The hypervisor behind an open device.
pub fn hypervisor(device: OwnedFd) -> hypervisor::Result<Host> {
    Host::from_fd(device)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Makes all threads allocate from one arena: less memory, and glibc's further arenas read /proc when they shrink,
/// which a confined thread must not.
pub fn frugal_allocator() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "glibc has no other way to say this")]
    // SAFETY: takes two integers; called before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Most events taken at once.
const BATCH: usize = 16;

/// Waits for descriptors to turn readable, level-triggered. Each has a token.
///
/// Directly on epoll: a general poller makes four system calls a wake-up where this makes one.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// A poller of nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor. It stays until it is closed.
    pub fn add(&self, source: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }

    /// Waits until something is readable, and puts its token into `ready`, emptied first.
    pub fn wait(&self, ready: &mut Vec<u64>) -> io::Result<()> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; BATCH];
        ready.clear();
        let count = match epoll::wait(&self.0, &mut events, None) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().take(count).map(|event| event.data.u64()));
        Ok(())
    }
}
