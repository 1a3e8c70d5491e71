//! The event thread: the loop that serves queues, devices' host sides, and the supervisor.
//!
//! All events are level-triggered, so a loop turn that leaves work behind comes back to that work. A turn may wait for
//! a disk; the process ends with its supervisor all the same (`process::exit_on_hang_up`). A network device has a thread
//! and a loop of its own ([`DeviceLoop`]): neither do its packets wait for a disk, nor does a bulk of them keep programs
//! waiting for their streams. Not here: vCPU exits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use hypervisor::{IrqLine, VcpuStop, Vm};
use machine::native::protocol::{End, Report, Request};
use process::Channel;
use virtio::{DeviceKind, Event};

use crate::board::Board;
use crate::devices::Wiring;
use crate::sys::Poller;
use crate::vcpu::Gate;

/// How the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ended.
    Ended(End),
    /// The supervisor hung up.
    HungUp,
}

/// The meaning of a token of the poller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The supervisor sent a request or hung up.
    Channel,
    /// A vCPU stopped for good.
    Ended,
    /// A queue has new buffers.
    Queue { device: usize, queue: usize },
    /// A device's host side has something to do.
    Host { device: usize },
    /// An interrupt to raise, for a hypervisor that does not raise it by an event.
    Interrupt { index: usize },
}

/// Descriptors that a loop waits for, each with its meaning.
struct Watched {
    poller: Poller,
    sources: Vec<Source>,
}

impl Watched {
    fn new() -> io::Result<Self> {
        Ok(Self { poller: Poller::new()?, sources: Vec::new() })
    }

    fn add(&mut self, descriptor: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.poller.add(descriptor, self.sources.len() as u64)?;
        self.sources.push(source);
        Ok(())
    }

    /// Adds the host side of a device, and its queues if this process serves them.
    fn add_device(&mut self, board: &Board, device: usize) -> io::Result<()> {
        let Some(transport) = board.transports().get(device) else { return Ok(()) };
        if let Some(host) = transport.host_event() {
            self.add(host, Source::Host { device })?;
        }
        if !transport.is_link() {
            for (queue, kick) in transport.kicks().iter().enumerate() {
                self.add(kick.as_fd(), Source::Queue { device, queue })?;
            }
        }
        Ok(())
    }

    /// Waits, and returns the sources that have something to do; `ready` keeps its room for the next time.
    fn wait<'a>(&'a self, ready: &'a mut Vec<u64>) -> io::Result<impl Iterator<Item = Source> + 'a> {
        self.poller.wait(ready)?;
        Ok(ready.iter().filter_map(|token| self.sources.get(usize::try_from(*token).ok()?).copied()))
    }
}

/// Serves a queue or the host side of a device; other sources are not a device's.
fn serve_device(board: &Board, source: Source) {
    let (Source::Queue { device, .. } | Source::Host { device }) = source else { return };
    let Some(transport) = board.transports().get(device) else { return };
    match source {
        Source::Queue { queue, .. } => transport.process_queue(queue),
        _ => transport.process_host(),
    }
}

/// The devices that have a loop of their own.
fn has_own_loop(kind: DeviceKind) -> bool {
    kind == DeviceKind::Net
}

/// The loop of one device, ready to run on a thread of its own.
pub struct DeviceLoop {
    board: Arc<Board>,
    watched: Watched,
}

impl DeviceLoop {
    /// A loop for each device that has one of its own.
    pub fn of_each(board: &Arc<Board>) -> io::Result<Vec<Self>> {
        let devices = board.transports().iter().enumerate();
        let own = devices.filter(|(_, transport)| !transport.is_link() && has_own_loop(transport.kind()));
        let new = |(device, _)| {
            let mut watched = Watched::new()?;
            watched.add_device(board, device)?;
            Ok(Self { board: Arc::clone(board), watched })
        };
        own.map(new).collect()
    }

    /// Serves events for as long as the process lives, or until waiting fails.
    pub fn run(self) -> io::Error {
        let mut ready = Vec::new();
        loop {
            match self.watched.wait(&mut ready) {
                Ok(sources) => sources.for_each(|source| serve_device(&self.board, source)),
                Err(error) => return error,
            }
        }
    }
}

/// The event loop, ready to run.
pub struct EventLoop<'a, V> {
    channel: &'a Channel,
    vm: &'a V,
    board: &'a Board,
    gate: &'a Gate,
    /// Interrupts that this loop raises.
    interrupts: Vec<(Event, IrqLine)>,
    watched: Watched,
}

impl<'a, V: Vm> EventLoop<'a, V> {
    /// A loop that waits for every source of events, but for devices that have a loop of their own.
    pub fn new(
        channel: &'a Channel,
        vm: &'a V,
        board: &'a Board,
        gate: &'a Gate,
        wiring: Wiring,
    ) -> io::Result<Self> {
        let interrupts = wiring.interrupts;
        let mut watched = Watched::new()?;
        watched.add(channel.as_fd(), Source::Channel)?;
        watched.add(gate.ended().as_fd(), Source::Ended)?;
        for (device, transport) in board.transports().iter().enumerate() {
            if transport.is_link() || !has_own_loop(transport.kind()) {
                watched.add_device(board, device)?;
            }
        }
        for (index, (event, _)) in interrupts.iter().enumerate() {
            watched.add(event.as_fd(), Source::Interrupt { index })?;
        }
        Ok(Self { channel, vm, board, gate, interrupts, watched })
    }

    /// Serves events until the machine ends.
    pub fn run(self) -> io::Result<Outcome> {
        let mut ready = Vec::new();
        loop {
            for source in self.watched.wait(&mut ready)? {
                if let Some(outcome) = self.serve(source)? {
                    return Ok(outcome);
                }
            }
        }
    }

    fn serve(&self, source: Source) -> io::Result<Option<Outcome>> {
        match source {
            Source::Channel => return self.obey(),
            Source::Ended => return Ok(self.gate.stop().map(|stop| Outcome::Ended(end(stop)))),
            Source::Queue { .. } | Source::Host { .. } => serve_device(self.board, source),
            Source::Interrupt { index } => {
                if let Some((event, line)) = self.interrupts.get(index) {
                    event.take();
                    self.vm.set_irq(*line, true).map_err(io::Error::other)?;
                    self.vm.set_irq(*line, false).map_err(io::Error::other)?;
                }
            }
        }
        Ok(None)
    }

    /// Obeys one request of the supervisor.
    fn obey(&self) -> io::Result<Option<Outcome>> {
        let request = match self.channel.try_recv::<Request>() {
            Ok(Some((request, _))) => request,
            Err(process::Error::Channel(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(None);
            }
            // The supervisor is gone, or breaks the protocol.
            Ok(None) | Err(_) => return Ok(Some(Outcome::HungUp)),
        };
        let report = match request {
            Request::Pause => {
                self.gate.close(self.vm).map_err(io::Error::other)?;
                Report::Paused
            }
            Request::Resume => {
                self.gate.open();
                Report::Resumed
            }
            Request::Boot(_) => Report::Refused("this machine has been booted".to_owned()),
        };
        Ok(self.channel.send(&report, &[]).is_err().then_some(Outcome::HungUp))
    }
}

fn end(stop: VcpuStop) -> End {
    match stop {
        VcpuStop::PowerOff => End::PowerOff,
        VcpuStop::Reset => End::Reset,
        VcpuStop::Crashed(why) => End::Crashed(why),
        VcpuStop::Halted | VcpuStop::Kicked => End::Crashed(format!("unexpected stop: {stop:?}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::fd::OwnedFd;
    use std::sync::Mutex;

    use hypervisor::{Doorbell, MemorySlot, Result, VcpuIo};
    use machine::KernelFormat;
    use machine::descriptors::{Fd, Incoming};
    use machine::devices::DeviceSpec;
    use machine::native::protocol::Spec;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::{devices, layout};

    /// A hypervisor without doorbells.
    #[derive(Default)]
    struct Plain {
        irqs: Mutex<Vec<(IrqLine, bool)>>,
    }

    impl Vm for Plain {
        fn add_memory(&self, _: MemorySlot) -> Result<()> {
            Ok(())
        }
        fn set_irq(&self, line: IrqLine, level: bool) -> Result<()> {
            self.irqs.lock().unwrap().push((line, level));
            Ok(())
        }
        fn kick(&self, _: u8) -> Result<()> {
            Ok(())
        }
        fn doorbell(&self) -> Option<&dyn Doorbell> {
            None
        }
    }

    fn spec() -> Spec {
        Spec {
            vcpus: 1,
            memory_mib: 32,
            shared_memory: false,
            hypervisor: Fd(9),
            kernel: Fd(9),
            kernel_format: KernelFormat::Elf,
            initramfs: Fd(9),
            command_line: String::new(),
            devices: vec![DeviceSpec::Entropy],
            console: Fd(0),
            virtio_console: false,
            balloon: false,
            network: None,
            elsewhere: Vec::new(),
        }
    }

    #[test]
    fn without_doorbells_the_loop_raises_interrupts() {
        let vm = Plain::default();
        let ram =
            guest_memory::allocate(&[(GuestAddress(0), 1 << 20)], guest_memory::Backing::Anonymous).unwrap();
        let (console, output) = io::pipe().unwrap();
        let mut descriptors = Incoming::new(vec![OwnedFd::from(output)]);
        let (board, wiring) = devices::assemble(spec(), &mut descriptors, &vm, &ram).unwrap();
        assert_eq!(wiring.interrupts.len(), 2);
        let (_supervisor, channel) = Channel::pair().unwrap();
        let gate = Gate::new(1).unwrap();
        let events = EventLoop::new(&channel, &vm, &board, &gate, wiring).unwrap();

        // The guest turns on the serial line's transmitter interrupt, which is pending at once; then the guest ends.
        assert!((&mut &board).port_write(layout::SERIAL_PORT + 1, &[2]).is_continue());
        gate.end(VcpuStop::PowerOff);
        assert_eq!(events.run().unwrap(), Outcome::Ended(End::PowerOff));
        assert_eq!(*vm.irqs.lock().unwrap(), [(layout::SERIAL_IRQ, true), (layout::SERIAL_IRQ, false)]);
        drop(console);
    }

    #[test]
    fn a_supervisor_that_hangs_up_or_makes_no_sense_ends_the_loop() {
        for sensible in [true, false] {
            let vm = Plain::default();
            let ram = guest_memory::GuestRam::new();
            let (_console, output) = io::pipe().unwrap();
            let mut descriptors = Incoming::new(vec![OwnedFd::from(output)]);
            let (board, wiring) = devices::assemble(spec(), &mut descriptors, &vm, &ram).unwrap();
            let (supervisor, channel) = Channel::pair().unwrap();
            let gate = Gate::new(1).unwrap();
            let events = EventLoop::new(&channel, &vm, &board, &gate, wiring).unwrap();
            let _kept = if sensible {
                drop(supervisor);
                None
            } else {
                supervisor.send(&[0xffu8; 3], &[]).unwrap();
                Some(supervisor)
            };
            assert_eq!(events.run().unwrap(), Outcome::HungUp);
        }
    }
}
