//! The native machine: one `matchlock-vmm` process on the host's hypervisor.
//!
//! The handle opens what the process must not open itself, hands it over, and afterwards only listens. A device that is
//! served out of process is in a `matchlock-devices` process, as on the software machine. Not here: what the VMM does.

pub mod protocol;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use disk::Segment;
use process::{Channel, Child, Spawn};
use protocol::{DiskSpec, End, Entropy, Fd, Report, Request, SegmentSpec, Spec, Timeline, exit};

use crate::software::protocol::{DeviceModel, DeviceSpec, Devices};
use crate::software::{any_of, in_process, is_readable, wait_readable};
use crate::{Config, Disk, Ending, Kind, Machine, MachineError};

/// The VMM's program.
const PROGRAM: &str = "matchlock-vmm";
/// The program that serves devices out of process.
const DEVICES: &str = "matchlock-devices";
/// KVM's device.
const KVM: &str = "/dev/kvm";

/// A machine that a VMM process runs.
#[derive(Debug)]
pub struct Native {
    child: Child,
    channel: Channel,
    back_end: Option<BackEnd>,
    /// Readable when one of the processes has ended.
    ended: OwnedFd,
    timeline: Timeline,
    stopped: bool,
    ending: Option<Ending>,
}

impl Native {
    /// Boots a machine. Returns when its vCPUs run.
    pub fn boot(config: Config) -> Result<Self, MachineError> {
        let log = config.log.as_ref().map(OwnedFd::try_clone).transpose();
        let log = log.map_err(|source| MachineError::Process { what: "log", source })?;
        let mut descriptors = Descriptors::default();
        let kvm = descriptors.add(open_kvm()?);
        let (back_end, entropy) = match config.entropy_out_of_process {
            true => {
                let (back_end, socket) = BackEnd::start(config.log.as_ref(), config.memory_mib)?;
                (Some(back_end), Entropy::VhostUser(descriptors.add(socket)))
            }
            false => (None, Entropy::InProcess),
        };
        let spec = describe(config, kvm, entropy, &mut descriptors);
        Self::launch(spec, descriptors.0, log, back_end)
    }

    /// Boots what `spec` says: for measurements, which want other machines than sandboxes do.
    pub fn start(spec: Spec, descriptors: Vec<OwnedFd>, log: Option<OwnedFd>) -> Result<Self, MachineError> {
        Self::launch(spec, descriptors, log, None)
    }

    fn launch(
        spec: Spec,
        descriptors: Vec<OwnedFd>,
        log: Option<OwnedFd>,
        back_end: Option<BackEnd>,
    ) -> Result<Self, MachineError> {
        let mut spawn = Spawn::new(&find(PROGRAM)?);
        spawn.stderr = log;
        let (child, channel) = process::spawn(spawn).map_err(in_process(PROGRAM))?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&Request::Boot(Box::new(spec)), &borrowed).map_err(in_process(PROGRAM))?;
        let mut members = vec![child.as_fd()];
        members.extend(back_end.iter().map(|back_end| back_end.child.as_fd()));
        let ended = any_of(&members).map_err(|source| MachineError::Process { what: PROGRAM, source })?;
        let (timeline, stopped, ending) = (Timeline::default(), false, None);
        let mut machine = Self { child, channel, back_end, ended, timeline, stopped, ending };
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
        Ok(self.channel.recv().map_err(in_process(PROGRAM))?.map(|(report, _)| report))
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

    /// How it ended, from its last words, or else from its exit status. All that a process has said is here when it has
    /// ended; a hang-up is not to be waited for, since it may have given its end of the channel to somebody.
    fn last_words(&mut self) -> Ending {
        let reported = loop {
            match self.channel.try_recv() {
                Ok(Some((Report::Ended(end), _))) => break Some(end.into()),
                Ok(Some((Report::Refused(why), _))) => break Some(Ending::Failed(why)),
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
        self.ended.as_fd()
    }

    fn wait(&mut self) -> Ending {
        wait_readable(self.ended.as_fd());
        if self.ending.is_none() {
            let lost = match &mut self.back_end {
                Some(back_end) if !is_readable(self.child.as_fd()) => {
                    back_end.child.try_wait().ok().flatten()
                }
                _ => None,
            };
            self.ending = Some(match lost {
                _ if self.stopped => Ending::PowerOff,
                Some(status) => Ending::Failed(format!("the device process ended: {status}")),
                None => self.last_words(),
            });
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(back_end) = &mut self.back_end {
            let _ = back_end.child.kill();
            let _ = back_end.child.wait();
        }
        self.ending.clone().unwrap_or(Ending::PowerOff)
    }
}

/// A process that serves the entropy device. It ends with its channel, like every process of a machine.
#[derive(Debug)]
struct BackEnd {
    child: Child,
    _channel: Channel,
}

impl BackEnd {
    /// Starts it; the descriptor is the front end's.
    fn start(log: Option<&OwnedFd>, memory_mib: u32) -> Result<(Self, OwnedFd), MachineError> {
        let system = |source| MachineError::Process { what: DEVICES, source };
        let (listener, front_end) = process::accept_pair().map_err(system)?;
        let mut spawn = Spawn::new(&find(DEVICES)?);
        spawn.stderr = log.map(OwnedFd::try_clone).transpose().map_err(system)?;
        let (child, channel) = process::spawn(spawn).map_err(in_process(DEVICES))?;
        let devices = Devices {
            memory: u64::from(memory_mib) << 20,
            devices: vec![DeviceSpec { listener: Fd(0), device: DeviceModel::Entropy }],
        };
        channel.send(&devices, &[listener.as_fd()]).map_err(in_process(DEVICES))?;
        Ok((Self { child, _channel: channel }, front_end.into()))
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

fn find(program: &str) -> Result<PathBuf, MachineError> {
    process::find_program(program).ok_or_else(|| MachineError::Program { program: program.to_owned() })
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

fn describe(config: Config, hypervisor: Fd, entropy: Entropy, descriptors: &mut Descriptors) -> Spec {
    Spec {
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        shared_memory: config.shared_memory || matches!(entropy, Entropy::VhostUser(_)),
        hypervisor,
        kernel: descriptors.add(config.kernel.file),
        kernel_format: config.kernel.format,
        initramfs: descriptors.add(config.initramfs),
        command_line: config.command_line,
        disks: config.disks.into_iter().map(|disk| describe_disk(disk, descriptors)).collect(),
        ports: Some(descriptors.add(config.ports)),
        console: descriptors.add(config.console),
        virtio_console: true,
        entropy,
        balloon: true,
        count_exits: false,
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::path::Path;
    use std::time::Duration;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    /// A machine whose process has ended, and the end of the channel that it had.
    fn dead() -> (Native, Channel) {
        let child = process::spawn_without_channel(Spawn::new(Path::new("/bin/true"))).unwrap();
        let (channel, theirs) = Channel::pair().unwrap();
        let ended = any_of(&[child.as_fd()]).unwrap();
        let (timeline, stopped, ending) = (Timeline::default(), false, None);
        (Native { child, channel, back_end: None, ended, timeline, stopped, ending }, theirs)
    }

    fn ending(mut machine: Native) -> Ending {
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(machine.wait()));
        ended.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn the_last_report_counts() {
        let (machine, theirs) = dead();
        theirs.send(&Report::Paused, &[]).unwrap();
        theirs.send(&Report::Ended(End::Reset), &[]).unwrap();
        assert_eq!(ending(machine), Ending::Reset);
    }

    #[test]
    fn a_dead_process_is_not_listened_to_even_if_its_end_of_the_channel_lives() {
        let (machine, theirs) = dead();
        // One of two descriptors of a message: the channel's own end, which the supervisor then holds itself.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let own = [theirs.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&own)));
        let packet = IoSlice::new(&[1, 0, 0, 0, 3]);
        sendmsg(&theirs, &[packet], &mut control, SendFlags::NOSIGNAL).unwrap();
        drop(theirs);
        assert_eq!(ending(machine), Ending::PowerOff);
    }
}
