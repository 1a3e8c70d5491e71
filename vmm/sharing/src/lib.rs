//! The process of shared folders: serves directories of the host to a guest, as virtio-fs devices over vhost-user.
//!
//! It gets one message from the supervisor with every directory that is shared and a listener for each device, confines
//! itself to those directories, and ends when the supervisor's end of the channel hangs up. It is the process of the user
//! who shares the directories, since that user is to own what the guest makes in them; so the walls around it matter
//! more than those of the other processes.
//!
//! Not here: the supervisor's side (`machine::shares`), the FUSE protocol (`fuse`), files (`shares`), and vhost-user.

mod confine;
mod device;
mod followers;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail, ensure};
use confinement::User;
use fuse::{Coherence, FileSystem, Session};
use machine::descriptors::Incoming;
use machine::shares::{DeviceSpec, MAX_DEVICES, MAX_MOUNTS, MountSpec, Serve, SharesReport, View};
use process::Channel;
use rustix::fs::{FileType, Mode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shares::{Budget, HostFs, Options, OwnFiles, Router};

use confine::Inside;
use device::FileSystemDevice;
use followers::Followers;

const PROGRAM: &str = "matchlock-shares";

/// A device that is still without its file systems.
struct Planned {
    listener: UnixListener,
    tag: String,
    request_queues: u16,
    mounts: Vec<(OwnedFd, View)>,
}

/// Serves until the supervisor hangs up or a device fails; as `user`, if this process is root's on that user's behalf.
pub fn run(channel: Channel, user: Option<&User>) -> anyhow::Result<()> {
    let channel = Arc::new(channel);
    // They outlive the report of a failure: a machine notices that a device is gone only after the supervisor knows why.
    let mut planned = Vec::new();
    let outcome = serve(&channel, user, &mut planned);
    if let Err(error) = &outcome {
        fail(&channel, error);
    }
    outcome
}

fn serve(channel: &Arc<Channel>, user: Option<&User>, planned: &mut Vec<Planned>) -> anyhow::Result<()> {
    let Some((Serve { memory, devices }, received)) = channel.recv().context("first message")? else {
        return Ok(());
    };
    ensure!(devices.len() <= MAX_DEVICES, "{} devices are too many", devices.len());
    let mut received = Incoming::new(received);
    for device in devices {
        planned.push(plan(device, &mut received)?);
    }
    let counts: Vec<usize> = planned.iter().map(|device| device.mounts.len()).collect();
    drop(received);
    // `Followers::count` may read the number of CPUs from files, so it comes before the confinement.
    let followers = Followers::count();
    raise_descriptor_limit()?;
    // The guest's own umask has been heeded.
    rustix::process::umask(Mode::empty());

    // Each device maps all of the memory for itself, and twice for a moment when its front end tells of it anew.
    let mapped = u64::try_from(planned.len())?.saturating_mul(2).saturating_mul(memory);
    let shared = planned.iter_mut().flat_map(|device| device.mounts.drain(..)).collect();
    let inside = confine::walls(shared, user, mapped)?;
    let sessions = sessions(inside, &counts)?;
    confine::close_the_last_door()?;

    let followers = Arc::new(Followers::start(followers).context("thread")?);
    for (Planned { listener, tag, request_queues, .. }, session) in planned.drain(..).zip(sessions) {
        let device = FileSystemDevice::new(&tag, request_queues, session, Arc::clone(&followers))?;
        let served = vhost_backend::start_parallel("file system", Box::new(device), listener)?;
        let channel = Arc::clone(channel);
        let wait = move || {
            if let Err(error) = served.wait() {
                fail(&channel, &anyhow::Error::new(error));
                std::process::exit(1);
            }
        };
        thread::Builder::new().spawn(wait).context("thread")?;
    }
    channel.send(&SharesReport::Serving, &[])?;

    match channel.recv::<()>()? {
        None => Ok(()),
        Some(_) => bail!("the supervisor broke the protocol"),
    }
}

fn plan(spec: DeviceSpec, received: &mut Incoming) -> anyhow::Result<Planned> {
    let DeviceSpec { listener, tag, request_queues, mounts } = spec;
    ensure!(mounts.len() <= MAX_MOUNTS, "{} mounts are too many", mounts.len());
    let mounts = mounts.into_iter().map(|MountSpec { directory, view }| {
        let directory = received.take(directory)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
        ensure!(kind.is_dir(), "what is shared is not a directory");
        Ok((directory, view))
    });
    let mounts = mounts.collect::<anyhow::Result<_>>()?;
    Ok(Planned { listener: received.take(listener)?.into(), tag, request_queues, mounts })
}

/// The file systems of each device: as many as `counts` says, in order.
fn sessions(inside: Inside, counts: &[usize]) -> anyhow::Result<Vec<Session<Router>>> {
    let Inside { shared, own } = inside;
    // A quarter for each kind of descriptor, and a quarter for all else.
    let each = MAX_DESCRIPTORS.min(descriptor_limit()) / (4 * u64::try_from(shared.len())?.max(1));
    let each = usize::try_from(each)?;
    let mut shared = shared.into_iter();
    let mut make = || -> anyhow::Result<Option<Box<dyn FileSystem>>> {
        let Some((directory, View { readonly, owner_uid, owner_gid })) = shared.next() else {
            return Ok(None);
        };
        let budget = Budget { nodes: each, handles: each };
        let options = Options { readonly, owner_uid, owner_gid, budget, ..Options::default() };
        let own = OwnFiles::of(own.try_clone().context("descriptor")?);
        Ok(Some(Box::new(HostFs::of(directory, own, options)?)))
    };
    let session = |count: &usize| {
        let mounts = (0..*count).filter_map(|_| make().transpose()).collect::<anyhow::Result<_>>()?;
        Ok(Session::new(Router::new(mounts), Coherence::Shared))
    };
    counts.iter().map(session).collect()
}

/// Most descriptors that the tables of nodes are made for.
const MAX_DESCRIPTORS: u64 = 256 << 10;

fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Lets this process have as many descriptors as its user may give it.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("limit of descriptors")
}

fn fail(channel: &Channel, error: &anyhow::Error) {
    // A supervisor that is gone does not want to know.
    let _ = channel.send(&SharesReport::Failed(format!("shared folders: {error:#}")), &[]);
}

/// Tells the log.
fn say(what: &str) {
    // A log that is gone is no reason to end.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{PROGRAM}: {what}\n").as_bytes());
}
