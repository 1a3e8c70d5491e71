//! Real children: the descriptors that they inherit, and that none outlives its parent.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;

use process::{Channel, Child, Error, Spawn, parent_channel, spawn, spawn_without_channel};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
enum Role {
    Describe,
    Exit(u8),
    /// Wait for the parent's end, then write a word to the descriptor.
    Outlive,
    /// Start an `Outlive` and a child bound by the death signal, and tell their pids. The bound child starts in
    /// namespaces, if so told.
    Middle {
        isolated: bool,
    },
    /// Have a lifeline, and never read the channel.
    Busy,
}

#[derive(Serialize, Deserialize, Debug)]
struct Description {
    pid: u32,
    session: u32,
    descriptors: BTreeSet<i32>,
    environment: BTreeSet<String>,
    directory: String,
}

fn this_program() -> Spawn {
    let mut spec = Spawn::new(&std::env::current_exe().unwrap());
    spec.args =
        ["--exact", "in_the_child", "--ignored", "--nocapture", "--test-threads=1"].map(Into::into).into();
    spec
}

fn start(role: &Role, descriptors: &[OwnedFd]) -> (Child, Channel) {
    let (child, channel) = spawn(this_program()).unwrap();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    channel.send(role, &borrowed).unwrap();
    (child, channel)
}

#[test]
#[ignore = "the child's side of the other tests"]
fn in_the_child() {
    let channel = parent_channel().unwrap();
    assert!(matches!(parent_channel(), Err(Error::NoParent)));
    let (role, mut descriptors) = channel.recv::<Role>().unwrap().unwrap();
    match role {
        Role::Describe => channel.send(&describe(), &[]).unwrap(),
        Role::Exit(code) => std::process::exit(code.into()),
        Role::Outlive => {
            assert!(channel.recv::<Role>().unwrap().is_none());
            rustix::io::write(descriptors.remove(0), b"orphaned").unwrap();
        }
        Role::Busy => {
            process::exit_on_hang_up(&channel, 7).unwrap();
            channel.send(&(), &[]).unwrap();
            loop {
                std::thread::park();
            }
        }
        Role::Middle { isolated } => {
            let (outlives, _lifeline) = start(&Role::Outlive, &descriptors);
            let in_namespaces =
                || confinement::isolate_children().or_else(|_| confinement::isolate_children_as_user());
            if isolated && let Err(error) = in_namespaces() {
                channel.send(&error.to_string(), &[]).unwrap();
                return;
            }
            channel.send(&String::new(), &[]).unwrap();
            let mut sleeper = Spawn::new(&process::find_program("sleep").unwrap());
            sleeper.args = vec!["1000".into()];
            sleeper.dies_with_thread = true;
            let bound = spawn_without_channel(sleeper).unwrap();
            channel.send(&(outlives.pid(), bound.pid()), &[]).unwrap();
            channel.recv::<Role>().unwrap();
        }
    }
}

fn describe() -> Description {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<i32>().unwrap());
    let descriptors: BTreeSet<i32> = numbers.collect();
    Description {
        pid: std::process::id(),
        session: rustix::process::getsid(None).unwrap().as_raw_nonzero().get().unsigned_abs(),
        // The descriptor that reads the directory does not count.
        descriptors: descriptors
            .into_iter()
            .filter(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok())
            .collect(),
        environment: std::env::vars().map(|(name, _)| name).collect(),
        directory: std::env::current_dir().unwrap().display().to_string(),
    }
}

fn pidfd(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap()
}

fn wait_readable(fd: &impl AsFd) {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
}

#[test]
fn a_child_inherits_what_it_is_given_and_nothing_else() {
    // A descriptor that lacks the close-on-exec mark by mistake.
    let leaky = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    let mut spec = this_program();
    spec.inherit = vec![(File::open("/dev/zero").unwrap().into(), 9)];
    let (mut child, channel) = spawn(spec).unwrap();
    channel.send(&Role::Describe, &[]).unwrap();
    let (seen, _) = channel.recv::<Description>().unwrap().unwrap();
    assert_eq!(seen.descriptors, BTreeSet::from([0, 1, 2, 3, 9]), "{seen:?}");
    assert_eq!((seen.pid, seen.session), (child.pid(), child.pid()));
    assert_eq!(seen.directory, "/");
    let expected = ["PATH", "RUST_BACKTRACE", "MALLOC_ARENA_MAX"];
    let extra: Vec<_> = seen.environment.iter().filter(|name| !expected.contains(&name.as_str())).collect();
    assert!(extra.is_empty(), "{extra:?}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_end_of_a_child_is_readable_and_told_apart() {
    let (mut child, _channel) = start(&Role::Exit(7), &[]);
    wait_readable(&child);
    assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(7));
    assert_eq!(child.wait().unwrap().code(), Some(7));
    child.kill().unwrap();

    let (mut child, _channel) =
        start(&Role::Middle { isolated: false }, &[File::open("/dev/null").unwrap().into()]);
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn dropping_a_child_ends_and_reaps_it() {
    let mut spec = Spawn::new(&process::find_program("sleep").unwrap());
    spec.args = vec!["1000".into()];
    let child = spawn_without_channel(spec).unwrap();
    let pid = child.pid();
    drop(child);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn nothing_outlives_a_parent_that_was_killed() {
    for isolated in [false, true] {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (mut middle, channel) = start(&Role::Middle { isolated }, &[write]);
        let (refused, _) = channel.recv::<String>().unwrap().unwrap();
        if !refused.is_empty() {
            skip::skip("namespaces", format!("no namespaces: {refused}"));
            return;
        }
        let ((outlives, bound), _) = channel.recv::<(u32, u32)>().unwrap().unwrap();
        let ends = [pidfd(outlives), pidfd(bound)];
        for namespace in ["net", "ipc", "pid"] {
            let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
            assert_eq!(of(&bound.to_string()) != of("self"), isolated, "{namespace}");
        }
        middle.kill().unwrap();
        middle.wait().unwrap();
        let mut word = String::new();
        File::from(read).read_to_string(&mut word).unwrap();
        assert_eq!(word, "orphaned");
        for end in &ends {
            wait_readable(end);
        }
    }
}

#[test]
fn a_busy_process_ends_with_its_parent_too() {
    let (mut busy, channel) = start(&Role::Busy, &[]);
    channel.recv::<()>().unwrap().unwrap();
    // A message does not end the process; only the hang-up does.
    channel.send(&Role::Busy, &[]).unwrap();
    assert_eq!(busy.try_wait().unwrap(), None);
    drop(channel);
    assert_eq!(busy.wait().unwrap().code(), Some(7));
}

#[test]
fn a_program_that_cannot_start_is_an_error() {
    for program in ["/nonexistent/program", "/etc/passwd", "/"] {
        let error = spawn(Spawn::new(program.as_ref())).unwrap_err();
        assert!(matches!(&error, Error::Start { program: p, .. } if p == program), "{error}");
    }
    let mut spec = this_program();
    spec.inherit = vec![(File::open("/dev/null").unwrap().into(), process::CHANNEL_FD)];
    assert!(matches!(spawn(spec), Err(Error::Collision(3))));
}

#[test]
fn a_process_nobody_spawned_has_no_parent_channel() {
    // The child runs in a process of its own: in this process descriptor 3 may belong to any other test.
    let spec = this_program();
    let output = std::process::Command::new(spec.program).args(spec.args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("NoParent"), "{text}");
}

/// A kernel before 5.11 lacks the close_range(2) that marks descriptors.
#[test]
fn an_older_kernel_passes_nothing_on_either() {
    let channel = Channel::pair().unwrap();
    confinement::testing::pretend_absent(&[confinement::calls::CLOSE_RANGE]);
    let open: Vec<OwnedFd> = (0..20).map(|_| rustix::io::dup(channel.0.as_fd()).unwrap()).collect();
    let (_child, channel) = start(&Role::Describe, &[]);
    let (described, _) = channel.recv::<Description>().unwrap().unwrap();
    assert_eq!(described.descriptors, BTreeSet::from([0, 1, 2, 3]));
    drop(open);
}
