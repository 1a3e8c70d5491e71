//! The native machine: one `matchlock-vmm` process on the host's hypervisor.
//!
//! The handle opens what the process must not open itself, hands it over, and afterwards only listens. Not here: what
//! the VMM does with it.

pub mod protocol;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use process::{Channel, Child, Spawn};
use protocol::{DiskSpec, End, Entropy, Fd, Report, Request, SegmentSpec, Spec, Timeline, exit};

use crate::{Config, Disk, Ending, Kind, Machine, MachineError};
use disk::Segment;

/// The VMM's program.
const PROGRAM: &str = "matchlock-vmm";
/// KVM's device.
const KVM: &str = "/dev/kvm";

/// A machine that a VMM process runs.
#[derive(Debug)]
pub struct Native {
    child: Child,
    channel: Channel,
    timeline: Timeline,
    stopped: bool,
    ending: Option<Ending>,
}

impl Native {
    /// Boots a machine. Returns when its vCPUs run.
    pub fn boot(config: Config) -> Result<Self, MachineError> {
        let (spec, descriptors, log) = describe(config)?;
        Self::start(spec, descriptors, log)
    }

    /// Boots what `spec` says: for measurements, which want other machines than sandboxes do.
    pub fn start(spec: Spec, descriptors: Vec<OwnedFd>, log: Option<OwnedFd>) -> Result<Self, MachineError> {
        let program = process::find_program(PROGRAM)
            .ok_or_else(|| MachineError::Program { program: PROGRAM.to_owned() })?;
        let mut spawn = Spawn::new(&program);
        spawn.stderr = log;
        let (child, channel) = process::spawn(spawn).map_err(of_process)?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&Request::Boot(Box::new(spec)), &borrowed).map_err(of_process)?;
        let mut machine =
            Self { child, channel, timeline: Timeline::default(), stopped: false, ending: None };
        match machine.report()? {
            Some(Report::Running(timeline)) => machine.timeline = timeline,
            Some(Report::Refused(why)) => return Err(MachineError::Refused(why)),
            Some(_) => return Err(MachineError::Refused("the VMM process broke the protocol".to_owned())),
            None => {
                let status =
                    machine.child.wait().map_err(|source| MachineError::Process { what: PROGRAM, source })?;
                return Err(MachineError::Refused(format!("the VMM process ended at its start: {status}")));
            }
        }
        Ok(machine)
    }

    /// When things happened in the VMM process.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Process id of the VMM, for measurements.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The next report; `None` once the process is gone.
    fn report(&self) -> Result<Option<Report>, MachineError> {
        Ok(self.channel.recv().map_err(of_process)?.map(|(report, _)| report))
    }

    fn request(&mut self, request: &Request, answer: &Report) -> Result<(), MachineError> {
        let ended = || MachineError::Refused("the machine has ended".to_owned());
        if self.ending.is_some() || self.stopped {
            return Err(ended());
        }
        self.channel.send(request, &[]).map_err(|_| ended())?;
        match self.report()? {
            Some(report) if report == *answer => Ok(()),
            Some(Report::Ended(end)) => {
                self.ending = Some(end.into());
                Err(ended())
            }
            Some(Report::Refused(why)) => Err(MachineError::Refused(why)),
            Some(_) => Err(MachineError::Refused("the VMM process broke the protocol".to_owned())),
            None => Err(ended()),
        }
    }

    /// How it ended, from its last words, or else from its exit status.
    fn last_words(&mut self) -> Ending {
        let reported = loop {
            match self.report() {
                Ok(Some(Report::Ended(end))) => break Some(end.into()),
                Ok(Some(Report::Refused(why))) => break Some(Ending::Failed(why)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break None,
            }
        };
        let status = self.child.wait();
        if let Some(ending) = reported {
            return ending;
        }
        match status {
            Ok(status) => match status.code().and_then(|code| u8::try_from(code).ok()) {
                Some(exit::POWER_OFF) => Ending::PowerOff,
                Some(exit::RESET) => Ending::Reset,
                _ => Ending::Failed(format!("the VMM process ended: {status}")),
            },
            Err(error) => Ending::Failed(format!("the VMM process cannot be waited for: {error}")),
        }
    }
}

impl Machine for Native {
    fn kind(&self) -> Kind {
        Kind::Kvm
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.request(&Request::Pause, &Report::Paused)
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.request(&Request::Resume, &Report::Resumed)
    }

    fn stop(&mut self) {
        self.stopped = true;
        // It fails only for a process that has been waited for, and that one has stopped.
        let _ = self.child.kill();
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    fn wait(&mut self) -> Ending {
        if self.stopped {
            let _ = self.child.wait();
            self.ending.get_or_insert(Ending::PowerOff);
        }
        if self.ending.is_none() {
            self.ending = Some(self.last_words());
        }
        let _ = self.child.wait();
        self.ending.clone().unwrap_or(Ending::PowerOff)
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        match end {
            End::PowerOff => Self::PowerOff,
            End::Reset => Self::Reset,
            End::Crashed(why) => Self::Failed(format!("a vCPU stopped: {why}")),
        }
    }
}

fn of_process(error: process::Error) -> MachineError {
    let source = match error {
        process::Error::Start { source, .. } | process::Error::Channel(source) => source,
        other => io::Error::other(other),
    };
    MachineError::Process { what: PROGRAM, source }
}

/// Collects descriptors and numbers them.
#[derive(Default)]
pub(crate) struct Descriptors(pub(crate) Vec<OwnedFd>);

impl Descriptors {
    pub(crate) fn add(&mut self, descriptor: OwnedFd) -> Fd {
        let index = Fd(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        self.0.push(descriptor);
        index
    }
}

fn describe(config: Config) -> Result<(Spec, Vec<OwnedFd>, Option<OwnedFd>), MachineError> {
    let mut descriptors = Descriptors::default();
    if config.entropy_out_of_process {
        return Err(MachineError::Refused("entropy out of process is not built yet".to_owned()));
    }
    let spec = Spec {
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        shared_memory: config.shared_memory || config.entropy_out_of_process,
        hypervisor: descriptors.add(open_kvm()?),
        kernel: descriptors.add(config.kernel.file),
        kernel_format: config.kernel.format,
        initramfs: descriptors.add(config.initramfs),
        command_line: config.command_line,
        disks: config.disks.into_iter().map(|disk| describe_disk(disk, &mut descriptors)).collect(),
        ports: Some(descriptors.add(config.ports)),
        console: descriptors.add(config.console),
        virtio_console: true,
        entropy: Entropy::InProcess,
        balloon: true,
        count_exits: false,
    };
    Ok((spec, descriptors.0, config.log))
}

pub(crate) fn describe_disk(disk: Disk, descriptors: &mut Descriptors) -> DiskSpec {
    let segments = disk.segments.into_iter().map(|segment| match segment {
        Segment::File { file, offset, len } => SegmentSpec::File { file: descriptors.add(file), offset, len },
        Segment::Bytes(bytes) => SegmentSpec::Bytes(bytes),
        Segment::Zeroes(len) => SegmentSpec::Zeroes(len),
    });
    DiskSpec { segments: segments.collect(), readonly: disk.readonly }
}

fn open_kvm() -> Result<OwnedFd, MachineError> {
    let opened = std::fs::File::options().read(true).write(true).open(KVM);
    Ok(opened.map_err(|source| MachineError::Process { what: KVM, source })?.into())
}
