//! The fuzz body of a guest kernel's requests.
//!
//! `cargo test` runs the body a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer.

use vm_memory::VolatileSlice;

use crate::fake::Notes;
use crate::{Coherence, Scratch, Session};

/// Requests of one mount. The first byte says whether the version is already agreed on. For each request follow the
/// length of the memory's pieces, the room for its reply, its length in two bytes, and the request itself.
pub fn requests(data: &[u8]) {
    let Some((first, mut script)) = data.split_first() else { return };
    let session = Session::new(Notes::default(), Coherence::Shared);
    let mut scratch = Scratch::default();
    if first & 1 != 0 {
        serve(&session, &mut scratch, &mut init(), 64, 4096);
    }
    while let [piece, room, low, high, rest @ ..] = script {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (request, later) = rest.split_at(len);
        let rooms = [4096, 4096, 0, 15, 16, 100, 143, 144, 160, 1000];
        let room = rooms[usize::from(*room) % rooms.len()];
        serve(&session, &mut scratch, &mut request.to_vec(), usize::from(*piece).max(1), room);
        session.files().take();
        script = later;
    }
}

/// An INIT as Linux 6.12 sends it.
pub(crate) fn init() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [104, 26, 1, 0, 0, 0, 0, 0, 0, 0, 7, 41, 1 << 17, u32::MAX, u32::MAX] {
        bytes.extend_from_slice(&u32::to_le_bytes(word));
    }
    bytes.resize(104, 0);
    bytes
}

/// Serves one request from pieces of memory, and checks the rules for every reply.
fn serve(session: &Session<Notes>, scratch: &mut Scratch, request: &mut [u8], piece: usize, room: usize) {
    let unique: Vec<u8> = request.get(8..16).unwrap_or_default().to_vec();
    let mut reply = vec![0xaa; room];
    let len = {
        let request: Vec<_> = request.chunks_mut(piece).map(VolatileSlice::from).collect();
        let reply: Vec<_> = reply.chunks_mut(piece).map(VolatileSlice::from).collect();
        session.serve(scratch, &request, &reply)
    };
    let Some(answer) = reply.get(..len) else { panic!("{len} bytes in {room}") };
    if let Some((header, _)) = answer.split_first_chunk::<16>() {
        let word =
            |at: usize| i32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        assert_eq!(usize::try_from(word(0)), Ok(len));
        assert_eq!(header[8..], unique);
        assert!(word(4) == 0 || len == 16 && (-511..0).contains(&word(4)), "error {}", word(4));
    } else {
        assert!(answer.is_empty());
    }
    assert!(reply[len..].iter().all(|byte| *byte == 0xaa) || len == 16, "bytes behind the reply");
}

#[cfg(test)]
mod tests {
    use crate::session::tests::EXAMPLES;

    fn script(first: u8, requests: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![first];
        for request in requests {
            let [low, high, ..] = request.len().to_le_bytes();
            bytes.extend_from_slice(&[[40, 1, 200][request.len() % 3], 0, low, high]);
            bytes.extend_from_slice(request);
        }
        bytes
    }

    #[test]
    fn requests() {
        let all: Vec<Vec<u8>> = EXAMPLES.iter().map(|example| example.request()).collect();
        let mut examples: Vec<_> = all.iter().map(|one| script(1, std::slice::from_ref(one))).collect();
        examples.push(script(1, &all));
        examples.push(script(0, &[vec![super::init()], all.clone()].concat()));
        let words = ["\0", "..\0", "a/b\0", "\x01\0\0\0", "\x10\0\0\0", "\x2c\0\0\0", "\x30\0\0\0"];
        fuzzed::run("fuse_requests", 4000, &examples, &words, super::requests);
    }
}
