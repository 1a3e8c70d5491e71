//! One machine, from its spec to its end, generic over the hypervisor.
//!
//! ```text
//!  spec, descriptors
//!    │ make the file of the guest's memory, if that is shared
//!    │ confine the process: from here on it could not open anything if it tried
//!    ├──────────────▶ lifeline thread: ends the process when the supervisor is gone
//!    ├──────────────▶ loader thread: kernel and initramfs into RAM
//!    │ make the machine (KVM mostly waits), describe it, devices
//!    │◀────────────── join
//!    ├──────────────▶ vCPU threads: bind, wait at the gate
//!    ├──────────────▶ a thread for each device with a loop of its own
//!    │ confine all threads, report, open the gate
//!    ▼
//!  event loop, until a vCPU stops for good or the supervisor hangs up
//! ```
//!
//! Not here: how the spec reaches this process (`main`), and the devices' work.

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use guest_memory::{Backing, GuestRam, Pages, SharedFile};
use hypervisor::{Hypervisor, VmConfig};
use machine::descriptors::{Incoming, MissingDescriptor};
use machine::native::protocol::{Report, Spec, Timeline, exit};
use process::Channel;

use crate::board::Board;
use crate::devices::{self, DeviceError};
use crate::events::{DeviceLoop, EventLoop, Outcome};
use crate::loader::{self, LoadError, Payload};
use crate::sys::{self, ConfineError};
use crate::vcpu::{self, Gate};
use crate::{arch, layout, parameters};

/// Stack size of every thread but the first. Only touched pages take memory.
const STACK: usize = 256 << 10;

/// Why a machine could not be made, or why the VMM failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The spec is out of bounds.
    #[error("{0}")]
    Spec(&'static str),
    /// The spec names a descriptor that was not sent.
    #[error(transparent)]
    Descriptor(#[from] MissingDescriptor),
    /// The hypervisor refused a call.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// The guest's memory cannot be allocated.
    #[error(transparent)]
    Memory(#[from] guest_memory::Error),
    /// Kernel or initramfs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Confining the process failed.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The channel to the supervisor failed.
    #[error(transparent)]
    Channel(#[from] process::Error),
    /// The system refused another call.
    #[error("{what}: {source}")]
    System {
        /// The purpose of the call.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Adds the purpose of a system call to its error.
fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Runs a machine to its end.
pub fn run<H: Hypervisor>(
    channel: &Channel,
    spec: Spec,
    descriptors: Vec<OwnedFd>,
    open: impl FnOnce(OwnedFd) -> hypervisor::Result<H>,
    mut timeline: Timeline,
) -> Result<Outcome, RunError> {
    let mut descriptors = Incoming::new(descriptors);
    check(&spec)?;
    // The file of shared guest memory is made before the confinement, which forbids the calls that make it.
    let backing = backing(&spec)?;
    sys::confine_process()?;
    // The event thread notices a hang-up as well, but that thread may be waiting for a disk.
    process::exit_on_hang_up(channel, exit::POWER_OFF).map_err(system("thread"))?;
    let ram = allocate(&spec, backing)?;
    let loading = start_loading(&spec, &ram, &mut descriptors)?;

    let hypervisor = open(descriptors.take(spec.hypervisor)?)?;
    let config = VmConfig { vcpus: spec.vcpus, arch: loader::arch(spec.kernel_format)? };
    let (vm, seeds) = hypervisor.create_vm(&config, &ram)?;
    timeline.created_ns = sys::now_ns();

    let slots: Vec<_> = layout::slots().take(devices::count(&spec)).collect();
    arch::describe(&ram, spec.vcpus, &slots).map_err(LoadError::from)?;
    let (vcpus, limits, ioctls) = (spec.vcpus, sys::limits(&spec), sys::ioctls(spec.network.is_some()));
    let (board, wiring) = devices::assemble(spec, &mut descriptors, &vm, &ram)?;
    let board = Arc::new(board);
    timeline.devices_ns = sys::now_ns();

    // A panic ends the whole process, so a thread that can be joined has returned.
    loading.join().map_err(|_| RunError::Spec("the loader ended early"))??;
    timeline.loaded_ns = sys::now_ns();

    let gate = Arc::new(Gate::new(vcpus).map_err(system("event"))?);
    for seed in seeds {
        let (board, gate) = (Arc::clone(&board), Arc::clone(&gate));
        let body = move || vcpu::run(seed, &board, &gate);
        spawn("vcpu", body)?;
    }
    let events = EventLoop::new(channel, &vm, &board, &gate, wiring).map_err(system("event loop"))?;
    start_loops(&board)?;
    gate.wait_ready()?;
    sys::confine_threads(&ioctls, limits)?;
    timeline.running_ns = sys::now_ns();
    channel.send(&Report::Running(timeline), &[])?;
    gate.open();

    events.run().map_err(system("event loop"))
}

fn check(spec: &Spec) -> Result<(), RunError> {
    if spec.vcpus == 0 {
        return Err(RunError::Spec("a machine needs a vCPU"));
    }
    if !(layout::MEMORY_MIN_MIB..=layout::MEMORY_MAX_MIB).contains(&spec.memory_mib) {
        return Err(RunError::Spec("memory must be from 32 MiB to 1 TiB"));
    }
    if devices::count(spec) > layout::VIRTIO_DEVICES_MAX {
        return Err(RunError::Spec("a machine has at most 18 virtio devices"));
    }
    Ok(())
}

fn backing(spec: &Spec) -> Result<Backing, RunError> {
    if !spec.shared_memory {
        return Ok(Backing::Anonymous);
    }
    let file = SharedFile::new().map_err(system("file for the guest's memory"))?;
    if let Pages::Small(why) = file.pages() {
        tracing::info!(%why, "the guest's memory has small pages, so the guest starts slower");
    }
    Ok(Backing::Shared(file))
}

fn allocate(spec: &Spec, backing: Backing) -> Result<GuestRam, RunError> {
    let ranges: Result<Vec<_>, _> = layout::ram(spec.memory_mib)
        .into_iter()
        .map(|(start, size)| Ok((start, usize::try_from(size)?)))
        .collect();
    let ranges =
        ranges.map_err(|_: std::num::TryFromIntError| RunError::Spec("memory exceeds this host's"))?;
    Ok(guest_memory::allocate(&ranges, backing)?)
}

fn start_loading(
    spec: &Spec,
    ram: &GuestRam,
    descriptors: &mut Incoming,
) -> Result<JoinHandle<Result<(), LoadError>>, RunError> {
    let mut payload = Payload {
        kernel: descriptors.take(spec.kernel)?.into(),
        format: spec.kernel_format,
        initramfs: descriptors.take(spec.initramfs)?.into(),
        command_line: parameters::command_line(&spec.command_line, spec.vcpus, spec.virtio_console),
    };
    let (ram, memory_mib) = (ram.clone(), spec.memory_mib);
    spawn("loader", move || loader::load(&ram, memory_mib, &mut payload))
}

/// Starts the devices' loops. Their threads are past their start, which takes calls that a running machine may not make.
fn start_loops(board: &Arc<Board>) -> Result<(), RunError> {
    for own in DeviceLoop::of_each(board).map_err(system("event loop"))? {
        let (begin, begun) = mpsc::channel::<()>();
        spawn("device", move || {
            drop(begin);
            // Nobody would serve the device any more.
            tracing::error!(error = %own.run(), "the loop of a device ended");
            std::process::abort();
        })?;
        // The other end of this channel is dropped, never used.
        let _ = begun.recv();
    }
    Ok(())
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, RunError> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body).map_err(system("thread"))
}
