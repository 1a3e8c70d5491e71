//! The process of shared folders: serves directories of the host, and folders in its memory, to a guest, as virtio-fs
//! devices over vhost-user.
//!
//! It gets one message from the supervisor with every directory that is shared and a listener for each device, confines
//! itself to those directories, and ends when the supervisor's end of the channel hangs up. It is the process of the user
//! who shares the directories, since that user is to own what the guest makes in them; so the walls around it matter
//! more than those of the other processes.
//!
//! Not here: the supervisor's side (`machine::shares`), the FUSE protocol (`fuse`), files (`shares`), and vhost-user.

mod added;
mod changes;
mod confine;
mod device;
mod files;
mod followers;
mod keep;
mod watch;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail, ensure};
use confinement::User;
use fuse::{Coherence, Session};
use machine::descriptors::{Fd, Incoming};
use machine::shares::{
    AddedSpec, DeviceSpec, Later, MAX_DEVICES, MAX_MOUNTS, MountSpec, Serve, SharesReport,
};
use process::Channel;
use rustix::fs::{FileType, Mode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shares::{Budget, Router};

use changes::Changes;
use confine::{Directory, Inside};
use device::FileSystemDevice;
use files::Maker;
use followers::Followers;
use keep::Keeping;
use overlay::Files;
use watch::Watched;

const PROGRAM: &str = "matchlock-shares";

const BROKEN: &str = "the supervisor broke the protocol";

/// A device that is still without its file systems.
struct Planned {
    listener: UnixListener,
    tag: String,
    request_queues: u16,
    coherence: Coherence,
    mounts: Vec<MountSpec<OwnedFd>>,
}

/// Serves until the supervisor hangs up or a device fails; as `user`, if this process is root's on that user's behalf.
pub fn run(channel: Channel, user: Option<&User>) -> anyhow::Result<()> {
    let channel = Arc::new(channel);
    // The devices outlive the report of a failure: a machine notices the loss of a device only after the supervisor
    // knows the reason.
    let mut planned = Vec::new();
    let outcome = serve(&channel, user, &mut planned);
    if let Err(error) = &outcome {
        fail(&channel, error);
    }
    outcome
}

fn serve(channel: &Arc<Channel>, user: Option<&User>, planned: &mut Vec<Planned>) -> anyhow::Result<()> {
    let Some((Serve { memory, devices, keeper, watch, added }, received)) =
        channel.recv().context("first message")?
    else {
        return Ok(());
    };
    let watched = Watched::new(watch)?;
    ensure!(devices.len() <= MAX_DEVICES, "{} devices are too many", devices.len());
    let mut received = Incoming::new(received);
    for device in devices {
        planned.push(plan(device, &mut received)?);
    }
    let added = added.map(|AddedSpec { exclusive, mount }| {
        anyhow::Ok(added::Planned {
            coherence: coherence(exclusive),
            mount: take_mount(mount, &mut received)?,
        })
    });
    let added = added.transpose()?;
    let keeper = keeper.map(|keeper| received.take(keeper).map(Channel::from)).transpose()?;
    drop(received);
    // `Followers::count` may read the number of CPUs from files, so it comes before the confinement.
    let followers = Followers::count();
    raise_descriptor_limit()?;
    // The guest's own umask has been heeded.
    rustix::process::umask(Mode::empty());
    if let Some(mount) = added {
        return added::serve(channel, user, mount, &watched);
    }

    // Each device maps all of the memory for itself, and twice for a moment when its front end tells of it anew.
    let mapped = u64::try_from(planned.len())?.saturating_mul(2).saturating_mul(memory);
    let (mounts, shared) = apart(planned)?;
    let kept = mounts.iter().flatten().map(|mount| mount.content.limit()).fold(0, u64::saturating_add);
    let inside = confine::walls(shared, user, confine::Memory { mapped, kept })?;
    let mut changes = changes(&inside);
    let (sessions, overlays) = sessions(inside, mounts, planned, (&watched, changes.as_ref()))?;
    let keeping = keeper.map(|keeper| Arc::new(Keeping::new(overlays, keeper)));
    confine::close_the_last_door()?;

    let followers = Arc::new(Followers::start(followers).context("thread")?);
    for (Planned { listener, tag, request_queues, .. }, session) in planned.drain(..).zip(sessions) {
        let device = FileSystemDevice::new(&tag, request_queues, session, Arc::clone(&followers))?;
        let served = vhost_backend::start_parallel("file system", Box::new(device), listener)?;
        let (channel, keeping) = (Arc::clone(channel), keeping.clone());
        let wait = move || {
            if let Err(error) = served.wait() {
                fail(&channel, &anyhow::Error::new(error));
                keeping.iter().for_each(|keeping| keeping.keep());
                std::process::exit(1);
            }
        };
        thread::Builder::new().spawn(wait).context("thread")?;
    }
    if let Some(keeping) = keeping.clone() {
        thread::Builder::new().spawn(move || keeping.serve()).context("thread")?;
    }
    channel.send(&SharesReport::Serving, &[])?;
    if let Some(events) = watched.events() {
        watch::tell(events, channel)?;
    }
    while let Some((later, received)) = channel.recv()? {
        match (later, watched.events()) {
            (Later::Mark(mark), Some(events)) => events.mark(mark),
            (Later::Mark(_), None) | (Later::Guest(_), _) => bail!(BROKEN),
            (Later::Agent(stream), _) => {
                let stream = Incoming::new(received).take(stream)?;
                changes.take().map_or(Ok(()), |changes| changes.tell(stream))?;
            }
        }
    }
    keeping.iter().for_each(|keeping| keeping.keep());
    Ok(())
}

/// Makes ready to hear of the host's changes. Without it, files are served all the same.
fn changes(inside: &Inside) -> Option<Changes> {
    let changes = rustix::process::fchdir(&inside.own).map_err(Into::into).and_then(|()| Changes::new());
    let complain = |error: &std::io::Error| {
        say(&format!("programs of the guest that watch files miss what the host does: {error}"))
    };
    changes.inspect_err(complain).ok()
}

fn plan(spec: DeviceSpec, received: &mut Incoming) -> anyhow::Result<Planned> {
    let DeviceSpec { listener, tag, request_queues, exclusive, mounts } = spec;
    ensure!(mounts.len() <= MAX_MOUNTS, "{} mounts are too many", mounts.len());
    let mounts = mounts.into_iter().map(|mount| take_mount(mount, received));
    let mounts = mounts.collect::<anyhow::Result<_>>()?;
    let coherence = coherence(exclusive);
    Ok(Planned { listener: received.take(listener)?.into(), tag, request_queues, coherence, mounts })
}

fn take_mount(mount: MountSpec<Fd>, received: &mut Incoming) -> anyhow::Result<MountSpec<OwnedFd>> {
    mount.try_map(|directory| {
        let directory = received.take(directory)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
        ensure!(kind.is_dir(), "what is shared is not a directory");
        Ok(directory)
    })
}

fn coherence(exclusive: bool) -> Coherence {
    if exclusive { Coherence::Exclusive } else { Coherence::Shared }
}

/// The mounts of each device, with numbers of directories, and these directories.
type Apart = (Vec<Vec<MountSpec<usize>>>, Vec<Directory>);

fn apart(planned: &mut [Planned]) -> anyhow::Result<Apart> {
    let mut directories = Vec::new();
    let mut mounts_of = |device: &mut Planned| {
        let mounts = device.mounts.drain(..).map(|mount| apart_one(mount, &mut directories));
        mounts.collect::<anyhow::Result<Vec<_>>>()
    };
    let mounts = planned.iter_mut().map(&mut mounts_of).collect::<anyhow::Result<_>>()?;
    Ok((mounts, directories))
}

fn apart_one(
    mount: MountSpec<OwnedFd>,
    directories: &mut Vec<Directory>,
) -> anyhow::Result<MountSpec<usize>> {
    // Only the first is the host's: behind it comes one for changes.
    let mut readonly = mount.content.leaves_host();
    mount.try_map(|directory| {
        directories.push(Directory { directory, readonly: std::mem::take(&mut readonly) });
        anyhow::Ok(directories.len() - 1)
    })
}

/// The file systems of each device, and the overlays among them.
type Served = (Vec<Session<Router>>, Vec<Arc<Files>>);

fn sessions(
    inside: Inside,
    mounts: Vec<Vec<MountSpec<usize>>>,
    planned: &[Planned],
    (watched, changes): (&Watched, Option<&Changes>),
) -> anyhow::Result<Served> {
    let Inside { shared, own } = inside;
    let budget = budget(shared.len())?;
    let maker = Maker { own, budget, watched, changes, overlays: RefCell::default() };
    let mut shared: Vec<_> = shared.into_iter().map(Some).collect();
    let mut take = |number| {
        let directory = shared.get_mut(number).and_then(Option::take);
        directory.context("a directory is missing")
    };
    let session = |(mounts, device): (Vec<MountSpec<usize>>, &Planned)| {
        let mounts = mounts.into_iter().map(|mount| mount.try_map(&mut take));
        let router = maker.router(mounts.collect::<anyhow::Result<_>>()?)?;
        Ok(Session::new(router, device.coherence))
    };
    let sessions = mounts.into_iter().zip(planned).map(session).collect::<anyhow::Result<_>>()?;
    Ok((sessions, maker.overlays.into_inner()))
}

/// Descriptors for each of so many directories.
fn budget(directories: usize) -> anyhow::Result<Budget> {
    // A quarter for each kind of descriptor, and a quarter for all else.
    let each = MAX_DESCRIPTORS.min(descriptor_limit()) / (4 * u64::try_from(directories)?.max(1));
    let each = usize::try_from(each)?;
    Ok(Budget { nodes: each, handles: each })
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
    // If the supervisor is gone, the report is lost with it.
    let _ = channel.send(&SharesReport::Failed(format!("shared folders: {error:#}")), &[]);
}

/// Tells the log.
fn say(what: &str) {
    // A log that is gone is no reason to end.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{PROGRAM}: {what}\n").as_bytes());
}
