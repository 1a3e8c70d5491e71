//! The start of the guest: from the kernel's start of `/init` to readiness.
//!
//! ```text
//!  /dev ▶ modules for vsock ▶ other modules ─┬─▶ network ▶ root ▶ mounts, /etc ▶ cgroups ▶ disks, shares ▶ shield ▶ Ready ▶ late modules
//!              └▶ Hello … Boot ▶ clock, lo ──┘
//! ```
//!
//! Every step follows from the one before: nothing sleeps, nothing polls. A step that fails is reported by name, on
//! the control stream if that is open and in the kernel's log, and the guest powers off.

use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use guest_protocol::{AGENT_PORT, BootConfig, BootFailure, ControlFromGuest, Ready};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::ClockId;

use crate::added::Added;
use crate::cgroups::Cgroups;
use crate::control::{self, Control};
use crate::modules::{self, Late, Modules};
use crate::orphans::Orphans;
use crate::service::{self, Agent};
use crate::shares::Mounted;
use crate::{
    added, disks, log, mounts, network, root, shares, shield, shutdown, system, timer, trim, vsock, words,
};

/// A step of the start that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct Failure {
    step: String,
    error: String,
}

impl Failure {
    /// A step that the system refused.
    pub(crate) fn new(step: impl Into<String>, errno: Errno) -> Self {
        Self::because(step, words(errno))
    }

    /// A step that failed for another reason.
    pub(crate) fn because(step: impl Into<String>, error: impl Into<String>) -> Self {
        Self { step: step.into(), error: error.into() }
    }
}

/// Turns the system's refusal of a step into a [`Failure`].
pub(crate) trait AtStep<T> {
    /// Names the step.
    fn at(self, step: &str) -> Result<T, Failure>;
}

impl<T> AtStep<T> for Result<T, Errno> {
    fn at(self, step: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(step, errno))
    }
}

/// Microseconds since the kernel started.
fn since_start() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
    u64::try_from(micros).unwrap_or(0)
}

/// Runs the guest. Returns an exit status only if this is not a guest.
pub fn run() -> c_int {
    let started = since_start();
    if !rustix::process::getpid().is_init() {
        let _ =
            rustix::io::write(rustix::stdio::stderr(), b"matchlock-guest: runs as PID 1 of a guest only\n");
        return 2;
    }
    system::prepare_process();
    match boot(started) {
        Ok(guest) => guest.serve(),
        Err((failure, control)) => {
            log::line(&failure.to_string());
            if let Some(control) = control {
                control.send(&ControlFromGuest::Failed(BootFailure {
                    step: failure.step,
                    error: failure.error,
                }));
            }
            shutdown::power_off()
        }
    }
}

/// A guest that is ready for requests.
struct Guest {
    control: Control,
    orphans: Orphans,
    agent: Arc<Agent>,
    writable: Writable,
    /// The devices of the shares, which are to stay open.
    shares: Vec<OwnedFd>,
    late: Arc<Late>,
}

/// The writable file systems.
pub(crate) struct Writable {
    /// The disks that outlive the guest.
    pub(crate) disks: Vec<OwnedFd>,
    /// The root's upper file system.
    pub(crate) upper: OwnedFd,
}

fn boot(started: u64) -> Result<Guest, (Failure, Option<Control>)> {
    let alone = |failure: Failure| (failure, None);
    let orphans = Orphans::watch().at("watch SIGCHLD").map_err(alone)?;
    let (mut modules, initramfs) = first_steps().map_err(alone)?;
    // While the other drivers load, the host is answered, and clock and network are set.
    let opening = std::thread::Builder::new().name("control".to_owned()).stack_size(64 << 10);
    let opening = opening
        .spawn(move || {
            let (control, config) = control::open(started)?;
            if config.check_timer && !timer::is_ticking() {
                log::line("the kernel's timer does not tick: the host was too busy while the kernel started");
                control.send(&ControlFromGuest::NoTimer);
                shutdown::power_off();
            }
            let configured = system::configure(&config);
            Ok((control, config, configured))
        })
        .map_err(|error| alone(Failure::because("start a thread", error.to_string())))?;
    let loaded = modules.load_needed(&initramfs);
    let modules_us = since_start();
    let (control, config, configured) = opening
        .join()
        .unwrap_or_else(|_| Err(Failure::because("open the control stream", "its thread ended")))
        .map_err(alone)?;
    let prepared = loaded.and(configured).and_then(|()| {
        let root = rustix::io::fcntl_dupfd_cloexec(&initramfs, 0).at("open the initramfs")?;
        Ok((Arc::new(Late::new(modules, initramfs)), root))
    });
    let ready = prepared.and_then(|(late, initramfs)| {
        let ready = become_ready(&control, &config, modules_us, &initramfs, Arc::clone(&late))?;
        Ok((ready, late))
    });
    match ready {
        Ok(((agent, writable, shares), late)) => {
            Ok(Guest { control, orphans, agent, writable, shares, late })
        }
        Err(failure) => Err((failure, Some(control))),
    }
}

/// Makes the devices, and loads the drivers that the control stream needs.
fn first_steps() -> Result<(Modules, OwnedFd), Failure> {
    mounts::mount_devices()?;
    system::fill_standard_streams()?;
    log::open();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let initramfs = rustix::fs::open("/", flags, Mode::empty()).at("open the initramfs")?;
    let mut modules = Modules::read()?;
    modules.load_transport(&initramfs)?;
    Ok((modules, initramfs))
}

fn become_ready(
    control: &Control,
    config: &BootConfig,
    modules_us: u64,
    initramfs: &OwnedFd,
    late: Arc<Late>,
) -> Result<(Arc<Agent>, Writable, Vec<OwnedFd>), Failure> {
    if let Some(network) = &config.network {
        network::set_up(network)?;
    }
    let upper = root::assemble(config)?;
    let root_us = since_start();
    let terminals = mounts::mount_all()?;
    mounts::write_network_files(config)?;
    system::set_up_kernel()?;
    let cgroups = Cgroups::make(config.cpu_quota_milli)?;
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at("open /dev/null")?;
    let listener = vsock::listen(AGENT_PORT).at("listen")?;
    mounts::make_directories(&config.directories);
    let writable = Writable { disks: disks::mount_all(&config.disks)?, upper };
    let shares = shares::mount_all(&config.shares, initramfs);
    let Mounted { devices, folders } = shares.inspect_err(|_| shutdown::close(&writable.disks))?;
    let agent = Agent::new(null, terminals).with_cgroups(cgroups).with_folders(folders);
    let agent = Arc::new(agent.with_added(Added::new(added::devices()?, late)));
    if let Some(release) = &config.modules
        && let Err(failure) = modules::offer_all(config.layers, release)
    {
        // An image may have something else in that place.
        log::line(&format!("no kernel modules can be loaded: {failure}"));
    }
    shield::raise()?;
    added::let_in()?;
    let shared = Arc::clone(&agent);
    std::thread::Builder::new()
        .name("accept".to_owned())
        .stack_size(64 << 10)
        .spawn(move || service::accept_streams(&listener, &shared))
        .map_err(|error| Failure::because("start a thread", error.to_string()))?;
    control.send(&ControlFromGuest::Ready(Ready { modules_us, root_us, ready_us: since_start() }));
    Ok((agent, writable, devices))
}

impl Guest {
    /// Serves requests until the host ends the guest.
    fn serve(self) -> ! {
        let Self { mut control, orphans, agent, writable, shares: _shares, late } = self;
        let tidy = std::thread::Builder::new().name("tidy".to_owned()).stack_size(64 << 10);
        // Nobody waits for this, so it happens only while the CPU is idle, and may fail.
        let _ = tidy.spawn(move || {
            system::run_when_idle();
            late.load();
            root::empty_initramfs(late.initramfs());
        });
        let disks = Arc::new(writable.disks.iter().filter_map(trim::FileSystem::open).collect::<Vec<_>>());
        let upper = trim::FileSystem::open(&writable.upper);
        let all = Arc::clone(&disks);
        let trimming = std::thread::Builder::new().name("trim".to_owned()).stack_size(64 << 10);
        let _ = trimming.spawn(move || trim::keep_trimming(&all, upper.as_slice()));
        let grace = control.wait_for_the_end(&orphans);
        shutdown::end(&agent, grace, &writable, &disks, control)
    }
}
