//! Small settings of the process and the machine: limits, clock, entropy, host name, loopback.

use std::ffi::{c_char, c_int};
use std::os::fd::{AsRawFd, IntoRawFd};

use guest_protocol::BootConfig;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use rustix::time::{ClockId, Timespec};

use crate::boot::{AtStep, Failure};
use crate::{files, signals};

/// Open files: the limit up to which programs may raise theirs, and the agent's own. The kernel's default for PID 1,
/// 4096, is too little for databases.
const OPEN_FILES: u64 = 1 << 20;

/// Prepares the process, as std's start would, with room for many streams.
pub(crate) fn prepare_process() {
    // Writing to a program that has closed its input must be an error, not a signal.
    signals::ignore(libc::SIGPIPE);
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    // The kernel's default for its first process, which files made for the host rely on.
    rustix::process::umask(Mode::from_raw_mode(0o022));
}

/// Opens /dev/null in place of missing standard streams (a kernel without a console opens none for PID 1), so that no
/// other descriptor gets their numbers.
pub(crate) fn fill_standard_streams() -> Result<(), Failure> {
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).at("open /dev/null")?;
        if null.as_raw_fd() > libc::STDERR_FILENO {
            return Ok(());
        }
        let _ = null.into_raw_fd();
    }
}

/// Lets the calling thread run only when nothing else wants the CPU.
pub(crate) fn run_when_idle() {
    // SAFETY: all-zero is a valid sched_param.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the parameters are only read; 0 means the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
}

/// A setting of the kernel: its file, and the value.
pub(crate) type Setting = (&'static str, &'static [u8]);

/// The kernel's settings for programs.
///
/// Users may do the same as in containers: ping without a raw socket, and listen on any port. Programs share
/// processes, inotify instances of uid 0 and terminals with the agent, and there are so many that a program reaches
/// the limits of its own control group first. The console shows the kernel's errors and nothing below, which is the
/// meaning of `quiet`: a machine may have asked for less while the kernel looked for its devices.
const SETTINGS: [Setting; 6] = [
    ("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647\n"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0\n"),
    ("/proc/sys/kernel/pid_max", b"4194304\n"),
    ("/proc/sys/fs/inotify/max_user_instances", b"1048576\n"),
    ("/proc/sys/kernel/pty/max", b"1048576\n"),
    ("/proc/sys/kernel/printk", b"4\n"),
];

/// Applies the kernel's settings for programs.
pub(crate) fn set_up_kernel() -> Result<(), Failure> {
    set(&SETTINGS)
}

/// Applies settings in their order.
pub(crate) fn set(settings: &[Setting]) -> Result<(), Failure> {
    for (path, value) in settings {
        match files::write_existing(path, value) {
            // The kernel lacks the setting.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Failure::new(format!("write {path}"), errno)),
        }
    }
    Ok(())
}

/// Applies the parts of `config` that have nothing to do with files.
pub(crate) fn configure(config: &BootConfig) -> Result<(), Failure> {
    set_clock(config.wall_clock_ns).at("set the clock")?;
    add_entropy(&config.entropy).at("add entropy")?;
    rustix::system::sethostname(config.hostname.as_bytes()).at("set the host name")?;
    raise_loopback().at("raise lo")
}

fn set_clock(wall_clock_ns: u64) -> Result<(), Errno> {
    let tv_sec = i64::try_from(wall_clock_ns / 1_000_000_000).map_err(|_| Errno::INVAL)?;
    let tv_nsec = i64::try_from(wall_clock_ns % 1_000_000_000).map_err(|_| Errno::INVAL)?;
    rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })
}

/// Of linux/sockios.h; libc's own constant is not of the type that its ioctl takes everywhere.
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// `_IOW('R', 0x03, int [2])` of linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// Mixes the host's bytes into the pool and credits them, so that nothing in the guest waits for entropy.
fn add_entropy(bytes: &[u8; 32]) -> Result<(), Errno> {
    /// random(4): `struct rand_pool_info` with its buffer.
    #[repr(C)]
    struct PoolInfo {
        entropy_count: c_int,
        buf_size: c_int,
        buf: [u8; 32],
    }
    let info = PoolInfo { entropy_count: 256, buf_size: 32, buf: *bytes };
    let random = rustix::fs::open("/dev/random", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: RNDADDENTROPY reads a rand_pool_info of buf_size bytes, which `info` is.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })
}

fn raise_loopback() -> Result<(), Errno> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        // `c_char` is signed on some architectures.
        *to = c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &raw const request) })
}

fn check(result: c_int) -> Result<(), Errno> {
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        _ => Ok(()),
    }
}
