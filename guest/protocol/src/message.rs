//! The messages, as plain data.

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

/// When the guest got where, in microseconds since its kernel started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Drivers loaded.
    pub modules_us: u64,
    /// Root assembled.
    pub root_us: u64,
    /// Services answered.
    pub ready_us: u64,
}

/// Which step of the guest's start failed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// For example `mount /dev/vda3`.
    pub step: String,
    /// The system's words.
    pub error: String,
}

/// Host to guest on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlFromHost {
    /// Answer to `Hello`.
    Boot(Box<BootConfig>),
    /// End everything: SIGTERM, a grace time, SIGKILL, sync, unmount, power off.
    Shutdown {
        /// How long processes may take to end by themselves.
        grace_ms: u32,
    },
}

/// All that the guest has to know. It never travels on the kernel command line, which the workload can read.
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
    /// The kernel's release, if all of its modules are on partition n+1: programs may load them.
    pub modules: Option<String>,
    /// Directories that are made in the root where they are not there: absolute paths, of the image.
    pub directories: Vec<String>,
    /// The writable upper file system.
    pub upper: UpperDisk,
    /// Host name, valid by RFC 1123.
    pub hostname: String,
    /// Extra lines of /etc/hosts.
    pub hosts: Vec<HostEntry>,
    /// Lines of /etc/resolv.conf.
    pub nameservers: Vec<String>,
    /// CPU quota in thousandths of a CPU; 0 = none.
    pub cpu_quota_milli: u32,
    /// Whether the guest sees to it that its timer ticks: an emulated processor may have stood still while the kernel
    /// measured it.
    pub check_timer: bool,
    /// What is on the block devices from the third on, in their order.
    pub disks: Vec<DiskMount>,
}

/// Where the guest's changes go.
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
    /// Where it is mounted: an absolute path; directories on the way are made.
    pub path: String,
    /// Whether its device refuses writes.
    pub readonly: bool,
    /// User its root directory is given to.
    pub uid: Option<u32>,
    /// Group its root directory is given to.
    pub gid: Option<u32>,
}

/// One line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Host name.
    pub host: String,
    /// Its address.
    pub ip: String,
}

/// First message of a service stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Pong`]; may be repeated on the same stream, and followed by another request.
    Ping,
    /// Run a program; [`ProgramEvent`]s tell of it.
    Exec(Box<ExecRequest>),
    /// Act on files, as root in the guest's own root directory; answered by a [`FileReply`].
    File(FileRequest),
    /// Connect to this TCP port of the guest's loopback address; answered by a [`ConnectReply`]. After it the stream
    /// carries the connection's bytes as they are, without frames, and each direction ends by itself.
    Connect {
        /// TCP port.
        port: u16,
    },
}

/// What to do with files. Relative paths start at `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// A regular file's content, as `Stdout` frames, then the reply. Symbolic links are followed.
    Read {
        /// Which file.
        path: String,
        /// First byte.
        offset: u64,
        /// Most bytes; fewer come if the file ends before.
        length: u64,
        /// Fail with [`FileFailure::TooLarge`] before the first byte if the file as a whole is longer than this.
        size_limit: Option<u64>,
    },
    /// Takes `Stdin` frames, an empty one ends them; the reply comes when all of it is written. Directories above the
    /// file are made. Hanging up before the end leaves what has been written.
    Write {
        /// Which file; made if it is not there.
        path: String,
        /// Permission bits of a new file; the umask applies.
        mode: u32,
        /// Where the bytes go.
        at: WriteAt,
    },
    /// A directory's entries, in any number of replies, an empty one last. By name, without `.` and `..`.
    List {
        /// Which directory.
        path: String,
    },
    /// One entry, named as the path's last part.
    Stat {
        /// Which file.
        path: String,
        /// Whether a symbolic link stands for its target.
        follow: bool,
    },
    /// Makes a directory.
    MakeDirectory {
        /// Which.
        path: String,
        /// Its permission bits; the umask applies.
        mode: u32,
        /// Make those above it as well, and accept one that is there.
        parents: bool,
    },
    /// Removes a file, a link or a directory.
    Remove {
        /// Which.
        path: String,
        /// A directory with all its content; without this only an empty one.
        recursive: bool,
    },
    /// Renames, replacing as rename(2) does.
    Rename {
        /// From here.
        from: String,
        /// To here.
        to: String,
    },
    /// Tells changes below a directory, or of a file, by [`WatchEvent`]s, until the host hangs up.
    Watch {
        /// Which.
        path: String,
        /// Directories below it as well.
        recursive: bool,
    },
}

/// Where written bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    /// To the start of the file, whose old content is gone.
    Truncate,
    /// Behind whatever the file holds.
    Append,
    /// From this byte on; the rest stays.
    Offset(u64),
}

/// A file as a directory or stat(2) tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name: any bytes but `/` and NUL. The root's is empty.
    pub name: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content, seconds since the epoch.
    pub mtime_s: i64,
    /// The nanoseconds to it.
    pub mtime_ns: u32,
    /// Where a symbolic link points; empty for anything else.
    pub target: Vec<u8>,
}

/// Something that happened below a watched path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// To which file: an absolute path.
    pub path: Vec<u8>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It is there now: made, or moved in. Told twice if it came together with the directory it is in.
    Created,
    /// It was written or cut, its writer closed it, or its metadata changed. Of many writes some may be told as one.
    Modified,
    /// It is gone: removed, or moved out.
    Removed,
    /// More happened than the guest's kernel kept count of: look again.
    Overflow,
}

/// Why an act on files did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileFailure {
    /// Longer than the request's limit.
    TooLarge,
    /// Not a regular file, where one is needed.
    NotRegular,
    /// The system refused: its error number and its words.
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
    /// What to run.
    pub program: Program,
    /// Environment, complete but for what the agent adds (`HOME` on a user switch).
    pub env: Vec<(String, String)>,
    /// Working directory; empty = `/`.
    pub working_dir: String,
    /// `user`, `user:group`, `user:` or `:group`, each a name or a number; empty = root.
    pub user: String,
    /// Standard streams.
    pub stdio: Stdio,
    /// No restrictions inside the guest.
    pub privileged: bool,
    /// What the program started outlives it: `Exited` comes at the program's own end, whoever holds its output open,
    /// and output may follow it. All that is left ends when the host hangs up.
    pub detached: bool,
    /// The program is PID 1 of its namespace: it has to reap orphans, signals that it does not handle do nothing (but
    /// SIGKILL and SIGSTOP from outside), and what it started ends with it, detached or not.
    pub first: bool,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// `sh -c` this text, `sh` found by the request's PATH.
    Shell(String),
    /// This argument vector; `argv[0]` is found by the request's PATH unless it has a slash.
    Argv(Vec<String>),
}

/// Standard streams of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// stdin is /dev/null; stdout and stderr apart.
    Null,
    /// stdin from the host; stdout and stderr apart.
    Pipe,
    /// A terminal; all output on stdout.
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

/// Every message from guest to host on a service stream: what the request's own dialogue says, or why the agent takes no
/// request. A refusal is the last message of its stream.
pub type Reply<T> = Result<T, Refusal>;

/// Why the agent takes no request at all, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal(pub String);

/// What the dialogue of one kind of request says.
pub trait Answer: Serialize + DeserializeOwned {}

impl Answer for Pong {}
impl Answer for ProgramEvent {}
impl Answer for ConnectReply {}
impl<T: Serialize + DeserializeOwned> Answer for FileReply<T> {}

/// Answer to [`Request::Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong;

/// What happens to the program of a [`Request::Exec`], besides its output. Hanging up before `Exited` cancels: SIGTERM to
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

/// Answer to a [`Request::File`]; a failure is the last message of its stream. `T` is what the act gives: nothing once it
/// is done, one [`FileEntry`] for `Stat`, any number of `Vec<FileEntry>` and an empty one for `List`, [`WatchEvent`]s
/// for `Watch`.
pub type FileReply<T> = Result<T, FileFailure>;

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEvent {
    /// Changes from now on are told.
    Watching,
    /// A change.
    Change(Change),
}

/// Answer to a [`Request::Connect`]: the connection is there and the stream carries its bytes from here on, or the
/// system's words for why it is not.
pub type ConnectReply = Result<(), String>;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself.
    Code(u8),
    /// By a signal.
    Signal(u8),
}

/// What the agent measured of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// From the request's arrival to the program's first instruction (its execve returned), microseconds.
    pub spawn_us: u64,
    /// From the request's arrival to the program's end, microseconds.
    pub wall_us: u64,
}

/// Why a program never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailure {
    /// No such program (exit status 127).
    NotFound(String),
    /// The program is there but cannot be executed (exit status 126).
    NotExecutable(String),
    /// No such user or group.
    User(String),
    /// The working directory is unusable.
    WorkingDir(String),
    /// Anything else, in the system's words.
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
