//! Console device (VIRTIO 1.3 §5.3): one port, no resize, no control queues.
//!
//! Output never makes the guest wait for a reader: bytes that the sink does not take at once are lost and counted.
//! Input waits in its descriptor until the driver has room. Not here: terminals and their sizes (a PTY lives in the
//! guest).

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::chain::Buffers;
use crate::sys::{EventSet, Trigger};
use crate::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Io};

/// Queue of port 0 that carries input (VIRTIO 1.3 §5.3.2).
const RECEIVE: usize = 0;
/// Queue of port 0 that carries output.
const TRANSMIT: usize = 1;
/// Linux fills the receive queue with a page for each descriptor, and transmits one buffer at a time.
const QUEUE_SIZES: [u16; 2] = [16, 16];
/// Most bytes moved at once, and most input of one buffer.
const CHUNK: usize = 4096;
/// Most output of one chain; further bytes are lost. Linux sends at most 32 KiB.
const MAX_OUTPUT: usize = 64 << 10;

/// A console with one port.
pub struct Console {
    output: Box<dyn Write + Send>,
    lost: Arc<AtomicU64>,
    input: Option<Input>,
    kick: Option<Event>,
}

/// The source of a console's input.
struct Input {
    fd: OwnedFd,
    /// Watches the source, edge-triggered, so that input for which nobody has room does not keep the event loop busy.
    readable: EventSet,
    /// Whether `fd` may have more; if false, an edge tells of new input.
    pending: bool,
}

impl Console {
    /// A console that writes to `output` and reads `input`, both of which must not block (`O_NONBLOCK`): output that
    /// would block is lost.
    pub fn new(output: Box<dyn Write + Send>, input: Option<OwnedFd>) -> io::Result<Self> {
        let input = input
            .map(|fd| {
                let readable = EventSet::new()?;
                readable.add(fd.as_fd(), Trigger::Edge)?;
                io::Result::Ok(Input { fd, readable, pending: true })
            })
            .transpose()?;
        Ok(Self { output, lost: Arc::default(), input, kick: None })
    }

    /// The number of output bytes lost so far; the counter goes on counting.
    #[must_use]
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    fn transmit(&mut self, io: &mut Io<'_>) {
        let Self { output, lost, kick, .. } = self;
        io.serve(TRANSMIT, kick.as_ref(), |memory, chain| {
            let mut text = Buffers::new(memory, chain).readable;
            let (mut chunk, mut left) = ([0; CHUNK], MAX_OUTPUT);
            while left > 0
                && let Some(part) = text.take(text.len().min(CHUNK)).filter(|part| !part.is_empty())
            {
                let count = part.read(&mut chunk);
                let written = write_now(output.as_mut(), &chunk[..count]);
                left = left.saturating_sub(count);
                lost.fetch_add((count - written) as u64, Ordering::Relaxed);
            }
            lost.fetch_add(text.len() as u64, Ordering::Relaxed);
            0
        });
    }

    fn receive(&mut self, io: &mut Io<'_>) {
        let Some(input) = &mut self.input else { return };
        let mut filled = false;
        while input.pending {
            let Some(chain) = io.pop(RECEIVE) else { break };
            let head = chain.head_index();
            let buffer = Buffers::new(io.memory, chain).writable;
            let mut chunk = [0; CHUNK];
            let room = buffer.len().min(CHUNK);
            if room == 0 {
                io.complete(RECEIVE, head, 0);
                continue;
            }
            match rustix::io::read(&input.fd, &mut chunk[..room]) {
                Ok(count) if count > 0 => {
                    buffer.write(&chunk[..count]);
                    io.complete(RECEIVE, head, u32::try_from(count).unwrap_or(0));
                    filled = true;
                }
                result => {
                    // The buffer was not used, so it is the next one again.
                    io.unpop(RECEIVE);
                    // There is no input now, or (end of input, an error) there is none ever again; an edge tells of new
                    // input.
                    input.pending = matches!(result, Err(Errno::INTR));
                }
            }
        }
        if filled {
            io.notify(RECEIVE);
        }
    }
}

/// Writes as much as `output` takes without waiting; returns how much.
fn write_now(output: &mut dyn Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match output.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    written.min(bytes.len())
}

impl Device for Console {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: DeviceKind::Console, features: 0, queue_sizes: &QUEUE_SIZES }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // No field is valid without a feature bit, and none is offered.
        data.fill(0);
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        self.kick = activation.own_kick(TRANSMIT);
        Ok(())
    }

    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        match index {
            RECEIVE => self.receive(io),
            TRANSMIT => self.transmit(io),
            _ => {}
        }
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|input| input.readable.as_fd())
    }

    fn process_host(&mut self, io: &mut Io<'_>) {
        if let Some(input) = &mut self.input {
            input.readable.acknowledge();
            input.pending = true;
            self.receive(io);
        }
    }

    fn reset(&mut self) {
        self.kick = None;
    }
}

#[cfg(test)]
mod tests;
