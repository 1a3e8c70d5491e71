//! Serves a virtio device to a vhost-user front end.
//!
//! [`serve`] lends the device to the event loop of `vhost-user-backend`, which is only another caller of
//! [`Device::process`]: the device does not learn that its driver's memory came over a socket. One connection is
//! served, once; the front end (QEMU, or our own) holds the other end from the start, so no socket has a name.
//!
//! A front end stops and starts the rings to pause the machine as well as when the driver resets the device. The
//! device is told of a reset only if the rings start from zero, so its state (open streams) survives a pause.
//!
//! Not here: migration, inflight tracking, changes of the configuration space, and who may connect.

#![cfg(target_os = "linux")]

mod adapter;
mod ring;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};

use guest_memory::GuestRam;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtio::Device;
use vm_memory::GuestMemoryAtomic;

use adapter::Adapter;

/// Why a device could not be served to the end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device with more queues than the loop's messages can name.
    #[error("device with {0} queues has too many for vhost-user")]
    TooManyQueues(usize),
    /// The loop could not be set up.
    #[error("vhost-user loop: {0}")]
    Loop(io::Error),
    /// The front end broke the protocol, or the host refused what it asked for.
    #[error("vhost-user front end: {0}")]
    FrontEnd(VhostUserError),
}

/// A device being served by threads of its own.
pub struct Served {
    daemon: VhostUserDaemon<Arc<Mutex<Adapter>>>,
}

/// Starts to serve `device` to the one front end that connects to `listener`.
pub fn start(name: &str, device: Box<dyn Device>, listener: UnixListener) -> Result<Served, Error> {
    let queues = device.identity().queue_sizes.len();
    if queues > adapter::MAX_QUEUES {
        return Err(Error::TooManyQueues(queues));
    }
    let memory = GuestMemoryAtomic::new(GuestRam::default());
    let adapter = Arc::new(Mutex::new(Adapter::new(device).map_err(Error::Loop)?));
    let mut daemon =
        VhostUserDaemon::new(name.to_owned(), adapter.clone(), memory).map_err(front_end_error)?;
    if let Some(epoll) = daemon.get_epoll_handlers().first() {
        adapter.lock().unwrap_or_else(PoisonError::into_inner).set_epoll(epoll).map_err(Error::Loop)?;
    }
    daemon.start(&mut Listener::from(listener)).map_err(front_end_error)?;
    Ok(Served { daemon })
}

/// Serves `device` to the one front end that connects to `listener`, until that hangs up.
pub fn serve(name: &str, device: Box<dyn Device>, listener: UnixListener) -> Result<(), Error> {
    start(name, device, listener)?.wait()
}

impl Served {
    /// Waits until the front end hangs up, and ends the loop.
    pub fn wait(mut self) -> Result<(), Error> {
        let result = self.daemon.wait();
        for epoll in self.daemon.get_epoll_handlers() {
            epoll.send_exit_event();
        }
        match result {
            Ok(()) => Ok(()),
            // A front end that was killed may hang up anywhere.
            Err(DaemonError::HandleRequest(
                VhostUserError::Disconnected | VhostUserError::PartialMessage,
            )) => Ok(()),
            Err(error) => Err(front_end_error(error)),
        }
    }
}

/// The daemon's errors, of which only the vhost-user ones can be anybody else's fault.
fn front_end_error(error: DaemonError) -> Error {
    match error {
        DaemonError::HandleRequest(error) | DaemonError::CreateBackendListener(error) => {
            Error::FrontEnd(error)
        }
        DaemonError::StartDaemon(error) => Error::Loop(error),
        other => Error::Loop(io::Error::other(other.to_string())),
    }
}
