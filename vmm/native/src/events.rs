//! The event thread: the one loop that serves queues, devices' host sides, and the supervisor.
//!
//! All events are level-triggered, so a loop turn that leaves work behind comes back to that work. A turn may wait for
//! a disk; the process ends with its supervisor all the same (`process::exit_on_hang_up`). Not here: vCPU exits.

use std::io;
use std::os::fd::AsFd;

use hypervisor::{IrqLine, VcpuStop, Vm};
use machine::native::protocol::{End, Report, Request};
use process::Channel;
use virtio::Event;

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

/// The event loop, ready to run.
pub struct EventLoop<'a, V> {
    channel: &'a Channel,
    vm: &'a V,
    board: &'a Board,
    gate: &'a Gate,
    /// Interrupts that this loop raises.
    interrupts: Vec<(Event, IrqLine)>,
    poller: Poller,
    sources: Vec<Source>,
}

impl<'a, V: Vm> EventLoop<'a, V> {
    /// A loop that waits for every source of events.
    pub fn new(
        channel: &'a Channel,
        vm: &'a V,
        board: &'a Board,
        gate: &'a Gate,
        wiring: Wiring,
    ) -> io::Result<Self> {
        let interrupts = wiring.interrupts;
        let mut new =
            Self { channel, vm, board, gate, interrupts, poller: Poller::new()?, sources: Vec::new() };
        new.add(channel.as_fd(), Source::Channel)?;
        new.add(gate.ended().as_fd(), Source::Ended)?;
        for (device, transport) in board.transports().iter().enumerate() {
            if let Some(host) = transport.host_event() {
                new.add(host, Source::Host { device })?;
            }
            if transport.is_link() {
                continue;
            }
            for (queue, kick) in transport.kicks().iter().enumerate() {
                new.add(kick.as_fd(), Source::Queue { device, queue })?;
            }
        }
        for index in 0..new.interrupts.len() {
            new.poller.add(new.interrupts[index].0.as_fd(), new.sources.len() as u64)?;
            new.sources.push(Source::Interrupt { index });
        }
        Ok(new)
    }

    fn add(&mut self, descriptor: std::os::fd::BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.poller.add(descriptor, self.sources.len() as u64)?;
        self.sources.push(source);
        Ok(())
    }

    /// Serves events until the machine ends.
    pub fn run(self) -> io::Result<Outcome> {
        let mut ready = Vec::new();
        loop {
            self.poller.wait(&mut ready)?;
            for token in &ready {
                let source = usize::try_from(*token).ok().and_then(|token| self.sources.get(token));
                let Some(source) = source else { continue };
                if let Some(outcome) = self.serve(*source)? {
                    return Ok(outcome);
                }
            }
        }
    }

    fn serve(&self, source: Source) -> io::Result<Option<Outcome>> {
        match source {
            Source::Channel => return self.obey(),
            Source::Ended => return Ok(self.gate.stop().map(|stop| Outcome::Ended(end(stop)))),
            Source::Queue { device, queue } => {
                if let Some(transport) = self.board.transports().get(device) {
                    transport.process_queue(queue);
                }
            }
            Source::Host { device } => {
                if let Some(transport) = self.board.transports().get(device) {
                    transport.process_host();
                }
            }
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
