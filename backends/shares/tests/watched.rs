//! Changes of the host as programs that watch see them: a directory that is mounted on the host, a thread that repeats what
//! happens to the directory itself, as a guest's agent does, and inotify on the mount.
//!
//! The kernel may believe what it knows for an hour, so what it does not hear of it does not see.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuse::{Coherence, FileSystem};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use shares::{Act, Change, HostFs, Made, Mounted, Options, Reenacted, Stage, Watches};

/// The number of the one folder.
const FOLDER: usize = 0;

struct Share {
    _mounted: Mounted,
    house: tempfile::TempDir,
    watches: Arc<Watches>,
    host_fs: Arc<HostFs>,
    stage: Arc<Stage>,
    /// inotify of a program of the guest.
    watcher: OwnedFd,
}

impl Share {
    /// A share in which this thread repeats changes, and does nothing else.
    fn new(options: Options, fill: impl FnOnce(&Path)) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip::skip("root", "mounts need root");
            return None;
        }
        let house = tempfile::tempdir().unwrap();
        let [host, guest] = ["host", "guest"].map(|name| house.path().join(name));
        fs::create_dir(&host).unwrap();
        fs::create_dir(&guest).unwrap();
        fill(&host);
        let watches = Arc::new(Watches::new("/proc/self/fd/").unwrap());
        let options = Options { valid: Duration::from_secs(3600), ..options };
        let host_fs = Arc::new(HostFs::new(&host, options).unwrap());
        host_fs.watch(FOLDER, &watches);
        host_fs.watch_root();
        let stage = Arc::new(Stage::default());
        stage.admit(u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap());
        let files: Box<dyn FileSystem> = Box::new(Arc::clone(&host_fs));
        let files = Reenacted::new(FOLDER, files, Arc::clone(&host_fs), Arc::clone(&stage));
        let mounted = match Mounted::new(files, Coherence::Shared, &guest, 2, || ()) {
            Ok(mounted) => mounted,
            Err(shares::MountError::Device(error)) => {
                skip::skip("fuse", format!("/dev/fuse: {error}"));
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let watcher = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        Some(Self { _mounted: mounted, house, watches, host_fs, stage, watcher })
    }

    fn host(&self, path: &str) -> PathBuf {
        self.house.path().join("host").join(path)
    }

    fn guest(&self, path: &str) -> PathBuf {
        self.house.path().join("guest").join(path)
    }

    /// Acts as a program of the guest, which is not this thread.
    fn as_guest<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(act).join().unwrap())
    }

    /// A program lists a directory, and watches it.
    fn watch(&self, path: &str) {
        let path = self.guest(path);
        let all = WatchFlags::ALL_EVENTS - WatchFlags::ACCESS - WatchFlags::OPEN - WatchFlags::CLOSE;
        self.as_guest(|| {
            if path.is_dir() {
                for entry in fs::read_dir(&path).unwrap() {
                    entry.unwrap().metadata().unwrap();
                }
            }
            inotify::add_watch(&self.watcher, &path, all).unwrap();
        });
    }

    /// Repeats what the host has done since the last time; returns what that was, and whether it could be repeated.
    fn repeat(&self) -> Vec<(Change, bool)> {
        let mut all = Vec::new();
        let mut batch = self.watches.read();
        assert!(!batch.overflow);
        while batch.folder().is_some() {
            let Some(change) = self.host_fs.next_change(&mut batch) else { continue };
            self.stage.expect(change.clone());
            let done = self.act(&change).is_ok();
            self.stage.done();
            all.push((change, done));
        }
        all
    }

    /// The agent's part.
    fn act(&self, change: &Change) -> rustix::io::Result<()> {
        let at = |directory: &[u8], name: &std::ffi::CStr| {
            self.guest("").join(std::str::from_utf8(directory).unwrap()).join(name.to_str().unwrap())
        };
        let path = at(&change.path, &change.name);
        match &change.act {
            Act::Appeared(Made::File) => rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::RUSR, 0),
            Act::Appeared(Made::Directory) => rustix::fs::mkdirat(CWD, path, Mode::RWXU),
            Act::Appeared(Made::Link) => rustix::fs::symlinkat(".", CWD, path),
            Act::Vanished { directory: true } => rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR),
            Act::Vanished { directory: false } => rustix::fs::unlinkat(CWD, path, AtFlags::empty()),
            Act::Moved { to_path, to, .. } => rustix::fs::renameat(CWD, path, CWD, at(to_path, to)),
            Act::Written => touch(&path, UTIME_OMIT),
            Act::Changed => touch(&path, UTIME_NOW),
        }
    }

    /// The events that the program that watches has heard.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.watcher, &mut buffer);
        let mut all = Vec::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_str().unwrap().to_owned());
            let flags = event.events() - ReadFlags::ISDIR;
            let kind = flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("|");
            all.push(format!("{kind} {}", name.unwrap_or_default()).trim_end().to_owned());
        }
        all
    }

    /// Repeats what the host has done, all of which can be, and returns what the program that watches hears.
    fn told(&self) -> Vec<String> {
        let repeated = self.repeat();
        assert!(repeated.iter().all(|(_, done)| *done), "{repeated:?}");
        self.heard()
    }
}

fn touch(path: &Path, last_access: i64) -> rustix::io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS)?;
    let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time(last_access), last_modification: time(UTIME_NOW) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[test]
fn what_the_host_does_is_heard_and_seen_at_once() {
    let fill = |host: &Path| {
        fs::write(host.join("old"), "old").unwrap();
        fs::create_dir(host.join("d")).unwrap();
        fs::write(host.join("d/gone"), "").unwrap();
    };
    let Some(share) = Share::new(Options::default(), fill) else { return };
    for watched in ["", "d", "d/gone"] {
        share.watch(watched);
    }
    assert_eq!(share.told(), Vec::<String>::new());
    let read = |path: &str| share.as_guest(|| fs::read_to_string(share.guest(path)));

    fs::write(share.host("new"), "1").unwrap();
    assert_eq!(share.told(), ["CREATE new", "MODIFY new"]);
    assert_eq!(read("new").unwrap(), "1");
    // The same size, and pages that the guest has.
    fs::write(share.host("new"), "2").unwrap();
    assert_eq!(share.told(), ["MODIFY new"]);
    assert_eq!(read("new").unwrap(), "2");
    fs::set_permissions(share.host("old"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(share.told(), ["ATTRIB old"]);
    let mode = share.as_guest(|| fs::metadata(share.guest("old")).unwrap().permissions().mode());
    assert_eq!(mode & 0o777, 0o600);
    fs::create_dir(share.host("e")).unwrap();
    symlink("old", share.host("link")).unwrap();
    assert_eq!(share.told(), ["CREATE e", "CREATE link"]);
    assert_eq!(share.as_guest(|| fs::read_link(share.guest("link"))).unwrap(), Path::new("old"));
    fs::remove_file(share.host("d/gone")).unwrap();
    // The file itself is watched, too.
    let heard = share.told();
    assert_eq!(heard.iter().filter(|what| *what == "DELETE gone").count(), 1, "{heard:?}");
    assert!(heard.contains(&"DELETE_SELF".to_owned()), "{heard:?}");
    assert_eq!(read("d/gone").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    fs::rename(share.host("new"), share.host("d/moved")).unwrap();
    assert_eq!(share.told(), ["MOVED_FROM new", "MOVED_TO moved"]);
    assert_eq!(read("new").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(read("d/moved").unwrap(), "2");
    // As editors write.
    fs::write(share.host(".old.tmp"), "saved").unwrap();
    fs::rename(share.host(".old.tmp"), share.host("old")).unwrap();
    assert_eq!(share.told(), ["MOVED_FROM .old.tmp", "MOVED_TO old"]);
    assert_eq!(read("old").unwrap(), "saved");
    fs::remove_dir(share.host("e")).unwrap();
    assert_eq!(share.told(), ["DELETE e"]);
    // Nothing on the host was done twice.
    let mut left: Vec<_> = fs::read_dir(share.host("")).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["d", "link", "old"]);
    assert_eq!(fs::read_to_string(share.host("old")).unwrap(), "saved");
}

#[test]
fn what_the_guest_does_is_not_repeated() {
    let Some(share) = Share::new(Options::default(), |_| ()) else { return };
    share.watch("");
    share.as_guest(|| {
        fs::create_dir(share.guest("d")).unwrap();
        fs::write(share.guest("a"), "a").unwrap();
        fs::write(share.guest("a"), "b").unwrap();
        fs::set_permissions(share.guest("a"), fs::Permissions::from_mode(0o600)).unwrap();
        File::options().append(true).open(share.guest("a")).unwrap().set_len(10).unwrap();
        fs::hard_link(share.guest("a"), share.guest("b")).unwrap();
        symlink("a", share.guest("link")).unwrap();
        fs::rename(share.guest("b"), share.guest("d/c")).unwrap();
        fs::remove_file(share.guest("a")).unwrap();
        rustix::fs::mknodat(CWD, share.guest("d/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::remove_file(share.guest("d/pipe")).unwrap();
    });
    // The host changes another file in the same moment.
    fs::write(share.host("other"), "").unwrap();
    let repeated = share.repeat();
    let names: Vec<_> = repeated.iter().map(|(change, _)| change.name.to_str().unwrap()).collect();
    assert_eq!(names, ["other"], "{repeated:?}");
    // A while later, what the host does to the guest's files is its own.
    share.repeat();
    share.repeat();
    share.heard();
    fs::write(share.host("d/c"), "by the host").unwrap();
    fs::remove_file(share.host("link")).unwrap();
    let repeated = share.repeat();
    let acts: Vec<_> =
        repeated.iter().map(|(change, _)| (change.name.to_str().unwrap(), &change.act)).collect();
    assert_eq!(acts, [("c", &Act::Written), ("link", &Act::Vanished { directory: false })]);
}

#[test]
fn what_came_and_went_is_not_told_and_what_is_overtaken_does_no_harm() {
    let Some(share) = Share::new(Options::default(), |_| ()) else { return };
    share.watch("");
    fs::write(share.host("short"), "").unwrap();
    fs::rename(share.host("short"), share.host("shorter")).unwrap();
    fs::remove_file(share.host("shorter")).unwrap();
    assert_eq!(share.told(), Vec::<String>::new());
    // The host removes a file that nobody has looked up.
    fs::write(share.host("a"), "first").unwrap();
    share.watches.read();
    fs::remove_file(share.host("a")).unwrap();
    assert_eq!(share.told(), ["DELETE a"]);
    // Another file gets the name while the agent removes it.
    fs::write(share.host("a"), "second").unwrap();
    assert_eq!(share.told(), ["CREATE a", "MODIFY a"]);
    fs::remove_file(share.host("a")).unwrap();
    let mut batch = share.watches.read();
    let change = share.host_fs.next_change(&mut batch).unwrap();
    fs::write(share.host("a"), "third").unwrap();
    share.stage.expect(change.clone());
    share.act(&change).unwrap();
    share.stage.done();
    assert_eq!(fs::read_to_string(share.host("a")).unwrap(), "third");
    assert_eq!(share.told(), ["DELETE a", "CREATE a", "MODIFY a"]);
    assert_eq!(share.as_guest(|| fs::read_to_string(share.guest("a"))).unwrap(), "third");
}

#[test]
fn the_agents_thread_changes_nothing() {
    let Some(share) = Share::new(Options::default(), |host| fs::write(host.join("a"), "a").unwrap()) else {
        return;
    };
    let refused = |done: std::io::Result<()>| assert_eq!(done.unwrap_err().raw_os_error(), Some(5));
    refused(fs::remove_file(share.guest("a")));
    refused(fs::rename(share.guest("a"), share.guest("b")));
    refused(fs::create_dir(share.guest("d")));
    refused(symlink("a", share.guest("l")));
    refused(fs::hard_link(share.guest("a"), share.guest("b")));
    refused(fs::write(share.guest("a"), "b"));
    refused(fs::write(share.guest("new"), "b"));
    fs::set_permissions(share.guest("a"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_ne!(fs::metadata(share.host("a")).unwrap().permissions().mode() & 0o777, 0o777);
    assert_eq!(fs::read_to_string(share.host("a")).unwrap(), "a");
    assert_eq!(fs::read_dir(share.host("")).unwrap().count(), 1);
}
