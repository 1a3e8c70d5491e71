//! Frames of `guest_protocol` on a stream: reading and writing them.
//!
//! Not here: what the frames say, and who opens streams.

use std::io::{self, IoSlice};
use std::ops::Range;

use guest_protocol::frame::{self, DATA_CHUNK, HEAD, Head, Kind};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Error, Result};

/// Room for two frames of a well-behaved sender, so that one read can take a whole one and the start of the next. A
/// longer frame makes the buffer as long as itself, at most [`frame::MAX_PAYLOAD`] and its head.
const CAPACITY: usize = 2 * (HEAD + DATA_CHUNK);

/// Reads frames. What has arrived is kept here, so [`Frames::next`] may be dropped at any time and called again.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    stream: R,
    buffer: Vec<u8>,
    /// What has arrived and is not given out.
    arrived: Range<usize>,
    payload: Range<usize>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::new(), arrived: 0..0, payload: 0..0 }
    }

    /// Waits for the next whole frame, whose content is then [`Frames::payload`]; `None` = the stream ended between
    /// frames.
    pub(crate) async fn next(&mut self) -> Result<Option<Kind>> {
        self.payload = 0..0;
        loop {
            let arrived = self.buffer.get(self.arrived.clone()).unwrap_or_default();
            let mut needed = HEAD;
            if let Some(head) = arrived.first_chunk::<HEAD>() {
                let head = Head::parse(*head)?;
                needed += head.len;
                if arrived.len() >= needed {
                    let end = self.arrived.start + needed;
                    self.payload = end - head.len..end;
                    self.arrived.start = end;
                    return Ok(Some(head.kind));
                }
            }
            self.make_room(needed);
            match self.stream.read(&mut self.buffer[self.arrived.end..]).await {
                Ok(0) if self.arrived.is_empty() => return Ok(None),
                Ok(0) => return Err(Error::HangUp),
                Ok(count) => self.arrived.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.arrived.is_empty() => {
                    return Ok(None);
                }
                Err(error) => return Err(hung_up(error)),
            }
        }
    }

    /// What the last frame held.
    pub(crate) fn payload(&self) -> &[u8] {
        self.buffer.get(self.payload.clone()).unwrap_or_default()
    }

    /// Moves what has arrived to the front of a buffer that has room for a frame of `needed` bytes.
    fn make_room(&mut self, needed: usize) {
        self.buffer.copy_within(self.arrived.clone(), 0);
        self.arrived = 0..self.arrived.len();
        let room = needed.max(CAPACITY);
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.buffer.capacity()
    }
}

/// Writes one frame. Dropped half-way, it leaves a stream that is good for nothing but hanging up.
pub(crate) async fn write_frame<W>(stream: &mut W, kind: Kind, payload: &[u8]) -> Result<()>
where
    W: AsyncWrite + Unpin,
{
    let head = Head::bytes(kind, payload.len()).ok_or(Error::TooLong)?;
    let mut slices = [IoSlice::new(&head), IoSlice::new(payload)];
    let mut rest = &mut slices[..];
    loop {
        let sent = stream.write_vectored(rest).await.map_err(hung_up)?;
        IoSlice::advance_slices(&mut rest, sent);
        match (rest.is_empty(), sent) {
            (true, _) => return Ok(()),
            (false, 0) => return Err(Error::HangUp),
            (false, _) => {}
        }
    }
}

/// Writes one message.
pub(crate) async fn write_message<W, M>(stream: &mut W, message: &M) -> Result<()>
where
    W: AsyncWrite + Unpin,
    M: Serialize,
{
    let bytes = frame::encode(message).map_err(|_| Error::TooLong)?;
    stream.write_all(&bytes).await.map_err(hung_up)
}

/// Reads one frame into `payload`, and no byte behind it; `None` = the stream ended between frames.
pub(crate) async fn read_frame<'a, R>(
    stream: &mut R,
    payload: &'a mut Vec<u8>,
) -> Result<Option<(Kind, &'a [u8])>>
where
    R: AsyncRead + Unpin,
{
    let mut head = [0; HEAD];
    match stream.read(&mut head[..1]).await {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(hung_up(error)),
    }
    stream.read_exact(&mut head[1..]).await.map_err(hung_up)?;
    let head = Head::parse(head)?;
    payload.resize(head.len, 0);
    stream.read_exact(payload).await.map_err(hung_up)?;
    Ok(Some((head.kind, payload)))
}

/// The ways in which a stream shows that its other end is gone.
pub(crate) fn hung_up(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Error::HangUp
        }
        _ => Error::System { what: "guest stream", source: error },
    }
}
