//! QEMU's launcher: QEMU ends when the launcher does, and the launcher ends when the supervisor does.
//!
//! QEMU by itself would outlive a supervisor that was killed. The launcher also confines QEMU, before its first
//! instruction:
//!
//! * namespaces of its own, where the host allows them: no network, no process but QEMU, and no visible file but those
//!   that QEMU reads;
//! * a user of its own, shared with the launcher, if the two were root's, and no capability;
//! * Landlock: a file system of nothing but QEMU's own program, libraries and firmware to read, in a domain below the
//!   launcher's, so that QEMU can neither signal nor trace the launcher;
//! * seccomp: no socket, no signal, no other process (`qemu`). QEMU adds a filter of its own (`-sandbox`).
//!
//! Not here: QEMU's arguments (`machine::software`).

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use confinement::calls::{self, Call};
use confinement::{ChildDomain, Domain, Forbidden, Landlock, Limits, Profile, RUNTIME_IF, Reachable};
use machine::descriptors::Incoming;
use machine::software::UNCONFINED;
use machine::software::protocol::{Launch, LaunchReport, LaunchRequest};
use process::{Channel, Child, Confinement, Spawn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;

use crate::qemu;

const PROGRAM: &str = "matchlock-launcher";

/// How many bytes of QEMU's last output are kept.
const LAST_WORDS: usize = 512;

/// Longest file of which QEMU gets a copy.
const MAX_COPY: u64 = 512 << 20;

/// Most bytes that QEMU maps besides the guest's memory: its code, buffers, stacks of threads, and TCG's translations
/// of guest code.
const OWN_MEMORY: u64 = 4 << 30;

/// Runs QEMU, the file `program`, until it ends or the supervisor hangs up. Only the main thread may call this function.
pub fn run(channel: &Channel, program: &Path) -> anyhow::Result<()> {
    // The launcher isolates itself while the supervisor still prepares the request.
    let isolation = isolate();
    let Some((request, descriptors)) = channel.recv().context("first message")? else {
        return Ok(());
    };
    let launch = match request {
        LaunchRequest::Launch(launch) => launch,
        LaunchRequest::Probe => {
            let (walls, _) = confine(&isolation, program, &mut [], Limits::default())?;
            return Ok(channel.send(&LaunchReport::Walls(walls.describe()), &[])?);
        }
    };
    let (mut qemu, errors) = match start(&isolation, program, launch, descriptors) {
        Ok(started) => started,
        Err(error) => {
            channel.send(&LaunchReport::Refused(format!("{error:#}")), &[])?;
            return Err(error);
        }
    };
    channel.send(&LaunchReport::Started, &[qemu.as_fd()])?;
    PROFILE.filter().install_for_all_threads().context("seccomp")?;

    let last_words = match watch(channel, &qemu, errors)? {
        Some(last_words) => last_words,
        // Dropping the child kills QEMU and waits for its end.
        None => return Ok(()),
    };
    let status = qemu.wait().context("QEMU")?;
    // If the supervisor is gone, the report is lost with it.
    let _ = channel.send(&LaunchReport::Ended { status: status.into_raw(), last_words }, &[]);
    Ok(())
}

/// Puts QEMU into namespaces of its own, with privilege as long as there is any. If root may not make them, root's user
/// is given up here, so that an ordinary user may; otherwise it is given up later, with the other privileges, because
/// mounting takes it.
fn isolate() -> io::Result<()> {
    confinement::isolate_children().or_else(|_| {
        leave_root();
        Ok(confinement::isolate_children_as_user()?)
    })
}

/// Gives up root for a user of this process alone. QEMU gets the same user, because the launcher could not end another
/// user's process.
fn leave_root() {
    if let Err(error) = confinement::take_own_user() {
        crate::say(PROGRAM, &format!("the process is still root's, without a user of its own ({error})"));
    }
}

/// The barriers between QEMU and the files of its user.
struct Walls {
    /// Whether QEMU has a root directory of its own, or why not.
    root: io::Result<()>,
    landlock: Landlock,
}

impl Walls {
    fn describe(&self) -> Vec<Result<String, String>> {
        let root = match &self.root {
            Ok(()) => Ok("a root directory of its own".to_owned()),
            Err(error) => Err(format!("no root directory of its own ({error})")),
        };
        let landlock = match self.landlock {
            Landlock::Full => Ok("Landlock".to_owned()),
            Landlock::Partial => Ok("Landlock (an older one)".to_owned()),
            Landlock::None => Err("no Landlock".to_owned()),
        };
        vec![root, landlock]
    }
}

/// Confines this process, and prepares the confinement of its future child, QEMU.
fn confine(
    isolation: &io::Result<()>,
    program: &Path,
    files: &mut [(OwnedFd, i32)],
    limits: Limits,
) -> anyhow::Result<(Walls, ChildDomain)> {
    let mut readable = readable(program);
    let named: Vec<_> = files.iter().map(|(file, number)| (by_number(*number), file.as_fd())).collect();
    let root = match isolation {
        Ok(()) => confinement::enter_root(&[readable.programs.as_slice(), &readable.data].concat(), &named),
        Err(error) => Err(io::Error::new(error.kind(), format!("no namespaces: {error}"))),
    };
    leave_root();
    match &root {
        Ok(()) => {
            for (file, number) in files {
                // The new root has a copy of a file that only its owner may read; the copy takes the file's place.
                let found = File::open(by_number(*number)).context("a file for QEMU")?;
                if !same_file(&found, &*file).context("a file for QEMU")? {
                    *file = found.into();
                }
                readable.data.push(by_number(*number));
            }
        }
        Err(_) => {
            for (file, _) in files {
                make_reopenable(file).context("a file for QEMU")?;
                readable.files.push(file.try_clone().context("descriptor")?);
            }
        }
    }
    let domain = Domain::new(readable)?;
    let nested = domain.for_child()?;
    let landlock = confinement::enter(domain, limits)?.landlock;
    Ok((Walls { root, landlock }, nested))
}

fn same_file(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// The path by which QEMU opens an inherited file again.
fn by_number(number: i32) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

/// Starts QEMU, confined; returns also its standard error.
fn start(
    isolation: &io::Result<()>,
    program: &Path,
    launch: Launch,
    descriptors: Vec<OwnedFd>,
) -> anyhow::Result<(Child, File)> {
    let (errors, stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
    let mut descriptors = Incoming::new(descriptors);
    let inherit = launch.inherit.iter().map(|(fd, number)| Ok((*fd, descriptors.take(*fd)?, *number)));
    let inherit = inherit.collect::<anyhow::Result<Vec<_>>>()?;
    let stdout = descriptors.take(launch.stdout)?;
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for (fd, descriptor, number) in inherit {
        let reopened = launch.reopened.contains(&fd);
        if reopened { &mut files } else { &mut others }.push((descriptor, number));
    }
    let limits = Limits::new(launch.memory, launch.memory, OWN_MEMORY);
    let (walls, landlock) = confine(isolation, program, &mut files, limits)?;
    let missing: Vec<String> = walls.describe().into_iter().filter_map(Result::err).collect();
    if !missing.is_empty() {
        crate::say(PROGRAM, &format!("QEMU has {}", missing.join(", ")));
    }
    if walls.root.is_err() && walls.landlock == Landlock::None && !launch.unconfined {
        anyhow::bail!(
            "nothing would keep QEMU from the files of its user: {}; {UNCONFINED}=1 starts it all the same",
            missing.join(", ")
        );
    }
    let spawn = Spawn {
        args: launch.args.into_iter().map(Into::into).collect(),
        stdout: Some(stdout),
        stderr: Some(stderr),
        inherit: others.into_iter().chain(files).collect(),
        // QEMU also dies if the launcher itself is killed.
        dies_with_thread: true,
        confinement: Confinement { landlock: Some(landlock), seccomp: Some(qemu::filter(launch.has_tap)) },
        ..Spawn::new(program)
    };
    Ok((process::spawn_without_channel(spawn)?, File::from(errors)))
}

/// Replaces a private file by a copy in memory. QEMU opens an inherited file again by its number, as a user who may not
/// read another user's private file.
fn make_reopenable(descriptor: &mut OwnedFd) -> io::Result<()> {
    match File::open(format!("/proc/self/fd/{}", descriptor.as_raw_fd())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        _ => return Ok(()),
    }
    let mut private = File::from(descriptor.try_clone()?);
    let mut copy = File::from(rustix::fs::memfd_create("copy", MemfdFlags::CLOEXEC)?);
    private.rewind()?;
    if io::copy(&mut private.take(MAX_COPY + 1), &mut copy)? > MAX_COPY {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    *descriptor = copy.into();
    Ok(())
}

/// The files that QEMU reads: its program, its libraries, and its firmware.
fn readable(program: &Path) -> Reachable {
    let existing =
        |paths: &[&str]| paths.iter().map(PathBuf::from).filter(|path| path.exists()).collect::<Vec<_>>();
    let mut programs =
        existing(&["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store"]);
    programs.push(program.to_path_buf());
    let mut data = existing(&["/usr/share", "/usr/local/share", "/etc/ld.so.cache", "/dev/null"]);
    // An installation in a prefix of its own (`…/bin/qemu-system-…`) has its firmware and libraries beside `bin`.
    if let Some(directory) = program.parent().filter(|directory| directory.ends_with("bin"))
        && let Some(prefix) = directory.parent()
    {
        data.extend(["share", "lib"].map(|name| prefix.join(name)).into_iter().filter(|path| path.exists()));
    }
    data.retain(|path| !programs.contains(path));
    data.sort();
    data.dedup();
    Reachable { programs, data, ..Reachable::default() }
}

/// Waits for QEMU's end, and returns QEMU's last words; `None` if the supervisor hung up.
fn watch(channel: &Channel, qemu: &Child, mut errors: File) -> anyhow::Result<Option<String>> {
    let mut said = Vec::new();
    let mut listening = true;
    loop {
        let mut waited = vec![PollFd::new(channel, PollFlags::IN), PollFd::new(qemu, PollFlags::IN)];
        if listening {
            waited.push(PollFd::new(&errors, PollFlags::IN));
        }
        match poll(&mut waited, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let happened: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
        if happened.first() == Some(&true) {
            // The supervisor sends no second message: this is either its end or nonsense.
            return Ok(None);
        }
        if happened.get(2) == Some(&true) {
            listening = forward(&mut errors, &mut said)?;
        } else if happened.get(1) == Some(&true) {
            return Ok(Some(last_line(&said)));
        }
    }
}

/// Passes on QEMU's output. Returns whether more may come.
fn forward(errors: &mut File, said: &mut Vec<u8>) -> anyhow::Result<bool> {
    let mut chunk = [0; 4096];
    let count = errors.read(&mut chunk).context("standard error of QEMU")?;
    let chunk = &chunk[..count];
    crate::log(chunk);
    said.extend_from_slice(chunk);
    said.drain(..said.len().saturating_sub(LAST_WORDS));
    Ok(count > 0)
}

fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    last.chars().filter(|c| !c.is_control()).collect()
}

/// Calls for waiting, besides those of every program.
const WATCHING: &[Call] = &[calls::WAITID, calls::PIDFD_SEND_SIGNAL];

const PROFILE: Profile<'_> = Profile {
    calls: &[calls::RUNTIME, WATCHING],
    conditional: &[RUNTIME_IF],
    ioctls: &[],
    // In debug builds the standard library checks that a descriptor which it closes is open.
    fcntls: &[libc::F_GETFD],
    absent: &[],
    otherwise: Forbidden::Kill,
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use confinement::testing::{self, Fate, asked, try_everything};

    use super::*;

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined() {
        let asked = asked();
        confinement::enter_with_nothing(Limits::default()).unwrap();
        PROFILE.filter().install_for_all_threads().unwrap();
        asked.end(|| drop(vec![1u8; 1 << 20]));
    }

    #[test]
    fn forbidden_calls_kill_the_process() {
        try_everything("launcher::tests::confined", &[], &Fate::Killed);
    }

    #[test]
    #[ignore = "the process that another test confines"]
    fn landlocked() {
        let channel = process::parent_channel().unwrap();
        let (nested, _) = channel.recv::<bool>().unwrap().unwrap();
        let shell = Path::new("/bin/sh");
        let domain = Domain::new(readable(shell)).unwrap();
        let landlock = nested.then(|| domain.for_child().unwrap());
        confinement::enter(domain, Limits::default()).unwrap();
        // Only this thread of the test is in the domain.
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let spawn = Spawn {
            args: vec!["-c".into(), format!("kill -0 {thread}").into()],
            stdout: Some(io::stdout().as_fd().try_clone_to_owned().unwrap()),
            stderr: Some(io::stderr().as_fd().try_clone_to_owned().unwrap()),
            confinement: Confinement { landlock, ..Confinement::default() },
            ..Spawn::new(shell)
        };
        let status = process::spawn_without_channel(spawn).unwrap().wait().unwrap();
        channel.send(&status.success(), &[]).unwrap();
    }

    #[test]
    fn landlock_alone_keeps_qemu_from_its_launcher() {
        if !testing::has_landlock_of_signals() {
            skip::skip("landlock", "this kernel's Landlock is too old or switched off");
            return;
        }
        for nested in [false, true] {
            let mut spawn = Spawn::new(&std::env::current_exe().unwrap());
            spawn.args = ["--exact", "launcher::tests::landlocked", "--ignored", "--test-threads=1"]
                .map(Into::into)
                .into();
            spawn.stderr = Some(io::stderr().as_fd().try_clone_to_owned().unwrap());
            let (_child, channel) = process::spawn(spawn).unwrap();
            channel.send(&nested, &[]).unwrap();
            let (signalled, _) = channel.recv::<bool>().unwrap().unwrap();
            assert_eq!(signalled, !nested);
        }
    }
}
