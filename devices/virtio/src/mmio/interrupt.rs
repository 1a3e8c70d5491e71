//! The interrupt side of the transport: the status that the guest's handler reads, and the edge that runs the handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Event, Interrupt};

/// VIRTIO 1.3 §4.2.2: "Bit 0 Used Buffer Notification".
const USED_BUFFER: u32 = 1;
/// VIRTIO 1.3 §4.2.2: "Bit 1 Configuration Change Notification".
const CONFIGURATION_CHANGE: u32 = 2;

/// Sets a bit of `InterruptStatus`, then signals an event that the VMM turns into an edge (irqfd). Clones share status
/// and event.
///
/// Every notification makes an edge, even if its bit is already set: the handler may have read the bit and not yet the
/// ring. Two edges that meet in the interrupt controller become one.
#[derive(Debug, Clone)]
pub struct MmioInterrupt(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    status: AtomicU32,
    generation: AtomicU32,
    irq: Event,
}

impl MmioInterrupt {
    /// An interrupt that signals `irq`.
    #[must_use]
    pub fn new(irq: Event) -> Self {
        Self(Arc::new(Shared { status: AtomicU32::new(0), generation: AtomicU32::new(0), irq }))
    }

    /// `InterruptStatus`.
    pub(super) fn status(&self) -> u32 {
        self.0.status.load(Ordering::SeqCst)
    }

    /// `InterruptACK`: clears the bits set in `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// `ConfigGeneration`.
    pub(super) fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::SeqCst)
    }

    fn raise(&self, bit: u32) {
        self.0.status.fetch_or(bit, Ordering::SeqCst);
        self.0.irq.signal();
    }
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _index: usize) {
        self.raise(USED_BUFFER);
    }

    fn config(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIGURATION_CHANGE);
    }
}
