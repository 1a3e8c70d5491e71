//! Entropy device (VIRTIO 1.3 §5.4): the host kernel's random bytes.
//!
//! Not here: a generator of this crate's own. The guest gets the bytes of getrandom(2).

use rustix::rand::{GetRandomFlags, getrandom};

use crate::chain::Buffers;
use crate::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Io};

/// Most requests in flight. Linux makes one at a time.
const QUEUE_SIZE: u16 = 8;
/// Most bytes of one answer: getrandom(2) is never interrupted for so few.
const MAX_ANSWER: usize = 256;

/// The device, a source of random bytes.
#[derive(Debug, Default)]
pub struct Entropy {
    kick: Option<Event>,
}

impl Entropy {
    /// Makes the device.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for Entropy {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: DeviceKind::Entropy, features: 0, queue_sizes: &[QUEUE_SIZE] }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        self.kick = activation.own_kick(0);
        Ok(())
    }

    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        io.serve(index, self.kick.as_ref(), |memory, chain| {
            // VIRTIO 1.3 §5.4.6.2: "The device MUST place one or more random bytes into the buffer, but it MAY use
            // less than the entire buffer length."
            let buffer = Buffers::new(memory, chain).writable;
            let mut bytes = [0; MAX_ANSWER];
            let wanted = &mut bytes[..buffer.len().min(MAX_ANSWER)];
            // `getrandom` fails only on a host that has just booted, whose pool is empty. Then there are no random
            // bytes, and the driver, which must look at the length, asks again.
            let filled = getrandom(&mut *wanted, GetRandomFlags::NONBLOCK).unwrap_or(0);
            u32::try_from(buffer.write(&wanted[..filled])).unwrap_or(0)
        });
    }

    fn reset(&mut self) {
        self.kick = None;
    }
}

#[cfg(test)]
mod tests;
