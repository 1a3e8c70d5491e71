//! The channel: messages with descriptors over a `SOCK_SEQPACKET` socket pair.
//!
//! A message is one packet, or several when it has more descriptors than one packet may carry:
//!
//! ```text
//! packet:  u32 LE  descriptors of this message in later packets, 0 in the last
//!          bytes   the message (first packet only; later ones have none)
//!          cmsg    SCM_RIGHTS, at most 253
//! ```
//!
//! No packet is empty, so reading nothing means that the peer hung up.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wait::wait_readable;
use crate::{CHANNEL_FD, Error, Result};

/// Longest message, in encoded bytes.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// Most descriptors one message may carry.
pub const MAX_DESCRIPTORS: usize = 1024;
/// `SCM_MAX_FD` of unix(7).
pub(crate) const MAX_PACKET_DESCRIPTORS: usize = 253;
/// Bytes of a packet before the message.
const HEADER: usize = 4;

/// One end of a channel. Sending and receiving may happen at once, from different threads.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    partial: Mutex<Option<Partial>>,
}

/// A message, or the packets of it that have come so far.
#[derive(Debug)]
struct Partial {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    missing: usize,
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, partial: Mutex::new(None) }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Makes both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((a.into(), b.into()))
    }

    /// Sends `message` with copies of `descriptors`. A peer that is gone is an error (`EPIPE`).
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = postcard::to_stdvec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(Error::TooLong(bytes.len()));
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(Error::TooManyDescriptors(descriptors.len()));
        }
        let (first, rest) = descriptors.split_at(descriptors.len().min(MAX_PACKET_DESCRIPTORS));
        let mut missing = rest.len();
        self.send_packet(missing, &bytes, first)?;
        for batch in rest.chunks(MAX_PACKET_DESCRIPTORS) {
            missing -= batch.len();
            self.send_packet(missing, &[], batch)?;
        }
        Ok(())
    }

    fn send_packet(&self, missing: usize, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let header = u32::try_from(missing).unwrap_or(u32::MAX).to_le_bytes();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::NOBUFS.into());
        }
        let packet = [IoSlice::new(&header), IoSlice::new(bytes)];
        loop {
            match sendmsg(&self.socket, &packet, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next message; `None` if the peer hung up.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        self.recv_until(None)
    }

    /// Does the same as [`Self::recv`], but waits only until `deadline`, for a peer that may not be able to answer; the
    /// error is then `TimedOut`.
    pub fn recv_before<T: DeserializeOwned>(&self, deadline: Instant) -> Result<Option<(T, Vec<OwnedFd>)>> {
        self.recv_until(Some(deadline))
    }

    fn recv_until<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            match self.recv_packets() {
                Err(Error::Channel(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait_readable(&self.socket, deadline)? {
                        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    }
                }
                other => return decode(other?),
            }
        }
    }

    /// The next message if it is already here; `None` if the peer hung up, `WouldBlock` if no whole message is here.
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        decode(self.recv_packets()?)
    }

    /// Reads packets up to the end of a message; if the rest would block, the packets that were read are kept.
    fn recv_packets(&self) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let packet = match self.recv_packet() {
                Ok(Some(packet)) => packet,
                Err(Error::Channel(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(error.into());
                }
                end => {
                    *partial = None;
                    return end.map(|_| None);
                }
            };
            let message = match partial.take() {
                None => packet,
                Some(mut begun) => {
                    if begun.missing != packet.descriptors.len() + packet.missing
                        || packet.descriptors.is_empty()
                    {
                        return Err(Error::Malformed("packet does not continue the message"));
                    }
                    begun.descriptors.extend(packet.descriptors);
                    Partial { missing: packet.missing, ..begun }
                }
            };
            let total = message.descriptors.len() + message.missing;
            if total > MAX_DESCRIPTORS {
                return Err(Error::TooManyDescriptors(total));
            }
            if message.missing == 0 {
                return Ok(Some((message.bytes, message.descriptors)));
            }
            *partial = Some(message);
        }
    }

    fn recv_packet(&self) -> Result<Option<Partial>> {
        let mut header = [0; HEADER];
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut packet = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.socket, &mut packet, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                // The peer closed its end with unread messages in it. The error comes once; messages of the peer are
                // still to be read.
                Err(Errno::CONNRESET) => {}
                Err(error) => return Err(Error::Channel(error.into())),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::Malformed("descriptors were lost (is the limit on open files too low?)"));
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Error::Malformed("packet is too long"));
        }
        let Some(len) = received.bytes.checked_sub(HEADER) else {
            return Err(Error::Malformed("packet is too short"));
        };
        bytes.truncate(len);
        let missing = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
        if missing > MAX_DESCRIPTORS {
            return Err(Error::TooManyDescriptors(missing));
        }
        Ok(Some(Partial { bytes, descriptors, missing }))
    }
}

fn decode<T: DeserializeOwned>(
    message: Option<(Vec<u8>, Vec<OwnedFd>)>,
) -> Result<Option<(T, Vec<OwnedFd>)>> {
    message.map(|(bytes, descriptors)| Ok((postcard::from_bytes(&bytes)?, descriptors))).transpose()
}

/// The channel to the parent, in a process that [`crate::spawn()`] started. It can be taken once.
pub fn parent_channel() -> Result<Channel> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(Error::NoParent);
    }
    // SAFETY: the descriptor is borrowed for the next two calls only; if it is closed, they fail with EBADF, and
    // nothing worse.
    let inherited = unsafe { BorrowedFd::borrow_raw(CHANNEL_FD) };
    let is_channel = sockopt::socket_domain(inherited) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(inherited) == Ok(SocketType::SEQPACKET);
    if !is_channel {
        return Err(Error::NoParent);
    }
    rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC).map_err(io::Error::from)?;
    // SAFETY: the descriptor is open (checked above), and the process's starter put it there for this process alone;
    // `TAKEN` makes the result its only owner.
    let socket = unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) };
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (a, b) = Channel::pair().unwrap();
        let file = File::open("/proc/self/status").unwrap();
        a.send(&(7u32, "seven"), &[]).unwrap();
        a.send(&"eight", &[file.as_fd()]).unwrap();
        let (first, none) = b.recv::<(u32, String)>().unwrap().unwrap();
        assert_eq!((first.0, first.1.as_str(), none.len()), (7, "seven", 0));
        let (second, mut one) = b.recv::<String>().unwrap().unwrap();
        assert_eq!((second.as_str(), one.len()), ("eight", 1));
        let flags = rustix::io::fcntl_getfd(&one[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut text = String::new();
        File::from(one.remove(0)).read_to_string(&mut text).unwrap();
        assert!(text.starts_with("Name:"));
    }

    #[test]
    fn more_descriptors_than_a_packet_holds() {
        let (a, b) = Channel::pair().unwrap();
        let mut file =
            rustix::fs::memfd_create("numbered", rustix::fs::MemfdFlags::CLOEXEC).map(File::from).unwrap();
        file.write_all(b"shared").unwrap();
        let many = vec![file.as_fd(); 2 * MAX_PACKET_DESCRIPTORS + 1];
        a.send(&1u8, &many).unwrap();
        a.send(&2u8, &[]).unwrap();
        let (value, received) = b.recv::<u8>().unwrap().unwrap();
        assert_eq!((value, received.len()), (1, many.len()));
        let mut text = String::new();
        let mut last = File::from(received.into_iter().next_back().unwrap());
        last.rewind().unwrap();
        last.read_to_string(&mut text).unwrap();
        assert_eq!(text, "shared");
        assert_eq!(b.recv::<u8>().unwrap().unwrap().0, 2);
    }

    #[test]
    fn hang_up_is_none_even_with_messages_unread() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&1u8, &[]).unwrap();
        b.send(&2u8, &[]).unwrap();
        drop(a);
        // The peer's last messages are not lost; the end comes after them.
        let mut seen = Vec::new();
        while let Some((value, _)) = b.recv::<u8>().unwrap() {
            seen.push(value);
        }
        assert_eq!(seen, [1]);
        let error = b.send(&3u8, &[]).unwrap_err();
        assert!(matches!(error, Error::Channel(e) if e.kind() == io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn limits_are_kept_on_both_sides() {
        let (a, b) = Channel::pair().unwrap();
        let long = vec![0u8; MAX_MESSAGE + 1];
        assert!(matches!(a.send(&long, &[]), Err(Error::TooLong(_))));
        let fits = vec![1u8; MAX_MESSAGE - 3];
        a.send(&fits, &[]).unwrap();
        assert_eq!(b.recv::<Vec<u8>>().unwrap().unwrap().0, fits);
        let many = vec![a.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(matches!(a.send(&0u8, &many), Err(Error::TooManyDescriptors(_))));
        // A peer announces more descriptors than the limit.
        a.send_packet(MAX_DESCRIPTORS + 1, &[0], &[]).unwrap();
        assert!(matches!(b.recv::<u8>(), Err(Error::TooManyDescriptors(_))));
    }

    #[test]
    fn a_peer_that_stops_in_the_middle_does_not_block_a_try() {
        let (a, b) = Channel::pair().unwrap();
        let would_block = |b: &Channel| matches!(b.try_recv::<u8>(), Err(Error::Channel(e)) if e.kind() == io::ErrorKind::WouldBlock);
        assert!(would_block(&b));
        a.send_packet(1, &[9], &[a.as_fd()]).unwrap();
        assert!(would_block(&b));
        a.send_packet(0, &[], &[a.as_fd()]).unwrap();
        let (value, descriptors) = b.try_recv::<u8>().unwrap().unwrap();
        assert_eq!((value, descriptors.len()), (9, 2));
        a.send_packet(1, &[9], &[]).unwrap();
        a.send_packet(0, &[], &[]).unwrap();
        assert!(matches!(b.recv::<u8>(), Err(Error::Malformed(_))));
        rustix::net::send(&a, &[0, 0], SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(b.recv::<u8>(), Err(Error::Malformed(_))));
        // A part of a message that has arrived is dropped with the packet that breaks the message.
        a.send_packet(1, &[9], &[a.as_fd()]).unwrap();
        a.send_packet(MAX_DESCRIPTORS + 1, &[], &[a.as_fd()]).unwrap();
        a.send(&7u8, &[]).unwrap();
        assert!(matches!(b.recv::<u8>(), Err(Error::TooManyDescriptors(_))));
        assert_eq!(b.recv::<u8>().unwrap().unwrap().0, 7);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let (a, b) = Channel::pair().unwrap();
        let soon = || Instant::now() + std::time::Duration::from_millis(20);
        let timed_out =
            |received| matches!(received, Err(Error::Channel(e)) if e.kind() == io::ErrorKind::TimedOut);
        assert!(timed_out(b.recv_before::<u8>(soon())));
        // A peer stops in the middle of a message.
        a.send_packet(1, &[9], &[]).unwrap();
        assert!(timed_out(b.recv_before::<u8>(soon())));
        a.send_packet(0, &[], &[a.as_fd()]).unwrap();
        // A message that has arrived is taken, however late the call is.
        assert_eq!(b.recv_before::<u8>(Instant::now()).unwrap().unwrap().0, 9);
        drop(a);
        assert!(b.recv_before::<u8>(soon()).unwrap().is_none());
    }
}
