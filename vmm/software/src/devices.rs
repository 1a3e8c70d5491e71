//! The device process: serves block, socket and entropy devices to QEMU's vhost-user front ends.
//!
//! It holds the guest's disks and memory, and nothing else: after its one message it opens nothing, and what the guest
//! could make of it would find no file system, no network, no other process, and would be nobody. Not here: the devices
//! themselves.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail};
use disk::{Disk, Segment};
use machine::software::protocol::{DeviceModel, DeviceSpec, Devices, DevicesReport, DiskSpec, SegmentSpec};
use process::Channel;
use virtio::Device;
use virtio::blk::BlockDevice;
use virtio::rng::Entropy;
use virtio::vsock::{GUEST_CID, Vsock};

use crate::Descriptors;
use crate::confine::{self, Condition, Conditional};

const PROGRAM: &str = "matchlock-devices";

/// A device, and where its front end waits.
struct Prepared {
    name: String,
    device: Box<dyn Device>,
    listener: UnixListener,
}

/// Serves until the supervisor hangs up or a device fails.
pub fn run(channel: Channel) -> anyhow::Result<()> {
    let channel = Arc::new(channel);
    // They outlive the report of a failure: QEMU notices the loss of a device only after the supervisor knows why.
    let (mut descriptors, mut prepared) = (Descriptors::default(), Vec::new());
    let outcome = serve(&channel, &mut descriptors, &mut prepared);
    if let Err(error) = &outcome {
        fail(&channel, error);
    }
    outcome
}

fn serve(
    channel: &Arc<Channel>,
    descriptors: &mut Descriptors,
    prepared: &mut Vec<Prepared>,
) -> anyhow::Result<()> {
    let Some((Devices(specs), received)) = channel.recv().context("first message")? else {
        return Ok(());
    };
    *descriptors = Descriptors::new(received);
    for (index, spec) in specs.into_iter().enumerate() {
        prepared.push(prepare(index, spec, descriptors)?);
    }

    confine()?;
    for Prepared { name, device, listener } in prepared.drain(..) {
        let served = vhost_backend::start(&name, device, listener).with_context(|| name.clone())?;
        let channel = Arc::clone(channel);
        let wait = move || {
            if let Err(error) = served.wait() {
                fail(&channel, &anyhow::Error::new(error).context(name));
                std::process::exit(1);
            }
        };
        thread::Builder::new().spawn(wait).context("thread")?;
    }
    channel.send(&DevicesReport::Serving, &[])?;

    match channel.recv::<()>()? {
        None => Ok(()),
        Some(_) => bail!("the supervisor broke the protocol"),
    }
}

/// Leaves this process what serving takes, and nothing else.
fn confine() -> anyhow::Result<()> {
    confine::leave_root(PROGRAM);
    confine::drop_capabilities()?;
    confine::deny_everything()?;
    confine::hide_clone3()?;
    confine::allow_only(&[confine::EVERYWHERE, SERVING], &[confine::EVERYWHERE_IF, SERVING_IF].concat())
}

fn fail(channel: &Channel, error: &anyhow::Error) {
    // A supervisor that is gone does not want to know.
    let _ = channel.send(&DevicesReport::Failed(format!("device process: {error:#}")), &[]);
}

fn prepare(index: usize, spec: DeviceSpec, descriptors: &mut Descriptors) -> anyhow::Result<Prepared> {
    let (name, device): (_, Box<dyn Device>) = match spec.device {
        DeviceModel::Block(disk, id) => {
            let blocks = open_disk(disk, descriptors).with_context(|| id.clone())?;
            (format!("blk{index}"), Box::new(BlockDevice::new(Box::new(blocks), &id)))
        }
        DeviceModel::Vsock(ports) => {
            let ports = descriptors.take(ports)?;
            let device = Vsock::new(ports, machine::LISTENING.to_vec(), GUEST_CID).context("vsock")?;
            ("vsock".to_owned(), Box::new(device))
        }
        DeviceModel::Entropy => ("rng".to_owned(), Box::new(Entropy::new())),
    };
    let listener = UnixListener::from(descriptors.take(spec.listener)?);
    Ok(Prepared { name, device, listener })
}

fn open_disk(spec: DiskSpec, descriptors: &mut Descriptors) -> anyhow::Result<Disk> {
    let segments = spec.segments.into_iter().map(|segment| {
        Ok(match segment {
            SegmentSpec::File { file, offset, len } => {
                Segment::File { file: descriptors.take(file)?, offset, len }
            }
            SegmentSpec::Bytes(bytes) => Segment::Bytes(bytes),
            SegmentSpec::Zeroes(len) => Segment::Zeroes(len),
        })
    });
    Ok(Disk::new(segments.collect::<anyhow::Result<_>>()?, spec.readonly)?)
}

/// What serving takes: threads, events, the guest's memory as the front end shares it, disks, and the guest's streams.
const SERVING: &[i64] = &[
    libc::SYS_accept4,
    // Only so that it is absent, not deadly: `hide_clone3`.
    libc::SYS_clone3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_sched_getaffinity,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_shutdown,
    libc::SYS_writev,
];

/// Linux asm-generic/ioctls.h
const FIONBIO: i32 = 0x5421;

/// What it takes with some arguments.
const SERVING_IF: &[Conditional] = &[
    (libc::SYS_clone, &[(0, Condition::With(libc::CLONE_THREAD))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_DUPFD_CLOEXEC))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_GETFL))]),
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_SETFL))]),
    (libc::SYS_ioctl, &[(1, Condition::Is(FIONBIO))]),
    (libc::SYS_prctl, &[(0, Condition::Is(libc::PR_SET_NAME))]),
    // Streams of the guest. A datagram socket, though half of a pair, would send to any other on the host.
    (
        libc::SYS_socketpair,
        &[(0, Condition::Is(libc::AF_UNIX)), (1, Condition::Is(libc::SOCK_STREAM | libc::SOCK_CLOEXEC))],
    ),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use landlock::{ABI, Access, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr};
    use process::{Spawn, spawn};

    use super::*;

    const FORBIDDEN: [&str; 5] = ["open", "socket", "datagrams", "process", "kill"];

    /// What a device process that a guest has taken over might try.
    fn attempt(what: &str) {
        match what {
            "open" => drop(File::open("/etc/passwd")),
            "socket" => drop(UdpSocket::bind("127.0.0.1:0")),
            // Which would reach any datagram socket on the host: a log, for instance.
            "datagrams" => drop(UnixDatagram::pair()),
            "process" => drop(Command::new("/bin/true").status()),
            "kill" => {
                let parent = rustix::process::getppid().unwrap();
                let _ = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
            }
            _ => {
                // What it may: threads, events, memory, the channel.
                thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();
                virtio::event().unwrap().write(1).unwrap();
                drop(UnixStream::pair().unwrap());
            }
        }
    }

    #[test]
    #[ignore = "the process that other tests confine"]
    fn confined() {
        let channel = process::parent_channel().unwrap();
        let ((seccomp, what), _) = channel.recv::<(bool, String)>().unwrap().unwrap();
        if seccomp {
            confine().unwrap();
            attempt(&what);
        } else {
            confine::drop_capabilities().unwrap();
            confine::deny_everything().unwrap();
            let denied = File::open("/etc/passwd").unwrap_err().kind();
            assert_eq!(denied, std::io::ErrorKind::PermissionDenied);
            let denied = TcpStream::connect("127.0.0.1:9").unwrap_err().kind();
            assert_eq!(denied, std::io::ErrorKind::PermissionDenied);
            assert!(rustix::thread::capabilities(None).unwrap().permitted.is_empty());
        }
        channel.send(&"did it", &[]).unwrap();
        std::process::exit(0);
    }

    /// How a confined process fares, and whether it could say that it did what it was told.
    fn fate(seccomp: bool, what: &str) -> (ExitStatus, bool) {
        let mut spec = Spawn::new(&std::env::current_exe().unwrap());
        spec.args =
            ["--exact", "devices::tests::confined", "--ignored", "--test-threads=1"].map(Into::into).into();
        let (mut child, channel) = spawn(spec).unwrap();
        channel.send(&(seccomp, what), &[]).unwrap();
        let did_it = channel.recv::<String>().unwrap().is_some();
        (child.wait().unwrap(), did_it)
    }

    #[test]
    fn forbidden_calls_kill_the_process() {
        assert_eq!(fate(true, "nothing forbidden"), (ExitStatus::from_raw(0), true));
        for what in FORBIDDEN {
            let (status, did_it) = fate(true, what);
            assert_eq!((status.signal(), did_it), (Some(libc::SIGSYS), false), "{what}: {status}");
        }
    }

    #[test]
    fn landlock_and_capabilities_hold_without_seccomp() {
        // Its network rules came with ABI 4.
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        if ruleset.handle_access(AccessNet::from_all(ABI::V4)).is_err() {
            skip::skip("landlock", "this kernel's Landlock is too old or switched off");
            return;
        }
        assert_eq!(fate(false, ""), (ExitStatus::from_raw(0), true));
    }
}
