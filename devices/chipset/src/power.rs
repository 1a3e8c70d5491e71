//! Power off and reset for hardware-reduced ACPI (ACPI 6.5 §4.8.3.6, §4.8.3.7): three byte-wide registers.
//!
//! The fixed ACPI table points to them by the constants here. Not here: sleep states other than off, power buttons.

use crate::{Outcome, answer};

/// First port.
pub const PORT: u16 = 0x600;
/// Number of ports.
pub const PORTS: u16 = 8;
/// `SLEEP_CONTROL_REG`.
pub const SLEEP_CONTROL_PORT: u16 = PORT;
/// `SLEEP_STATUS_REG`.
pub const SLEEP_STATUS_PORT: u16 = PORT + 1;
/// `RESET_REG`.
pub const RESET_PORT: u16 = PORT + 4;
/// `RESET_VALUE`: the value that resets the machine when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// The value of `SLP_TYPx` that means off: the first element of the `\_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Position of `SLP_TYPx` in the sleep control register.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;
/// ACPI 6.5 §4.8.3.7: "Setting this bit causes the system to sequence into the Sleeping state".
const SLP_EN: u8 = 1 << 5;

/// The registers, which have no state.
#[derive(Debug, Default, Clone, Copy)]
pub struct Power;

impl Power {
    /// Fills `data` from the port at `offset` from [`PORT`].
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let _ = offset;
        // `SLP_EN` is write-only, and `WAK_STS` is never set: the machine never wakes.
        answer(data, || 0);
    }

    /// Takes a write of `data` to the port at `offset` from [`PORT`].
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Outcome {
        let &[value, ..] = data else { return Outcome::Continue };
        match offset.checked_add(PORT) {
            Some(SLEEP_CONTROL_PORT)
                if value & SLP_EN != 0 && value >> SLP_TYP_SHIFT & SLP_TYP_MASK == SLEEP_TYPE_S5 =>
            {
                Outcome::PowerOff
            }
            Some(RESET_PORT) if value == RESET_VALUE => Outcome::Reset,
            _ => Outcome::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_the_enable_bit_turns_off() {
        let mut power = Power;
        let control = SLEEP_CONTROL_PORT - PORT;
        for value in 0..=u8::MAX {
            let off = value & 0b0011_1100 == SLEEP_TYPE_S5 << 2 | 1 << 5;
            let expected = if off { Outcome::PowerOff } else { Outcome::Continue };
            assert_eq!(power.write(control, &[value]), expected, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let mut power = Power;
        for value in 0..=u8::MAX {
            let expected = if value == RESET_VALUE { Outcome::Reset } else { Outcome::Continue };
            assert_eq!(power.write(RESET_PORT - PORT, &[value]), expected);
        }
    }

    #[test]
    fn every_port_and_width_is_harmless() {
        let mut power = Power;
        for offset in (0..PORTS).filter(|&offset| offset != RESET_PORT - PORT && offset != 0) {
            assert_eq!(power.write(offset, &[0xff; 4]), Outcome::Continue);
        }
        assert_eq!(power.write(0, &[]), Outcome::Continue);
        assert_eq!(power.write(u16::MAX, &[1]), Outcome::Continue);
        let mut data = [7; 4];
        power.read(SLEEP_STATUS_PORT - PORT, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    }
}
