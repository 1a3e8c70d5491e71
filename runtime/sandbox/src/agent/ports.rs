//! The host's end of the vsock port channel: streams to and from the guest's ports.
//!
//! Not here: the bytes of a stream, and the device at the other end (`virtio::vsock`, where the channel is
//! specified).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use virtio::vsock::{PortMessage, channel};

use crate::agent::descriptors;

/// Streams to and from a guest.
#[derive(Debug)]
pub(crate) struct Ports {
    channel: AsyncFd<OwnedFd>,
}

impl Ports {
    /// A channel, and the device's end of it.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self { channel: descriptors::watched(ours, Interest::READABLE | Interest::WRITABLE)? }, theirs))
    }

    /// Opens a stream to a port of the guest. The stream may be written to at once; a refusal shows as its end.
    pub(crate) async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let message = PortMessage::Connect { port };
        let send = |channel: &OwnedFd| channel::send(channel.as_fd(), message, theirs.as_fd());
        self.channel.async_io(Interest::WRITABLE, send).await?;
        UnixStream::from_std(ours)
    }

    /// The next stream that the guest opened, with its port; `None` once the device is gone.
    pub(crate) async fn accept(&self) -> io::Result<Option<(u32, UnixStream)>> {
        loop {
            let receive = |channel: &OwnedFd| channel::receive(channel.as_fd());
            match self.channel.async_io(Interest::READABLE, receive).await {
                Ok(None) => return Ok(None),
                Ok(Some((PortMessage::Accept { port }, stream))) => {
                    let stream = std::os::unix::net::UnixStream::from(stream);
                    stream.set_nonblocking(true)?;
                    return Ok(Some((port, UnixStream::from_std(stream)?)));
                }
                // The device process is not trusted: bytes that are no message, and messages that only the host
                // sends, are dropped.
                Ok(Some((PortMessage::Connect { .. }, _))) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::fake::run;

    #[test]
    fn streams_go_both_ways_and_nonsense_nowhere() {
        run(async {
            let (ports, device) = Ports::pair().unwrap();
            let mut ours = ports.connect(7).await.unwrap();
            let (message, theirs) = channel::receive(device.as_fd()).unwrap().unwrap();
            assert_eq!(message, PortMessage::Connect { port: 7 });
            ours.write_all(b"x").await.unwrap();
            assert_eq!(rustix::io::read(&theirs, &mut [0; 9]).unwrap(), 1);

            rustix::net::send(&device, b"too short", rustix::net::SendFlags::empty()).unwrap();
            channel::send(device.as_fd(), PortMessage::Connect { port: 8 }, theirs.as_fd()).unwrap();
            channel::send(device.as_fd(), PortMessage::Accept { port: 9 }, theirs.as_fd()).unwrap();
            let (port, mut accepted) = ports.accept().await.unwrap().unwrap();
            assert_eq!(port, 9);
            drop((theirs, ours));
            assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0);

            drop(device);
            assert!(ports.accept().await.unwrap().is_none());
            assert!(ports.connect(7).await.is_err());
        });
    }
}
