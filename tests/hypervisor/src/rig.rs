//! A machine under test: memory, vCPU threads, and a host side that records every access and answers reads by rule.
//!
//! Threads report to the case through one channel, in order; waiting on it has a limit, so a guest that hangs fails
//! its case. Not here: the guests' expected behaviour.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_memory::{Backing, GuestRam};
use hypervisor::x86::{BootState, Chip};
use hypervisor::{Arch, Hypervisor, Vcpu, VcpuIo, VcpuSeed, VcpuStop, Vm, VmConfig};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Writing 0 powers off, 1 resets.
pub(crate) const STOP_PORT: u16 = 0xf4;
/// Reads wait for [`Rig::open_gate`].
pub(crate) const GATE_PORT: u16 = 0x91;
/// Writes wait for [`Rig::open_gate`], then reset.
pub(crate) const LATE_STOP_PORT: u16 = 0x92;
/// Writes reset.
pub(crate) const STOP_ADDRESS: u64 = 0xe000_0ffe;
/// Reads take the next bytes of 1, 2, 3…
pub(crate) const COUNTING_PORT: u16 = 0x90;
/// The address at which guests load and start.
pub(crate) const ENTRY: u16 = 0x1000;
/// RAM starts at 0. Everything else is MMIO.
pub(crate) const RAM_SIZE: usize = 2 << 20;
/// Longest wait for a guest. Emulated hypervisors on loaded hosts are slow.
const LIMIT: Duration = Duration::from_secs(30);

/// An access as the backend reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    In { port: u16, len: usize },
    Out { port: u16, data: Vec<u8> },
    Read { address: u64, len: usize },
    Write { address: u64, data: Vec<u8> },
}

/// An event of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Access(Access),
    Stop(VcpuStop),
}

/// The value of MMIO and other ports at `address`: neighbours differ, and the sign bit is set.
pub(crate) fn pattern(address: u64) -> u8 {
    let [low, ..] = address.to_le_bytes();
    0x81 + 0x11 * (low & 7)
}

/// The machine to make.
pub(crate) struct Setup<'a> {
    pub code: &'a [u8],
    pub boot: BootState,
    pub vcpus: u8,
    pub legacy_timer: bool,
}

impl<'a> Setup<'a> {
    /// Real mode, segments at 0.
    pub(crate) fn real(code: &'a [u8]) -> Self {
        Self { code, boot: BootState::Real { cs: 0, ip: ENTRY }, vcpus: 1, legacy_timer: false }
    }

    /// 32-bit protected mode.
    pub(crate) fn protected(code: &'a [u8]) -> Self {
        let boot = BootState::Protected { eip: ENTRY.into(), ebx: 0, esp: 0x8000 };
        Self { boot, ..Self::real(code) }
    }

    pub(crate) fn vcpus(self, vcpus: u8) -> Self {
        Self { vcpus, ..self }
    }

    pub(crate) fn legacy_timer(self) -> Self {
        Self { legacy_timer: true, ..self }
    }
}

struct Worker {
    run: Sender<()>,
    gate: Sender<()>,
    thread: JoinHandle<()>,
}

/// A machine under test.
pub(crate) struct Rig<V: Vm> {
    pub vm: V,
    pub ram: GuestRam,
    workers: Vec<Worker>,
    events: Receiver<(u8, Event)>,
}

impl<V: Vm> Rig<V> {
    pub(crate) fn new<H: Hypervisor<Vm = V>>(hypervisor: &H, setup: &Setup<'_>) -> Self {
        let ram = allocate(0, RAM_SIZE);
        write(&ram, ENTRY.into(), setup.code);
        let Setup { vcpus, boot, legacy_timer, .. } = *setup;
        let arch = Arch::X86(Chip { boot: Some(boot), legacy_timer });
        let config = VmConfig { vcpus, arch };
        let (vm, seeds) = hypervisor.create_vm(&config, &ram).expect("create_vm");
        assert_eq!(seeds.len(), usize::from(vcpus), "number of seeds");
        let (sender, events) = mpsc::channel();
        let workers = (0u8..).zip(seeds).map(|(index, seed)| worker(index, seed, sender.clone())).collect();
        Self { vm, ram, workers, events }
    }

    /// Lets vCPU `index` run until it stops.
    pub(crate) fn run(&self, index: u8) {
        self.workers[usize::from(index)].run.send(()).expect("vCPU thread is alive");
    }

    /// Answers one access of [`GATE_PORT`] or [`LATE_STOP_PORT`], now or when it comes.
    pub(crate) fn open_gate(&self) {
        self.workers[0].gate.send(()).expect("vCPU thread is alive");
    }

    /// The next event of any vCPU.
    pub(crate) fn next_of_all(&self) -> (u8, Event) {
        self.events.recv_timeout(LIMIT).expect("the guest does something")
    }

    /// The next event of vCPU 0, the only one with any.
    pub(crate) fn next(&self) -> Event {
        let (index, event) = self.next_of_all();
        assert_eq!(index, 0, "{event:?}");
        event
    }

    /// The accesses until vCPU 0 stops, and the reason for the stop.
    pub(crate) fn until_stop(&self) -> (Vec<Access>, VcpuStop) {
        let mut accesses = Vec::new();
        loop {
            match self.next() {
                Event::Access(access) => accesses.push(access),
                Event::Stop(stop) => return (accesses, stop),
            }
        }
    }

    /// Runs the guest to its own power-off; returns the accesses before that.
    pub(crate) fn complete(&self) -> Vec<Access> {
        self.run(0);
        self.completed()
    }

    /// The accesses until the guest powers off.
    pub(crate) fn completed(&self) -> Vec<Access> {
        let (mut accesses, stop) = self.until_stop();
        assert_eq!(stop, VcpuStop::PowerOff, "after {accesses:?}");
        assert_eq!(accesses.pop(), Some(Access::Out { port: STOP_PORT, data: vec![0] }));
        accesses
    }

    /// Asserts that vCPU 0 wrote `value` to port 0x80, by which guests report their progress.
    pub(crate) fn expect_mark(&self, value: u8) {
        assert_eq!(self.next(), Event::Access(Access::Out { port: 0x80, data: vec![value] }));
    }

    /// Asserts that no vCPU does anything for a moment. Only a wrong backend can fail this.
    pub(crate) fn expect_quiet(&self) {
        let quiet = self.events.recv_timeout(Duration::from_millis(50));
        assert_eq!(quiet, Err(RecvTimeoutError::Timeout));
    }

    pub(crate) fn kick(&self, index: u8) {
        self.vm.kick(index).expect("kick");
    }

    pub(crate) fn read<T: ByteValued>(&self, address: u64) -> T {
        self.ram.read_obj(GuestAddress(address)).expect("address in RAM")
    }
}

impl<V: Vm> Drop for Rig<V> {
    /// Ends every thread. Threads of a failed backend may not end, and are not waited for.
    fn drop(&mut self) {
        for (index, Worker { run, gate, thread }) in (0u8..).zip(self.workers.drain(..)) {
            drop((run, gate));
            let kicked = self.vm.kick(index);
            if !thread::panicking() {
                kicked.expect("kick");
                thread.join().expect("vCPU thread ends well");
            }
        }
    }
}

fn worker<S: VcpuSeed>(index: u8, seed: S, events: Sender<(u8, Event)>) -> Worker {
    let (run, runs) = mpsc::channel();
    let (gate, gates) = mpsc::channel();
    let thread = thread::spawn(move || {
        let mut io = Recorder { index, events, gates, counter: 0 };
        let mut vcpu = seed.bind().expect("bind");
        while runs.recv().is_ok() {
            let stop = vcpu.run(&mut io);
            io.tell(Event::Stop(stop));
        }
    });
    Worker { run, gate, thread }
}

/// The host side of every access.
struct Recorder {
    index: u8,
    events: Sender<(u8, Event)>,
    gates: Receiver<()>,
    counter: u8,
}

impl Recorder {
    fn tell(&self, event: Event) {
        // The case may have failed, and be gone.
        let _ = self.events.send((self.index, event));
    }
}

impl VcpuIo for Recorder {
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.tell(Event::Access(Access::Read { address, len: data.len() }));
        (address..).zip(data).for_each(|(address, byte)| *byte = pattern(address));
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> ControlFlow<VcpuStop> {
        self.tell(Event::Access(Access::Write { address, data: data.to_vec() }));
        if address == STOP_ADDRESS { ControlFlow::Break(VcpuStop::Reset) } else { ControlFlow::Continue(()) }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.tell(Event::Access(Access::In { port, len: data.len() }));
        match port {
            COUNTING_PORT => data.fill_with(|| {
                self.counter += 1;
                self.counter
            }),
            GATE_PORT => {
                let _ = self.gates.recv();
                data.fill(0x5a);
            }
            _ => (u64::from(port)..).zip(data).for_each(|(address, byte)| *byte = pattern(address)),
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) -> ControlFlow<VcpuStop> {
        self.tell(Event::Access(Access::Out { port, data: data.to_vec() }));
        match (port, data) {
            (STOP_PORT, [0]) => ControlFlow::Break(VcpuStop::PowerOff),
            (STOP_PORT, [1]) => ControlFlow::Break(VcpuStop::Reset),
            (LATE_STOP_PORT, _) => {
                let _ = self.gates.recv();
                ControlFlow::Break(VcpuStop::Reset)
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Memory of `size` bytes at guest address `start`.
pub(crate) fn allocate(start: u64, size: usize) -> GuestRam {
    guest_memory::allocate(&[(GuestAddress(start), size)], Backing::Anonymous).expect("guest memory")
}

/// Writes to guest memory.
pub(crate) fn write(ram: &GuestRam, address: u64, bytes: &[u8]) {
    ram.write_slice(bytes, GuestAddress(address)).expect("address in memory");
}
