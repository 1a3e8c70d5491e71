//! x86-64: the time-stamp counter.

/// The counter's value.
#[allow(unsafe_code, reason = "the counter has no safe reader")]
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux allows it unless a process asks for a fault (prctl(2), PR_SET_TSC),
    // which this program never does.
    unsafe { std::arch::x86_64::_rdtsc() }
}
