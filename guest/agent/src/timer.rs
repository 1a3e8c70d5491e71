//! A check that the kernel's timer ticks.
//!
//! While it boots, Linux measures the processor's timer against the time-stamp counter. If the host stops an emulated
//! processor for a tenth of a second at just that moment, the kernel sees the counter jump, takes the timer for one
//! that hardly moves, and goes on without any: no sleep ever ends, and no error is reported. Not here: the remedy,
//! which is another start, made by the host.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A tick is later than this only if there is none, or the processor stood still.
const LATE: Duration = Duration::from_millis(50);

/// How long a late tick is waited for, by a clock that needs no ticks, and the least number of times that it is
/// checked for, should the processor stand still meanwhile.
const PATIENCE: (Duration, u32) = (Duration::from_secs(1), 10_000);

/// Whether the timer ticks. To be called before the clock is set, which looks like a tick.
pub(crate) fn is_ticking() -> bool {
    ticks(|| clock(ClockId::Monotonic), || clock(ClockId::MonotonicCoarse))
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id).try_into().unwrap_or_default()
}

/// clock_gettime(2): the coarse clock is the precise one "at tick resolution", so without ticks it stands still.
fn ticks(now: impl Fn() -> Duration, coarse: impl Fn() -> Duration) -> bool {
    let (begun, first) = (now(), coarse());
    if begun.saturating_sub(first) < LATE {
        return true;
    }
    // Without ticks no wait would end, so this loop spins.
    let mut looks = 0;
    loop {
        let over = looks >= PATIENCE.1 && now().saturating_sub(begun) >= PATIENCE.0;
        if coarse() != first {
            return true;
        }
        if over {
            return false;
        }
        looks += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A clock that moves by a millisecond each time it is read.
    fn running(from: Duration) -> impl Fn() -> Duration {
        let time = Cell::new(from);
        move || {
            time.set(time.get() + Duration::from_millis(1));
            time.get()
        }
    }

    #[test]
    fn this_kernel_ticks() {
        assert!(is_ticking());
    }

    #[test]
    fn a_clock_that_stands_shows_that_nothing_ticks() {
        let boot = Duration::from_secs(2);
        assert!(!ticks(running(boot), || Duration::from_millis(500)));
    }

    #[test]
    fn a_late_tick_is_one() {
        let boot = Duration::from_secs(2);
        let looked = Cell::new(0);
        let late = || {
            looked.set(looked.get() + 1);
            if looked.get() < 500 { Duration::from_secs(1) } else { boot }
        };
        assert!(ticks(running(boot), late));
        assert_eq!(looked.get(), 500);
    }
}
