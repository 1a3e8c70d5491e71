//! The end of the guest: programs, file systems, power.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::FsPickFlags;
use rustix::system::RebootCommand;

use crate::added::Added;
use crate::boot::Writable;
use crate::control::Control;
use crate::service::Agent;
use crate::trim::FileSystem;
use crate::{log, signals, trim, words};

/// How long killed processes may take to disappear before the file systems are closed regardless.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Ends all programs, writes everything to the disks and powers off. The host may stop the machine as soon as the
/// control stream ends, as nothing that matters happens after that.
pub(crate) fn end(
    agent: &Agent,
    grace: Duration,
    writable: &Writable,
    disks: &[FileSystem],
    control: Control,
) -> ! {
    if !grace.is_zero() {
        signal_everything(libc::SIGTERM);
        agent.firsts.kill_deaf();
        agent.programs.wait_for_none(grace);
    }
    signal_everything(libc::SIGKILL);
    agent.running.wait_for_none(KILL_LIMIT);
    // Their streams must last until the kernel has written to them what it has.
    agent.added.iter().for_each(Added::end);
    // A file open for writing would keep its file system from becoming read-only.
    agent.hang_up();
    agent.file_acts.wait_for_none(KILL_LIMIT);
    rustix::fs::sync();
    trim::trim_at_the_end(disks);
    close(writable.disks.iter().chain([&writable.upper]));
    drop(control);
    power_off()
}

/// Signals every process but this one. kill(2): -1 means "every process … except for process 1 (init)".
fn signal_everything(signal: i32) {
    signals::send(-1, signal);
}

/// Writes everything to the disks, and leaves these file systems as if they had been unmounted.
pub(crate) fn close<'a>(file_systems: impl IntoIterator<Item = &'a OwnedFd>) {
    // All file systems at once, as each has its own disk to wait for.
    rustix::fs::sync();
    for file_system in file_systems {
        let Err(errno) = make_read_only(file_system) else { continue };
        log::line(&format!("make a file system read-only: {}", words(errno)));
        // A file that the kernel itself has open for writing (a swap file, a loop device) keeps a file system from
        // becoming read-only.
        if let Err(errno) = freeze(file_system) {
            log::line(&format!("freeze a file system: {}", words(errno)));
        }
    }
}

fn make_read_only(file_system: &OwnedFd) -> Result<(), Errno> {
    let context =
        rustix::mount::fspick(file_system, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_reconfigure(&context)
}

/// `_IOWR('X', 119, int)` of linux/fs.h.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;

/// Writes everything to the file system's disk, its journal too, and blocks all later writes.
fn freeze(file_system: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(file_system, ".", flags, Mode::empty())?;
    // SAFETY: FIFREEZE ignores its argument, a number.
    match unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE, 0) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        _ => Ok(()),
    }
}

/// Powers off without further ado.
pub(crate) fn power_off() -> ! {
    let error = rustix::system::reboot(RebootCommand::PowerOff);
    log::line(&format!("power off: {error:?}"));
    // PID 1 must not end. On a machine without power-off the kernel has halted before this loop.
    loop {
        std::thread::park();
    }
}
