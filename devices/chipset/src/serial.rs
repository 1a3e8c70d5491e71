//! The first serial line: a 16550 (vm-superio's) for early boot messages and panics.
//!
//! Output never makes the guest wait for a reader: bytes that the sink does not take at once are lost and counted. Not
//! here: line speed, flow control, terminals.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;

use crate::{Outcome, answer};

/// First port of the first line.
pub const PORT: u16 = 0x3f8;
/// Number of ports.
pub const PORTS: u16 = 8;

/// A serial line.
pub struct Serial {
    uart: vm_superio::Serial<Irq, Lost, Box<dyn Write + Send>>,
}

struct Irq(Box<dyn Fn() + Send>);

impl Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

/// Counts the bytes that the sink did not take.
struct Lost(Arc<AtomicU64>);

impl SerialEvents for Lost {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn in_buffer_empty(&self) {}
}

impl Serial {
    /// A line that makes an edge on its interrupt by `irq` and writes to `output`, which must not block (`O_NONBLOCK`):
    /// output that would block is lost.
    #[must_use]
    pub fn new(irq: Box<dyn Fn() + Send>, output: Box<dyn Write + Send>) -> Self {
        Self { uart: vm_superio::Serial::with_events(Irq(irq), Lost(Arc::default()), output) }
    }

    /// The number of output bytes lost so far; the counter goes on counting.
    #[must_use]
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.uart.events().0)
    }

    /// Puts input where the guest reads it; returns the number of bytes for which there was room.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        // `enqueue_raw_bytes` fails only in loopback mode (the guest tests its line) or without room: then no byte is
        // taken.
        let count = input.len().min(self.uart.fifo_capacity());
        self.uart.enqueue_raw_bytes(&input[..count]).unwrap_or(0)
    }

    /// Fills `data` from the port at `offset` from [`PORT`].
    pub fn read(&mut self, offset: u16, data: &mut [u8]) {
        answer(data, || u8::try_from(offset).map_or(0xff, |offset| self.uart.read(offset)));
    }

    /// Takes a write of `data` to the port at `offset` from [`PORT`].
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Outcome {
        if let (Ok(offset), Some(&value)) = (u8::try_from(offset), data.first()) {
            // The one error is a sink that does not take the byte, which is already counted.
            let _ = self.uart.write(offset, value);
        }
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink {
        taken: Arc<Mutex<Vec<u8>>>,
        room: usize,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut taken = self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if taken.len() == self.room {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.room - taken.len());
            taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial(room: usize) -> (Serial, Sink, Arc<AtomicU64>) {
        let sink = Sink { room, ..Sink::default() };
        let edges = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&edges);
        let irq = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        (Serial::new(Box::new(irq), Box::new(sink.clone())), sink, edges)
    }

    fn register(serial: &mut Serial, offset: u16) -> u8 {
        let mut data = [0; 1];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_goes_out_and_the_line_is_always_ready() {
        let (mut serial, sink, _) = serial(100);
        for byte in *b"hello" {
            assert_eq!(register(&mut serial, 5) & 0x20, 0x20);
            assert_eq!(serial.write(0, &[byte]), Outcome::Continue);
        }
        assert_eq!(*sink.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner), b"hello");
    }

    #[test]
    fn output_nobody_takes_is_counted_and_the_guest_goes_on() {
        let (mut serial, _, edges) = serial(2);
        assert_eq!(serial.write(1, &[2]), Outcome::Continue); // transmitter interrupt on
        for byte in *b"hello" {
            let before = edges.load(Ordering::Relaxed);
            register(&mut serial, 2); // acknowledges
            assert_eq!(serial.write(0, &[byte]), Outcome::Continue);
            assert_eq!(edges.load(Ordering::Relaxed), before + 1);
        }
        assert_eq!(serial.lost().load(Ordering::Relaxed), 3);
    }

    #[test]
    fn input_makes_an_edge_and_is_bounded() {
        let (mut serial, _, edges) = serial(0);
        assert_eq!(serial.write(1, &[1]), Outcome::Continue); // receiver interrupt on
        assert_eq!(serial.enqueue(&[b'x'; 1000]), 64);
        assert_eq!(serial.enqueue(b"y"), 0);
        assert_eq!(edges.load(Ordering::Relaxed), 1);
        for _ in 0..64 {
            assert_eq!(register(&mut serial, 5) & 1, 1);
            assert_eq!(register(&mut serial, 0), b'x');
        }
        assert_eq!(register(&mut serial, 5) & 1, 0);
    }

    #[test]
    fn every_port_and_width_is_harmless() {
        let (mut serial, _, _) = serial(0);
        for offset in [0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 256, u16::MAX] {
            for value in 0..=u8::MAX {
                assert_eq!(serial.write(offset, &[value, 1, 2, 3]), Outcome::Continue);
                let mut data = [0; 4];
                serial.read(offset, &mut data);
                assert_eq!(data[1..], [0xff; 3]);
            }
        }
    }
}
