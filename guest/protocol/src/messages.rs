//! Messages that begin with their own length, as those of FUSE do: a little-endian u32 that counts itself.
//!
//! A stream of a mount that was added carries them without frames. Both ends distrust each other: a length is checked
//! before anything waits for that many bytes. Not here: what is in a message.

use crate::frame::FrameError;

/// Fewest bytes of a request of FUSE: its header.
pub const LEAST_REQUEST: usize = 40;

/// Most bytes of a request of FUSE: 1 MiB of data, and 8 KiB before it.
pub const MOST_REQUEST: usize = (1 << 20) + (8 << 10);

/// Fewest bytes of a reply of FUSE: its header.
pub const LEAST_REPLY: usize = 16;

/// Most bytes of a reply of FUSE: 1 MiB of data behind its header.
pub const MOST_REPLY: usize = (1 << 20) + LEAST_REPLY;

/// Bytes that are received at once, unless a message is longer.
const ROOM: usize = 64 << 10;

/// Splits a stream into messages. Holds at most one message and what came with its end.
#[derive(Debug)]
pub struct Messages {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    least: usize,
    most: usize,
}

impl Messages {
    /// Requests of FUSE.
    #[must_use]
    pub fn requests() -> Self {
        Self::between(LEAST_REQUEST, MOST_REQUEST)
    }

    /// Replies of FUSE.
    #[must_use]
    pub fn replies() -> Self {
        Self::between(LEAST_REPLY, MOST_REPLY)
    }

    fn between(least: usize, most: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, least, most }
    }

    /// Room to receive bytes into, which is never empty. Call [`Messages::next_message`] until it returns nothing first.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let wanted = self.length().ok().flatten().unwrap_or(0).max(ROOM);
        if self.buffer.len() < wanted {
            self.buffer.reserve_exact(wanted - self.buffer.len());
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Tells how many bytes the room has got.
    pub fn received(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// The next whole message, if there is one.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, FrameError> {
        match self.length()? {
            Some(length) if length <= self.end - self.start => {
                self.start += length;
                Ok(Some(&self.buffer[self.start - length..self.start]))
            }
            _ => Ok(None),
        }
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.start == self.end
    }

    /// The length of the message that has begun, once that is known.
    fn length(&self) -> Result<Option<usize>, FrameError> {
        let Some(length) = self.buffer[self.start..self.end].first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        match usize::try_from(length) {
            Ok(bytes) if bytes < self.least => Err(FrameError::Message),
            Ok(bytes) if bytes <= self.most => Ok(Some(bytes)),
            _ => Err(FrameError::TooLong(length)),
        }
    }

    /// Bytes of memory that are held.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![7; length];
        bytes[..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        bytes
    }

    fn put(messages: &mut Messages, mut bytes: &[u8]) {
        let room = messages.room();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        messages.received(count);
        bytes = &bytes[count..];
        assert!(bytes.is_empty(), "{} bytes had no room", bytes.len());
    }

    #[test]
    fn whole_messages_come_out_in_their_order() {
        let mut messages = Messages::requests();
        let both = [message(40), message(100)].concat();
        put(&mut messages, &both[..3]);
        assert_eq!(messages.next_message(), Ok(None));
        put(&mut messages, &both[3..139]);
        assert_eq!(messages.next_message().map(|found| found.map(<[u8]>::len)), Ok(Some(40)));
        assert_eq!(messages.next_message(), Ok(None));
        assert!(!messages.at_boundary());
        put(&mut messages, &both[139..]);
        assert_eq!(messages.next_message(), Ok(Some(&both[40..])));
        assert!(messages.at_boundary());
    }

    #[test]
    fn the_longest_has_room_and_one_that_is_longer_is_refused() {
        let mut messages = Messages::replies();
        let long = message(MOST_REPLY);
        put(&mut messages, &long[..10]);
        assert_eq!(messages.next_message(), Ok(None));
        put(&mut messages, &long[10..]);
        assert_eq!(messages.next_message().map(|found| found.map(<[u8]>::len)), Ok(Some(MOST_REPLY)));
        put(&mut messages, &(1u32 << 20 | 17).to_le_bytes());
        assert_eq!(messages.next_message(), Err(FrameError::TooLong(1 << 20 | 17)));
        assert!(messages.held() <= MOST_REPLY);
        let mut short = Messages::replies();
        put(&mut short, &15u32.to_le_bytes());
        assert_eq!(short.next_message(), Err(FrameError::Message));
    }
}
