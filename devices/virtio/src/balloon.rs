//! Memory balloon (VIRTIO 1.3 §5.5): gives pages that the guest does not use back to the host.
//!
//! The driver gives pages when the host sets a target (inflate), and on its own when it has free ones (reporting). The
//! port [`Reclaim`] decides how a page is given back. Not here: mappings, statistics, free page hinting, and the choice
//! of a target.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use guest_memory::GuestRam;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::chain::Buffers;
use crate::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Io};

/// VIRTIO 1.3 §5.5.3.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO 1.3 §5.5.3.
const F_PAGE_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Inflate, deflate, statistics, free page hinting, reporting (VIRTIO 1.3 §5.5.2). The third and fourth queues do not
/// exist without their feature bits, so any of the last three that a driver sets up is the reporting queue: older Linux
/// (and 6.12's workaround for older devices) numbers the queues without gaps.
const QUEUE_SIZES: [u16; 5] = [64; 5];

/// VIRTIO 1.3 §5.5.6: page numbers count pages of 4096 bytes, "historical, and independent of the guest page size".
const PAGE: u64 = 4096;
/// Most page numbers of one inflate request; further pages stay where they are. Linux sends 256.
const MAX_PAGES: usize = 1024;

/// Takes back memory that the guest does not need.
pub trait Reclaim: Send {
    /// Takes `len` bytes at guest-physical `address`, which the guest no longer needs: until the guest writes there, it
    /// may read anything. The range is in guest RAM, and `address` and `len` are multiples of 4096.
    fn reclaim(&mut self, address: u64, len: u64);
}

/// A balloon.
pub struct Balloon {
    reclaim: Box<dyn Reclaim>,
    shared: Arc<Shared>,
    /// `num_pages` as the driver sees it.
    num_pages: u32,
    kicks: [Option<Event>; QUEUE_SIZES.len()],
}

/// The host's handle on a balloon.
#[derive(Debug, Clone)]
pub struct BalloonHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    target: AtomicU32,
    actual: AtomicU32,
    changed: Event,
}

impl BalloonHandle {
    /// Asks the driver to give `bytes` of memory, rounded down to pages; with 0 the driver may take everything back.
    pub fn set_target(&self, bytes: u64) {
        self.0.target.store(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX), Ordering::SeqCst);
        self.0.changed.signal();
    }

    /// How many bytes the driver says it has given.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::SeqCst)) * PAGE
    }
}

impl Balloon {
    /// An empty balloon, whose pages go to `reclaim`.
    pub fn new(reclaim: Box<dyn Reclaim>) -> io::Result<(Self, BalloonHandle)> {
        let shared =
            Arc::new(Shared { target: AtomicU32::new(0), actual: AtomicU32::new(0), changed: Event::new()? });
        let handle = BalloonHandle(Arc::clone(&shared));
        Ok((Self { reclaim, shared, num_pages: 0, kicks: [const { None }; _] }, handle))
    }
}

/// Gives back the pages whose numbers are in `bytes`, adjoining ones together.
fn inflate(reclaim: &mut dyn Reclaim, memory: &GuestRam, bytes: &[u8]) {
    let (numbers, _) = bytes.as_chunks::<4>();
    let mut pages: Vec<u64> = numbers.iter().map(|&number| u64::from(u32::from_le_bytes(number))).collect();
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|page, next| page + 1 == *next) {
        if let Some(first) = run.first() {
            give_back(reclaim, memory, first * PAGE, run.len() as u64 * PAGE);
        }
    }
}

/// Gives back the whole pages of a range, if it is guest RAM.
fn give_back(reclaim: &mut dyn Reclaim, memory: &GuestRam, address: u64, len: u64) {
    let Some(start) = address.checked_next_multiple_of(PAGE) else { return };
    let Some(end) = address.checked_add(len) else { return };
    let Some(len) = (end / PAGE * PAGE).checked_sub(start).filter(|&len| len > 0) else { return };
    let in_ram = usize::try_from(len)
        .is_ok_and(|len| memory.check_range(GuestAddress(start), len, Permissions::ReadWrite));
    if in_ram {
        reclaim.reclaim(start, len);
    }
}

impl Device for Balloon {
    fn identity(&self) -> Identity<'_> {
        Identity {
            kind: DeviceKind::Balloon,
            features: F_DEFLATE_ON_OOM | F_PAGE_REPORTING,
            queue_sizes: &QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let actual = self.shared.actual.load(Ordering::SeqCst);
        let config = u64::from(self.num_pages) | u64::from(actual) << 32;
        crate::device::copy_config(&config.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // VIRTIO 1.3 §4.2.2.2: "the driver MUST use […] 32 bit wide and aligned accesses for 32 […] bit wide fields".
        if let (4, Ok(&actual)) = (offset, <&[u8; 4]>::try_from(data)) {
            self.shared.actual.store(u32::from_le_bytes(actual), Ordering::SeqCst);
        }
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        for (index, kick) in self.kicks.iter_mut().enumerate() {
            *kick = activation.own_kick(index);
        }
        Ok(())
    }

    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        let reclaim = self.reclaim.as_mut();
        let again = self.kicks.get(index).and_then(Option::as_ref);
        io.serve(index, again, |memory, chain| {
            match index {
                INFLATE => {
                    let mut numbers = [0; 4 * MAX_PAGES];
                    let len = Buffers::new(memory, chain).readable.read(&mut numbers);
                    inflate(reclaim, memory, &numbers[..len]);
                }
                // A page comes back by itself, with the guest's first write to it.
                DEFLATE => {}
                // A chain has at most as many buffers as its queue has descriptors: indirect tables, which could hold
                // more, are not negotiated.
                _ => {
                    for page in chain.take(usize::from(QUEUE_SIZES[DEFLATE])).filter(|d| d.is_write_only()) {
                        give_back(reclaim, memory, page.addr().0, u64::from(page.len()));
                    }
                }
            }
            0
        });
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.changed.as_fd())
    }

    fn process_host(&mut self, io: &mut Io<'_>) {
        self.shared.changed.take();
        let target = self.shared.target.load(Ordering::SeqCst);
        if std::mem::replace(&mut self.num_pages, target) != target {
            io.interrupt.config();
        }
    }

    fn reset(&mut self) {
        self.kicks = [const { None }; _];
        // After a reset the driver owns all its memory again.
        self.shared.actual.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
