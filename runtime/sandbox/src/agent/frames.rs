//! Frames of `guest_protocol` on a stream: reading and writing them.
//!
//! Not here: the meaning of a frame.

use std::io::{self, IoSlice};
use std::ops::Range;

use guest_protocol::frame::{self, DATA_CHUNK, HEAD, Head, Kind};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::agent::error::{Error, Result};

/// Room for two frames of a well-behaved sender, so that one read can take a whole frame and the start of the next. A
/// longer frame grows the buffer to that frame's length, at most [`frame::MAX_PAYLOAD`] and its head.
const CAPACITY: usize = 2 * (HEAD + DATA_CHUNK);

/// Reads frames. Partly read frames are kept here, so [`Frames::next`] may be dropped at any time and called again.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    stream: R,
    buffer: Vec<u8>,
    /// Bytes that have arrived and are not given out.
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

    /// The content of the last frame.
    pub(crate) fn payload(&self) -> &[u8] {
        self.buffer.get(self.payload.clone()).unwrap_or_default()
    }

    /// Moves what has arrived to the front of a buffer that has room for a frame of `needed` bytes.
    fn make_room(&mut self, needed: usize) {
        self.buffer.copy_within(self.arrived.clone(), 0);
        self.arrived = 0..self.arrived.len();
        let room = needed.max(CAPACITY);
        if self.buffer.len() < room {
            self.buffer.reserve_exact(room - self.buffer.len());
            self.buffer.resize(room, 0);
        }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn room(&self) -> usize {
        self.buffer.capacity()
    }
}

/// Writes one frame. A call that is dropped half-way leaves a stream that is good for nothing but hanging up.
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

/// Reads one frame into `payload`, and no byte beyond it; `None` = the stream ended between frames.
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

/// Tells the errors by which a stream shows that its other end is gone from all others.
pub(crate) fn hung_up(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Error::HangUp
        }
        _ => Error::Stream(error),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use guest_protocol::frame::MAX_PAYLOAD;
    use proptest::prelude::*;

    use super::*;
    use crate::fake::{cases, data, run};

    const MOST_ROOM: usize = HEAD + MAX_PAYLOAD;

    /// Polls a future once, then drops it, as `select!` does when another arm is ready first.
    fn poll_once<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Message), Just(Kind::Stdin), Just(Kind::Stdout), Just(Kind::Stderr)]
    }

    fn frame() -> impl Strategy<Value = (Kind, Vec<u8>)> {
        let length =
            prop_oneof![8 => 0..100usize, 1 => DATA_CHUNK..DATA_CHUNK + 2, 1 => CAPACITY..CAPACITY + 9];
        (kind(), length, any::<u8>()).prop_map(|(kind, length, byte)| (kind, vec![byte; length]))
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn frames_arrive_however_they_are_cut_and_however_often_nobody_waits(
            frames in prop::collection::vec(frame(), 0..8),
            cuts in prop::collection::vec(1..70_000usize, 1..20),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, bytes)| data(*kind, bytes)).collect();
            let (mut guest, host) = tokio::io::duplex(bytes.len().max(1));
            let (mut reader, mut got) = (Frames::new(host), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (piece, left) = rest.split_at(rest.len().min(*cut));
                rest = left;
                poll_once(guest.write_all(piece)).unwrap().unwrap();
                while let Some(next) = poll_once(reader.next()) {
                    got.push((next.unwrap().unwrap(), reader.payload().to_vec()));
                }
                if rest.is_empty() {
                    break;
                }
            }
            drop(guest);
            prop_assert!(poll_once(reader.next()).unwrap().unwrap().is_none());
            prop_assert_eq!(got, frames);
            prop_assert!(reader.room() <= MOST_ROOM);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Frames::new(&bytes[..]);
            let mut most = bytes.len();
            while let Some(Ok(Some(_))) = poll_once(reader.next()) {
                most = most.checked_sub(HEAD + reader.payload().len()).unwrap();
            }
            prop_assert!(reader.room() <= MOST_ROOM);
        }
    }

    #[test]
    fn a_stream_of_any_length_needs_two_frames_of_memory() {
        run(async {
            let (mut guest, host) = tokio::net::UnixStream::pair().unwrap();
            let sender = async {
                for _ in 0..1000 {
                    write_frame(&mut guest, Kind::Stdout, &[7; DATA_CHUNK]).await.unwrap();
                }
                drop(guest);
            };
            let receiver = async {
                let (mut reader, mut total) = (Frames::new(host), 0);
                while reader.next().await.unwrap().is_some() {
                    total += reader.payload().len();
                }
                (total, reader.room())
            };
            let ((), (total, room)) = tokio::join!(sender, receiver);
            assert_eq!((total, room), (1000 * DATA_CHUNK, CAPACITY));
        });
    }

    #[test]
    fn a_frame_is_written_whole_to_a_stream_that_takes_little() {
        run(async {
            let (mut guest, mut host) = tokio::io::duplex(3);
            let sender = async { write_frame(&mut host, Kind::Stdin, b"hello").await.unwrap() };
            let receiver = async {
                let mut payload = Vec::new();
                read_frame(&mut guest, &mut payload)
                    .await
                    .unwrap()
                    .map(|(kind, bytes)| (kind, bytes.to_vec()))
            };
            let ((), got) = tokio::join!(sender, receiver);
            assert_eq!(got, Some((Kind::Stdin, b"hello".to_vec())));
            drop(guest);
            assert!(matches!(write_frame(&mut host, Kind::Stdin, b"x").await, Err(Error::HangUp)));
            let long = vec![0; MAX_PAYLOAD + 1];
            assert!(matches!(write_frame(&mut host, Kind::Stdin, &long).await, Err(Error::TooLong)));
        });
    }
}
