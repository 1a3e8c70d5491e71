//! The supervisor's side: the way to become the user's, and what is asked of the broker from then on.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use confinement::User;
use process::{Channel, Spawn};

use crate::child::{Brokers, Child};
use crate::requests::{
    Begin, DeleteInterface, KvmVersion, Listen, OpenKvm, Powers, Program, Question, Reply, Request, Start,
    Started,
};
use crate::{Error, acts};

/// The program.
const PROGRAM: &str = "matchlock-broker";

/// The exit status of a process whose broker was killed.
const LOST: u8 = 1;

/// The broker of this process, if it has one.
static BROKER: OnceLock<Client> = OnceLock::new();

/// A broker, as the supervisor sees it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Held from a request to its answer.
    channel: Mutex<Channel>,
    /// The broker ends when the channel hangs up, and is not waited for.
    _process: process::Child,
}

/// Makes this process, which is root's, that of `user`, for good. With `powers`, this process has a broker from then on
/// for what still takes root, and ends when the broker is killed.
///
/// To be called by a process with one thread.
pub fn become_user(user: &User, powers: Option<Powers>) -> Result<(), Error> {
    let threads = fs::read_dir("/proc/self/task").map_err(Error::User)?.count();
    if threads > 1 {
        return Err(Error::User(io::Error::other("this process has threads already")));
    }
    let client = powers.map(|powers| Client::start(user, powers)).transpose()?;
    confinement::become_user(user).map_err(|errno| Error::User(errno.into()))?;
    let Some(client) = client else { return Ok(()) };
    let watched = process::exit_on_hang_up(&client.channel(), LOST);
    watched.map_err(Error::Broker)?;
    BROKER.set(client).map_err(|_| Error::Broker(io::ErrorKind::AlreadyExists.into()))
}

/// Starts a program of this project with a channel. A broker starts its own `program`, and takes only the standard error
/// of `spawn`.
pub fn start(program: Program, spawn: Spawn) -> process::Result<(Child, Channel)> {
    let Some(broker) = BROKER.get() else {
        let (child, channel) = process::spawn(spawn)?;
        return Ok((child.into(), channel));
    };
    let failed = |source| process::Error::Start { program: program.name().to_owned(), source };
    let log = spawn.stderr.as_ref().map(AsFd::as_fd);
    let (Started { child, pid }, descriptors) = broker.ask_with(Start { program }, log).map_err(failed)?;
    let [pidfd, channel] = expected(descriptors).map_err(failed)?;
    Ok((Brokers { broker, child, pid, pidfd, status: None }.into(), channel.into()))
}

/// Opens KVM's device.
pub fn open_kvm() -> io::Result<OwnedFd> {
    let Some(broker) = BROKER.get() else { return acts::open_kvm() };
    let ((), descriptors) = broker.ask_with(OpenKvm {}, None)?;
    let [device] = expected(descriptors)?;
    Ok(device)
}

/// The version of KVM's interface. The error says what is wrong with its device.
pub fn kvm_api_version() -> io::Result<i32> {
    BROKER.get().map_or_else(acts::kvm_api_version, |broker| broker.ask(KvmVersion {}))
}

/// Listens on a port of this host.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match (TcpListener::bind(address), BROKER.get()) {
        (Err(error), Some(broker)) if error.kind() == io::ErrorKind::PermissionDenied => {
            let ((), descriptors) = broker.ask_with(Listen { address }, None)?;
            let [listener] = expected(descriptors)?;
            Ok(listener.into())
        }
        (bound, _) => bound,
    }
}

/// Deletes the network interface of the sandbox with this number; one that is not there is no error.
pub fn delete_interface(sandbox: u32) -> io::Result<()> {
    match BROKER.get() {
        Some(broker) => broker.ask(DeleteInterface { sandbox }),
        None => acts::delete_interface(sandbox),
    }
}

fn expected<const N: usize>(descriptors: Vec<OwnedFd>) -> io::Result<[OwnedFd; N]> {
    descriptors.try_into().map_err(|_| io::Error::other("the broker's answer has other descriptors"))
}

impl Client {
    /// Starts a broker; returns once it is ready to be asked.
    fn start(user: &User, powers: Powers) -> Result<Self, Error> {
        let program = process::find_own_program(PROGRAM).ok_or(Error::NoProgram)?;
        let failed = |error: process::Error| Error::Broker(io::Error::other(error));
        let (process, channel) = process::spawn(Spawn::new(&program)).map_err(failed)?;
        let User { uid, gid, groups } = user.clone();
        channel.send(&Begin { uid, gid, groups, powers }, &[]).map_err(failed)?;
        let begun = channel.recv::<Reply<()>>().map_err(failed)?.ok_or_else(gone).map_err(Error::Broker)?;
        begun.0.map_err(|failure| Error::Broker(failure.into()))?;
        Ok(Self { channel: Mutex::new(channel), _process: process })
    }

    /// Asks for what no descriptor belongs to.
    pub(crate) fn ask<Q: Question>(&self, question: Q) -> io::Result<Q::Answer> {
        Ok(self.ask_with(question, None)?.0)
    }

    fn ask_with<Q: Question>(
        &self,
        question: Q,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Q::Answer, Vec<OwnedFd>)> {
        let request: Request = question.into();
        let channel = self.channel();
        channel.send(&request, descriptor.as_slice()).map_err(io::Error::other)?;
        let answer = channel.recv::<Reply<Q::Answer>>().map_err(io::Error::other)?;
        let (answer, descriptors) = answer.ok_or_else(gone)?;
        Ok((answer?, descriptors))
    }

    fn channel(&self) -> std::sync::MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the process that stays root is gone")
}
