//! For tests, of other crates too: a guest that is a closure behind the device's end of the port channel.
//!
//! Not here: the guest's answers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use images::ImageConfig;
use tokio::io::Interest;
use tokio::net::UnixStream;
use virtio::vsock::{PortMessage, channel};

use crate::agent::command::Defaults;
use crate::agent::descriptors;
use crate::agent::detached::Log;
use crate::agent::own::OwnGuest;
use crate::agent::ports::Ports;
use crate::guest::Guest;

/// A guest of this process; `serve` is called with every service stream. Needs a tokio runtime with I/O around it.
///
/// # Panics
///
/// If the system has no more sockets.
#[must_use]
pub fn guest(serve: impl Fn(UnixStream) + Send + 'static) -> Guest {
    own(Log::new(|_| {}), serve).into()
}

#[allow(clippy::unwrap_used, reason = "a test's helper fails the test")]
pub(crate) fn own(log: Log, serve: impl Fn(UnixStream) + Send + 'static) -> OwnGuest {
    let (ports, device) = Ports::pair().unwrap();
    rustix::io::ioctl_fionbio(&device, true).unwrap();
    let device = descriptors::watched(device, Interest::READABLE | Interest::WRITABLE).unwrap();
    tokio::spawn(async move {
        loop {
            let receive = |device: &OwnedFd| channel::receive(device.as_fd());
            let Ok(Some((PortMessage::Connect { port: 1024 }, stream))) =
                device.async_io(Interest::READABLE, receive).await
            else {
                return;
            };
            let stream = std::os::unix::net::UnixStream::from(stream);
            stream.set_nonblocking(true).unwrap();
            serve(UnixStream::from_std(stream).unwrap());
        }
    });
    let image = ImageConfig { user: "app".into(), env: vec!["A=image".into()], ..Default::default() };
    OwnGuest::new(Arc::new(ports), Defaults { image, ..Default::default() }, log)
}
