//! The part of a keyboard controller that Linux uses to reboot (`reboot=k`): its reset line, and a status that ends
//! every driver's wait.
//!
//! Linux' driver first empties the output buffer, and finds no controller if that buffer stays full; its reboot code
//! first waits for the input buffer to be empty. One status serves both: output full, input empty. Not here: keyboards.

use crate::{Outcome, answer};

/// First port (data).
pub const PORT: u16 = 0x60;
/// Number of ports, the last of which is status and command. The ports between data and status belong to no device.
pub const PORTS: u16 = 5;

const STATUS_COMMAND: u16 = 4;
/// Status: output buffer full (bit 0), input buffer empty (bit 1 clear).
const STATUS: u8 = 1;
/// Command that pulses the CPU's reset line low.
const PULSE_RESET: u8 = 0xfe;

/// The controller, which has no state.
#[derive(Debug, Default, Clone, Copy)]
pub struct I8042;

impl I8042 {
    /// Fills `data` from the port at `offset` from [`PORT`].
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        answer(data, || match offset {
            0 => 0,
            STATUS_COMMAND => STATUS,
            _ => 0xff,
        });
    }

    /// Takes a write of `data` to the port at `offset` from [`PORT`].
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Outcome {
        match (offset, data.first()) {
            (STATUS_COMMAND, Some(&PULSE_RESET)) => Outcome::Reset,
            _ => Outcome::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u16) -> u8 {
        let mut data = [0; 1];
        I8042.read(offset, &mut data);
        data[0]
    }

    /// `i8042_flush()` of Linux 6.12: reads data while the output buffer is full, at most 16 times.
    #[test]
    fn linux_finds_no_controller_at_once() {
        let mut reads = 0;
        while read(4) & 1 != 0 && reads <= 16 {
            assert_eq!(read(0), 0);
            reads += 1;
        }
        assert_eq!(reads, 17);
    }

    /// `kb_wait()` of Linux 6.12: waits for the input buffer, then pulses.
    #[test]
    fn linux_reboots_at_once() {
        assert_eq!(read(4) & 2, 0);
        assert_eq!(I8042.write(4, &[0xfe]), Outcome::Reset);
    }

    #[test]
    fn nothing_else_resets() {
        for value in (0..=u8::MAX).filter(|&value| value != 0xfe) {
            assert_eq!(I8042.write(4, &[value]), Outcome::Continue);
        }
        for offset in (0..8).filter(|&offset| offset != 4) {
            assert_eq!(I8042.write(offset, &[0xfe]), Outcome::Continue);
        }
        assert_eq!(I8042.write(4, &[]), Outcome::Continue);
        assert_eq!(read(2), 0xff);
    }
}
