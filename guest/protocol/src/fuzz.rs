//! The fuzz body for both receivers: any bytes, cut anywhere, become frames, and frames become messages or errors.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here: the
//! messages' effects.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{self, FrameError, HEAD, Kind, MAX_PAYLOAD, Splitter};
use crate::messages::{LEAST_REPLY, MOST_REPLY, Messages};
use crate::{
    ConnectReply, ControlFromGuest, ControlFromHost, FileEntry, FileReply, HostChange, HostChangeReply, Pong,
    ProgramControl, ProgramEvent, RemoveReply, Reply, Request, WatchEvent,
};

/// A stream's frames, and its end: an error, or whether it was between two frames.
type Frames = (Vec<(Kind, Vec<u8>)>, Result<bool, FrameError>);

/// Reads the bytes after the first in pieces of that first byte's length. Panics only on a defect.
pub fn frames(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let whole = split(bytes.chunks(bytes.len().max(1)));
    assert_eq!(whole, split(bytes.chunks(usize::from(piece).max(1))), "pieces make other frames");
    let (frames, end) = whole;
    let taken: usize = frames.iter().map(|(_, payload)| HEAD + payload.len()).sum();
    assert!(taken <= bytes.len(), "{taken} bytes of {}", bytes.len());
    assert!(end != Ok(true) || taken == bytes.len(), "an end inside a frame");
    for (_, payload) in frames.iter().filter(|(kind, _)| *kind == Kind::Message) {
        messages(payload);
    }
    messages(bytes);
}

fn split<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Frames {
    let (mut splitter, mut frames) = (Splitter::default(), Vec::new());
    for piece in pieces {
        splitter.push(piece);
        loop {
            match splitter.next_frame() {
                Ok(Some((kind, payload))) => frames.push((kind, payload.to_vec())),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(splitter.waiting() < HEAD + MAX_PAYLOAD, "a whole frame was left");
    }
    let end = splitter.at_boundary();
    (frames, Ok(end))
}

/// Reads the bytes after the first as messages that say their own length, in pieces of that first byte's length. Panics
/// only on a defect.
pub fn lengths(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let (mut messages, mut taken) = (Messages::replies(), Vec::new());
    for mut piece in bytes.chunks(usize::from(piece).max(1)) {
        while !piece.is_empty() {
            let room = messages.room();
            let count = room.len().min(piece.len());
            assert!(count > 0, "no room");
            room[..count].copy_from_slice(&piece[..count]);
            messages.received(count);
            piece = &piece[count..];
            loop {
                match messages.next_message() {
                    Ok(Some(message)) => {
                        assert!((LEAST_REPLY..=MOST_REPLY).contains(&message.len()), "{}", message.len());
                        taken.extend_from_slice(message);
                    }
                    Ok(None) => break,
                    Err(_) => return assert!(bytes.starts_with(&taken)),
                }
            }
            assert!(messages.held() <= MOST_REPLY, "{} bytes are held", messages.held());
        }
    }
    assert!(bytes.starts_with(&taken), "a message is not what was sent");
    assert!(!messages.at_boundary() || taken.len() == bytes.len(), "an end inside a message");
}

/// A payload as each of the messages it could be.
fn messages(payload: &[u8]) {
    message::<ControlFromGuest>(payload);
    message::<ControlFromHost>(payload);
    message::<Request>(payload);
    message::<ProgramControl>(payload);
    message::<HostChange>(payload);
    message::<Reply<HostChangeReply>>(payload);
    message::<Reply<RemoveReply>>(payload);
    message::<Reply<Pong>>(payload);
    message::<Reply<ProgramEvent>>(payload);
    message::<Reply<ConnectReply>>(payload);
    message::<Reply<FileReply<()>>>(payload);
    message::<Reply<FileReply<FileEntry>>>(payload);
    message::<Reply<FileReply<Vec<FileEntry>>>>(payload);
    message::<Reply<FileReply<WatchEvent>>>(payload);
}

/// A message that is decoded means the same when it is encoded again.
fn message<M: Serialize + DeserializeOwned + PartialEq + Debug>(payload: &[u8]) {
    let Ok(message) = frame::decode::<M>(payload) else { return };
    let again = frame::encode(&message);
    let again = again.as_deref().map(|bytes| frame::decode(bytes.get(HEAD..).unwrap_or_default()));
    assert_eq!(again, Ok(Ok(message)));
}

#[cfg(test)]
mod tests {
    use crate::frame::{Head, Kind};
    use crate::*;

    fn frame(message: &impl serde::Serialize) -> Vec<u8> {
        frame::encode(message).unwrap_or_default()
    }

    fn reply(answer: &impl Answer) -> Vec<u8> {
        frame::encode_reply(answer).unwrap_or_default()
    }

    fn added() -> AddedMount {
        AddedMount { path: "/a/b".into(), is_file: true, readonly: false, set_ids: true, make: false }
    }

    fn examples() -> Vec<Vec<u8>> {
        let path = || String::from("/a/b");
        let exec = ExecRequest {
            program: Program::Argv(vec!["sh".into(), "-c".into()]),
            env: vec![("PATH".into(), "/bin".into())],
            working_dir: path(),
            user: "app".into(),
            stdio: Stdio::Terminal(TerminalSize { rows: 24, cols: 80 }),
            privileged: false,
            detached: true,
            first: true,
        };
        let entry = FileEntry {
            name: b"link".to_vec(),
            size: 4,
            mode: 0o120_777,
            uid: 0,
            gid: 1000,
            mtime_s: -1,
            mtime_ns: 999_999_999,
            target: b"/etc".to_vec(),
        };
        let config = BootConfig {
            version: VERSION,
            wall_clock_ns: 1 << 60,
            entropy: [7; 32],
            layers: 3,
            modules: Some("6.1.0".to_owned()),
            directories: vec![path()],
            upper: UpperDisk::Ext4,
            hostname: "vm".into(),
            hosts: vec![HostEntry { host: "h".into(), ip: "10.0.0.1".into() }],
            network: Some(Network {
                mtu: 1500,
                gateway_station: [2, 0, 0, 0, 0, 1],
                v4: Ends { guest: [10, 0, 0, 3].into(), prefix: 24, gateway: [10, 0, 0, 1].into() },
                v6: Ends { guest: [0xfd; 16].into(), prefix: 64, gateway: [0xfe; 16].into() },
            }),
            nameservers: vec!["10.0.0.2".into()],
            cpu_quota_milli: 500,
            check_timer: false,
            disks: vec![DiskMount { path: path(), readonly: true, uid: Some(1), gid: None }],
            shares: vec![ShareMount {
                path: path(),
                device: ShareDevice::Own,
                number: 3,
                readonly: true,
                set_ids: false,
            }],
        };
        let change = Change { kind: ChangeKind::Removed, path: path().into() };
        let data = Head::bytes(Kind::Stdout, 5).map(|head| [&head[..], b"hello"].concat());
        let streams = [
            [
                frame(&ControlFromGuest::Hello { version: VERSION, agent_start_us: 9 }),
                frame(&ControlFromGuest::Failed(BootFailure { step: "mount".into(), error: "no".into() })),
            ]
            .concat(),
            [
                frame(&ControlFromHost::Boot(Box::new(config))),
                frame(&ControlFromHost::Shutdown { grace_ms: 1000 }),
            ]
            .concat(),
            frame(&Request::Exec(Box::new(exec))),
            frame(&Request::File(FileRequest::Write { path: path(), mode: 0o644, at: WriteAt::Offset(300) })),
            [
                reply(&ProgramEvent::Started),
                data.unwrap_or_default(),
                reply(&ProgramEvent::Exited(Exit::Signal(9), Usage::default())),
            ]
            .concat(),
            reply(&FileReply::Ok(vec![entry])),
            [
                frame(&Request::HostChanges),
                frame(&HostChange {
                    share: 1,
                    directory: b"a/b".to_vec(),
                    name: b"c".to_vec(),
                    what: HostAct::Moved { to_directory: b"d".to_vec(), to: b"e".to_vec() },
                }),
            ]
            .concat(),
            [reply(&HostChangeReply::Thread(7)), reply(&HostChangeReply::Done(true))].concat(),
            frame(&Request::AddMount(added())),
            [
                frame(&Request::RemoveMount { path: path(), force: true }),
                reply(&RemoveReply::Failed("no".into())),
            ]
            .concat(),
            [reply(&FileReply::Ok(WatchEvent::Watching)), reply(&FileReply::Ok(WatchEvent::Change(change)))]
                .concat(),
        ];
        streams.into_iter().map(|stream| [&[3], &stream[..]].concat()).collect()
    }

    #[test]
    fn frames() {
        fuzzed::run("guest_protocol_frames", 4000, &examples(), &[], super::frames);
    }

    #[test]
    fn lengths() {
        let reply = |length: u32, room: usize| [&length.to_le_bytes()[..], &vec![1; room - 4]].concat();
        let examples = [
            [&[7], &reply(16, 16)[..], &reply(20, 20)].concat(),
            [&[255], &reply(5000, 5000)[..], &reply(15, 15)].concat(),
            [&[1], &reply(u32::MAX, 40)[..]].concat(),
        ];
        let dictionary = ["\x10\0\0\0", "\x10\0\x10\0", "\x11\0\x10\0"];
        fuzzed::run("guest_protocol_lengths", 4000, &examples, &dictionary, super::lengths);
    }
}
