//! The fuzz body of the packets from the other end of a channel: any packets become messages or errors.
//!
//! `cargo test` runs the body a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here:
//! the meaning of a message to its receiver.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::sys::MAX_PACKET_DESCRIPTORS;
use crate::{Channel, Error, MAX_DESCRIPTORS, MAX_MESSAGE};

/// Sends packets: each packet's first byte is the number of descriptors, its second the length of the rest.
pub fn channel(data: &[u8]) {
    let (Ok((ours, theirs)), Ok(null)) = (Channel::pair(), File::open("/dev/null")) else { return };
    let mut rest = data;
    while let Some((&[descriptors, len], after)) = rest.split_first_chunk() {
        let (packet, later) = after.split_at(after.len().min(usize::from(len)));
        let sent = send(&theirs, packet, &vec![null.as_fd(); usize::from(descriptors)]);
        rest = later;
        // A channel that is full is read first.
        let now = sent.is_err() || packet.first().is_some_and(|byte| byte % 4 == 0);
        // An empty packet has the effect of a hang-up.
        if now && receive(&ours) {
            return;
        }
    }
    drop(theirs);
    assert!(receive(&ours), "the peer is gone");
}

/// Takes the messages that have come, until there is no whole one. Returns whether the peer hung up.
fn receive(channel: &Channel) -> bool {
    loop {
        match channel.try_recv::<(u8, String, Vec<u16>)>() {
            Ok(Some(((_, text, numbers), descriptors))) => {
                assert!(text.len() + numbers.len() <= MAX_MESSAGE && descriptors.len() <= MAX_DESCRIPTORS);
            }
            Ok(None) => return true,
            Err(Error::Channel(error)) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(Error::Message(_) | Error::Malformed(_) | Error::TooManyDescriptors(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn send(channel: &Channel, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = &descriptors[..descriptors.len().min(MAX_PACKET_DESCRIPTORS)];
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(channel, &[IoSlice::new(packet)], &mut control, flags)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    /// A packet that says how many descriptors are in later ones.
    fn packet(descriptors: u8, missing: u8, message: &[u8]) -> Vec<u8> {
        let len = u8::try_from(4 + message.len()).unwrap();
        [&[descriptors, len, missing, 0, 0, 0], message].concat()
    }

    #[test]
    fn channel() {
        let message = postcard::to_stdvec(&(1u8, "text", [7u16, 300])).unwrap();
        let examples = [
            packet(0, 0, &message),
            [packet(3, 2, &message), packet(2, 0, b""), packet(1, 0, &message)].concat(),
            [packet(253, 255, &message), packet(253, 2, b""), packet(2, 0, b"")].concat(),
        ];
        fuzzed::run("process_channel", 1500, &examples, &["\0\0", "\x01\x04\0\0\0\0"], super::channel);
    }
}
