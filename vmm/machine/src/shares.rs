//! The process that serves folders to a machine's guest, of the host and of the guest's own: `matchlock-shares`.
//!
//! ```text
//! supervisor                         matchlock-shares
//!   Serve + descriptors ───────────▶
//!                            ◀────── Serving, or Failed(why) and the end
//!                            ◀────── Files: what was done to files, if that is watched
//!   Agent(stream) ─────────────────▶  the host's changes go to the guest's agent
//!   Mark(n) ───────────────────────▶
//!                            ◀────── Files with mark n, after all that was done before
//!                            ◀────── Failed(why), and the end
//! ```
//!
//! A mount that is added while its guest runs has a process of its own, without a device: `Serve` has the mount, and
//! `Guest(stream)` brings the stream to the guest's kernel, once that has mounted it.
//!
//! The process is one of the back ends outside of a machine ([`crate::BackEnd`]), and ends when the supervisor hangs up.
//! Not here: how files are served, and what the process may do (the program sees to both).

mod keeper;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use broker::{Child, Program, User};
use process::{Channel, Spawn};
use rustix::net::Shutdown;
use serde::{Deserialize, Serialize};

use crate::children::{any_of, find, in_process, is_readable, system, wait_readable, wait_readable_for};
use crate::descriptors::{Fd, Outgoing};
use crate::{BackEnd, Elsewhere, Ending, Kind, Machine, MachineError};

pub use keeper::{Keep, Keeper, Kept};

/// The program.
const PROGRAM: &str = Program::Shares.name();

/// Most devices of one process: one for files that the host changes too, one for the guest's own.
pub const MAX_DEVICES: usize = 2;

/// Most mounts of one device.
pub const MAX_MOUNTS: usize = 64;

/// Most bytes of memory that an overlay takes whose contents are in files: what is known of its files, and small ones.
const MAX_OVERLAY_MEMORY: u64 = 320 << 20;

/// The first message to the process: what it serves.
#[derive(Debug, Serialize, Deserialize)]
pub struct Serve {
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// The devices.
    pub devices: Vec<DeviceSpec>,
    /// A channel on which the wish comes that changes of overlays be written down, if there are overlays.
    pub keeper: Option<Fd>,
    /// Rules for all files, and whether operations are told.
    pub watch: Watch,
    /// A mount that is served over a stream, by a process without devices.
    pub added: Option<AddedSpec>,
}

/// A mount that is served over a stream.
#[derive(Debug, Serialize, Deserialize)]
pub struct AddedSpec {
    /// Nobody but the guest changes these files.
    pub exclusive: bool,
    /// The mount.
    pub mount: MountSpec<Fd>,
}

/// To the process, later.
#[derive(Debug, Serialize, Deserialize)]
pub enum Later {
    /// A mark is wanted behind what has been done to files so far.
    Mark(u64),
    /// A stream to the guest's agent, which waits to hear of the host's changes. Only the first counts.
    Agent(Fd),
    /// The stream on which the guest's kernel asks for the files of a mount that was added. Only the first counts.
    Guest(Fd),
}

/// Rules for the files of all mounts, and whether operations are told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// Whether operations are told.
    pub events: bool,
}

/// A rule, in the words of those who gave it; it is known to be in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The phase.
    pub phase: String,
    /// The operations.
    pub ops: Vec<String>,
    /// The pattern of paths.
    pub path: String,
    /// The action.
    pub action: String,
}

/// A device to serve.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// A listening socket at which the device's front end waits to be accepted.
    pub listener: Fd,
    /// The name that the guest mounts it by.
    pub tag: String,
    /// Queues besides the one for urgent requests.
    pub request_queues: u16,
    /// Nobody but the guest changes these files, so the guest may write later and believe what it knows.
    pub exclusive: bool,
    /// The mounts in the device, each under its number.
    pub mounts: Vec<MountSpec<Fd>>,
}

/// A mount, with directories of the host as `D`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountSpec<D> {
    /// The files.
    pub content: Content<D>,
    /// Where others are mounted in it.
    pub inner: Vec<Inner>,
    /// Where it is in the guest: rules and events have paths of the guest.
    pub place: String,
    /// The names of it that are hidden or protected.
    pub masks: Masks,
}

/// Patterns of names of a mount; they are known to be in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masks {
    /// Names that the guest does not see.
    pub hidden: Vec<String>,
    /// Names that the guest does not change.
    pub readonly: Vec<String>,
    /// The names that programs of the host run or obey are among the latter.
    pub protect: bool,
}

/// The files of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Content<D> {
    /// An empty folder in the process' memory.
    Memory {
        /// Most bytes that may be kept of it.
        limit: u64,
    },
    /// The host's files.
    Host {
        /// Which.
        source: Source<D>,
        /// How the guest sees them.
        view: View,
    },
    /// The host's files, and what the guest makes of them.
    Overlay {
        /// Which.
        source: Source<D>,
        /// Most bytes that the contents may take of the guest's changes.
        limit: u64,
        /// An empty directory for these contents and for the list of changes; without one they are in memory, and there is
        /// no list.
        changes: Option<D>,
    },
}

/// Files of the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source<D> {
    /// Their directory.
    pub directory: D,
    /// The one file of it that is mounted, if that is not the whole directory.
    pub file: Option<Vec<u8>>,
}

/// A place in a mount at which another one is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    /// The path that leads there from the mount's root: names with slashes between them.
    pub path: String,
    /// The other mount is a file.
    pub is_file: bool,
}

impl<D> MountSpec<D> {
    /// The same with other descriptions of directories.
    pub fn try_map<T, E>(self, mut map: impl FnMut(D) -> Result<T, E>) -> Result<MountSpec<T>, E> {
        let content = match self.content {
            Content::Memory { limit } => Content::Memory { limit },
            Content::Host { source, view } => Content::Host { source: source.try_map(&mut map)?, view },
            Content::Overlay { source, limit, changes } => {
                let source = source.try_map(&mut map)?;
                Content::Overlay { source, limit, changes: changes.map(map).transpose()? }
            }
        };
        Ok(MountSpec { content, inner: self.inner, place: self.place, masks: self.masks })
    }
}

impl<D> Source<D> {
    fn try_map<T, E>(self, mut map: impl FnMut(D) -> Result<T, E>) -> Result<Source<T>, E> {
        Ok(Source { directory: map(self.directory)?, file: self.file })
    }
}

impl<D> Content<D> {
    /// Most bytes that the process keeps of it in memory.
    #[must_use]
    pub fn limit(&self) -> u64 {
        match self {
            Self::Overlay { changes: Some(_), .. } => MAX_OVERLAY_MEMORY,
            Self::Memory { limit } | Self::Overlay { limit, changes: None, .. } => *limit,
            Self::Host { .. } => 0,
        }
    }

    /// Whether the process writes a list of what was changed.
    fn has_list(&self) -> bool {
        matches!(self, Self::Overlay { changes: Some(_), .. })
    }

    /// Whether the process changes nothing on the host.
    #[must_use]
    pub fn leaves_host(&self) -> bool {
        match self {
            Self::Memory { .. } | Self::Overlay { .. } => true,
            Self::Host { view, .. } => view.readonly,
        }
    }
}

/// How the guest sees a directory of the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Nothing in it can be changed.
    pub readonly: bool,
    /// Owner of what the guest has not given an owner; the host's if none.
    pub owner_uid: Option<u32>,
    /// Group of the same.
    pub owner_gid: Option<u32>,
    /// The parts that the guest's kernel keeps.
    pub caching: Caching,
}

/// The parts of a directory that the guest's kernel keeps, and with them a promise of when it sees the host's changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caching {
    /// None: at once.
    None,
    /// Contents, until a file that has changed is opened; names and attributes for a second.
    #[default]
    Auto,
    /// Everything, for an hour: nobody else changes the files.
    Always,
}

/// From the process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharesReport {
    /// Every device waits for its driver, and the process is confined.
    Serving,
    /// Nothing is served any more; the text says why.
    Failed(String),
    /// Operations on files.
    Files(Files),
}

/// Operations on files since the last time.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The operations, in order.
    pub events: Vec<FileEvent>,
    /// Operations after these of which nothing is known but their number.
    pub lost: u64,
    /// A mark that was asked for: all that was done before is told.
    pub mark: Option<u64>,
}

/// An operation on a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEvent {
    /// The operation's code (`policy::files::Op::code`).
    pub op: u8,
    /// The file's path in the guest.
    pub path: Vec<u8>,
    /// Bytes that were moved.
    pub size: u64,
    /// `st_mode`, or its permissions alone, or 0.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A device, before it is served.
#[derive(Debug)]
pub struct Device {
    /// The name that the guest mounts it by: at most 36 bytes.
    pub tag: String,
    /// Queues besides the one for urgent requests.
    pub request_queues: u16,
    /// Nobody but the guest changes these files.
    pub exclusive: bool,
    /// The mounts in the device; the guest finds each under its number.
    pub mounts: Vec<MountSpec<OwnedFd>>,
}

/// The process, and what it says.
#[derive(Debug)]
pub struct Shares {
    child: Child,
    channel: Arc<Channel>,
    /// Why the process failed, from the thread that listens to it, if one does.
    heard: Option<Mutex<mpsc::Receiver<String>>>,
    keeper: Option<Arc<Keeper>>,
}

/// Asks a process for marks in what it tells of files.
#[derive(Debug, Clone)]
pub struct Marker(Arc<Channel>);

impl Marker {
    /// Asks for a mark; returns whether the process is there. May wait for the process if an earlier mark has not come
    /// back.
    #[must_use]
    pub fn mark(&self, mark: u64) -> bool {
        self.0.send(&Later::Mark(mark), &[]).is_ok()
    }
}

/// Gives a process the way to the guest's agent.
#[derive(Debug, Clone)]
pub struct AgentTaker(Arc<Channel>);

impl AgentTaker {
    /// Gives the process a stream to the agent, which waits to hear of the host's changes.
    pub fn give(&self, stream: OwnedFd) -> Result<(), MachineError> {
        let mut descriptors = Outgoing::default();
        let later = Later::Agent(descriptors.add(stream));
        descriptors.send(&self.0, &later).map_err(in_process(PROGRAM))
    }
}

impl Shares {
    /// Starts to serve `devices` to a machine with so many bytes of memory; returns also the back ends for that
    /// machine's configuration. A refusal of the process shows as its end.
    pub fn start(
        devices: Vec<Device>,
        watch: Watch,
        memory: u64,
        log: Option<OwnedFd>,
    ) -> Result<(Self, Vec<BackEnd>), MachineError> {
        Self::start_with(&find(PROGRAM)?, devices, watch, memory, None, log)
    }

    /// [`Shares::start`] with a program from elsewhere. Started by root, the process becomes `user`'s.
    pub fn start_with(
        program: &Path,
        devices: Vec<Device>,
        watch: Watch,
        memory: u64,
        user: Option<User>,
        log: Option<OwnedFd>,
    ) -> Result<(Self, Vec<BackEnd>), MachineError> {
        let args = user.map(|user| user.arguments()).unwrap_or_default();
        let spawn = Spawn { stderr: log, args, ..Spawn::new(program) };
        let (child, channel) = broker::start(Program::Shares, spawn).map_err(in_process(PROGRAM))?;
        let (mut descriptors, mut specs, mut back_ends) = (Outgoing::default(), Vec::new(), Vec::new());
        let mounts = devices.iter().flat_map(|device| &device.mounts);
        let keeps = mounts.map(|mount| &mount.content).any(Content::has_list);
        let keeper = keeps.then(Channel::pair).transpose().map_err(system(PROGRAM))?;
        let (keeper, theirs) = keeper.unzip();
        for Device { tag, request_queues, exclusive, mounts } in devices {
            let (listener, socket) = process::accept_pair().map_err(system(PROGRAM))?;
            let mut add = |directory| Ok::<_, Infallible>(descriptors.add(directory));
            let Ok(mounts) = mounts.into_iter().map(|mount| mount.try_map(&mut add)).collect();
            let listener = descriptors.add(listener);
            specs.push(DeviceSpec { listener, tag: tag.clone(), request_queues, exclusive, mounts });
            let device = Elsewhere::FileSystem { tag, request_queues };
            back_ends.push(BackEnd { socket: socket.into(), device });
        }
        let theirs = theirs.map(|theirs| descriptors.add(theirs));
        let serve = Serve { memory, devices: specs, keeper: theirs, watch, added: None };
        descriptors.send(&channel, &serve).map_err(in_process(PROGRAM))?;
        let keeper = keeper.map(Keeper::new).map(Arc::new);
        Ok((Self { child, channel: Arc::new(channel), heard: None, keeper }, back_ends))
    }

    /// Starts to serve a mount that is added to a guest that runs. `exclusive`: nobody but the guest changes its files.
    pub fn start_added(
        mount: MountSpec<OwnedFd>,
        exclusive: bool,
        watch: Watch,
        log: Option<OwnedFd>,
    ) -> Result<Self, MachineError> {
        Self::start_added_with(&find(PROGRAM)?, mount, exclusive, watch, None, log)
    }

    /// [`Shares::start_added`] with a program from elsewhere. Started by root, the process becomes `user`'s.
    pub fn start_added_with(
        program: &Path,
        mount: MountSpec<OwnedFd>,
        exclusive: bool,
        watch: Watch,
        user: Option<User>,
        log: Option<OwnedFd>,
    ) -> Result<Self, MachineError> {
        let args = user.map(|user| user.arguments()).unwrap_or_default();
        let spawn = Spawn { stderr: log, args, ..Spawn::new(program) };
        let (child, channel) = broker::start(Program::Shares, spawn).map_err(in_process(PROGRAM))?;
        let mut descriptors = Outgoing::default();
        let mut add = |directory| Ok::<_, Infallible>(descriptors.add(directory));
        let Ok(mount) = mount.try_map(&mut add);
        let added = Some(AddedSpec { exclusive, mount });
        let serve = Serve { memory: 0, devices: Vec::new(), keeper: None, watch, added };
        descriptors.send(&channel, &serve).map_err(in_process(PROGRAM))?;
        Ok(Self { child, channel: Arc::new(channel), heard: None, keeper: None })
    }

    /// Gives the process of a mount that was added the stream to the guest's kernel.
    pub fn give_guest(&self, stream: OwnedFd) -> Result<(), MachineError> {
        let mut descriptors = Outgoing::default();
        let later = Later::Guest(descriptors.add(stream));
        descriptors.send(&self.channel, &later).map_err(in_process(PROGRAM))
    }

    /// Hangs up, and waits for the process' end, but not for long.
    pub fn end(self) {
        let _ = rustix::net::shutdown(&*self.channel, Shutdown::Both);
        wait_readable_for(self.child.as_fd(), LAST_WORDS);
    }

    /// The way to have changes of overlays written down, if there are overlays.
    #[must_use]
    pub fn keeper(&self) -> Option<Arc<Keeper>> {
        self.keeper.clone()
    }

    /// The way to give the process a stream to the guest's agent.
    #[must_use]
    pub fn agent_taker(&self) -> AgentTaker {
        AgentTaker(Arc::clone(&self.channel))
    }

    /// Gives what the process tells of files to `take`, on a thread of its own, until the process ends. While `take`
    /// waits, so does the process' telling, and in the end operations are lost.
    pub fn listen(&mut self, take: impl FnMut(Files) + Send + 'static) -> Result<Marker, MachineError> {
        let (tell, heard) = mpsc::channel();
        let channel = Arc::clone(&self.channel);
        let thread = thread::Builder::new().name("files".to_owned());
        let thread = thread.spawn(move || listen(&channel, take, &tell));
        thread.map_err(system(PROGRAM))?;
        self.heard = Some(Mutex::new(heard));
        Ok(Marker(Arc::clone(&self.channel)))
    }

    /// The machine that was made beside the process, which ends with it. Where none was made, the process may know why.
    pub fn beside(
        mut self,
        made: Result<Box<dyn Machine>, MachineError>,
    ) -> Result<Box<dyn Machine>, MachineError> {
        let machine = made.map_err(|error| self.cause().map_or(error, MachineError::Refused))?;
        let ended = any_of(&[machine.ended(), self.ended()]).map_err(system(PROGRAM))?;
        Ok(Box::new(Beside { machine, shares: self, ended, ending: None }))
    }

    /// Why the process has ended by itself, if it has.
    fn cause(&mut self) -> Option<String> {
        // A process that is killed may still be ending when others notice that it is gone.
        wait_readable_for(self.child.as_fd(), LAST_WORDS).then(|| self.failure())
    }

    /// Readable once the process has ended.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Its process id, for messages.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits until the process serves, or has failed; then the error says why.
    pub fn wait_until_serving(&mut self) -> Result<(), MachineError> {
        match self.channel.recv().map_err(in_process(PROGRAM))? {
            Some((SharesReport::Serving, _)) => Ok(()),
            Some((SharesReport::Failed(why), _)) => Err(MachineError::Refused(why)),
            Some((SharesReport::Files(_), _)) | None => Err(MachineError::Refused(self.failure())),
        }
    }

    /// Waits for the end of the process, which nobody asked for, and says why it ended.
    pub fn failure(&mut self) -> String {
        let status = self.child.wait();
        let why = match &mut self.heard {
            Some(heard) => {
                heard.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(LAST_WORDS).ok()
            }
            None => last_words(&self.channel),
        };
        if let Some(why) = why {
            return why;
        }
        match status {
            Ok(status) => format!("the process of the shared folders ended: {status}"),
            Err(error) => format!("the process of the shared folders cannot be waited for: {error}"),
        }
    }
}

impl Drop for Shares {
    /// Hangs up, even where others have the channel.
    fn drop(&mut self) {
        // A process that is gone has hung up itself.
        let _ = rustix::net::shutdown(&*self.channel, Shutdown::Both);
    }
}

/// Why a process that has ended says that it failed.
fn last_words(channel: &Channel) -> Option<String> {
    loop {
        match channel.try_recv() {
            Ok(Some((SharesReport::Failed(why), _))) => return Some(why),
            Ok(Some((SharesReport::Serving | SharesReport::Files(_), _))) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Listens to a process until it hangs up or says nonsense.
fn listen(channel: &Channel, mut take: impl FnMut(Files), tell: &mpsc::Sender<String>) {
    while let Ok(Some((report, _))) = channel.recv() {
        match report {
            SharesReport::Serving => {}
            SharesReport::Files(files) => take(files),
            // The receiver may be gone.
            SharesReport::Failed(why) => drop(tell.send(why)),
        }
    }
}

/// How long the process may take to end once it is gone for the machine.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A machine that ends with the process of its shared directories.
struct Beside {
    machine: Box<dyn Machine>,
    shares: Shares,
    /// Readable once either has ended.
    ended: OwnedFd,
    ending: Option<Ending>,
}

impl Machine for Beside {
    fn kind(&self) -> Kind {
        self.machine.kind()
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.machine.pause()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.machine.resume()
    }

    fn stop(&mut self) {
        self.machine.stop();
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn wait(&mut self) -> Ending {
        if let Some(ending) = &self.ending {
            return ending.clone();
        }
        wait_readable(self.ended.as_fd());
        let ending = if is_readable(self.machine.ended()) {
            let ending = self.machine.wait();
            if let Some(keeper) = self.shares.keeper() {
                // The guest changes nothing more, and the process is about to be ended. A failure is the keeper's to tell.
                let _ = keeper.keep();
            }
            match ending {
                Ending::Failed(how) => Ending::Failed(self.shares.cause().unwrap_or(how)),
                by_itself => by_itself,
            }
        } else {
            let why = self.shares.failure();
            self.machine.stop();
            self.machine.wait();
            Ending::Failed(why)
        };
        self.ending.insert(ending).clone()
    }
}
