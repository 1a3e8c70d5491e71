//! The broker itself: one thread that takes a request after the other, and the processes that it started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use confinement::User;
use process::{Channel, Child, Spawn};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

use crate::requests::{
    Begin, DeleteInterface, Kill, KvmVersion, Listen, OpenKvm, Powers, Program, Question, Reap, Reply,
    Request, Start, Started,
};
use crate::{QEMU, acts};

/// Most processes at once. A sandbox has four, and one for each mount that was added, of which there are eight at most: the
/// software machine's two, that of shared folders, and that of its network's way out; and for a moment the one that makes
/// the network.
const MAX_CHILDREN: usize = 16;

/// How long a process of shared folders may write its list of changes once the supervisor is gone. A supervisor waits as
/// long for a list that it asks for.
const LAST_LIST: Duration = Duration::from_secs(60);

/// The capabilities that stay: for processes' users, namespaces and ends, for programs that only their owner finds, for
/// ports below 1024, for interfaces, and for the sockets of sandboxes' networks. A filter of system calls would hold for all
/// programs that the broker starts, QEMU's launcher included.
const KEPT: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW);

/// Serves until the one who asks hangs up, or sends what is no request; then all that was started ends.
pub fn serve(channel: Channel) -> process::Result<()> {
    let Some((Begin { uid, gid, groups, powers }, _)) = channel.recv()? else { return Ok(()) };
    let begun: Reply<()> = begin().map_err(Into::into);
    channel.send(&begun, &[])?;
    if begun.is_err() {
        return Ok(());
    }
    let mut broker = Broker::new(User { uid, gid, groups }, powers);
    let outcome = broker.obey_all(&channel);
    // The one who asks has no broker any more, however long the last process takes to end.
    drop(channel);
    drop(broker);
    outcome
}

/// Gives up what no request takes.
fn begin() -> io::Result<()> {
    confinement::keep_capabilities(KEPT)?;
    // The programs inherit the limit, which also counts descriptors under way.
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// A broker that has begun.
#[derive(Debug)]
pub(crate) struct Broker {
    user: User,
    powers: Powers,
    /// The processes that are not reaped yet.
    children: BTreeMap<u32, Running>,
    /// The number that the next child gets.
    next: u32,
}

/// A process that was started, and what it runs.
#[derive(Debug)]
struct Running {
    program: Program,
    child: Child,
}

impl Broker {
    pub(crate) fn new(user: User, powers: Powers) -> Self {
        Self { user, powers, children: BTreeMap::new(), next: 0 }
    }

    fn obey_all(&mut self, channel: &Channel) -> process::Result<()> {
        while let Some((request, descriptors)) = channel.recv()? {
            self.obey(request, descriptors, channel)?;
        }
        Ok(())
    }

    /// Does what is asked, or refuses it, and says so.
    pub(crate) fn obey(
        &mut self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        channel: &Channel,
    ) -> process::Result<()> {
        let is_allowed = match self.powers {
            Powers::TakeBack => matches!(request, Request::DeleteInterface(_)),
            Powers::Listen => matches!(request, Request::DeleteInterface(_) | Request::Listen(_)),
            Powers::Sandbox => true,
        };
        if !is_allowed {
            let refused: Reply<()> = Err(io::Error::from(Errno::PERM).into());
            return channel.send(&refused, &[]);
        }
        match request {
            Request::Start(Start { program }) => {
                let started = self.start(program, descriptors);
                let (started, descriptors) =
                    started.map_or_else(|error| (Err(error), Vec::new()), |(all, fds)| (Ok(all), fds));
                reply::<Start>(channel, started, &descriptors)
            }
            Request::Kill(Kill { child }) => reply::<Kill>(channel, self.kill(child), &[]),
            Request::Reap(Reap { child }) => reply::<Reap>(channel, self.reap(child), &[]),
            Request::OpenKvm(OpenKvm {}) => reply_with::<OpenKvm>(channel, acts::open_kvm()),
            Request::KvmVersion(KvmVersion {}) => reply::<KvmVersion>(channel, acts::kvm_api_version(), &[]),
            Request::Listen(Listen { address }) => {
                reply_with::<Listen>(channel, TcpListener::bind(address).map(OwnedFd::from))
            }
            Request::DeleteInterface(DeleteInterface { sandbox }) => {
                reply::<DeleteInterface>(channel, acts::delete_interface(sandbox), &[])
            }
        }
    }

    fn start(&mut self, program: Program, descriptors: Vec<OwnedFd>) -> io::Result<(Started, Vec<OwnedFd>)> {
        if self.children.len() >= MAX_CHILDREN {
            // If the supervisor has no room for the descriptors of an answer, the process ends by the hang-up of its
            // channel, and nobody asks the broker to reap it.
            self.children.retain(|_, running| !matches!(running.child.try_wait(), Ok(Some(_))));
        }
        if self.children.len() >= MAX_CHILDREN {
            return Err(io::Error::other("too many processes"));
        }
        let log = descriptors.into_iter().next();
        // The program may write there as root. Nothing but text comes of that in a pipe.
        let is_pipe =
            |log| rustix::fs::fstat(log).map(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
        if let Some(log) = &log
            && !is_pipe(log)?
        {
            return Err(Errno::INVAL.into());
        }
        let args = self.arguments(program)?;
        let file = process::find_own_program(program.name()).ok_or_else(|| not_found(program.name()))?;
        let spawn = Spawn { stderr: log, args, ..Spawn::new(&file) };
        let (child, channel) = process::spawn(spawn).map_err(|error| match error {
            process::Error::Start { source, .. } => source,
            other => io::Error::other(other),
        })?;
        let descriptors = vec![child.as_fd().try_clone_to_owned()?, channel.into()];
        let (number, pid) = (self.next, child.pid());
        // Sixteen processes at once do not start four thousand million in a sandbox's life; if they did, the broker ends.
        self.next = number.checked_add(1).ok_or_else(|| io::Error::other("too many processes"))?;
        self.children.insert(number, Running { program, child });
        Ok((Started { child: number, pid }, descriptors))
    }

    /// The arguments of a program that starts as root's: a supervisor must not choose these.
    fn arguments(&self, program: Program) -> io::Result<Vec<OsString>> {
        Ok(match program {
            Program::Vmm | Program::Devices | Program::Arrival | Program::Egress => Vec::new(),
            Program::Launcher => {
                vec![process::find_program(QEMU).ok_or_else(|| not_found(QEMU))?.into()]
            }
            Program::Shares => self.user.arguments(),
        })
    }

    fn kill(&self, child: u32) -> io::Result<()> {
        self.children.get(&child).map_or_else(unknown, |running| running.child.kill())
    }

    fn reap(&mut self, child: u32) -> io::Result<Option<i32>> {
        let running = self.children.get_mut(&child);
        let status = running.map_or_else(unknown, |running| running.child.try_wait())?;
        if status.is_some() {
            self.children.remove(&child);
        }
        Ok(status.map(ExitStatusExt::into_raw))
    }

    /// Kills all before the first is waited for, but for processes of shared folders: these have heard the hang-up, too,
    /// and may be writing what a guest changed of an overlay. They are killed after `patience`.
    fn end(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let children = std::mem::take(&mut self.children).into_values();
        let (shares, others): (Vec<_>, Vec<_>) =
            children.partition(|running| running.program == Program::Shares);
        for other in &others {
            let _ = other.child.kill();
        }
        for running in &shares {
            let _ = process::wait_readable(&running.child, Some(deadline));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end(LAST_LIST);
    }
}

fn not_found(program: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{program} not found"))
}

fn unknown<T>() -> io::Result<T> {
    Err(io::Error::other("no such process"))
}

fn reply<Q: Question>(
    channel: &Channel,
    answer: io::Result<Q::Answer>,
    descriptors: &[OwnedFd],
) -> process::Result<()> {
    let reply: Reply<Q::Answer> = answer.map_err(Into::into);
    channel.send(&reply, &descriptors.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

/// Replies with a descriptor and nothing else.
fn reply_with<Q: Question<Answer = ()>>(
    channel: &Channel,
    opened: io::Result<OwnedFd>,
) -> process::Result<()> {
    match opened {
        Ok(descriptor) => reply::<Q>(channel, Ok(()), &[descriptor]),
        Err(error) => reply::<Q>(channel, Err(error), &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes that do not end by themselves: one of shared folders, and another.
    fn broker() -> (Broker, OwnedFd, OwnedFd) {
        let mut broker = Broker::new(User { uid: 1, gid: 1, groups: Vec::new() }, Powers::Sandbox);
        let mut sleep = Spawn::new(&process::find_program("sleep").unwrap());
        sleep.args.push("1000".into());
        let other = Spawn { args: sleep.args.clone(), ..Spawn::new(&sleep.program) };
        let mut start = |number, program, spawn| {
            let child = process::spawn_without_channel(spawn).unwrap();
            let pidfd = child.as_fd().try_clone_to_owned().unwrap();
            broker.children.insert(number, Running { program, child });
            pidfd
        };
        let shares = start(0, Program::Shares, sleep);
        let other = start(1, Program::Vmm, other);
        (broker, shares, other)
    }

    fn has_ended(process: &OwnedFd, patience: Duration) -> bool {
        process::wait_readable(process, Some(Instant::now() + patience)).unwrap()
    }

    #[test]
    fn shared_folders_end_last_but_they_end() {
        let (mut broker, shares, other) = broker();
        let ending = std::thread::spawn(move || broker.end(Duration::from_millis(500)));
        assert!(has_ended(&other, Duration::from_secs(20)));
        assert!(!has_ended(&shares, Duration::from_millis(50)), "killed at once");
        ending.join().unwrap();
        assert!(has_ended(&shares, Duration::ZERO));
    }
}
