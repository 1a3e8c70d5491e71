//! The places that guest accesses reach: the ports of the chipset and the windows of the virtio devices.
//!
//! Ports and windows are a handful of fixed places (`layout`), so an access finds its device by arithmetic. A place
//! without a device reads as ones and ignores writes, as on a PC. Not here: interrupts' way to the guest (`devices`).

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chipset::{I8042, Outcome, PciConfig, Power, Rtc, Serial, i8042, pci, power, rtc, serial};
use hypervisor::{VcpuIo, VcpuStop};
use virtio::Event;
use virtio::mmio::MmioTransport;

use crate::layout;

/// Everything outside guest memory.
pub struct Board {
    transports: Vec<MmioTransport>,
    legacy: Mutex<Legacy>,
}

/// The chipset's devices.
pub struct Legacy {
    /// The serial line.
    pub serial: Serial,
    /// The real-time clock.
    pub rtc: Rtc,
    /// The keyboard controller.
    pub i8042: I8042,
    /// ACPI power and reset registers.
    pub power: Power,
    /// The PCI bus without devices.
    pub pci: PciConfig,
}

impl Legacy {
    /// The chipset of a machine whose serial line writes to `output` and signals `irq`.
    #[must_use]
    pub fn new(output: File, irq: Event) -> Self {
        let raise = move || irq.signal();
        Self {
            serial: Serial::new(Box::new(raise), Box::new(output)),
            rtc: Rtc::new(Box::new(seconds_since_epoch)),
            i8042: I8042,
            power: Power,
            pci: PciConfig::default(),
        }
    }
}

fn seconds_since_epoch() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A device of the chipset, and an offset in the device's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Serial(u16),
    Rtc(u16),
    I8042(u16),
    Power(u16),
    Pci(u16),
    Nobody,
}

impl Port {
    fn at(port: u16) -> Self {
        let within = |first: u16, count: u16| port.checked_sub(first).filter(|offset| *offset < count);
        None.or_else(|| within(serial::PORT, serial::PORTS).map(Self::Serial))
            .or_else(|| within(rtc::PORT, rtc::PORTS).map(Self::Rtc))
            .or_else(|| within(i8042::PORT, i8042::PORTS).map(Self::I8042))
            .or_else(|| within(power::PORT, power::PORTS).map(Self::Power))
            .or_else(|| within(pci::PORT, pci::PORTS).map(Self::Pci))
            .unwrap_or(Self::Nobody)
    }
}

impl Board {
    /// A board with these devices; transport `n` is behind window `n`.
    #[must_use]
    pub fn new(transports: Vec<MmioTransport>, legacy: Legacy) -> Self {
        Self { transports, legacy: Mutex::new(legacy) }
    }

    /// The virtio devices, in the order of their windows.
    #[must_use]
    pub fn transports(&self) -> &[MmioTransport] {
        &self.transports
    }

    /// The device whose window contains `address`, and the offset in that window.
    fn window(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_WINDOWS)?;
        let index = usize::try_from(offset / layout::VIRTIO_WINDOW).ok()?;
        Some((self.transports.get(index)?, offset % layout::VIRTIO_WINDOW))
    }

    fn legacy(&self) -> MutexGuard<'_, Legacy> {
        self.legacy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VcpuIo for &Board {
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> ControlFlow<VcpuStop> {
        if let Some((transport, offset)) = self.window(address) {
            transport.write(offset, data);
        }
        ControlFlow::Continue(())
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        let mut legacy = self.legacy();
        match Port::at(port) {
            Port::Serial(offset) => legacy.serial.read(offset, data),
            Port::Rtc(offset) => legacy.rtc.read(offset, data),
            Port::I8042(offset) => legacy.i8042.read(offset, data),
            Port::Power(offset) => legacy.power.read(offset, data),
            Port::Pci(offset) => legacy.pci.read(offset, data),
            Port::Nobody => data.fill(0xff),
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) -> ControlFlow<VcpuStop> {
        let mut legacy = self.legacy();
        let outcome = match Port::at(port) {
            Port::Serial(offset) => legacy.serial.write(offset, data),
            Port::Rtc(offset) => legacy.rtc.write(offset, data),
            Port::I8042(offset) => legacy.i8042.write(offset, data),
            Port::Power(offset) => legacy.power.write(offset, data),
            Port::Pci(offset) => legacy.pci.write(offset, data),
            Port::Nobody => Outcome::Continue,
        };
        match outcome {
            Outcome::Continue => ControlFlow::Continue(()),
            Outcome::Reset => ControlFlow::Break(VcpuStop::Reset),
            Outcome::PowerOff => ControlFlow::Break(VcpuStop::PowerOff),
        }
    }
}
