//! The device process: serves block, socket and entropy devices to QEMU's vhost-user front ends.
//!
//! It holds the guest's disks and memory, and nothing else: after its one message it opens nothing, and what the guest
//! could make of it would find no file system, no network, no other process. Not here: the devices themselves.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail};
use disk::{Disk, Segment};
use machine::software::protocol::{DeviceModel, DeviceSpec, Devices, DevicesReport, DiskSpec, SegmentSpec};
use process::Channel;
use rustix::thread::CapabilitySet;
use virtio::Device;
use virtio::blk::BlockDevice;
use virtio::rng::Entropy;
use virtio::vsock::{GUEST_CID, Vsock};

use crate::Descriptors;
use crate::confine::{self, Condition, Conditional};

/// A device, and where its front end waits.
struct Prepared {
    name: String,
    device: Box<dyn Device>,
    listener: UnixListener,
}

/// Serves until the supervisor hangs up or a device fails.
pub fn run(channel: Channel) -> anyhow::Result<()> {
    let channel = Arc::new(channel);
    let outcome = serve(&channel);
    if let Err(error) = &outcome {
        fail(&channel, error);
    }
    outcome
}

fn serve(channel: &Arc<Channel>) -> anyhow::Result<()> {
    let Some((Devices(specs), descriptors)) = channel.recv().context("first message")? else {
        return Ok(());
    };
    let mut descriptors = Descriptors::new(descriptors);
    let prepared = specs.into_iter().enumerate().map(|(index, spec)| prepare(index, spec, &mut descriptors));
    let prepared: Vec<Prepared> = prepared.collect::<anyhow::Result<_>>()?;

    confine::drop_capabilities(CapabilitySet::empty())?;
    confine::deny_everything()?;
    confine::hide_clone3()?;
    confine::allow_only(&[confine::EVERYWHERE, SERVING], &[confine::EVERYWHERE_IF, SERVING_IF].concat())?;
    for Prepared { name, device, listener } in prepared {
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

fn fail(channel: &Channel, error: &anyhow::Error) {
    // A supervisor that is gone does not want to know.
    let _ = channel.send(&DevicesReport::Failed(format!("device process: {error:#}")), &[]);
}

fn prepare(index: usize, spec: DeviceSpec, descriptors: &mut Descriptors) -> anyhow::Result<Prepared> {
    let listener = UnixListener::from(descriptors.take(spec.listener)?);
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

/// What it takes with some arguments.
const SERVING_IF: &[Conditional] = &[
    (libc::SYS_clone, 0, Condition::With(libc::CLONE_THREAD)),
    (libc::SYS_fcntl, 1, Condition::Is(libc::F_DUPFD_CLOEXEC)),
    (libc::SYS_fcntl, 1, Condition::Is(libc::F_GETFL)),
    (libc::SYS_fcntl, 1, Condition::Is(libc::F_SETFL)),
    (libc::SYS_ioctl, 1, Condition::Is(libc::FIONBIO as i32)),
    (libc::SYS_prctl, 0, Condition::Is(libc::PR_SET_NAME)),
    (libc::SYS_socketpair, 0, Condition::Is(libc::AF_UNIX)),
];
