//! The messages between supervisor and process. A list may be longer than a message of a channel, so each of these goes
//! in pieces.
//!
//! ```text
//! supervisor                         matchlock-egress
//!   Spec, sockets, the audit's file ▶
//!                            ◀────── Serving, or Failed(why) and the end
//!   Change ───────────────────────▶
//!                            ◀────── Changed(the list, or why not)
//!                            ◀────── Failed(why), and the end
//! ```

use std::os::fd::{AsFd, OwnedFd};

use process::{Channel, Error};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most bytes of one piece.
const PIECE: usize = 64 << 10;

/// Most bytes of a whole message.
const MAX_WHOLE: usize = 16 << 20;

/// A change of the allow list.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Patterns that are added.
    pub(crate) add: Vec<String>,
    /// Patterns that are deleted afterwards.
    pub(crate) delete: Vec<String>,
}

/// From the process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// All that arrives is carried, and the process is confined.
    Serving,
    /// The allow list as it is now, or the reason why it is as it was.
    Changed(Result<Vec<String>, String>),
    /// Nothing is carried any more; the text says why.
    Failed(String),
}

/// A part of a message.
#[derive(Debug, Serialize, Deserialize)]
struct Piece {
    is_last: bool,
    bytes: Vec<u8>,
}

/// Sends a message with copies of `descriptors`.
pub(crate) fn send<T: Serialize>(
    channel: &Channel,
    message: &T,
    descriptors: &[OwnedFd],
) -> process::Result<()> {
    let bytes = postcard::to_stdvec(message)?;
    if bytes.len() > MAX_WHOLE {
        return Err(Error::TooLong(bytes.len()));
    }
    let mut descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let (last, rest) = match bytes.chunks(PIECE).collect::<Vec<_>>().split_last() {
        Some((last, rest)) => (last.to_vec(), rest.to_vec()),
        None => (Vec::new(), Vec::new()),
    };
    for bytes in rest {
        channel.send(&Piece { is_last: false, bytes: bytes.to_vec() }, &descriptors)?;
        descriptors.clear();
    }
    channel.send(&Piece { is_last: true, bytes: last }, &descriptors)
}

/// Waits for a message; `None` if the other side has hung up.
pub(crate) fn receive<T: DeserializeOwned>(channel: &Channel) -> process::Result<Option<(T, Vec<OwnedFd>)>> {
    let (mut whole, mut all) = (Vec::new(), Vec::new());
    loop {
        let Some((Piece { is_last, bytes }, descriptors)) = channel.recv()? else { return Ok(None) };
        let is_first = whole.is_empty();
        if bytes.len() > PIECE || (!is_first && !descriptors.is_empty()) || (bytes.is_empty() && !is_last) {
            return Err(Error::Malformed("a piece that continues no message"));
        }
        whole.extend(bytes);
        all.extend(descriptors);
        if whole.len() > MAX_WHOLE {
            return Err(Error::TooLong(whole.len()));
        }
        if is_last {
            return Ok(Some((postcard::from_bytes(&whole)?, all)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_long_list_arrives_whole_with_its_descriptors() {
        let (ours, theirs) = Channel::pair().unwrap();
        let list: Vec<String> =
            (0..16_384).map(|number| format!("{number}.{}.test", "x".repeat(50))).collect();
        let change = Change { add: list.clone(), delete: Vec::new() };
        let file = File::open("/dev/null").unwrap().into();
        std::thread::scope(|scope| {
            scope.spawn(|| send(&ours, &change, &[file]).unwrap());
            let (received, descriptors) = receive::<Change>(&theirs).unwrap().unwrap();
            assert_eq!((received.add, descriptors.len()), (list, 1));
        });
        send(&ours, &Report::Serving, &[]).unwrap();
        assert_eq!(receive::<Report>(&theirs).unwrap().unwrap().0, Report::Serving);
        drop(ours);
        assert!(receive::<Report>(&theirs).unwrap().is_none());
    }

    #[test]
    fn what_is_too_long_or_never_ends_is_refused() {
        let (ours, theirs) = Channel::pair().unwrap();
        assert!(matches!(send(&ours, &"x".repeat(MAX_WHOLE), &[]), Err(Error::TooLong(_))));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let piece = Piece { is_last: false, bytes: vec![0; PIECE] };
                while ours.send(&piece, &[]).is_ok() {}
            });
            assert!(matches!(receive::<Report>(&theirs), Err(Error::TooLong(_))));
            drop(theirs);
        });
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&Piece { is_last: false, bytes: Vec::new() }, &[]).unwrap();
        assert!(matches!(receive::<Report>(&theirs), Err(Error::Malformed(_))));
    }
}
