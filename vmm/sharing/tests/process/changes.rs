//! The host's changes, as the guest's agent is told of them: the test plays the agent and the guest's kernel.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use guest_protocol::frame::{self, Splitter};
use guest_protocol::{HostAct, HostChange, HostChangeReply, NewFile};
use machine::shares::{Content, Masks, Shares, View};

use crate::guest::{
    Answer, Driver, FIRST, PATIENCE, ROOT, answer, at, device, request, source, start_devices, terminated,
    words,
};
use crate::{ENOENT, PROGRAM, house};

const EIO: i32 = 5;

/// The agent's thread.
const THREAD: u32 = 77;

struct Agent {
    stream: UnixStream,
    input: Splitter,
}

impl Agent {
    fn new(shares: &Shares) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        shares.agent_taker().give(theirs.into()).unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: ours, input: Splitter::default() }
    }

    fn say(&mut self, reply: HostChangeReply) {
        self.stream.write_all(&frame::encode_reply(&reply).unwrap()).unwrap();
    }

    fn next(&mut self) -> HostChange {
        loop {
            if let Some((_, payload)) = self.input.next_frame().unwrap() {
                return frame::decode(payload).unwrap();
            }
            let mut room = [0; 4096];
            let count = self.stream.read(&mut room).unwrap();
            assert!(count > 0, "the process hung up");
            self.input.push(&room[..count]);
        }
    }

    fn is_hung_up(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    fn expect(&mut self, directory: &str, name: &str, what: HostAct) {
        assert_eq!(
            self.next(),
            HostChange { share: 0, directory: directory.into(), name: name.into(), what }
        );
    }
}

/// Checks that the host's changes of a directory are told, within whatever walls the process is.
pub(crate) fn are_told(shares: &Shares, shared: &Path) {
    let mut agent = Agent::new(shares);
    agent.say(HostChangeReply::Thread(THREAD));
    fs::write(shared.join("told"), "").unwrap();
    agent.expect("", "told", HostAct::Appeared(NewFile::File));
}

/// The answer to a request by the agent's thread.
fn by_agent(guest: &Driver, opcode: u32, node: u64, args: &[u8]) -> Answer {
    let mut request = request(opcode, node, args);
    request[32..36].copy_from_slice(&THREAD.to_le_bytes());
    answer(&guest.serve_bytes(FIRST, &request, 1 << 16))
}

#[test]
fn the_agent_is_told_and_its_repetition_changes_nothing() {
    let house = house();
    let shared = house.path().join("shared");
    fs::create_dir(shared.join("d")).unwrap();
    fs::create_dir(shared.join("inner")).unwrap();
    let content = Content::Host { source: source(&shared, None), view: View::default() };
    let mut mount = at("/w", content, Masks { hidden: vec![".env*".into()], ..Masks::default() });
    mount.inner.push(machine::shares::Inner { path: "inner/place".into(), is_file: false });
    let (mut shares, mut sockets) = start_devices(Path::new(PROGRAM), vec![device(false, vec![mount])], None);
    shares.wait_until_serving().unwrap();
    let mut guest = Driver::new(sockets.remove(0));
    let root = guest.look_up(ROOT, b"0").unwrap();
    // The guest looks into these.
    for directory in [&b"d"[..], b"inner"] {
        let node = guest.look_up(root, directory).unwrap();
        assert_eq!(guest.look_up(node, b"no such"), Err(ENOENT));
    }
    let mut agent = Agent::new(&shares);
    agent.say(HostChangeReply::Thread(THREAD));

    // Neither what is hidden, nor what is around another mount, nor what the guest does.
    fs::write(shared.join(".env"), "key").unwrap();
    fs::write(shared.join("inner/file"), "").unwrap();
    guest.create(root, b"own").unwrap();
    fs::write(shared.join("d/a"), "").unwrap();
    agent.expect("d", "a", HostAct::Appeared(NewFile::File));
    let d = guest.look_up(root, b"d").unwrap();
    assert_eq!(by_agent(&guest, 1, d, &terminated(b"a")), Err(ENOENT));
    guest.look_up(d, b"a").unwrap();
    let node = |name: &[u8]| [words(&[0o100_600, 0, 0, 0]), terminated(name)].concat();
    let directory = |name: &[u8]| [words(&[0o700, 0]), terminated(name)].concat();
    by_agent(&guest, 8, d, &node(b"a")).unwrap();
    assert_eq!(by_agent(&guest, 8, d, &node(b"b")), Err(EIO));
    assert_eq!(by_agent(&guest, 9, d, &directory(b"a")), Err(EIO));
    assert_eq!(by_agent(&guest, 10, d, &terminated(b"a")), Err(EIO));
    agent.say(HostChangeReply::Done(true));

    // A file that gets a hidden name is gone for the guest.
    fs::rename(shared.join("d/a"), shared.join("d/.env")).unwrap();
    agent.expect("d", "a", HostAct::Vanished { directory: false });
    by_agent(&guest, 1, d, &terminated(b"a")).unwrap();
    by_agent(&guest, 10, d, &terminated(b"a")).unwrap();
    agent.say(HostChangeReply::Done(true));
    fs::rename(shared.join("d/.env"), shared.join("b")).unwrap();
    agent.expect("", "b", HostAct::Appeared(NewFile::File));
    agent.say(HostChangeReply::Done(false));
    fs::rename(shared.join("b"), shared.join("d/c")).unwrap();
    let moved = HostAct::Moved { to_directory: "d".into(), to: "c".into() };
    agent.expect("", "b", moved);
    agent.say(HostChangeReply::Done(true));
    assert_eq!(by_agent(&guest, 10, d, &terminated(b"c")), Err(EIO));
    let mut left: Vec<_> =
        fs::read_dir(shared.join("d")).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["c"]);

    // An agent that breaks the protocol hears nothing more; files are served all the same, and its thread changes nothing.
    agent.say(HostChangeReply::Done(true));
    assert!(agent.is_hung_up());
    fs::write(shared.join("d/e"), "").unwrap();
    let e = guest.look_up(d, b"e").unwrap();
    guest.open(e, 0).unwrap();
    assert_eq!(by_agent(&guest, 10, d, &terminated(b"e")), Err(EIO));
    // Only the first stream counts.
    assert!(Agent::new(&shares).is_hung_up());
}

#[test]
fn an_agent_that_does_not_answer_is_given_up() {
    let house = house();
    let shared = house.path().join("shared");
    let content = Content::Host { source: source(&shared, None), view: View::default() };
    let mounts = vec![at("/w", content, Masks::default())];
    let (mut shares, mut sockets) = start_devices(Path::new(PROGRAM), vec![device(false, mounts)], None);
    shares.wait_until_serving().unwrap();
    let mut guest = Driver::new(sockets.remove(0));
    let root = guest.look_up(ROOT, b"0").unwrap();
    let mut agent = Agent::new(&shares);
    agent.say(HostChangeReply::Thread(THREAD));
    for number in 0..100 {
        fs::write(shared.join(number.to_string()), "").unwrap();
    }
    agent.next();
    assert!(agent.is_hung_up());
    guest.look_up(root, b"99").unwrap();
}
