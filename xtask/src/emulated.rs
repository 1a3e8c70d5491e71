//! An emulated x86-64 host that has KVM: QEMU TCG with an SVM-capable CPU, a stock Debian kernel with kvm_amd, and the
//! project's programs on a disk. The KVM machine runs there where this host's own KVM cannot run it.
//!
//! One host boots once and runs one script; the script's output arrives line by line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sh;
use crate::stock::Kernel;

/// The modules that the emulated host's kernel loads: for its disk, for KVM, for sandboxes, and for their networks.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "kvm_amd",
    "fuse",
    "loop",
    "erofs",
    "overlay",
    "tun",
    "nf_tables",
    "nft_tproxy",
    "nft_reject_inet",
];

/// QEMU's machine and processor, by the wall clock. The host has one processor: with two, nested guests hung the
/// emulated host about once in five suites. But it could have a second one: QEMU otherwise leaves out memory barriers,
/// and notifications of the disk get lost. A test of the software machine tries these very arguments.
const PROCESSOR: &str = include_str!("emulated.args");

/// The line that ends a script, with its exit status.
const END: &str = "MATCHLOCK-SCRIPT-END ";

/// Seconds between two signs of life of a host whose time passes as it does on the wall.
const BEAT_SECONDS: u64 = 5;

/// How long such a host may show no sign of life.
const SILENCE: Duration = Duration::from_secs(300);

/// How long QEMU may take to tell the state of its machine.
const MONITOR_LIMIT: Duration = Duration::from_secs(5);

/// How the host counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time passes as it does on the wall.
    Wall,
    /// Time passes by instructions: 10^9 a second, repeatable to about 1 %. The host has one processor.
    Instructions,
}

/// A script, and the host on which it runs.
pub(crate) struct Job<'a> {
    /// The emulated host's kernel.
    pub(crate) kernel: &'a Kernel,
    /// Files and folders of the host's root: their destinations (absolute), and their sources.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// Shell script that busybox runs.
    pub(crate) script: String,
    /// The host's clock.
    pub(crate) clock: Clock,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// Longest time for everything, boot included.
    pub(crate) limit: Duration,
}

/// A host that has everything for its job, and is not started yet.
pub(crate) struct Host {
    qemu: Command,
    limit: Duration,
    scratch: tempfile::TempDir,
}

/// QEMU's own messages, in the scratch directory.
const COMPLAINTS: &str = "host.log";

/// The host's second serial line, on which it shows that it lives.
const BEATS: &str = "beats";

/// QEMU's monitor.
const MONITOR: &str = "monitor";

impl Host {
    /// Copies the files of the job.
    pub(crate) fn new(job: &Job<'_>) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let busybox = busybox()?;
        let initramfs = initramfs(job.kernel, &busybox, scratch.path())?;
        let disk = disk(job, &busybox, scratch.path())?;
        let qemu = qemu(job, &initramfs, &disk, scratch.path())?;
        Ok(Self { qemu, limit: job.limit, scratch })
    }

    /// Runs the script; `line` gets each line of its output. Returns the script's exit status.
    pub(crate) fn run(mut self, mut line: impl FnMut(&str)) -> Result<i32> {
        let mut host = Guard(self.qemu.spawn().context("qemu-system-x86_64")?);
        let output = host.0.stdout.take().context("qemu's output")?;
        let watchdog = Watchdog::new(&host.0, self.limit, self.scratch.path());
        let mut status = None;
        let mut tail: Vec<String> = Vec::new();
        for text in BufReader::new(output).split(b'\n') {
            let text = String::from_utf8_lossy(&text?).trim_end_matches('\r').to_owned();
            if let Some(code) = text.strip_prefix(END) {
                status = code.trim().parse().ok();
                break;
            }
            line(&text);
            tail.push(text);
            if tail.len() > 20 {
                tail.remove(0);
            }
        }
        let expired = watchdog.stop();
        drop(host);
        match (status, expired) {
            (Some(status), _) => Ok(status),
            (None, Some(why)) => bail!("the emulated host {why}"),
            (None, None) => {
                let complaints = fs::read_to_string(self.scratch.path().join(COMPLAINTS)).unwrap_or_default();
                bail!("the emulated host ended early; its last lines:\n{}\n{complaints}", tail.join("\n"))
            }
        }
    }
}

/// A process that does not outlive its owner.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // The process may have ended by itself; in either case it is reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends a host that takes too long, or stands still.
struct Watchdog {
    done: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Option<String>>,
}

impl Watchdog {
    fn new(child: &Child, limit: Duration, scratch: &Path) -> Self {
        let (done, wait) = std::sync::mpsc::channel();
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let scratch = scratch.to_owned();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let step = Duration::from_secs(BEAT_SECONDS);
            let why = loop {
                if wait.recv_timeout(step) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return None;
                }
                if let Some(why) = overdue(&scratch, start.elapsed(), limit) {
                    break why;
                }
            };
            let state = machine_state(&scratch.join(MONITOR)).unwrap_or_else(|error| error.to_string());
            if let Some(pid) = pid {
                // While this thread runs, the process's owner has not reaped it, so the pid still belongs to it.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            Some(format!("{why}; its machine:\n{state}"))
        });
        Self { done, thread }
    }

    /// Ends the watch; returns why it ended the host, if it did.
    fn stop(self) -> Option<String> {
        let _ = self.done.send(());
        self.thread.join().unwrap_or(None)
    }
}

/// Why a host that has run for this long is to be ended, if it is.
fn overdue(scratch: &Path, elapsed: Duration, limit: Duration) -> Option<String> {
    // A host that counts instructions, or has not booted yet, has no beat.
    let beat = fs::metadata(scratch.join(BEATS)).ok().filter(|beats| beats.len() != 0);
    let silence = beat.and_then(|beats| beats.modified().ok()?.elapsed().ok());
    match silence {
        Some(silence) if silence >= SILENCE => {
            Some(format!("stands still: it showed no sign of life for {} s", silence.as_secs()))
        }
        Some(silence) if elapsed >= limit => Some(format!(
            "did not finish within {} s; its last sign of life is {} s old",
            limit.as_secs(),
            silence.as_secs()
        )),
        None if elapsed >= limit => Some(format!("did not finish within {} s", limit.as_secs())),
        _ => None,
    }
}

/// The state of QEMU's machine, as its monitor tells it.
fn machine_state(monitor: &Path) -> std::io::Result<String> {
    let mut monitor = UnixStream::connect(monitor)?;
    monitor.set_read_timeout(Some(MONITOR_LIMIT))?;
    monitor.write_all(b"info status\ninfo registers\ninfo lapic\ninfo pic\n")?;
    let mut state = Vec::new();
    // The monitor does not end: the limit does.
    let _ = monitor.read_to_end(&mut state);
    Ok(String::from_utf8_lossy(&state).into_owned())
}

fn qemu(job: &Job<'_>, initramfs: &Path, disk: &Path, scratch: &Path) -> Result<Command> {
    let mut qemu = Command::new("qemu-system-x86_64");
    match job.clock {
        Clock::Wall => {
            let beats = format!("file:{}", scratch.join(BEATS).display());
            qemu.args(PROCESSOR.split_whitespace()).args(["-serial", "stdio", "-serial", &beats])
        }
        Clock::Instructions => qemu
            .args(["-M", "q35", "-cpu", "EPYC-v1", "-accel", "tcg,thread=single"])
            .args(["-icount", "shift=0,sleep=off", "-smp", "1", "-serial", "stdio"]),
    };
    let monitor = format!("unix:{},server=on,wait=off", scratch.join(MONITOR).display());
    qemu.args(["-m", &job.memory_mib.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", &monitor])
        .arg("-kernel")
        .arg(&job.kernel.path)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"])
        .arg("-drive")
        .arg(format!("if=none,id=d,format=raw,cache=unsafe,file={}", disk.display()))
        .args(["-device", "virtio-blk-pci,drive=d"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // QEMU prints a warning for each processor feature that TCG lacks; the file serves for a host that does not
        // boot.
        .stderr(fs::File::create(scratch.join(COMPLAINTS))?);
    Ok(qemu)
}

/// Debian's static busybox, the userland of the emulated host.
fn busybox() -> Result<PathBuf> {
    let busybox = sh::find("busybox").context("busybox is not installed")?;
    if sh::try_output(Command::new("ldd").arg(&busybox)).is_ok() {
        bail!("{} needs libraries: install package busybox-static in its place", busybox.display());
    }
    Ok(busybox)
}

fn initramfs(kernel: &Kernel, busybox: &Path, scratch: &Path) -> Result<PathBuf> {
    let init = "#!/bin/busybox sh\n\
        B=/bin/busybox\n\
        $B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev\n\
        while read module; do $B insmod $module || $B echo \"insmod $module: $?\"; done < /modules\n\
        $B mkdir /new; $B mount -t ext4 /dev/vda /new || $B echo 'no root disk'\n\
        for d in proc sys dev; do $B mount --move /$d /new/$d; done\n\
        exec $B switch_root /new /script\n";
    let path = scratch.join("host.cpio");
    let script = scratch.join("init");
    place(&script, init.as_bytes(), 0o755)?;
    kernel.pack(MODULES, &[("init", &script), ("bin/busybox", busybox)], &path)?;
    Ok(path)
}

/// The root disk: busybox, the job's files with the libraries they need, and the script.
fn disk(job: &Job<'_>, busybox: &Path, scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("root");
    for directory in ["bin", "dev", "proc", "sys", "tmp", "run", "root", "etc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(busybox, root.join("bin/busybox")).context("busybox")?;
    place(&root.join("etc/passwd"), b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
    let beats = match job.clock {
        Clock::Wall => format!("while echo; do sleep {BEAT_SECONDS}; done >/dev/ttyS1 &\n"),
        Clock::Instructions => String::new(),
    };
    let script = format!(
        "#!/bin/busybox sh\n\
         export PATH=/usr/sbin:/bin:/opt/matchlock HOME=/root\n\
         /bin/busybox dmesg -n 1\n\
         /bin/busybox --install -s /bin\n\
         mount -t tmpfs run /run; mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; hostname emulated; ip link set lo up\n\
         {beats}sh /job; echo \"{END}$?\"; poweroff -f\n"
    );
    place(&root.join("script"), script.as_bytes(), 0o755)?;
    place(&root.join("job"), job.script.as_bytes(), 0o755)?;
    // The product's program: busybox has one of the same name that makes other file systems.
    copy(Path::new("/sbin/mke2fs"), &root.join("usr/sbin/mke2fs"), &root)?;
    for (to, from) in &job.files {
        copy(from, &root.join(to.strip_prefix("/").unwrap_or(to)), &root)?;
    }
    let disk = scratch.join("host.img");
    // The disk has room for files that the job writes; the image is sparse.
    fs::File::create(&disk)?.set_len(8 << 30)?;
    let mut mke2fs = Command::new("/sbin/mke2fs");
    sh::output(mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&disk))?;
    fs::remove_dir_all(&root)?;
    Ok(disk)
}

fn place(path: &Path, data: &[u8], mode: u32) -> Result<()> {
    fs::write(path, data).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn copy(from: &Path, to: &Path, root: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(from).with_context(|| from.display().to_string())?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if meta.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if meta.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), root)?;
        }
    } else if meta.is_file() {
        // The disk is made from the files at once, so a link does; a copy would fill the holes of large files.
        fs::hard_link(from, to)
            .or_else(|error| match error.kind() {
                // The file there may be a link to one of this host, which a copy would overwrite.
                std::io::ErrorKind::AlreadyExists => Err(error),
                _ => fs::copy(from, to).map(drop),
            })
            .with_context(|| from.display().to_string())?;
        if meta.permissions().mode() & 0o111 != 0 {
            libraries(from, root)?;
        }
    }
    Ok(())
}

/// Copies the shared libraries that `program` loads.
fn libraries(program: &Path, root: &Path) -> Result<()> {
    // A static program makes ldd fail, and needs no libraries.
    let Ok(list) = sh::try_output(Command::new("ldd").arg(program)) else { return Ok(()) };
    for library in list.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        if !to.exists() {
            fs::create_dir_all(to.parent().context("library at the root")?)?;
            fs::copy(library, &to).with_context(|| library.to_owned())?;
        }
    }
    Ok(())
}

/// How long something took, for people.
pub(crate) fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_host_without_a_sign_of_life_stands_still() {
        let scratch = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(1000);
        let why = |elapsed| overdue(scratch.path(), Duration::from_secs(elapsed), limit);
        assert_eq!(why(999), None);
        assert_eq!(why(1000).unwrap(), "did not finish within 1000 s");
        let beats = fs::File::create(scratch.path().join(BEATS)).unwrap();
        beats.set_modified(SystemTime::now() - SILENCE).unwrap();
        assert_eq!(why(999), None, "a host that boots has no beat yet");
        (&beats).write_all(b"\n").unwrap();
        assert_eq!(why(999), None);
        beats.set_modified(SystemTime::now() - SILENCE).unwrap();
        assert_eq!(why(1).unwrap(), "stands still: it showed no sign of life for 300 s");
        beats.set_modified(SystemTime::now() - Duration::from_secs(7)).unwrap();
        assert_eq!(why(1000).unwrap(), "did not finish within 1000 s; its last sign of life is 7 s old");
    }
}
