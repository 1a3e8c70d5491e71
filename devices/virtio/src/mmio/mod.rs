//! virtio-mmio transport (VIRTIO 1.3 §4.2), modern devices only.
//!
//! ```text
//!   vCPU thread ── read, write ──▶ MmioTransport ◀── process_queue, process_host ── event thread
//!                                     │     ▲
//!                     device, queues ─┘     └─ kicks (in), irq (out): events that may bypass vCPU exits
//! ```
//!
//! The transport locks inside, so threads share it by reference. `InterruptStatus`, `InterruptACK` and `QueueNotify`
//! take no lock, so a guest that handles an interrupt never waits for a device at work.
//!
//! Status (VIRTIO 1.3 §2.1): the driver sets one bit after another, and only a reset clears them.
//!
//! ```text
//! 0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK (active)
//!   ▲                              queues set up   │ activation refused, or a queue broken
//!   └── write 0: reset, from anywhere              └─▶ DEVICE_NEEDS_RESET        FAILED: the driver gave up
//! ```
//!
//! Not here: where the window lies and how its events reach the hypervisor (the VMM's), legacy devices, `QueueReset`,
//! shared memory regions.

mod interrupt;
mod registers;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_memory::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

pub use self::interrupt::MmioInterrupt;
use self::registers::QueueRegisters;
use crate::sys::{EventSet, Trigger};
use crate::{ActivateError, Activation, Attached, Device, DeviceKind, Event, Interrupt, Io};

/// Bytes of the register window.
pub const WINDOW: u64 = 0x200;
/// Offset of `QueueNotify`: a 4-byte write of a queue's index there is that queue's kick.
pub const QUEUE_NOTIFY: u64 = registers::QUEUE_NOTIFY;

/// Features that the transport offers besides the device's own.
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A device behind a window of registers, or a link to one.
pub struct MmioTransport {
    kind: DeviceKind,
    is_link: bool,
    memory: GuestRam,
    kicks: Vec<Event>,
    interrupt: MmioInterrupt,
    /// Contains the device's host event while the device is active.
    host: Option<EventSet>,
    state: Mutex<State>,
}

/// The state that only one thread at a time may see.
struct State {
    attached: Attached,
    offered: u64,
    accepted: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    registers: Vec<QueueRegisters>,
    /// One queue for each of `registers`, while the device is active.
    queues: Vec<Queue>,
    status: u32,
    active: bool,
    /// Whether a refusal was logged: the guest can repeat refusals at will.
    logged: bool,
}

impl MmioTransport {
    /// A transport for a device; the transport's interrupt signals `irq`.
    pub fn new(attached: Attached, memory: GuestRam, irq: Event) -> io::Result<Self> {
        let identity = attached.identity();
        let registers: Vec<_> = identity.queue_sizes.iter().map(|&size| QueueRegisters::new(size)).collect();
        let kicks = registers.iter().map(|_| Event::new()).collect::<io::Result<_>>()?;
        let host = attached.host_event().map(|_| EventSet::new()).transpose()?;
        Ok(Self {
            kind: identity.kind,
            is_link: matches!(attached, Attached::Link(_)),
            memory,
            kicks,
            interrupt: MmioInterrupt::new(irq),
            host,
            state: Mutex::new(State {
                offered: identity.features | TRANSPORT_FEATURES,
                attached,
                accepted: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                queue_sel: 0,
                registers,
                queues: Vec::new(),
                status: 0,
                active: false,
                logged: false,
            }),
        })
    }

    /// The kind of the device.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// One event for each queue. Signal it when the driver writes the queue's index to [`QUEUE_NOTIFY`] (or let the
    /// hypervisor signal it); when it is readable, call [`Self::process_queue`], unless [`Self::is_link`].
    #[must_use]
    pub fn kicks(&self) -> &[Event] {
        &self.kicks
    }

    /// An event that is readable when [`Self::process_host`] must be called. The event is never readable while the
    /// device is not active.
    #[must_use]
    pub fn host_event(&self) -> Option<BorrowedFd<'_>> {
        self.host.as_ref().map(AsFd::as_fd)
    }

    /// Whether another process serves the queues, and waits for the kicks itself.
    #[must_use]
    pub fn is_link(&self) -> bool {
        self.is_link
    }

    /// Whether the driver has started the device.
    #[must_use]
    pub fn activated(&self) -> bool {
        self.lock().active
    }

    /// Takes back the kicks of queue `index` and serves the chains that it holds.
    pub fn process_queue(&self, index: usize) {
        let mut state = self.lock();
        let State { attached: Attached::Device(device), queues, active, .. } = &mut *state else { return };
        let Some(kick) = self.kicks.get(index) else { return };
        kick.take();
        if *active && queues.get(index).is_some_and(QueueT::ready) {
            let sound = self.lend(device.as_mut(), queues, |device, io| device.process(index, io));
            self.go_on_if(&mut state, sound);
        }
    }

    /// Serves the device's host side.
    pub fn process_host(&self) {
        let mut state = self.lock();
        let State { attached, queues, active: true, .. } = &mut *state else { return };
        let sound = match attached {
            Attached::Device(device) => {
                self.lend(device.as_mut(), queues, |device, io| device.process_host(io))
            }
            Attached::Link(link) => link.forward(&self.interrupt).is_ok(),
        };
        self.go_on_if(&mut state, sound);
    }

    /// Fills `data` from `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            self.lock().attached.read_config(offset, data);
            return;
        }
        // VIRTIO 1.3 §4.2.2.2: "The driver MUST only use 32 bit wide and aligned reads and writes to access the
        // control registers".
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(value) if offset.is_multiple_of(4) => *value = self.read_register(offset).to_le_bytes(),
            _ => data.fill(0),
        }
    }

    /// Takes a write of `data` to `offset` of the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            let mut state = self.lock();
            let written = state.attached.write_config(offset, data);
            self.go_on_if(&mut state, written.is_ok());
            return;
        }
        if let Ok(&value) = <&[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == registers::INTERRUPT_STATUS {
            return self.interrupt.status();
        }
        let state = self.lock();
        match offset {
            registers::MAGIC_VALUE => registers::MAGIC,
            registers::DEVICE_VERSION => registers::VERSION,
            registers::DEVICE_ID => self.kind as u32,
            registers::VENDOR_ID => registers::VENDOR,
            registers::DEVICE_FEATURES => half(state.offered, state.device_features_sel),
            registers::QUEUE_SIZE_MAX => state.selected().map_or(0, |queue| u32::from(queue.max_size)),
            registers::QUEUE_READY => state.selected().map_or(0, |queue| u32::from(queue.ready)),
            registers::STATUS => state.status,
            // VIRTIO 1.3 §4.2.2: "Reading from a non-existent region […] results in a length of -1."
            registers::SHM_LEN_LOW..=registers::SHM_BASE_HIGH => u32::MAX,
            registers::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            registers::QUEUE_NOTIFY => {
                if let Some(kick) = usize::try_from(value).ok().and_then(|index| self.kicks.get(index)) {
                    kick.signal();
                }
                return;
            }
            registers::INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            _ => {}
        }
        let mut state = self.lock();
        match offset {
            registers::DEVICE_FEATURES_SEL => state.device_features_sel = value,
            registers::DRIVER_FEATURES_SEL => state.driver_features_sel = value,
            registers::DRIVER_FEATURES => state.accept_features(value),
            registers::QUEUE_SEL => state.queue_sel = value,
            registers::STATUS => self.write_status(&mut state, value),
            registers::QUEUE_SIZE..=registers::QUEUE_DEVICE_HIGH => state.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_status(&self, state: &mut State, value: u32) {
        // VIRTIO 1.3 §4.2.2: "Writing zero (0x0) to this register triggers a device reset."
        if value == 0 {
            return self.reset(state);
        }
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            state.status |= VIRTIO_CONFIG_S_FAILED;
            self.deactivate(state);
        }
        if state.status & (VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET) != 0 {
            return;
        }
        // VIRTIO 1.3 §3.1.1: "The driver MUST follow this sequence to initialize a device"; §2.1.1: "The driver MUST
        // NOT clear a device status bit." So each bit needs the one before it, and stays.
        if value & VIRTIO_CONFIG_S_ACKNOWLEDGE != 0 {
            state.status |= VIRTIO_CONFIG_S_ACKNOWLEDGE;
        }
        for (before, bit) in [
            (VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER),
            (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK),
            (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK),
        ] {
            let wanted = value & bit != 0 && state.status & before != 0 && state.status & bit == 0;
            if !wanted || bit == VIRTIO_CONFIG_S_FEATURES_OK && !state.features_acceptable() {
                continue;
            }
            state.status |= bit;
            if bit == VIRTIO_CONFIG_S_DRIVER_OK {
                self.activate(state);
            }
        }
    }

    fn activate(&self, state: &mut State) {
        match self.try_activate(state) {
            Ok(()) => {
                state.active = true;
                // Kicks for buffers made available before DRIVER_OK may have had no effect, so every ready queue is
                // kicked again.
                for (kick, _) in self.kicks.iter().zip(&state.queues).filter(|(_, queue)| queue.ready()) {
                    kick.signal();
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut state.logged, true) {
                    tracing::warn!(device = ?self.kind, %error, "device refused its driver");
                }
                state.attached.reset();
                self.break_down(state);
            }
        }
    }

    fn try_activate(&self, state: &mut State) -> Result<(), ActivateError> {
        let event_idx = state.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        state.queues.clear();
        for (index, registers) in state.registers.iter().enumerate() {
            state
                .queues
                .push(registers.to_queue(event_idx, &self.memory).ok_or(ActivateError::Queue(index))?);
        }
        state.attached.activate(&Activation {
            features: state.accepted,
            memory: &self.memory,
            queues: &state.queues,
            kicks: &self.kicks,
        })?;
        if let (Some(host), Some(member)) = (&self.host, state.attached.host_event()) {
            host.add(member, Trigger::Level).map_err(|error| ActivateError::Host(error.to_string()))?;
        }
        Ok(())
    }

    /// Stops lending the device its queues. Only a reset starts the device again.
    fn deactivate(&self, state: &mut State) {
        state.active = false;
        if let (Some(host), Some(member)) = (&self.host, state.attached.host_event()) {
            host.remove(member);
        }
    }

    fn reset(&self, state: &mut State) {
        self.deactivate(state);
        state.attached.reset();
        state.queues.clear();
        for registers in &mut state.registers {
            *registers = QueueRegisters::new(registers.max_size);
        }
        state.accepted = 0;
        state.device_features_sel = 0;
        state.driver_features_sel = 0;
        state.queue_sel = 0;
        state.status = 0;
        for kick in &self.kicks {
            kick.take();
        }
        self.interrupt.acknowledge(u32::MAX);
    }

    /// VIRTIO 1.3 §2.1.2: "The device SHOULD set DEVICE_NEEDS_RESET when it enters an error state that a reset is
    /// needed. If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device configuration
    /// change notification to the driver."
    fn break_down(&self, state: &mut State) {
        self.deactivate(state);
        state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.interrupt.config();
    }

    /// Lends a device its queues; returns whether the driver has left all of them intact.
    fn lend(
        &self,
        device: &mut dyn Device,
        queues: &mut [Queue],
        call: impl FnOnce(&mut dyn Device, &mut Io<'_>),
    ) -> bool {
        let mut lent: Vec<&mut Queue> = queues.iter_mut().collect();
        call(device, &mut Io { memory: &self.memory, queues: &mut lent, interrupt: &self.interrupt });
        queues.iter_mut().all(|queue| !queue.ready() || queue.iter(&self.memory).is_ok())
    }

    fn go_on_if(&self, state: &mut State, sound: bool) {
        if !sound {
            self.break_down(state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn selected(&self) -> Option<&QueueRegisters> {
        self.registers.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn accept_features(&mut self, value: u32) {
        // VIRTIO 1.3 §3.1.1: "Set the FEATURES_OK status bit. The driver MUST NOT accept new feature bits after this
        // step."
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            match self.driver_features_sel {
                0 => self.accepted = self.accepted & !u64::from(u32::MAX) | u64::from(value),
                1 => self.accepted = self.accepted & u64::from(u32::MAX) | u64::from(value) << 32,
                // Bits above 63 are never offered: accepting one fails like accepting any other bit that is not
                // offered.
                _ if value != 0 => self.accepted |= !self.offered,
                _ => {}
            }
        }
    }

    /// VIRTIO 1.3 §2.2.2: "The device SHOULD accept any valid subset of features the driver accepts, otherwise it MUST
    /// fail to set the FEATURES_OK device status bit when the driver writes it"; §6.2: "A device MAY fail to operate
    /// further if VIRTIO_F_VERSION_1 is not accepted."
    fn features_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn write_queue(&mut self, register: u64, value: u32) {
        // VIRTIO 1.3 §3.1.1 has the driver set up its queues between FEATURES_OK and DRIVER_OK.
        let setting_up = VIRTIO_CONFIG_S_FEATURES_OK;
        let over = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.status & (setting_up | over) == setting_up
            && let Ok(index) = usize::try_from(self.queue_sel)
            && let Some(queue) = self.registers.get_mut(index)
        {
            queue.write(register, value);
        }
    }
}

/// The 32 bits of `features` that `select` names.
fn half(features: u64, select: u32) -> u32 {
    let shifted = features.checked_shr(select.saturating_mul(32)).unwrap_or(0);
    u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or(0)
}
