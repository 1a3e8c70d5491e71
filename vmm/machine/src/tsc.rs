//! The frequency of the time-stamp counter, for guests that have nothing to measure it with.
//!
//! A guest under emulation reads the host's counter, but has no timer good enough to calibrate it, so the guest is told
//! the frequency. The guest would silently accept a wrong frequency and its clock would run wrong, so the frequency is
//! measured, never taken from the host's description of itself.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::arch::ticks;

/// Shortest time of a measurement. The error of a reading is well under a microsecond, so over this time it is under
/// 0.01 %.
const SHORTEST: Duration = Duration::from_millis(10);
/// Readings tried at each end; the reading with the least time between its two looks at the clock counts.
const READINGS: usize = 8;

/// A measurement under way. The longer it runs, the more exact it is.
#[derive(Debug, Clone, Copy)]
pub struct Calibration(Reading);

/// The counter and the clock at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    ticks: u64,
    clock_ns: u128,
}

impl Calibration {
    /// Begins a measurement. The earlier the call, the better: [`Self::khz`] waits for the rest of the shortest time.
    #[must_use]
    pub fn start() -> Self {
        Self(Reading::now())
    }

    /// The counter's frequency in kHz.
    #[must_use]
    pub fn khz(self) -> u64 {
        let mut end = Reading::now();
        let elapsed = |end: &Reading| end.clock_ns - self.0.clock_ns;
        while let Some(missing_ns) =
            SHORTEST.as_nanos().checked_sub(elapsed(&end)).filter(|missing| *missing > 0)
        {
            std::thread::sleep(Duration::from_nanos(u64::try_from(missing_ns).unwrap_or(0)));
            end = Reading::now();
        }
        let ticks = u128::from(end.ticks - self.0.ticks);
        u64::try_from(ticks * 1_000_000 / elapsed(&end)).unwrap_or(u64::MAX)
    }
}

impl Reading {
    fn now() -> Self {
        let once = || {
            let before = raw_clock_ns();
            let ticks = ticks();
            let after = raw_clock_ns();
            (after - before, Self { ticks, clock_ns: before.midpoint(after) })
        };
        let first = once();
        (1..READINGS).map(|_| once()).fold(first, |best, next| if next.0 < best.0 { next } else { best }).1
    }
}

/// A clock that nothing adjusts.
pub(crate) fn raw_clock_ns() -> u128 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    // The clock counts from the host's start, so neither part is negative.
    u128::from(now.tv_sec.unsigned_abs()) * 1_000_000_000 + u128::from(now.tv_nsec.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_measurements_agree() {
        let long = Calibration::start();
        let short: Vec<u64> = (0..3).map(|_| Calibration::start().khz()).collect();
        let long = long.khz();
        for khz in short {
            assert!(khz.abs_diff(long) < long / 1000, "{khz} kHz against {long} kHz");
        }
    }
}
