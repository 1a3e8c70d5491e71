//! The times at which a sandbox reached each step, for measurements.

use std::time::Instant;

use guest_protocol::Ready;

/// Microseconds from the program's start to each step; `None` = not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// CLOCK_MONOTONIC nanoseconds at the program's start, to relate the steps to a clock outside.
    pub start_monotonic_ns: u64,
    /// Arguments were understood and a directory made.
    pub created_us: Option<u64>,
    /// Image, kernel and disks are open.
    pub prepared_us: Option<u64>,
    /// The machine runs.
    pub machine_us: Option<u64>,
    /// The agent's control stream arrived.
    pub hello_us: Option<u64>,
    /// The guest is ready.
    pub ready_us: Option<u64>,
    /// The first program was requested.
    pub exec_us: Option<u64>,
    /// The first program runs.
    pub started_us: Option<u64>,
    /// The first program ended.
    pub exited_us: Option<u64>,
    /// Every process of the machine has ended.
    pub stopped_us: Option<u64>,
    /// Microseconds from the guest kernel's start to the agent's.
    pub guest_agent_us: Option<u64>,
    /// The agent's own times, from the guest kernel's start.
    pub guest: Option<Ready>,
}

/// The program's start, as close as the program can tell.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    instant: Instant,
    monotonic_ns: u64,
}

impl Start {
    /// The current moment.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self { instant: Instant::now(), monotonic_ns: seconds * 1_000_000_000 + nanoseconds }
    }

    pub(crate) fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns
    }

    /// Microseconds since the start.
    #[must_use]
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.instant.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
