//! The port channel, for both of its ends: each message travels with one descriptor.
//!
//! Not here: the reaction to a message, and waiting for one.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::PortMessage;

/// Sends a message with an end of its stream. Does not wait: a full channel is [`io::ErrorKind::WouldBlock`].
pub fn send(channel: BorrowedFd<'_>, message: PortMessage, stream: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let streams = [stream];
    control.push(SendAncillaryMessage::ScmRights(&streams));
    let bytes = message.encode();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(channel, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives a message and the end of its stream; `None` once the other side has hung up. Does not wait
/// ([`io::ErrorKind::WouldBlock`]). A malformed message is [`io::ErrorKind::InvalidData`]; the next message may be a
/// valid one.
pub fn receive(channel: BorrowedFd<'_>) -> io::Result<Option<(PortMessage, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // The buffer has one byte more than a message, so that a longer message is recognized.
    let mut bytes = [0; PortMessage::LEN + 1];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(channel, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let stream = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut streams) => streams.next(),
        _ => None,
    });
    match (bytes.get(..received.bytes).and_then(PortMessage::decode), stream) {
        (Some(message), Some(stream)) => Ok(Some((message, stream))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
