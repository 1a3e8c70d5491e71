//! The end of the guest: programs, file systems, power.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::FsPickFlags;
use rustix::system::RebootCommand;

use crate::control::Control;
use crate::log;
use crate::service::Agent;
use crate::{signals, words};

/// How long killed processes may take to disappear before the file systems are closed regardless.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Ends all programs, writes everything to the disks and powers off. The host may stop the machine as soon as the
/// control stream ends: nothing that matters happens after that.
pub(crate) fn end(agent: &Agent, grace: Duration, upper: &OwnedFd, control: Control) -> ! {
    if !grace.is_zero() {
        signal_everything(libc::SIGTERM);
        agent.programs.wait_for_none(grace);
    }
    signal_everything(libc::SIGKILL);
    agent.running.wait_for_none(KILL_LIMIT);
    // A file open for writing would keep its file system from becoming read-only.
    agent.hang_up();
    agent.file_acts.wait_for_none(KILL_LIMIT);
    rustix::fs::sync();
    if let Err(errno) = make_read_only(upper) {
        log::line(&format!("make the upper file system read-only: {}", words(errno)));
    }
    drop(control);
    power_off()
}

/// Signals every process but this one. kill(2): -1 means "every process … except for process 1 (init)".
fn signal_everything(signal: i32) {
    signals::send(-1, signal);
}

/// Leaves the upper file system clean. It is mounted nowhere, but below the root.
fn make_read_only(upper: &OwnedFd) -> Result<(), Errno> {
    let context =
        rustix::mount::fspick(upper, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_reconfigure(&context)
}

/// Powers off without further ado.
pub(crate) fn power_off() -> ! {
    let error = rustix::system::reboot(RebootCommand::PowerOff);
    log::line(&format!("power off: {error:?}"));
    // PID 1 must not end. On a machine without power-off the kernel has halted before it comes here.
    loop {
        std::thread::park();
    }
}
