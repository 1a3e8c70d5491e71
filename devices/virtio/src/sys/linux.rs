//! Events on Linux: eventfd(2).

/// A counter that can be signalled, waited for and polled. Made non-blocking by every caller here.
pub type Event = vmm_sys_util::eventfd::EventFd;
