//! The CMOS real-time clock (MC146818), read-only: it shows the host's time at every read.
//!
//! A kernel that finds no clock polls the clock's ports 20,000 times, and so does one that finds an update always in
//! progress. This clock never has an update in progress. Not here: alarms, interrupts, RAM, setting the time.

use crate::{Outcome, answer};

/// First port (index).
pub const PORT: u16 = 0x70;
/// Number of ports: index and data.
pub const PORTS: u16 = 2;
/// The register that holds the century, for the fixed ACPI table.
pub const CENTURY: u8 = 0x32;

/// The index without the port's top bit, which masks the non-maskable interrupt.
const INDEX_MASK: u8 = 0x7f;
/// Register A: bit 7, update in progress, clear; a 32,768 Hz crystal, periodic rate 1,024 Hz.
const REGISTER_A: u8 = 0x26;
/// Register B: 24 hours, BCD, no interrupts.
const REGISTER_B: u8 = 0x02;
/// Register C: no interrupt is pending.
const REGISTER_C: u8 = 0;
/// Register D: bit 7, RAM and time are valid.
const REGISTER_D: u8 = 0x80;

const SECONDS_A_DAY: u64 = 86_400;
/// The last second of the year 9999, the last year that four digits can show.
const LAST: u64 = 253_402_300_799;

/// The real-time clock.
pub struct Rtc {
    index: u8,
    now: Box<dyn Fn() -> u64 + Send>,
}

impl Rtc {
    /// A clock that shows `now()`, seconds since 1970 in UTC.
    #[must_use]
    pub fn new(now: Box<dyn Fn() -> u64 + Send>) -> Self {
        Self { index: 0, now }
    }

    /// Fills `data` from the port at `offset` from [`PORT`].
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        answer(data, || if offset == 1 { self.register() } else { 0xff });
    }

    /// Takes a write of `data` to the port at `offset` from [`PORT`].
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Outcome {
        if let (0, &[index, ..]) = (offset, data) {
            self.index = index & INDEX_MASK;
        }
        Outcome::Continue
    }

    fn register(&self) -> u8 {
        match self.index {
            0x0a => REGISTER_A,
            0x0b => REGISTER_B,
            0x0c => REGISTER_C,
            0x0d => REGISTER_D,
            0x00 | 0x02 | 0x04 | 0x06..=0x09 | CENTURY => bcd(self.time()),
            _ => 0,
        }
    }

    /// The part of the time that the selected register shows.
    fn time(&self) -> u64 {
        let now = (self.now)().min(LAST);
        let (days, second) = (now / SECONDS_A_DAY, now % SECONDS_A_DAY);
        let date = Date::from_days(days);
        match self.index {
            0x00 => second % 60,
            0x02 => second / 60 % 60,
            0x04 => second / 3600,
            // Day 0 was a Thursday; Sunday is 1.
            0x06 => (days + 4) % 7 + 1,
            0x07 => date.day,
            0x08 => date.month,
            0x09 => date.year % 100,
            _ => date.year / 100,
        }
    }
}

/// A value below 100 as two decimal digits.
fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

/// A day of the Gregorian calendar.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// The day `days` after 1970-01-01.
    fn from_days(days: u64) -> Self {
        // Years begin on 1 March here, counted from the year 0: the leap day is then the last day of its year, and an
        // era of 400 years has 146,097 days.
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // March to July and August to December are 153 days each.
        let march_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self { year: era * 400 + year_of_era + u64::from(month <= 2), month, day }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn cmos(rtc: &mut Rtc, index: u8) -> u8 {
        assert_eq!(rtc.write(0, &[index]), Outcome::Continue);
        let mut data = [0; 1];
        rtc.read(1, &mut data);
        data[0]
    }

    fn at(seconds: u64) -> Rtc {
        Rtc::new(Box::new(move || seconds))
    }

    #[test]
    fn the_time_is_bcd_and_24_hours() {
        // 2026-11-09 (a Monday) 23:58:07 UTC
        let mut rtc = at(1_794_268_687);
        let registers = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY];
        let shown = registers.map(|index| cmos(&mut rtc, index));
        assert_eq!(shown, [0x07, 0x58, 0x23, 0x02, 0x09, 0x11, 0x26, 0x20]);
        assert_eq!(cmos(&mut rtc, 0x0b), 0x02);
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut expected = Date { year: 1970, month: 1, day: 1 };
        for days in 0..200_000 {
            let date = Date::from_days(days);
            assert_eq!(date, expected, "{days}");
            let leap = date.year.is_multiple_of(4) && !date.year.is_multiple_of(100)
                || date.year.is_multiple_of(400);
            let last = match date.month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match date {
                Date { year, month: 12, day: 31 } => Date { year: year + 1, month: 1, day: 1 },
                Date { year, month, day } if day == last => Date { year, month: month + 1, day: 1 },
                Date { year, month, day } => Date { year, month, day: day + 1 },
            };
        }
    }

    /// `mc146818_avoid_UIP()` of Linux 6.12 starts another round if an update is in progress or the second has changed:
    /// this clock takes one round.
    #[test]
    fn linux_reads_the_time_in_one_round() {
        let mut rtc = at(1_000_000_000);
        let seconds = cmos(&mut rtc, 0);
        for _ in 0..2 {
            assert_eq!(cmos(&mut rtc, 0x0a) & 0x80, 0);
            assert_eq!(cmos(&mut rtc, 0), seconds);
        }
        assert_eq!(cmos(&mut rtc, 0x0d) & 0x80, 0x80);
    }

    #[test]
    fn the_clock_goes_on() {
        let clock = Arc::new(AtomicU64::new(59));
        let shared = Arc::clone(&clock);
        let mut rtc = Rtc::new(Box::new(move || shared.load(Ordering::Relaxed)));
        assert_eq!((cmos(&mut rtc, 0), cmos(&mut rtc, 2)), (0x59, 0));
        clock.store(60, Ordering::Relaxed);
        assert_eq!((cmos(&mut rtc, 0), cmos(&mut rtc, 2)), (0, 1));
        clock.store(u64::MAX, Ordering::Relaxed);
        assert_eq!((cmos(&mut rtc, CENTURY), cmos(&mut rtc, 9), cmos(&mut rtc, 7)), (0x99, 0x99, 0x31));
    }

    #[test]
    fn every_port_and_width_is_harmless() {
        let mut rtc = at(0);
        for index in 0..=u8::MAX {
            // The mask bit of the non-maskable interrupt is no part of the index.
            assert_eq!(cmos(&mut rtc, index), cmos(&mut rtc, index & 0x7f));
        }
        let mut data = [0; 4];
        rtc.read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(rtc.write(0, &[0x0d]), Outcome::Continue);
        assert_eq!(rtc.write(1, &[0; 4]), Outcome::Continue);
        assert_eq!(rtc.write(0, &[]), Outcome::Continue);
        rtc.read(1, &mut data);
        assert_eq!(data, [0x80, 0xff, 0xff, 0xff]);
        rtc.read(1, &mut []);
    }
}
