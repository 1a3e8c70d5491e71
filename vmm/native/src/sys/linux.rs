//! Linux: epoll(7), `CLOCK_MONOTONIC`, KVM.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::time::{ClockId, clock_gettime};

/// The host's hypervisor.
pub type Host = hypervisor_kvm::Kvm;

/// Requests of the ioctls that a running machine makes: those of the hypervisor's crate, and those of a TAP if the
/// machine has a network device.
#[must_use]
pub fn ioctls(has_network: bool) -> Vec<u32> {
    let network = if has_network { &tap::IOCTLS[..] } else { &[] };
    [&hypervisor_kvm::IOCTLS_AFTER_CREATE[..], network].concat()
}

/// Opens the hypervisor behind a device's descriptor.
pub fn hypervisor(device: OwnedFd) -> hypervisor::Result<Host> {
    Host::from_fd(device)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Makes all threads allocate from one arena. This saves memory, and avoids that glibc's further arenas read /proc when
/// they shrink, which a confined thread must not.
pub fn frugal_allocator() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "glibc has no other way to say this")]
    // SAFETY: `mallopt` takes two integers; this process has no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Most events that one wait returns.
const BATCH: usize = 16;

/// Waits until descriptors become readable, level-triggered. Each descriptor has a token.
///
/// The poller calls epoll directly: a general poller makes four system calls for each wake-up where this one makes one.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// A poller without descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor, which stays in the poller until it is closed.
    pub fn add(&self, source: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }

    /// Waits until a descriptor is readable, empties `ready`, and puts the tokens of readable descriptors into it.
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
