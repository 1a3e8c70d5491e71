//! x86-64: the time-stamp counter.

/// What the counter shows.
#[allow(unsafe_code, reason = "the counter has no safe reader")]
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it allowed unless a process asks otherwise (prctl(2),
    // PR_SET_TSC), which nothing here does.
    unsafe { std::arch::x86_64::_rdtsc() }
}
