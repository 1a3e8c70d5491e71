//! Serves a virtio device to a vhost-user front end.
//!
//! [`serve`] lends the device to the event loop of `vhost-user-backend`, which is only another caller of
//! [`Device::process`]: the device does not learn that its driver's memory came over a socket. One connection is
//! served, once; the front end (QEMU, or this project's own) holds the other end from the start, so no socket has a
//! name.
//!
//! A front end stops and starts the rings both to pause the machine and when the driver resets the device. The device
//! is told of a reset only if the rings start from zero, so its state (open streams) survives a pause.
//!
//! A device with many requests in flight ([`ParallelDevice`]) has a thread for each queue instead ([`start_parallel`]).
//!
//! Not here: migration, inflight tracking, changes of the configuration space, and who may connect.

#![cfg(target_os = "linux")]

mod adapter;
mod parallel;
mod ring;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};

use guest_memory::GuestRam;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserBackend, VhostUserDaemon};
use virtio::{Device, Identity};
use vm_memory::GuestMemoryAtomic;

use adapter::Adapter;
use parallel::Parallel;
pub use parallel::{PATIENCE, ParallelDevice};
use ring::Ring;

/// Why a device could not be served to the end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device has more queues than the loop's messages can name.
    #[error("device has {0} queues, which is too many for vhost-user")]
    TooManyQueues(usize),
    /// The loop could not be set up.
    #[error("vhost-user loop: {0}")]
    Loop(io::Error),
    /// The front end broke the protocol, or the host refused a call that the front end's request needed.
    #[error("vhost-user front end: {0}")]
    FrontEnd(VhostUserError),
}

/// A device being served by threads of its own.
pub struct Served(Box<dyn Daemon>);

/// Starts to serve `device` to the one front end that connects to `listener`.
pub fn start(name: &str, device: Box<dyn Device>, listener: UnixListener) -> Result<Served, Error> {
    check(device.identity())?;
    let adapter = Arc::new(Mutex::new(Adapter::new(device).map_err(Error::Loop)?));
    let daemon = daemon(name, adapter.clone())?;
    if let Some(epoll) = daemon.get_epoll_handlers().first() {
        adapter.lock().unwrap_or_else(PoisonError::into_inner).set_epoll(epoll).map_err(Error::Loop)?;
    }
    listen(daemon, listener)
}

/// Starts to serve a device whose queues have a thread each to the one front end that connects to `listener`.
pub fn start_parallel(
    name: &str,
    device: Box<dyn ParallelDevice>,
    listener: UnixListener,
) -> Result<Served, Error> {
    check(device.identity())?;
    let parallel = Arc::new(Parallel::new(device).map_err(Error::Loop)?);
    listen(daemon(name, parallel)?, listener)
}

/// Serves `device` to the one front end that connects to `listener`, until that hangs up.
pub fn serve(name: &str, device: Box<dyn Device>, listener: UnixListener) -> Result<(), Error> {
    start(name, device, listener)?.wait()
}

impl Served {
    /// Waits until the front end hangs up, and ends the loop.
    pub fn wait(mut self) -> Result<(), Error> {
        match self.0.wait() {
            Ok(()) => Ok(()),
            // A front end that was killed may hang up at any point of a message.
            Err(DaemonError::HandleRequest(
                VhostUserError::Disconnected | VhostUserError::PartialMessage,
            )) => Ok(()),
            Err(error) => Err(front_end_error(error)),
        }
    }
}

/// The loop, for either kind of device.
trait Daemon: Send {
    /// Waits until the front end hangs up, and ends the threads.
    fn wait(&mut self) -> Result<(), DaemonError>;
}

impl<T: Loop> Daemon for VhostUserDaemon<T> {
    fn wait(&mut self) -> Result<(), DaemonError> {
        let result = VhostUserDaemon::wait(self);
        for epoll in self.get_epoll_handlers() {
            epoll.send_exit_event();
        }
        result
    }
}

/// The traits that the loop needs of a device's adapter.
trait Loop: VhostUserBackend<Bitmap = (), Vring = Ring> + Clone + 'static {}

impl<T: VhostUserBackend<Bitmap = (), Vring = Ring> + Clone + 'static> Loop for T {}

fn check(identity: Identity<'_>) -> Result<(), Error> {
    let queues = identity.queue_sizes.len();
    if queues > adapter::MAX_QUEUES { Err(Error::TooManyQueues(queues)) } else { Ok(()) }
}

fn daemon<T: Loop>(name: &str, backend: T) -> Result<VhostUserDaemon<T>, Error> {
    let memory = GuestMemoryAtomic::new(GuestRam::default());
    VhostUserDaemon::new(name.to_owned(), backend, memory).map_err(front_end_error)
}

fn listen<T: Loop>(mut daemon: VhostUserDaemon<T>, listener: UnixListener) -> Result<Served, Error> {
    daemon.start(&mut Listener::from(listener)).map_err(front_end_error)?;
    Ok(Served(Box::new(daemon)))
}

/// Turns a daemon's error into this crate's. Only a vhost-user error can be the front end's fault.
fn front_end_error(error: DaemonError) -> Error {
    match error {
        DaemonError::HandleRequest(error) | DaemonError::CreateBackendListener(error) => {
            Error::FrontEnd(error)
        }
        DaemonError::StartDaemon(error) => Error::Loop(error),
        other => Error::Loop(io::Error::other(other.to_string())),
    }
}
