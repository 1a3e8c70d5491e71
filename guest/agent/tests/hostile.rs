//! A host that breaks the protocol: the stream ends, its program with it, and the agent goes on.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use guest_protocol::frame::{self, HEAD, Head, Kind, MAX_PAYLOAD};
use guest_protocol::{ExecRequest, FileRequest, ProgramControl, Request, Stdio, TerminalSize, WriteAt};
use support::{Client, act, guest, request, run, shell};

fn raw(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    frame.extend(payload);
    frame
}

/// Frames that are wrong on any stream.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let ping = frame::encode(&Request::Ping).unwrap();
    let mut trailing = ping[HEAD..].to_vec();
    trailing.push(0);
    let over = u32::try_from(MAX_PAYLOAD + 1).unwrap().to_le_bytes();
    vec![
        ("unknown kind", raw(4, b"")),
        ("unknown kind, longest length", vec![0xff; HEAD]),
        ("too long", [&[1][..], &over].concat()),
        ("output from the host", raw(Kind::Stdout as u8, b"x")),
        ("error output from the host", raw(Kind::Stderr as u8, b"x")),
        ("empty message", raw(0, b"")),
        ("unknown message", raw(0, &[0x7f])),
        ("garbage", raw(0, &[0xff; 64])),
        ("trailing byte", raw(0, &trailing)),
        ("a count of four thousand million strings", raw(0, &[0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f])),
    ]
}

/// A cancelled program is gone within a second; a busy test machine gets a few.
const GONE: Duration = Duration::from_secs(4);

#[test]
fn before_a_request() {
    let Some(agent) = guest() else { return };
    let mut all = nonsense();
    let size = TerminalSize { rows: 1, cols: 1 };
    all.push(("input before a request", raw(1, b"x")));
    all.push(("resize before a request", frame::encode(&ProgramControl::Resize(size)).unwrap()));
    all.push(("signal before a request", frame::encode(&ProgramControl::Signal(9)).unwrap()));
    for (what, bytes) in all {
        let mut client = Client::connect(&agent);
        client.stream.write_all(&bytes).unwrap();
        assert_eq!(client.next(), None, "{what}");
    }
}

#[test]
fn to_a_running_program() {
    let Some(agent) = guest() else { return };
    let mut all = nonsense();
    all.push(("a second request", frame::encode(&Request::Ping).unwrap()));
    for (what, bytes) in all {
        let mut client = Client::exec(&agent, shell("echo up; exec sleep 600"));
        client.expect("up\n");
        let sent = Instant::now();
        client.stream.write_all(&bytes).unwrap();
        let outcome = client.finish();
        agent.running.wait_for_none(Duration::from_secs(10));
        assert!(sent.elapsed() < GONE, "{what}: {:?}", sent.elapsed());
        assert!(outcome.exit.is_none() && outcome.failure.is_none(), "{what}: {outcome:?}");
    }
}

#[test]
fn to_a_write() {
    let Some(agent) = guest() else { return };
    let mut all = nonsense();
    let size = TerminalSize { rows: 1, cols: 1 };
    all.push(("a second request", frame::encode(&Request::Ping).unwrap()));
    all.push(("a resize", frame::encode(&ProgramControl::Resize(size)).unwrap()));
    for (what, bytes) in all {
        let request = FileRequest::Write { path: "/tmp/f".into(), mode: 0o644, at: WriteAt::Truncate };
        let mut client = Client::file(&agent, request);
        client.stdin(b"fine");
        client.stream.write_all(&bytes).unwrap();
        let act = client.act();
        assert!(!act.done && act.failure.is_none(), "{what}: {act:?}");
    }
    agent.file_acts.wait_for_none(Duration::from_secs(5));
    assert_eq!(std::fs::read("/tmp/f").unwrap(), b"fine");
}

#[test]
fn behind_a_request_that_takes_no_input() {
    let Some(agent) = guest() else { return };
    let path = || "/etc/passwd".to_owned();
    for request in [
        FileRequest::Stat { path: path(), follow: true },
        FileRequest::Remove { path: path(), recursive: false },
        FileRequest::Watch { path: path(), recursive: false },
    ] {
        let mut client = Client::connect(&agent);
        let mut bytes = frame::encode(&Request::File(request)).unwrap();
        bytes.push(1);
        client.stream.write_all(&bytes).unwrap();
        assert_eq!(client.next(), None);
    }
    assert!(std::path::Path::new("/etc/passwd").exists(), "nothing was done");
}

#[test]
fn streams_that_end_early() {
    let Some(agent) = guest() else { return };
    let whole = frame::encode(&Request::Exec(Box::new(request(&["true"])))).unwrap();
    for end in [0, 1, HEAD, HEAD + 1, whole.len() - 1] {
        let mut client = Client::connect(&agent);
        client.stream.write_all(&whole[..end]).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.next(), None, "after {end} bytes");
    }
    // The smallest pieces work as well.
    let mut client = Client::connect(&agent);
    for byte in &whole {
        client.stream.write_all(std::slice::from_ref(byte)).unwrap();
    }
    assert_eq!(client.finish().status(), 0);
}

#[test]
fn a_host_that_never_reads() {
    let Some(agent) = guest() else { return };
    let mut client = Client::connect(&agent);
    client.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let ping = frame::encode(&Request::Ping).unwrap().repeat(1000);
    while client.stream.write_all(&ping).is_ok() {}
    drop(client);
    assert_eq!(run(&agent, request(&["true"])).status(), 0);
}

#[test]
fn large_requests() {
    let Some(agent) = guest() else { return };
    // The kernel limits a single string to 128 KiB, so there are many of middle size.
    let env: Vec<_> = (0..15).map(|index| (format!("V{index}"), "x".repeat(60_000))).collect();
    let full = ExecRequest { env, ..request(&["/bin/sh", "-c", "echo ${#V14}"]) };
    assert_eq!(run(&agent, full).text(), "60000\n");
}

/// SplitMix64: a fixed sequence of frames, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.next() % limit).unwrap()
    }

    fn bytes(&mut self, limit: u64) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Any request, in a directory of its own.
fn random_request(random: &mut Random) -> Request {
    const PATHS: [&str; 10] = [
        "/tmp/x",
        "/tmp/x/y",
        "tmp/x/y/z",
        "/tmp",
        "/tmp/../tmp/l",
        "/tmp/l/x",
        "",
        "/tmp/\0",
        "/dev/null",
        "/proc/self",
    ];
    let mut path = || PATHS[random.below(PATHS.len() as u64)].to_owned();
    let (one, other) = (path(), path());
    let recursive = random.below(2) == 0;
    let number = random.next() >> random.below(64);
    let stdio = match random.below(3) {
        0 => Stdio::Null,
        1 => Stdio::Pipe,
        _ => Stdio::Terminal(TerminalSize { rows: 24, cols: 80 }),
    };
    let mode = u32::try_from(number & 0xffff_ffff).unwrap();
    match random.below(14) {
        0 => Request::File(FileRequest::Read { path: one, offset: 0, length: number, size_limit: None }),
        1 => Request::File(FileRequest::Write { path: one, mode, at: WriteAt::Append }),
        2 => Request::File(FileRequest::Write { path: one, mode, at: WriteAt::Offset(number % (1 << 20)) }),
        3 => Request::File(FileRequest::List { path: one }),
        4 => Request::File(FileRequest::Stat { path: one, follow: recursive }),
        5 => Request::File(FileRequest::MakeDirectory { path: one, mode, parents: recursive }),
        6 => Request::File(FileRequest::Remove { path: one, recursive }),
        7 => Request::File(FileRequest::Rename { from: one, to: other }),
        8 => Request::File(FileRequest::Watch { path: one, recursive }),
        9 => Request::Connect { port: 0 },
        10 => Request::HostChanges,
        11 => Request::RemoveMount { path: one, force: recursive },
        _ => Request::Exec(Box::new(ExecRequest { stdio, detached: recursive, ..request(&["cat"]) })),
    }
}

#[test]
fn random_conversations() {
    let Some(agent) = guest() else { return };
    let mut random = Random(20_26);
    std::os::unix::fs::symlink("x", "/tmp/l").unwrap();
    for _ in 0..1000 {
        let mut client = Client::connect(&agent);
        if random.below(4) != 0 {
            let request = random_request(&mut random);
            client.send(&request);
        }
        for _ in 0..random.below(6) {
            let kind = u8::try_from(random.below(5)).unwrap();
            let payload = random.bytes(200);
            let mut bytes = match random.below(4) {
                0 => frame::encode(&ProgramControl::Signal(i32::from(kind) - 1)).unwrap(),
                1 => [&Head::bytes(Kind::Stdin, payload.len()).unwrap()[..], &payload].concat(),
                _ => raw(kind, &payload),
            };
            if random.below(8) == 0 {
                let end = random.below(bytes.len() as u64);
                bytes.truncate(end);
            }
            // The agent may have hung up already.
            if client.stream.write_all(&bytes).is_err() {
                break;
            }
        }
    }
    agent.running.wait_for_none(Duration::from_secs(30));
    agent.file_acts.wait_for_none(Duration::from_secs(30));
    assert_eq!(run(&agent, shell("echo alive")).text(), "alive\n");
    act(&agent, FileRequest::List { path: "/".into() }).ok();
}
