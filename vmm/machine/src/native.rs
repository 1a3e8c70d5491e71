//! The native machine: one `matchlock-vmm` process on the host's hypervisor.
//!
//! The handle opens the files that the process must not open itself, hands them over, and afterwards only listens. Not
//! here: the VMM's work.

pub mod protocol;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use broker::{Child, Program};
use process::{Channel, Spawn};
use protocol::{End, NetworkSpec, Report, Request, Spec, exit};

use crate::children::{find, in_process, system, wait_readable};
use crate::descriptors::{Fd, Outgoing};
use crate::devices::DeviceSpec;
use crate::{Config, Ending, Kind, Machine, MachineError, Network};

/// The VMM's program.
const PROGRAM: &str = Program::Vmm.name();

/// A machine that a VMM process runs.
#[derive(Debug)]
pub struct Native {
    child: Child,
    channel: Channel,
    stopped: bool,
    ending: Option<Ending>,
}

impl Native {
    /// Boots a machine. Returns when its vCPUs run.
    pub fn boot(config: Config) -> Result<Self, MachineError> {
        let mut descriptors = Outgoing::default();
        let hypervisor = descriptors.add(broker::open_kvm().map_err(system("/dev/kvm"))?);
        let mut spawn = Spawn::new(&find(PROGRAM)?);
        spawn.stderr = config.log.as_ref().map(OwnedFd::try_clone).transpose().map_err(system("log"))?;
        let (child, channel) = broker::start(Program::Vmm, spawn).map_err(in_process(PROGRAM))?;
        let spec = describe(config, hypervisor, &mut descriptors);
        descriptors.send(&channel, &Request::Boot(Box::new(spec))).map_err(in_process(PROGRAM))?;
        let mut machine = Self { child, channel, stopped: false, ending: None };
        match machine.report()? {
            Some(Report::Running(_)) => Ok(machine),
            Some(Report::Refused(why)) => Err(MachineError::Refused(why)),
            Some(_) => Err(MachineError::Refused("the VMM process broke the protocol".to_owned())),
            None => {
                let status = machine.child.wait().map_err(system(PROGRAM))?;
                Err(MachineError::Refused(format!("the VMM process ended at its start: {status}")))
            }
        }
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

    /// How the machine ended, by its process's last report, or else by the exit status. All reports have arrived when
    /// the process has ended. This function does not wait for a hang-up, since the process may have given its end of
    /// the channel away.
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
        // `kill` fails only for a process that has been waited for, and such a process has stopped.
        let _ = self.child.kill();
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    fn wait(&mut self) -> Ending {
        wait_readable(self.child.as_fd());
        if self.ending.is_none() {
            self.ending = Some(if self.stopped { Ending::PowerOff } else { self.last_words() });
        }
        // The process has ended, so this call only reaps it.
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

fn describe(config: Config, hypervisor: Fd, descriptors: &mut Outgoing) -> Spec {
    Spec {
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        // A process outside the machine that serves a device reads and writes the guest's memory.
        shared_memory: !config.elsewhere.is_empty(),
        hypervisor,
        kernel: descriptors.add(config.kernel.file),
        kernel_format: config.kernel.format,
        initramfs: descriptors.add(config.initramfs),
        command_line: config.command_line,
        devices: DeviceSpec::describe(config.disks, config.ports, descriptors),
        console: descriptors.add(config.console),
        virtio_console: true,
        balloon: true,
        network: config.network.map(|Network { tap, station, mtu }| NetworkSpec {
            tap: descriptors.add(tap),
            station,
            mtu,
        }),
        elsewhere: config
            .elsewhere
            .into_iter()
            .map(|back_end| (back_end.device, descriptors.add(back_end.socket)))
            .collect(),
    }
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

    /// A machine whose process has ended, and that process's end of the channel.
    fn dead() -> (Native, Channel) {
        let child = process::spawn_without_channel(Spawn::new(Path::new("/bin/true"))).unwrap();
        let (channel, theirs) = Channel::pair().unwrap();
        (Native { child: child.into(), channel, stopped: false, ending: None }, theirs)
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
        // One of the message's two descriptors is the process's own end of the channel, which the supervisor then holds
        // itself.
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
