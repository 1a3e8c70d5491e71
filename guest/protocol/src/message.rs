//! The messages, as plain data.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Guest to host on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlFromGuest {
    /// First message.
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u16,
        /// Microseconds since the guest kernel started (CLOCK_BOOTTIME) when the agent's `main` began.
        agent_start_us: u64,
    },
    /// The root is mounted and services are answered.
    Ready(Ready),
    /// The guest cannot become ready; it powers off after this.
    Failed(BootFailure),
    /// The kernel has found no timer that ticks, so no sleep would ever end; the guest powers off after this.
    NoTimer,
}

/// The times at which the guest reached each step, in microseconds since its kernel started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Drivers loaded.
    pub modules_us: u64,
    /// Root assembled.
    pub root_us: u64,
    /// Services answered.
    pub ready_us: u64,
}

/// The step of the guest's start that failed, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// For example `mount /dev/vda3`.
    pub step: String,
    /// The system's error.
    pub error: String,
}

/// Host to guest on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlFromHost {
    /// Answer to `Hello`.
    Boot(Box<BootConfig>),
    /// End all programs: SIGTERM, a grace time, SIGKILL; then sync, unmount, power off.
    Shutdown {
        /// Milliseconds that programs may take to end by themselves.
        grace_ms: u32,
    },
}

/// The guest's configuration. It never travels on the kernel command line, which the workload can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// [`crate::VERSION`] of the host.
    pub version: u16,
    /// Host wall clock, nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
    /// Fresh random bytes for the guest's entropy pool.
    pub entropy: [u8; 32],
    /// Number of read-only layers: partitions 1..=n of the first block device, lowest layer first.
    pub layers: u16,
    /// The kernel's release, if partition n+1 has all of its modules, which programs may load.
    pub modules: Option<String>,
    /// Directories of the image's that are made if the root lacks them: absolute paths.
    pub directories: Vec<String>,
    /// The writable upper file system.
    pub upper: UpperDisk,
    /// Host name, valid by RFC 1123.
    pub hostname: String,
    /// Extra lines for /etc/hosts.
    pub hosts: Vec<HostEntry>,
    /// The network, if the machine has a network device.
    pub network: Option<Network>,
    /// Lines for /etc/resolv.conf; if there are none, the network's gateway answers names.
    pub nameservers: Vec<String>,
    /// CPU quota in thousandths of a CPU; 0 = none.
    pub cpu_quota_milli: u32,
    /// Whether the guest checks that its timer ticks: an emulated processor may have stood still while the kernel
    /// measured it.
    pub check_timer: bool,
    /// The disks on the block devices from the third on, in their order.
    pub disks: Vec<DiskMount>,
    /// Mounts that the host serves. Without one from a device there is no such device.
    pub shares: Vec<ShareMount>,
}

/// The guest's network: one link, to a gateway through which everything goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Most bytes of a packet of IP that the guest sends.
    pub mtu: u16,
    /// The Ethernet address of the gateway, which never changes.
    pub gateway_station: [u8; 6],
    /// IPv4.
    pub v4: Ends<Ipv4Addr>,
    /// IPv6. A guest whose kernel has none does without.
    pub v6: Ends<Ipv6Addr>,
}

/// The addresses of both ends of the guest's link, of one version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends<A> {
    /// The guest's address.
    pub guest: A,
    /// Length of the link's prefix in bits.
    pub prefix: u8,
    /// The gateway's address.
    pub gateway: A,
}

/// A directory or a file that the host serves, and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// The path of its place, absolute; directories on the way are made.
    pub path: String,
    /// The device that has it.
    pub device: ShareDevice,
    /// Its number there.
    pub number: u16,
    /// Whether the host refuses writes.
    pub readonly: bool,
    /// Whether set-user-ID and set-group-ID bits count.
    pub set_ids: bool,
}

/// A virtio-fs device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareDevice {
    /// The one with files that the host may change.
    Shared,
    /// The one with files that only the guest has.
    Own,
}

impl ShareDevice {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Shared, Self::Own];

    /// The name by which the guest mounts it.
    #[must_use]
    pub fn tag(self) -> &'static str {
        match self {
            Self::Shared => "matchlock",
            Self::Own => "matchlock-own",
        }
    }
}

/// The place of the guest's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpperDisk {
    /// ext4 on the second block device.
    Ext4,
    /// tmpfs, lost with the guest.
    Memory,
}

/// An ext4 file system and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMount {
    /// The directory that it is mounted on: an absolute path; directories on the way are made.
    pub path: String,
    /// Whether the device refuses writes.
    pub readonly: bool,
    /// The new owner of the root directory.
    pub uid: Option<u32>,
    /// The new group of the root directory.
    pub gid: Option<u32>,
}

/// One line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Host name.
    pub host: String,
    /// The host's address.
    pub ip: String,
}

/// First message of a service stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Pong`]; may be repeated on the same stream, and followed by another request.
    Ping,
    /// Run a program; [`ProgramEvent`]s report on it.
    Exec(Box<ExecRequest>),
    /// Act on files, as root in the guest's own root directory; answered by a [`FileReply`].
    File(FileRequest),
    /// Connect to this TCP port of the guest's loopback address; answered by a [`ConnectReply`]. After it the stream
    /// carries the connection's bytes without frames, and each direction ends by itself.
    Connect {
        /// TCP port.
        port: u16,
    },
    /// Repeat what the host changes in shared folders, so that programs that watch files hear of it: [`HostChange`]s
    /// follow, one after the answer to the one before. Answered by [`HostChangeReply`]s.
    HostChanges,
    /// Mount what is served at the host's end of this stream; answered by an [`AddReply`]. After it the stream carries
    /// messages of FUSE, requests to the host and replies to the guest, each of which begins with its length
    /// ([`crate::messages`]). The mount's files are gone when the stream ends, and the stream ends when the mount is gone.
    AddMount(AddedMount),
    /// Take away a mount that was added; answered by a [`RemoveReply`].
    RemoveMount {
        /// The path of its place.
        path: String,
        /// Take it away even if it is in use: what is open there fails from then on.
        force: bool,
    },
}

/// A directory or a file that the host serves over a stream, and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedMount {
    /// The path of its place, absolute.
    pub path: String,
    /// It is a file.
    pub is_file: bool,
    /// Whether the host refuses writes.
    pub readonly: bool,
    /// Whether set-user-ID and set-group-ID bits count.
    pub set_ids: bool,
    /// Whether its place is made where it is missing, with directories on the way.
    pub make: bool,
}

/// Answer to a [`Request::RemoveMount`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoveReply {
    /// It is gone.
    Removed,
    /// It is in use, and stays.
    Busy,
    /// It stays for another reason, in the system's words.
    Failed(String),
}

/// A change that the host made in a shared folder. The folder's server takes the agent's repetition for what it is, and
/// changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChange {
    /// The folder: its number on the device of files that the host may change.
    pub share: u16,
    /// The directory, as a path from the folder's root on; empty for the root.
    pub directory: Vec<u8>,
    /// A name in it.
    pub name: Vec<u8>,
    /// The thing that happened to the name.
    pub what: HostAct,
}

/// The thing that happened to a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAct {
    /// The name is new.
    Appeared(NewFile),
    /// The name is gone.
    Vanished {
        /// Whether it was a directory's.
        directory: bool,
    },
    /// The file has another name.
    Moved {
        /// The directory of the new name.
        to_directory: Vec<u8>,
        /// The new name.
        to: Vec<u8>,
    },
    /// The contents are others.
    Written,
    /// Attributes are others.
    Changed,
}

/// The type of a file that has a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewFile {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// Answer to a [`Request::HostChanges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostChangeReply {
    /// The first: the number of the thread that repeats changes, and does nothing else in the folders.
    Thread(u32),
    /// A change is repeated, or cannot be: whether programs that watch were told of it.
    Done(bool),
}

/// A request on files. Relative paths start at `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// A regular file's content, as `Stdout` frames, then the reply. Symbolic links are followed.
    Read {
        /// The file.
        path: String,
        /// First byte.
        offset: u64,
        /// Most bytes; fewer come if the file ends before.
        length: u64,
        /// Fail with [`FileFailure::TooLarge`] before the first byte if the whole file is longer than this.
        size_limit: Option<u64>,
    },
    /// Takes `Stdin` frames, which an empty one ends; the reply comes when everything is written. Directories above
    /// the file are made. A hang-up before the end leaves the bytes so far.
    Write {
        /// The file, which is made if it does not exist.
        path: String,
        /// Permission bits of a new file; the umask applies.
        mode: u32,
        /// The place of the bytes.
        at: WriteAt,
    },
    /// A directory's entries, in any number of replies, an empty one last. Sorted by name, without `.` and `..`.
    List {
        /// The directory.
        path: String,
    },
    /// One entry, named as the path's last part.
    Stat {
        /// The file.
        path: String,
        /// Whether a symbolic link is followed.
        follow: bool,
    },
    /// Makes a directory.
    MakeDirectory {
        /// The directory.
        path: String,
        /// The directory's permission bits; the umask applies.
        mode: u32,
        /// Make the directories above it as well, and accept one that exists.
        parents: bool,
    },
    /// Removes a file, a link or a directory.
    Remove {
        /// The file.
        path: String,
        /// Remove a directory with all its content; without this only an empty one.
        recursive: bool,
    },
    /// Renames, replacing as rename(2) does.
    Rename {
        /// The old path.
        from: String,
        /// The new path.
        to: String,
    },
    /// Reports changes below a directory, or of a file, by [`WatchEvent`]s, until the host hangs up.
    Watch {
        /// The directory or file.
        path: String,
        /// Watch directories below it as well.
        recursive: bool,
    },
}

/// The place of written bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    /// The start of the file, whose old content is removed.
    Truncate,
    /// The end of the file.
    Append,
    /// This offset; the rest of the file stays.
    Offset(u64),
}

/// A file's metadata, from a directory or stat(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The file's name: any bytes but `/` and NUL. The root's is empty.
    pub name: Vec<u8>,
    /// The size in bytes.
    pub size: u64,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// The owner's user id.
    pub uid: u32,
    /// The owner's group id.
    pub gid: u32,
    /// The last change of the content, in seconds since 1970.
    pub mtime_s: i64,
    /// The nanoseconds of that time.
    pub mtime_ns: u32,
    /// The target of a symbolic link; empty for other files.
    pub target: Vec<u8>,
}

/// A change below a watched path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The kind of change.
    pub kind: ChangeKind,
    /// The file, as an absolute path.
    pub path: Vec<u8>,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// The file was made, or moved in. Reported twice if it came together with its directory.
    Created,
    /// The file was written or cut, its writer closed it, or its metadata changed. Several writes may be reported as
    /// one.
    Modified,
    /// The file was removed, or moved out.
    Removed,
    /// The guest's kernel lost changes; the directory should be read again.
    Overflow,
}

/// The reason why an act on files failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileFailure {
    /// The file is longer than the request's limit.
    TooLarge,
    /// The file is not a regular one.
    NotRegular,
    /// The system refused the act.
    System {
        /// `errno`.
        errno: i32,
        /// For example `open /a/b: no such file or directory`.
        text: String,
    },
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program.
    pub program: Program,
    /// The environment, complete but for variables that the agent adds (`HOME` on a user switch).
    pub env: Vec<(String, String)>,
    /// Working directory; empty = `/`.
    pub working_dir: String,
    /// `user`, `user:group`, `user:` or `:group`, each a name or a number; empty = root.
    pub user: String,
    /// Standard streams.
    pub stdio: Stdio,
    /// Lifts the restrictions inside the guest.
    pub privileged: bool,
    /// The program's descendants outlive it: `Exited` comes at the program's own end, whichever process holds its
    /// output open, and output may follow it. All that is left ends when the host hangs up.
    pub detached: bool,
    /// The program is PID 1 of its namespace: it has to reap orphans, signals without a handler have no effect (but
    /// SIGKILL and SIGSTOP from outside), and its descendants end with it, detached or not.
    pub first: bool,
}

/// A program, or a shell command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// `sh -c` with this text; `sh` is found by the request's PATH.
    Shell(String),
    /// This argument vector; `argv[0]` is found by the request's PATH unless it has a slash.
    Argv(Vec<String>),
}

/// Standard streams of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// stdin is /dev/null; stdout and stderr are separate.
    Null,
    /// stdin comes from the host; stdout and stderr are separate.
    Pipe,
    /// A terminal; all output is on stdout.
    Terminal(TerminalSize),
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Host to guest on a program's stream, besides the request and input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramControl {
    /// The terminal's new size.
    Resize(TerminalSize),
    /// Send a signal to the program's process group.
    Signal(i32),
}

/// A message from guest to host on a service stream: an answer of the request's own dialogue, or the reason why the
/// agent takes no request. A refusal is the last message of its stream.
pub type Reply<T> = Result<T, Refusal>;

/// The reason why the agent takes no request, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal(pub String);

/// An answer in the dialogue of one kind of request.
pub trait Answer: Serialize + DeserializeOwned {}

impl Answer for Pong {}
impl Answer for ProgramEvent {}
impl Answer for ConnectReply {}
impl Answer for HostChangeReply {}
impl Answer for RemoveReply {}
impl<T: Serialize + DeserializeOwned> Answer for FileReply<T> {}

/// Answer to [`Request::Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong;

/// An event of the program of a [`Request::Exec`], beside its output. Hanging up before `Exited` cancels: SIGTERM to
/// the group, then SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramEvent {
    /// The program runs.
    Started,
    /// The program ended and all its output has been sent. Last message of the stream, unless it is detached.
    Exited(Exit, Usage),
    /// The program never ran. Last message of the stream.
    Failed(ExecFailure),
}

/// Answer to a [`Request::File`]; a failure is the last message of its stream. `T` depends on the act: `()` at the
/// end of most, one [`FileEntry`] for `Stat`, any number of `Vec<FileEntry>` and an empty one for `List`,
/// [`WatchEvent`]s for `Watch`.
pub type FileReply<T> = Result<T, FileFailure>;

/// A message of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEvent {
    /// Changes are reported from now on.
    Watching,
    /// A change.
    Change(Change),
}

/// Answer to a [`Request::Connect`]: the connection is made, and the stream carries its bytes from here on; or the
/// system's error.
pub type ConnectReply = Result<(), String>;

/// Answer to a [`Request::AddMount`]: it is mounted; or the reason why not.
pub type AddReply = Result<(), String>;

/// The end of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// The program ended by itself, with this code.
    Code(u8),
    /// A signal ended the program.
    Signal(u8),
}

/// The agent's measurements of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// From the request's arrival to the program's first instruction (its execve returned), microseconds.
    pub spawn_us: u64,
    /// From the request's arrival to the program's end, microseconds.
    pub wall_us: u64,
}

/// The reason why a program never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailure {
    /// There is no such program (exit status 127).
    NotFound(String),
    /// The program exists but cannot be executed (exit status 126).
    NotExecutable(String),
    /// There is no such user or group.
    User(String),
    /// The working directory is unusable.
    WorkingDir(String),
    /// Any other error, in the system's words.
    Other(String),
}

impl Exit {
    /// The status a shell would report: 128 + n for signal n.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}
