//! Frames: one byte of kind, a little-endian u32 payload length, the payload.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Answer, Reply};

/// Largest payload of any frame, either way.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Largest piece of output or input put into one frame by a well-behaved sender.
pub const DATA_CHUNK: usize = 64 << 10;

/// Length of a frame's head.
pub const HEAD: usize = 5;

/// The content of a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message, in postcard encoding; its type follows from the stream and the direction.
    Message = 0,
    /// Input for the program. Empty = end of input.
    Stdin = 1,
    /// Output of the program.
    Stdout = 2,
    /// Error output of the program.
    Stderr = 3,
}

/// A stream that does not follow the protocol. Its receiver hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind byte is unknown.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// The length is over [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes is over the limit")]
    TooLong(u32),
    /// The payload is not the expected message.
    #[error("frame is not the expected message")]
    Message,
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Truncated,
}

/// A frame's head, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The content of the payload.
    pub kind: Kind,
    /// The payload's length, at most [`MAX_PAYLOAD`].
    pub len: usize,
}

impl Head {
    /// Checks a received head.
    pub fn parse(bytes: [u8; HEAD]) -> Result<Self, FrameError> {
        let kind = match bytes[0] {
            0 => Kind::Message,
            1 => Kind::Stdin,
            2 => Kind::Stdout,
            3 => Kind::Stderr,
            other => return Err(FrameError::Kind(other)),
        };
        let len = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        match usize::try_from(len) {
            Ok(len) if len <= MAX_PAYLOAD => Ok(Self { kind, len }),
            _ => Err(FrameError::TooLong(len)),
        }
    }

    /// The head of a payload of `len` bytes; `None` if it is too long.
    #[must_use]
    pub fn bytes(kind: Kind, len: usize) -> Option<[u8; HEAD]> {
        let len = u32::try_from(len).ok().filter(|_| len <= MAX_PAYLOAD)?.to_le_bytes();
        Some([kind as u8, len[0], len[1], len[2], len[3]])
    }
}

/// A message as a whole frame.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_extend(message, vec![0; HEAD]).map_err(|_| FrameError::Message)?;
    let head = Head::bytes(Kind::Message, bytes.len() - HEAD);
    let mut bytes = bytes;
    bytes[..HEAD].copy_from_slice(&head.ok_or(FrameError::Message)?);
    Ok(bytes)
}

/// An answer as a whole frame.
pub fn encode_reply<A: Answer>(answer: &A) -> Result<Vec<u8>, FrameError> {
    encode(&Reply::Ok(answer))
}

/// The message in a payload; trailing bytes are an error.
pub fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Message),
    }
}

/// Splits a byte stream into frames. Holds at most one frame.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: Vec<u8>,
    start: usize,
}

impl Splitter {
    /// Adds received bytes. Call [`Splitter::next_frame`] until it returns nothing before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub fn next_frame(&mut self) -> Result<Option<(Kind, &[u8])>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some(head) = rest.first_chunk::<HEAD>() else { return Ok(None) };
        let head = Head::parse(*head)?;
        let end = HEAD + head.len;
        if rest.len() < end {
            return Ok(None);
        }
        self.start += end;
        Ok(Some((head.kind, &self.buffer[self.start - head.len..self.start])))
    }

    /// Bytes that have arrived and are not given out.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.start == self.buffer.len()
    }
}
