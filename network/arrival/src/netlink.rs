//! Requests to the kernel over netlink(7), each acknowledged.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Most bytes of one answer: an acknowledgement has the request in it, of which the longest is a rule.
const MAX_ANSWER: usize = 8 << 10;

/// A socket to a part of the kernel, in this thread's network namespace.
pub(crate) struct Netlink(Socket);

impl Netlink {
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends requests as one packet, and waits until each that asks for it (`NLM_F_ACK`) is done. The first error is
    /// returned.
    pub(crate) fn ask<T>(&self, requests: Vec<(u16, T)>) -> io::Result<()>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut packet = Vec::new();
        let mut unanswered = 0;
        for (number, (flags, request)) in (1..).zip(requests) {
            let mut header = NetlinkHeader::default();
            (header.flags, header.sequence_number) = (NLM_F_REQUEST | flags, number);
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
            message.finalize();
            let start = packet.len();
            packet.resize(start + message.buffer_len(), 0);
            message.serialize(&mut packet[start..]);
            unanswered += usize::from(flags & NLM_F_ACK != 0);
        }
        self.0.send(&packet, 0)?;
        let mut answer = Vec::with_capacity(MAX_ANSWER);
        while unanswered > 0 {
            answer.clear();
            let len = self.0.recv(&mut answer, 0)?;
            let mut rest = &answer[..len.min(answer.len())];
            while !rest.is_empty() {
                let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
                if let NetlinkPayload::Error(error) = message.payload {
                    match error.code {
                        None => unanswered = unanswered.saturating_sub(1),
                        Some(code) => return Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                    }
                }
                let whole = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(whole.max(4)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}
