//! Socket device (VIRTIO 1.3 §5.10), its streams handed over as host sockets.
//!
//! The host end is one `SOCK_SEQPACKET` Unix socket between device and supervisor, the *port channel*. Each message is
//! one [`PortMessage`] and carries one descriptor: an end of a fresh `SOCK_STREAM` socket pair, which represents the
//! stream from then on.
//!
//! * host to guest: the supervisor makes the pair and sends `Connect { port }` with one end. The supervisor may write at
//!   once; the bytes wait until the guest accepts. A refusal shows as end of file before any byte.
//! * guest to host: the device makes the pair and sends `Accept { port }` with one end, if the supervisor listens on
//!   that port; otherwise the guest gets a reset.
//!
//! Shutdown of either direction on either side is passed to the other side (half-close). All bytes that one side sent
//! before its end reach the other side before that end does.
//!
//! No byte is taken from a host socket before the guest has a buffer and credit for it, so only bytes *from* the guest
//! are ever stored: at most 256 KiB for each stream, and only while the host is slower than the guest.

pub mod channel;
mod credit;
mod device;
mod packet;
mod stream;
mod switch;
mod sys;

#[cfg(test)]
mod tests;

pub use device::Vsock;
pub use switch::{MAX_RESETS, MAX_STREAMS};

/// The guest's context id.
pub const GUEST_CID: u64 = 3;

/// One message of the port channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortMessage {
    /// Supervisor to device: open a stream to this guest port.
    Connect {
        /// Guest port.
        port: u32,
    },
    /// Device to supervisor: the guest opened a stream to this host port.
    Accept {
        /// Host port.
        port: u32,
    },
}

impl PortMessage {
    /// Bytes of a message: operation and port, little-endian u32 each.
    pub const LEN: usize = 8;

    /// The message as bytes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let (operation, port) = match self {
            Self::Connect { port } => (1u32, port),
            Self::Accept { port } => (2, port),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&operation.to_le_bytes());
        bytes[4..].copy_from_slice(&port.to_le_bytes());
        bytes
    }

    /// The message in `bytes`, if they are a valid one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (operation, port) = bytes.split_first_chunk::<4>()?;
        let port = u32::from_le_bytes(*port.first_chunk::<4>().filter(|_| port.len() == 4)?);
        match u32::from_le_bytes(*operation) {
            1 => Some(Self::Connect { port }),
            2 => Some(Self::Accept { port }),
            _ => None,
        }
    }
}
