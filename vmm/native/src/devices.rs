//! Makes the devices that a spec asks for and wires them: windows, interrupts, doorbells.
//!
//! If the hypervisor has doorbells, neither a queue's notification nor a device's interrupt enters user space. If it
//! has none, the notification is an exit that signals the same event, and the event thread raises the interrupt. Not
//! here: how a device works.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use guest_memory::GuestRam;
use hypervisor::{IrqLine, Vm};
use machine::descriptors::{Incoming, MissingDescriptor};
use machine::native::protocol::{NetworkSpec, Spec};
use tap::Tap;
use vhost_user::Frontend;
use virtio::balloon::{Balloon, Reclaim};
use virtio::console::Console;
use virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use virtio::net::{Net, Settings, SettingsError, StationAddress};
use virtio::{Attached, Event};
use vm_memory::GuestAddress;

use crate::board::{Board, Legacy};
use crate::layout::{self, Slot};

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The spec names a descriptor that was not sent.
    #[error(transparent)]
    Descriptor(#[from] MissingDescriptor),
    /// A device cannot be made from its spec.
    #[error(transparent)]
    Spec(#[from] machine::devices::DeviceError),
    /// The back end in another process cannot be used.
    #[error(transparent)]
    BackEnd(#[from] vhost_user::Error),
    /// The network device's TAP cannot be used.
    #[error("network: {0}")]
    Tap(#[from] tap::Error),
    /// The network device cannot have these settings.
    #[error("network: {0}")]
    Network(#[from] SettingsError),
    /// The hypervisor refused to wire the device.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// The system refused a call.
    #[error("{what}: {source}")]
    System {
        /// The purpose of the call.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::System { what, source }
}

/// The event thread's part in the wiring, for hypervisors without doorbells.
#[derive(Default)]
pub struct Wiring {
    /// The interrupt lines to raise, each when its event is signalled.
    pub interrupts: Vec<(Event, IrqLine)>,
}

/// How many virtio devices a spec asks for.
#[must_use]
pub fn count(spec: &Spec) -> usize {
    let own = [spec.virtio_console, spec.balloon, spec.network.is_some()];
    spec.devices.len() + own.into_iter().filter(|is_there| *is_there).count() + spec.elsewhere.len()
}

/// Makes everything outside guest memory.
pub fn assemble<V: Vm>(
    spec: Spec,
    descriptors: &mut Incoming,
    vm: &V,
    ram: &GuestRam,
) -> Result<(Board, Wiring), DeviceError> {
    let console = descriptors.take(spec.console)?;
    set_nonblocking(&console).map_err(system("console"))?;
    let console = File::from(console);
    let mut wiring = Wiring::default();

    let legacy = {
        let output = console.try_clone().map_err(system("console"))?;
        let irq = interrupt(vm, layout::SERIAL_IRQ, &mut wiring)?;
        Legacy::new(output, irq)
    };
    let mut transports = Vec::new();
    for (device, slot) in make(spec, descriptors, console, ram)?.into_iter().zip(layout::slots()) {
        transports.push(connect(device, slot, vm, ram, &mut wiring)?);
    }
    Ok((Board::new(transports, legacy), wiring))
}

fn make(
    spec: Spec,
    descriptors: &mut Incoming,
    console: File,
    ram: &GuestRam,
) -> Result<Vec<Attached>, DeviceError> {
    let mut devices = Vec::with_capacity(count(&spec));
    for device in spec.devices {
        devices.push(Attached::Device(device.make(descriptors)?));
    }
    if spec.virtio_console {
        let console = Console::new(Box::new(console), None).map_err(system("console"))?;
        devices.push(Attached::Device(Box::new(console)));
    }
    if spec.balloon {
        let (balloon, _) = Balloon::new(Box::new(Release(ram.clone(), false))).map_err(system("balloon"))?;
        devices.push(Attached::Device(Box::new(balloon)));
    }
    if let Some(network) = spec.network {
        devices.push(Attached::Device(Box::new(make_network(&network, descriptors)?)));
    }
    for (device, socket) in spec.elsewhere {
        let connection = descriptors.take(socket)?.into();
        let front_end = Frontend::new(connection, device.kind(), &device.queue_sizes())?;
        devices.push(Attached::Link(Box::new(front_end)));
    }
    Ok(devices)
}

/// Makes the network device. Its TAP gets its modes here, by requests of ioctl(2) that a running machine may not make.
fn make_network(spec: &NetworkSpec, descriptors: &mut Incoming) -> Result<Net, DeviceError> {
    let settings = Settings::new(StationAddress::new(spec.station)?, spec.mtu)?;
    let tap = Tap::new(descriptors.take(spec.tap)?)?;
    Net::new(Box::new(tap), settings).map_err(system("network device"))
}

/// Puts a device behind its window and wires its queues and its interrupt.
fn connect<V: Vm>(
    device: Attached,
    slot: Slot,
    vm: &V,
    ram: &GuestRam,
    wiring: &mut Wiring,
) -> Result<MmioTransport, DeviceError> {
    let irq = interrupt(vm, slot.irq, wiring)?;
    let transport = MmioTransport::new(device, ram.clone(), irq).map_err(system("virtio device"))?;
    if let Some(doorbell) = vm.doorbell() {
        for (queue, kick) in (0..).zip(transport.kicks()) {
            doorbell.on_write(slot.window + QUEUE_NOTIFY, queue, kick.as_fd())?;
        }
    }
    Ok(transport)
}

/// An event that raises an edge on `line` when it is signalled.
fn interrupt<V: Vm>(vm: &V, line: IrqLine, wiring: &mut Wiring) -> Result<Event, DeviceError> {
    let event = Event::new().map_err(system("event"))?;
    match vm.doorbell() {
        Some(doorbell) => doorbell.irq_on(event.as_fd(), line)?,
        None => {
            let ours = event.try_clone().map_err(system("event"))?;
            wiring.interrupts.push((ours, line));
        }
    }
    Ok(event)
}

/// Makes writes to the console never wait: output that its reader does not take is lost.
fn set_nonblocking(console: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(console.as_fd())?;
    Ok(rustix::fs::fcntl_setfl(console.as_fd(), flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Gives pages that the guest does not need back to the host. The flag says whether the log already has the warning
/// that the host does not take them.
struct Release(GuestRam, bool);

impl Reclaim for Release {
    fn reclaim(&mut self, address: u64, len: u64) {
        let Ok(len) = usize::try_from(len) else { return };
        // Memory that the host cannot take back stays where it is.
        if let Err(error) = guest_memory::discard(&self.0, GuestAddress(address), len)
            && !std::mem::replace(&mut self.1, true)
        {
            tracing::warn!(%error, "the host does not take guest memory back");
        }
    }
}
