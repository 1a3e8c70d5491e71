//! Frames: however the bytes are cut, the same frames come out; malformed ones are errors, and never trusted.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use guest_protocol::frame::{FrameError, HEAD, Head, Kind, MAX_PAYLOAD, Splitter};
use proptest::prelude::*;

const KINDS: [Kind; 4] = [Kind::Message, Kind::Stdin, Kind::Stdout, Kind::Stderr];

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&Head::bytes(kind, payload.len()).unwrap()[..], payload].concat()
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(KINDS.to_vec())
}

proptest! {
    #[test]
    fn heads_round_trip(kind in kind(), len in 0..=MAX_PAYLOAD) {
        let head = Head::parse(Head::bytes(kind, len).unwrap());
        prop_assert_eq!(head, Ok(Head { kind, len }));
    }

    #[test]
    fn any_head_is_judged(bytes: [u8; HEAD]) {
        let len = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        match Head::parse(bytes) {
            Ok(head) => {
                prop_assert_eq!(head.kind as u8, bytes[0]);
                prop_assert_eq!(head.len, len as usize);
                prop_assert!(head.len <= MAX_PAYLOAD);
            }
            Err(FrameError::Kind(kind)) => prop_assert!(kind == bytes[0] && kind > 3),
            Err(FrameError::TooLong(claimed)) => prop_assert!(claimed == len && len as usize > MAX_PAYLOAD),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn cuts_do_not_matter(
        frames in prop::collection::vec((kind(), prop::collection::vec(any::<u8>(), 0..300)), 0..12),
        cuts in prop::collection::vec(1usize..200, 1..40),
        tail in 0usize..4,
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
        // A further frame that never becomes whole.
        bytes.extend(&frame(Kind::Stdout, b"rest")[..tail]);
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            splitter.push(piece);
            rest = after;
            while let Some((kind, payload)) = splitter.next_frame().unwrap() {
                found.push((kind, payload.to_vec()));
            }
        }
        prop_assert_eq!(found, frames);
        prop_assert_eq!(splitter.at_boundary(), tail == 0);
    }

    #[test]
    fn any_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16)) {
        let mut splitter = Splitter::default();
        let mut taken = 0;
        let total: usize = pieces.iter().map(Vec::len).sum();
        'stream: for piece in &pieces {
            splitter.push(piece);
            loop {
                match splitter.next_frame() {
                    Ok(Some((_, payload))) => taken += HEAD + payload.len(),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
        prop_assert!(taken <= total);
    }
}

#[test]
fn limits() {
    assert_eq!(Head::bytes(Kind::Stdin, MAX_PAYLOAD + 1), None);
    assert_eq!(Head::bytes(Kind::Stdin, usize::MAX), None);
    let over = u32::try_from(MAX_PAYLOAD + 1).unwrap();
    let [a, b, c, d] = over.to_le_bytes();
    assert_eq!(Head::parse([1, a, b, c, d]), Err(FrameError::TooLong(over)));
    assert_eq!(Head::parse([4, 0, 0, 0, 0]), Err(FrameError::Kind(4)));
    let mut splitter = Splitter::default();
    splitter.push(&frame(Kind::Stdout, &vec![7; MAX_PAYLOAD]));
    assert_eq!(splitter.next_frame().unwrap().map(|(_, payload)| payload.len()), Some(MAX_PAYLOAD));
    assert!(splitter.at_boundary());
}

#[test]
fn a_bad_head_is_an_error_before_its_payload_arrives() {
    for head in [[9, 0, 0, 0, 0], [0, 0xff, 0xff, 0xff, 0xff]] {
        let mut splitter = Splitter::default();
        splitter.push(&head[..HEAD - 1]);
        assert_eq!(splitter.next_frame(), Ok(None));
        splitter.push(&head[HEAD - 1..]);
        assert!(splitter.next_frame().is_err());
        assert!(splitter.next_frame().is_err(), "and it stays one");
    }
}
