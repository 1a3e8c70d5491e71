//! A small root with busybox, an agent that serves in it, and the host's end of its streams.
//!
//! Each test runs in a mount namespace of its own, with that root; threads that the test starts inherit both.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_agent::service::{Agent, start_stream};
use guest_protocol::frame::{self, Head, Kind, Splitter};
use guest_protocol::{
    Answer, ExecFailure, ExecRequest, Exit, FileEntry, FileFailure, FileReply, FileRequest, Program,
    ProgramControl, ProgramEvent, Reply, Request, Stdio, Usage, WriteAt,
};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// An agent in such a root; `None`, with the reason printed, if the host lacks something that it needs.
pub fn guest() -> Option<Arc<Agent>> {
    guest_with(|agent| agent)
}

/// The same with more means.
pub fn guest_with(equip: impl FnOnce(Agent) -> Agent) -> Option<Arc<Agent>> {
    let missing = match busybox() {
        _ if !rustix::process::geteuid().is_root() => "root",
        None => "busybox-static",
        Some(busybox) => return Some(Arc::new(equip(enter(busybox)))),
    };
    skip::skip(missing, format!("it needs {missing}"));
    None
}

fn busybox() -> Option<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.exists())
}

/// Fills a memory file system, which ends with the test's mount namespace.
fn fill(root: &Path, busybox: &Path) {
    for directory in ["bin", "dev", "proc", "sys", "etc", "tmp", "root", "home/app", "private"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    // Copied by another process: an agent of another test may be cloning this one, and a program that any process has
    // open for writing cannot be executed.
    assert!(Command::new("cp").args([busybox, &root.join("bin/busybox")]).status().unwrap().success());
    let applets = Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("/no/such", root.join("bin/dangling")).unwrap();
    let write = |path: &str, text: &str| std::fs::write(root.join(path), text).unwrap();
    write("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n");
    write("etc/group", "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:app\n");
    write("bin/plain", "no program\n");
    write("bin/garbage", "\x7fELF nonsense");
    write("bin/orphaned", "#!/no/such/interpreter\n");
    for (path, mode) in [("bin/garbage", 0o755), ("bin/orphaned", 0o755), ("tmp", 0o1777), ("private", 0o700)]
    {
        std::fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
    }
}

/// Mounts the kernel's file systems; memory file systems stand in for the host's own.
fn mount_kernels(root: &Path) {
    for (place, kind) in [
        ("proc", "proc"),
        ("dev", "tmpfs"),
        ("dev/pts", "devpts"),
        ("dev/shm", "tmpfs"),
        ("sys", "tmpfs"),
        ("sys/fs/cgroup", "tmpfs"),
    ] {
        std::fs::create_dir_all(root.join(place)).unwrap();
        let flags = if place == "dev/shm" { MountFlags::NODEV } else { MountFlags::empty() };
        rustix::mount::mount(kind, root.join(place), kind, flags, None).unwrap();
    }
    // Only programs with privilege may see the last device.
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("raw", 1, 3),
    ] {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        let path = root.join("dev").join(name);
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, device).unwrap();
    }
    std::fs::create_dir_all(root.join("sys/firmware/secret")).unwrap();
    std::fs::write(root.join("sys/setting"), "0").unwrap();
    std::fs::write(root.join("sys/fs/cgroup/cpu.max"), "50000 100000").unwrap();
}

fn enter(busybox: &Path) -> Agent {
    // A shell starts background programs with these signals ignored, which they inherit; PID 1 of a guest does not.
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // SAFETY: the default action runs no code of this process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let root = std::env::temp_dir();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    // SAFETY: neither flag takes the descriptor table away from other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    let recursive = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", recursive).unwrap();
    rustix::mount::mount("root", &root, "tmpfs", MountFlags::NODEV, None).unwrap();
    fill(&root, busybox);
    mount_kernels(&root);
    // Not chroot: entering a mount namespace leads to its root.
    rustix::process::chdir(&root).unwrap();
    rustix::process::pivot_root(".", ".").unwrap();
    rustix::mount::unmount(".", UnmountFlags::DETACH).unwrap();
    rustix::process::chdir("/").unwrap();
    let terminals = File::open("/dev/pts").unwrap();
    guest_agent::shield::raise().unwrap();
    Agent::new(null.into(), terminals.into())
}

pub fn request(program: &[&str]) -> ExecRequest {
    ExecRequest {
        program: Program::Argv(program.iter().map(|text| (*text).to_owned()).collect()),
        env: vec![("PATH".to_owned(), PATH.to_owned())],
        working_dir: String::new(),
        user: String::new(),
        stdio: Stdio::Null,
        privileged: false,
        detached: false,
        first: false,
    }
}

pub fn shell(text: &str) -> ExecRequest {
    ExecRequest { program: Program::Shell(text.to_owned()), ..request(&[]) }
}

/// The result of an exec.
#[derive(Debug, Default)]
pub struct Outcome {
    pub started: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<(Exit, Usage)>,
    pub failure: Option<ExecFailure>,
}

impl Outcome {
    pub fn status(&self) -> u8 {
        self.exit.unwrap_or_else(|| panic!("no exit: {self:?}")).0.status()
    }

    /// Standard output of a program that ran.
    pub fn text(&self) -> &str {
        assert!(self.exit.is_some(), "no exit: {self:?}");
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// The host's end of a service stream.
pub struct Client {
    pub stream: UnixStream,
    pub input: Splitter,
    gives: Gives,
}

/// The content of answers to a request on files.
#[derive(Clone, Copy)]
enum Gives {
    Nothing,
    Entry,
    Entries,
}

impl Client {
    pub fn connect(agent: &Arc<Agent>) -> Self {
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        start_stream(OwnedFd::from(guest), agent);
        Self { stream: host, input: Splitter::default(), gives: Gives::Nothing }
    }

    /// The same stream, for another thread to send on.
    pub fn sender(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap(), input: Splitter::default(), gives: Gives::Nothing }
    }

    pub fn exec(agent: &Arc<Agent>, request: ExecRequest) -> Self {
        let mut client = Self::connect(agent);
        client.send(&Request::Exec(Box::new(request)));
        client
    }

    pub fn send(&mut self, request: &Request) {
        self.stream.write_all(&frame::encode(request).unwrap()).unwrap();
    }

    pub fn control(&mut self, control: &ProgramControl) {
        self.stream.write_all(&frame::encode(control).unwrap()).unwrap();
    }

    pub fn stdin(&mut self, bytes: &[u8]) {
        let mut data = Head::bytes(Kind::Stdin, bytes.len()).unwrap().to_vec();
        data.extend_from_slice(bytes);
        self.stream.write_all(&data).unwrap();
    }

    /// The next frame; `None` at the end of the stream.
    pub fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        loop {
            if let Some((kind, payload)) = self.input.next_frame().unwrap() {
                return Some((kind, payload.to_vec()));
            }
            let mut buffer = [0; 32768];
            let n = match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A Unix socket that was closed with bytes unread ends like this.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                read => read.expect("an answer within a minute"),
            };
            if n == 0 {
                assert!(self.input.at_boundary(), "the stream ended inside a frame");
                return None;
            }
            self.input.push(&buffer[..n]);
        }
    }

    pub fn answer<A: Answer>(&mut self) -> Option<A> {
        self.reply().map(|reply| reply.unwrap())
    }

    /// An answer, or the reason why the agent takes no request.
    pub fn reply<A: Answer>(&mut self) -> Option<Reply<A>> {
        let (kind, payload) = self.next()?;
        assert_eq!(kind, Kind::Message);
        Some(frame::decode(&payload).unwrap())
    }

    /// Waits for output that ends with `text`.
    pub fn expect(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).ends_with(text) {
            let (kind, payload) = self.next().unwrap_or_else(|| panic!("{text:?} in {all:?}"));
            if kind == Kind::Stdout {
                all.extend(payload);
            } else if let Ok(Ok(ProgramEvent::Exited(..) | ProgramEvent::Failed(_))) =
                frame::decode::<Reply<_>>(&payload)
            {
                panic!("ended without {text:?}: {:?}", String::from_utf8_lossy(&all));
            }
        }
        String::from_utf8(all).unwrap()
    }

    /// Reads to the end of the stream.
    pub fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((kind, payload)) = self.next() {
            match kind {
                Kind::Stdout => outcome.stdout.extend(payload),
                Kind::Stderr => outcome.stderr.extend(payload),
                Kind::Stdin => panic!("stdin from the guest"),
                Kind::Message => match answered(&payload) {
                    ProgramEvent::Started => outcome.started = true,
                    ProgramEvent::Exited(exit, usage) => outcome.exit = Some((exit, usage)),
                    ProgramEvent::Failed(failure) => outcome.failure = Some(failure),
                },
            }
        }
        outcome
    }
}

/// The result of an act on files.
#[derive(Debug, Default)]
pub struct Act {
    pub data: Vec<u8>,
    pub entries: Vec<FileEntry>,
    pub done: bool,
    pub failure: Option<FileFailure>,
}

impl Act {
    pub fn ok(self) -> Self {
        assert!(self.done && self.failure.is_none(), "{self:?}");
        self
    }

    pub fn failure(self) -> FileFailure {
        assert!(!self.done, "{self:?}");
        self.failure.expect("a failure")
    }

    /// `errno`, after checking that its text begins with `what`.
    pub fn errno(self, what: &str) -> i32 {
        match self.failure() {
            FileFailure::System { errno, text } if text.starts_with(what) => errno,
            other => panic!("{what:?} in {other:?}"),
        }
    }
}

impl Client {
    pub fn file(agent: &Arc<Agent>, request: FileRequest) -> Self {
        let mut client = Self::connect(agent);
        client.gives = match request {
            FileRequest::List { .. } => Gives::Entries,
            FileRequest::Stat { .. } => Gives::Entry,
            _ => Gives::Nothing,
        };
        client.send(&Request::File(request));
        client
    }

    /// Reads to the end of an act on files.
    pub fn act(mut self) -> Act {
        let mut act = Act::default();
        while let Some((kind, payload)) = self.next() {
            assert!(!act.done && act.failure.is_none(), "nothing follows the last message");
            assert!(payload.len() <= frame::MAX_PAYLOAD / 4, "a piece is small");
            match kind {
                Kind::Stdout => act.data.extend(payload),
                Kind::Message => {
                    let given = match self.gives {
                        Gives::Nothing => answered::<FileReply<()>>(&payload).map(|()| Vec::new()),
                        Gives::Entries => answered::<FileReply<Vec<FileEntry>>>(&payload),
                        Gives::Entry => answered::<FileReply<FileEntry>>(&payload).map(|entry| vec![entry]),
                    };
                    match given {
                        Ok(entries) => {
                            act.done = entries.is_empty() || matches!(self.gives, Gives::Entry);
                            act.entries.extend(entries);
                        }
                        Err(failure) => act.failure = Some(failure),
                    }
                }
                Kind::Stdin | Kind::Stderr => panic!("{kind:?} from a file"),
            }
        }
        act
    }
}

/// The answer in a message; the agent took the request.
pub fn answered<A: Answer>(payload: &[u8]) -> A {
    frame::decode::<Reply<A>>(payload).unwrap().unwrap()
}

pub fn act(agent: &Arc<Agent>, request: FileRequest) -> Act {
    Client::file(agent, request).act()
}

pub fn write(agent: &Arc<Agent>, path: &str, mode: u32, at: WriteAt, bytes: &[u8]) -> Act {
    let mut client = Client::file(agent, FileRequest::Write { path: path.to_owned(), mode, at });
    for piece in bytes.chunks(100_000).chain([&b""[..]]) {
        let frame = [&Head::bytes(Kind::Stdin, piece.len()).unwrap()[..], piece].concat();
        // After a failure the act takes no more input; the reason is still to be read.
        if client.stream.write_all(&frame).is_err() {
            break;
        }
    }
    client.act()
}

/// The processes of the machine that have this word in their command line.
pub fn processes_with(word: &str) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let found = String::from_utf8_lossy(&line).split('\0').any(|part| part == word);
        entry.file_name().to_str()?.parse().ok().filter(|_| found)
    });
    processes.collect()
}

/// Waits until `count` processes have this word in their command line, as a shell's child may execute late.
pub fn wait_for_processes(word: &str, count: usize) -> Vec<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = processes_with(word);
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?}");
    }
}

pub fn run(agent: &Arc<Agent>, request: ExecRequest) -> Outcome {
    Client::exec(agent, request).finish()
}
