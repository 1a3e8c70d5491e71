//! The software machine: QEMU's TCG as vCPU engine, and this project's devices in a process of their own.
//!
//! ```text
//!  supervisor ──channel──▶ matchlock-launcher ──▶ QEMU: vCPUs, memory, serial port
//!       │ ├──────────────────── QMP ────────────────┘ │ vhost-user, one socket pair a device
//!       │ └─────────── port channel ───────┐          │
//!       └────channel──▶ matchlock-devices: vsock, blk, rng
//! ```
//!
//! The software machine is for hosts without usable hardware virtualization: everything works, slowly. The launcher
//! exists because QEMU by itself does not end with the supervisor. Not here: how the devices work, and QEMU's
//! confinement (the launcher's work).

mod arguments;
pub mod protocol;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use broker::{Child, Program};
use process::{Channel, Spawn};
use protocol::{Devices, DevicesReport, Launch, LaunchReport, LaunchRequest, Served};

use crate::children::{any_of, find, in_process, is_readable, system, wait_readable, wait_readable_for};
use crate::descriptors::{Fd, Outgoing};
use crate::devices::DeviceSpec;
use crate::qmp::{Qmp, Shutdown};
use crate::tsc::Calibration;
use crate::{Config, Ending, KernelFormat, Kind, Machine, MachineError, Network};
use arguments::{Arguments, NetworkArguments, front_end};

/// The first number of QEMU's inherited descriptors, after its standard ones.
const FIRST_INHERITED: i32 = 3;

/// Kernel parameters of this machine. The caller's follow, and of two settings of one parameter Linux takes the last.
///
/// * `tsc=reliable`: the machine has no clock good enough to check the counter, and Linux would believe the worse clock.
/// * `noreplace-smp`: a kernel that finds one CPU patches its code in many places, and TCG translates all of them again.
/// * `pci=off`: the machine has no PCI bus.
const PARAMETERS: &str = "console=ttyS0 reboot=t panic=-1 tsc=reliable noreplace-smp pci=off";

/// The parameter after the caller's: Linux calls a machine without PCI a fatal error, whose message has this level. The
/// agent lets errors through once the kernel has looked for its devices.
const NO_FALSE_ALARM: &str = "loglevel=3";

/// With `1` in this variable of the supervisor's environment, QEMU starts even on a host where nothing keeps it from
/// its user's files.
pub const UNCONFINED: &str = "MATCHLOCK_UNCONFINED_QEMU";

/// The programs of this machine.
#[derive(Debug, Clone)]
pub struct Programs {
    /// QEMU, for the host's architecture.
    pub qemu: PathBuf,
    /// `matchlock-launcher`
    pub launcher: PathBuf,
    /// `matchlock-devices`
    pub devices: PathBuf,
}

impl Programs {
    /// QEMU's name.
    pub const QEMU: &'static str = broker::QEMU;

    /// Finds the programs where they are installed.
    pub fn find() -> Result<Self, MachineError> {
        Ok(Self { qemu: find(Self::QEMU)?, launcher: find(LAUNCHER)?, devices: find(DEVICES)? })
    }

    fn launcher(&self) -> Spawn {
        Spawn { args: vec![self.qemu.clone().into()], ..Spawn::new(&self.launcher) }
    }
}

/// The barriers of this host between the files of QEMU's user and a QEMU that its guest has taken over, an entry for
/// each; a missing barrier comes with the reason.
pub fn walls(programs: &Programs) -> Result<Vec<Result<String, String>>, MachineError> {
    let started = broker::start(Program::Launcher, programs.launcher());
    let (_launcher, channel) = started.map_err(in_process(LAUNCHER))?;
    channel.send(&LaunchRequest::Probe, &[]).map_err(in_process(LAUNCHER))?;
    match channel.recv().map_err(in_process(LAUNCHER))? {
        Some((LaunchReport::Walls(walls), _)) => Ok(walls),
        Some((LaunchReport::Refused(why), _)) => Err(MachineError::Refused(why)),
        _ => Err(MachineError::Refused("QEMU's launcher broke the protocol".to_owned())),
    }
}

/// A machine that QEMU and the device process run.
#[derive(Debug)]
pub struct Software {
    launcher: Child,
    launcher_channel: Channel,
    devices: Child,
    devices_channel: Channel,
    qemu: OwnedFd,
    qmp: Qmp,
    /// A descriptor that is readable when one of the three processes has ended.
    ended: OwnedFd,
    stopped: bool,
    ending: Option<Ending>,
}

impl Software {
    /// Boots a machine. `clock` was started as early as possible. Returns when QEMU runs; later refusals of QEMU show
    /// as the machine's end.
    pub fn boot(config: Config, clock: Calibration) -> Result<Self, MachineError> {
        Self::boot_with(&Programs::find()?, config, clock)
    }

    /// [`Software::boot`] with programs from elsewhere.
    pub fn boot_with(programs: &Programs, config: Config, clock: Calibration) -> Result<Self, MachineError> {
        if config.kernel.format == KernelFormat::Image {
            return Err(MachineError::Refused("an arm64 kernel on an x86-64 machine".to_owned()));
        }
        let log = config.log.as_ref().map(OwnedFd::try_clone).transpose().map_err(system("log"))?;
        let mut devices_spawn = Spawn::new(&programs.devices);
        devices_spawn.stderr = log;
        let mut launcher_spawn = programs.launcher();
        launcher_spawn.stderr = config.log.as_ref().and_then(|log| log.try_clone().ok());
        // Both processes start up while the rest of the machine is prepared.
        let (devices, devices_channel) =
            broker::start(Program::Devices, devices_spawn).map_err(in_process(DEVICES))?;
        let (launcher, launcher_channel) =
            broker::start(Program::Launcher, launcher_spawn).map_err(in_process(LAUNCHER))?;

        let plan = Plan::new(config, clock).map_err(system(QEMU))?;
        plan.served.send(&devices_channel, &plan.devices).map_err(in_process(DEVICES))?;
        plan.inherited.send(&launcher_channel, &plan.launch).map_err(in_process(LAUNCHER))?;
        let qemu = started(&launcher_channel)?;
        let ended = any_of(&[launcher.as_fd(), devices.as_fd(), qemu.as_fd()]).map_err(system(QEMU))?;
        let qmp = plan.qmp;
        let (stopped, ending) = (false, None);
        Ok(Self { launcher, launcher_channel, devices, devices_channel, qemu, qmp, ended, stopped, ending })
    }

    fn command(&mut self, command: &'static str) -> Result<(), MachineError> {
        if self.stopped || self.ending.is_some() {
            return Err(MachineError::Refused("the machine has ended".to_owned()));
        }
        let result = self.qmp.execute(command);
        if result.is_err() && is_readable(self.ended.as_fd()) {
            return Err(MachineError::Refused("the machine has ended".to_owned()));
        }
        result.map_err(system(QEMU))
    }

    /// Why one of the processes has ended.
    fn cause(&mut self) -> Ending {
        // The guest's own end comes first: QEMU reports it before QEMU itself ends.
        match self.qmp.shutdown() {
            Some(Shutdown::PowerOff) => return Ending::PowerOff,
            Some(Shutdown::Reset) => return Ending::Reset,
            Some(Shutdown::Other(reason)) => return Ending::Failed(format!("QEMU shut down: {reason}")),
            None => {}
        }
        // If a device process gave up, QEMU's error is only a consequence.
        if let Some(why) = device_failure(&self.devices_channel) {
            return Ending::Failed(why);
        }
        if let Ok(Some(status)) = self.devices.try_wait() {
            return Ending::Failed(format!("the device process ended: {status}"));
        }
        match last_report(&self.launcher_channel) {
            Some(LaunchReport::Ended { status, last_words }) => {
                let status = ExitStatus::from_raw(status);
                let colon = if last_words.is_empty() { "" } else { ": " };
                Ending::Failed(format!("QEMU ended ({status}){colon}{last_words}"))
            }
            Some(LaunchReport::Refused(why)) => Ending::Failed(why),
            // The launcher is gone, or cannot answer because somebody stopped it.
            _ => match self.launcher.kill().and_then(|()| self.launcher.wait()) {
                Ok(status) => Ending::Failed(format!("QEMU's launcher ended: {status}")),
                Err(error) => Ending::Failed(format!("QEMU's launcher cannot be waited for: {error}")),
            },
        }
    }

    /// Ends QEMU at once, or has its launcher do so: behind a broker, only root and the launcher may kill QEMU.
    fn end_qemu(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.qemu, rustix::process::Signal::KILL);
        let _ = rustix::net::shutdown(&self.launcher_channel, rustix::net::Shutdown::Both);
    }

    /// Ends the processes that still run, and waits until none is left. The only process that is waited for without
    /// having been killed is a launcher that reaps QEMU, which gets a moment to do so.
    fn end_all(&mut self) {
        let _ = self.devices.kill();
        self.end_qemu();
        wait_readable_for(self.launcher.as_fd(), LAUNCHER_PATIENCE);
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
        wait_readable(self.qemu.as_fd());
        let _ = self.devices.wait();
    }
}

impl Machine for Software {
    fn kind(&self) -> Kind {
        Kind::Software
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.command("stop")
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.command("cont")
    }

    fn stop(&mut self) {
        if self.ending.is_none() {
            self.stopped = true;
            self.end_qemu();
        }
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn wait(&mut self) -> Ending {
        if let Some(ending) = &self.ending {
            return ending.clone();
        }
        let ending = if self.stopped {
            Ending::PowerOff
        } else {
            wait_readable(self.ended.as_fd());
            self.cause()
        };
        self.end_all();
        self.ending = Some(ending.clone());
        ending
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        if self.ending.is_none() {
            self.stop();
            self.end_all();
        }
    }
}

const DEVICES: &str = Program::Devices.name();
const LAUNCHER: &str = Program::Launcher.name();
const QEMU: &str = "QEMU";

/// How long the launcher has for an immediate step; it takes longer only if somebody stopped it.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(2);

/// The descriptors for the helpers, and the part that the supervisor keeps.
struct Plan {
    devices: Devices,
    /// The device process's descriptors.
    served: Outgoing,
    launch: LaunchRequest,
    /// The launcher's descriptors.
    inherited: Outgoing,
    qmp: Qmp,
}

impl Plan {
    fn new(config: Config, clock: Calibration) -> io::Result<Self> {
        let (mut served, mut inherited) = (Outgoing::default(), Inherited::default());
        let (mut devices, mut front_ends) = (Vec::new(), Vec::new());
        for device in DeviceSpec::describe(config.disks, config.ports, &mut served) {
            let (listener, front_end) = process::accept_pair()?;
            front_ends.push((front_end::of(&device), inherited.add(front_end.into())));
            devices.push(Served { listener: served.add(listener), device });
        }
        for back_end in config.elsewhere {
            front_ends.push((front_end::elsewhere(&back_end.device), inherited.add(back_end.socket)));
        }

        let network = config.network.map(|Network { tap, station, mtu }| NetworkArguments {
            tap: inherited.add(tap),
            station,
            mtu,
        });
        let has_tap = network.is_some();

        let (qmp, monitor) = UnixStream::pair()?;
        let monitor = inherited.add(monitor.into());
        let (kernel, initramfs) = (inherited.add(config.kernel.file), inherited.add(config.initramfs));
        let command_line =
            format!("{PARAMETERS} tsc_early_khz={} {} {NO_FALSE_ALARM}", clock.khz(), config.command_line);
        let args = Arguments {
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            kernel,
            initramfs,
            command_line: &command_line,
            qmp: monitor,
            devices: &front_ends,
            network,
        };
        let Inherited { descriptors: mut inherited, numbers: inherit } = inherited;
        let by_number = inherit.iter().filter(|(_, number)| [kernel, initramfs].contains(number));
        let reopened = by_number.map(|(fd, _)| *fd).collect();
        let stdout = inherited.add(config.console);
        let memory = u64::from(config.memory_mib) << 20;
        let unconfined = std::env::var_os(UNCONFINED).is_some_and(|value| value == "1");
        let args = args.build();
        let launch = Launch { memory, unconfined, args, inherit, stdout, reopened, has_tap };
        Ok(Self {
            devices: Devices { memory, devices },
            served,
            launch: LaunchRequest::Launch(launch),
            inherited,
            qmp: Qmp::new(qmp)?,
        })
    }
}

/// Descriptors for QEMU: the message's first descriptor gets the first number, and so on.
#[derive(Default)]
struct Inherited {
    descriptors: Outgoing,
    numbers: Vec<(Fd, i32)>,
}

impl Inherited {
    fn add(&mut self, descriptor: OwnedFd) -> i32 {
        let fd = self.descriptors.add(descriptor);
        let number = FIRST_INHERITED + i32::from(fd.0);
        self.numbers.push((fd, number));
        number
    }
}

/// Waits for the launcher's report that QEMU runs; returns QEMU's pidfd.
fn started(launcher: &Channel) -> Result<OwnedFd, MachineError> {
    let broken = || MachineError::Refused("QEMU's launcher broke the protocol".to_owned());
    match launcher.recv().map_err(in_process(LAUNCHER))? {
        Some((LaunchReport::Started, descriptors)) => descriptors.into_iter().next().ok_or_else(broken),
        Some((LaunchReport::Refused(why), _)) => Err(MachineError::Refused(why)),
        Some((LaunchReport::Ended { last_words, .. }, _)) => Err(MachineError::Refused(last_words)),
        Some((LaunchReport::Walls(_), _)) => Err(broken()),
        None => Err(MachineError::Refused("QEMU's launcher ended at its start".to_owned())),
    }
}

/// Why the device process gave up, if it has reported that: it reports before it closes any connection.
fn device_failure(channel: &Channel) -> Option<String> {
    loop {
        match channel.try_recv() {
            Ok(Some((DevicesReport::Failed(why), _))) => return Some(why),
            Ok(Some((DevicesReport::Serving, _))) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The last whole message before the peer hung up, or failed to answer in time.
fn last_report<T: serde::de::DeserializeOwned>(channel: &Channel) -> Option<T> {
    let deadline = Instant::now() + LAUNCHER_PATIENCE;
    let mut last = None;
    while let Ok(Some((report, _))) = channel.recv_before(deadline) {
        last = Some(report);
    }
    last
}
