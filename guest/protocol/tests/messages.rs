//! Messages: each survives its encoding, and other bytes are refused without harm.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fmt::Debug;

use guest_protocol::frame::{self, FrameError, HEAD, Head, Kind};
use guest_protocol::{
    AddedMount, Answer, BootConfig, BootFailure, Change, ChangeKind, ConnectReply, ControlFromGuest,
    ControlFromHost, DiskMount, Ends, ExecFailure, ExecRequest, Exit, FileEntry, FileFailure, FileReply,
    FileRequest, HostAct, HostChange, HostChangeReply, HostEntry, Network, Pong, Program, ProgramControl,
    ProgramEvent, Ready, Refusal, RemoveReply, Reply, Request, ShareDevice, ShareMount, Stdio, TerminalSize,
    UpperDisk, Usage, WatchEvent, WriteAt,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn round_trip<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M) {
    let bytes = frame::encode(message).unwrap();
    let (head, payload) = bytes.split_first_chunk::<HEAD>().unwrap();
    assert_eq!(Head::parse(*head), Ok(Head { kind: Kind::Message, len: payload.len() }));
    assert_eq!(frame::decode::<M>(payload).as_ref(), Ok(message));
    if let Some(shorter) = payload.len().checked_sub(1) {
        assert_eq!(frame::decode::<M>(&payload[..shorter]), Err(FrameError::Message), "cut short");
    }
    assert_eq!(
        frame::decode::<M>(&[payload, &[0]].concat()),
        Err(FrameError::Message),
        "with a byte too many"
    );
}

fn size() -> impl Strategy<Value = TerminalSize> {
    (any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| TerminalSize { rows, cols })
}

fn program() -> impl Strategy<Value = Program> {
    prop_oneof![
        any::<String>().prop_map(Program::Shell),
        prop::collection::vec(any::<String>(), 0..5).prop_map(Program::Argv),
    ]
}

fn exec() -> impl Strategy<Value = ExecRequest> {
    let stdio = prop_oneof![Just(Stdio::Null), Just(Stdio::Pipe), size().prop_map(Stdio::Terminal)];
    let env = prop::collection::vec((any::<String>(), any::<String>()), 0..5);
    let flags = any::<[bool; 3]>();
    (program(), env, any::<String>(), any::<String>(), stdio, flags).prop_map(
        |(program, env, working_dir, user, stdio, [privileged, detached, first])| ExecRequest {
            program,
            env,
            working_dir,
            user,
            stdio,
            privileged,
            detached,
            first,
        },
    )
}

fn disk() -> impl Strategy<Value = DiskMount> {
    (any::<String>(), any::<bool>(), any::<Option<u32>>(), any::<Option<u32>>())
        .prop_map(|(path, readonly, uid, gid)| DiskMount { path, readonly, uid, gid })
}

fn network() -> impl Strategy<Value = Network> {
    let v4 = any::<([u8; 4], u8, [u8; 4])>();
    let v4 =
        v4.prop_map(|(guest, prefix, gateway)| Ends { guest: guest.into(), prefix, gateway: gateway.into() });
    let v6 = any::<([u8; 16], u8, [u8; 16])>();
    let v6 =
        v6.prop_map(|(guest, prefix, gateway)| Ends { guest: guest.into(), prefix, gateway: gateway.into() });
    (any::<u16>(), any::<[u8; 6]>(), v4, v6).prop_map(|(mtu, gateway_station, v4, v6)| Network {
        mtu,
        gateway_station,
        v4,
        v6,
    })
}

fn boot() -> impl Strategy<Value = BootConfig> {
    let hosts = (any::<String>(), any::<String>()).prop_map(|(host, ip)| HostEntry { host, ip });
    let upper = prop_oneof![Just(UpperDisk::Ext4), Just(UpperDisk::Memory)];
    let device = prop_oneof![Just(ShareDevice::Shared), Just(ShareDevice::Own)];
    let share = (any::<String>(), device, any::<u16>(), any::<bool>(), any::<bool>());
    let share = share.prop_map(|(path, device, number, readonly, set_ids)| ShareMount {
        path,
        device,
        number,
        readonly,
        set_ids,
    });
    (
        (any::<u16>(), any::<u64>(), any::<[u8; 32]>(), any::<u16>(), upper),
        (any::<Option<String>>(), prop::collection::vec(any::<String>(), 0..3)),
        (
            any::<String>(),
            prop::collection::vec(hosts, 0..4),
            prop::option::of(network()),
            prop::collection::vec(any::<String>(), 0..3),
            any::<u32>(),
            prop::collection::vec(disk(), 0..4),
            prop::collection::vec(share, 0..4),
        ),
    )
        .prop_map(
            |(
                (version, wall_clock_ns, entropy, layers, upper),
                (modules, directories),
                (hostname, hosts, network, nameservers, quota, disks, shares),
            )| {
                BootConfig {
                    version,
                    wall_clock_ns,
                    entropy,
                    layers,
                    modules,
                    directories,
                    upper,
                    hostname,
                    hosts,
                    network,
                    nameservers,
                    cpu_quota_milli: quota,
                    check_timer: false,
                    disks,
                    shares,
                }
            },
        )
}

fn exec_failure() -> impl Strategy<Value = ExecFailure> {
    (0..5, any::<String>()).prop_map(|(which, text)| match which {
        0 => ExecFailure::NotFound(text),
        1 => ExecFailure::NotExecutable(text),
        2 => ExecFailure::User(text),
        3 => ExecFailure::WorkingDir(text),
        _ => ExecFailure::Other(text),
    })
}

fn file_request() -> impl Strategy<Value = FileRequest> {
    let at =
        prop_oneof![Just(WriteAt::Truncate), Just(WriteAt::Append), any::<u64>().prop_map(WriteAt::Offset)];
    let path = any::<String>;
    prop_oneof![
        (path(), any::<u64>(), any::<u64>(), any::<Option<u64>>()).prop_map(
            |(path, offset, length, size_limit)| FileRequest::Read { path, offset, length, size_limit }
        ),
        (path(), any::<u32>(), at).prop_map(|(path, mode, at)| FileRequest::Write { path, mode, at }),
        path().prop_map(|path| FileRequest::List { path }),
        (path(), any::<bool>()).prop_map(|(path, follow)| FileRequest::Stat { path, follow }),
        (path(), any::<u32>(), any::<bool>()).prop_map(|(path, mode, parents)| FileRequest::MakeDirectory {
            path,
            mode,
            parents
        }),
        (path(), any::<bool>()).prop_map(|(path, recursive)| FileRequest::Remove { path, recursive }),
        (path(), path()).prop_map(|(from, to)| FileRequest::Rename { from, to }),
        (path(), any::<bool>()).prop_map(|(path, recursive)| FileRequest::Watch { path, recursive }),
    ]
}

fn file_entry() -> impl Strategy<Value = FileEntry> {
    let numbers = (any::<u64>(), any::<[u32; 3]>(), any::<i64>(), any::<u32>());
    (any::<Vec<u8>>(), numbers, any::<Vec<u8>>()).prop_map(
        |(name, (size, [mode, uid, gid], mtime_s, mtime_ns), target)| FileEntry {
            name,
            size,
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns,
            target,
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop_oneof![
        Just(ChangeKind::Created),
        Just(ChangeKind::Modified),
        Just(ChangeKind::Removed),
        Just(ChangeKind::Overflow),
    ];
    (kind, any::<Vec<u8>>()).prop_map(|(kind, path)| Change { kind, path })
}

fn file_failure() -> impl Strategy<Value = FileFailure> {
    prop_oneof![
        Just(FileFailure::TooLarge),
        Just(FileFailure::NotRegular),
        (any::<i32>(), any::<String>()).prop_map(|(errno, text)| FileFailure::System { errno, text }),
    ]
}

proptest! {
    #[test]
    fn files_from_host(request in file_request()) {
        round_trip(&Request::File(request));
    }

    #[test]
    fn files_from_guest(
        entries in prop::collection::vec(file_entry(), 0..4),
        change in change(),
        failure in file_failure(),
    ) {
        answer(FileReply::Ok(entries));
        answer(FileReply::Ok(WatchEvent::Change(change)));
        answer(FileReply::<FileEntry>::Err(failure));
        answer(FileReply::Ok(WatchEvent::Watching));
        answer(FileReply::Ok(()));
    }

    #[test]
    fn connections(port: u16, reason: String) {
        round_trip(&Request::Connect { port });
        answer(ConnectReply::Ok(()));
        answer(ConnectReply::Err(reason.clone()));
        round_trip(&Reply::<Pong>::Err(Refusal(reason)));
    }

    #[test]
    fn control_from_guest(version: u16, times: (u64, u64, u64), step: String, error: String) {
        round_trip(&ControlFromGuest::Hello { version, agent_start_us: times.0 });
        let (modules_us, root_us, ready_us) = times;
        round_trip(&ControlFromGuest::Ready(Ready { modules_us, root_us, ready_us }));
        round_trip(&ControlFromGuest::Failed(BootFailure { step, error }));
    }

    #[test]
    fn control_from_host(config in boot(), grace_ms: u32) {
        round_trip(&ControlFromHost::Boot(Box::new(config)));
        round_trip(&ControlFromHost::Shutdown { grace_ms });
    }

    #[test]
    fn service_from_host(request in exec(), size in size(), signal: i32) {
        round_trip(&Request::Exec(Box::new(request)));
        round_trip(&Request::Ping);
        round_trip(&ProgramControl::Resize(size));
        round_trip(&ProgramControl::Signal(signal));
    }

    #[test]
    fn service_from_guest(failure in exec_failure(), code: u8, spawn_us: u64, wall_us: u64) {
        answer(ProgramEvent::Failed(failure));
        answer(ProgramEvent::Exited(Exit::Code(code), Usage { spawn_us, wall_us }));
        answer(ProgramEvent::Exited(Exit::Signal(code), Usage { spawn_us, wall_us }));
        answer(ProgramEvent::Started);
        answer(Pong);
    }
}

#[test]
fn too_long_to_send() {
    let text = "x".repeat(frame::MAX_PAYLOAD);
    assert_eq!(frame::encode(&ProgramEvent::Failed(ExecFailure::Other(text))), Err(FrameError::Message));
}

#[test]
fn exit_status() {
    assert_eq!(Exit::Code(7).status(), 7);
    assert_eq!(Exit::Signal(9).status(), 137);
    assert_eq!(Exit::Signal(200).status(), 255);
}

/// An answer's frame holds the answer, and a refusal can take its place.
fn answer<A: Answer + Clone + PartialEq + Debug>(answer: A) {
    round_trip(&Reply::Ok(answer.clone()));
    assert_eq!(frame::encode_reply(&answer), frame::encode(&Reply::Ok(answer)));
    let refusal = frame::encode(&Reply::<()>::Err(Refusal("512 requests".into()))).unwrap();
    let heard = frame::decode::<Reply<A>>(&refusal[HEAD..]);
    assert_eq!(heard, Ok(Err(Refusal("512 requests".into()))));
}

/// SplitMix64: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn bytes(&mut self, limit: u64) -> Vec<u8> {
        // Small bytes are more often valid variants, lengths and booleans.
        (0..self.next() % limit)
            .map(|_| self.next().to_le_bytes())
            .map(|word| word[0] >> (word[1] & 7))
            .collect()
    }
}

/// Bytes that decode at all mean the same when they are encoded again.
fn decode_as<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(message) = frame::decode::<M>(bytes) else { return false };
    round_trip(&message);
    true
}

#[test]
fn random_bytes() {
    let mut random = Random(2);
    let mut decoded = [0u32; 7];
    for _ in 0..200_000 {
        let bytes = random.bytes(80);
        for (count, valid) in decoded.iter_mut().zip([
            decode_as::<ControlFromGuest>(&bytes),
            decode_as::<ControlFromHost>(&bytes),
            decode_as::<Request>(&bytes),
            decode_as::<ProgramControl>(&bytes),
            decode_as::<Reply<ProgramEvent>>(&bytes),
            decode_as::<Reply<FileReply<Vec<FileEntry>>>>(&bytes),
            decode_as::<Reply<ConnectReply>>(&bytes),
        ]) {
            *count += u32::from(valid);
        }
    }
    assert!(decoded.iter().all(|count| *count > 100), "most decoders were reached: {decoded:?}");
}

/// Every single byte of a valid message, replaced by every other.
fn change_each_byte<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M) {
    let bytes = frame::encode(message).unwrap();
    for at in HEAD..bytes.len() {
        for value in 0..=u8::MAX {
            let mut changed = bytes[HEAD..].to_vec();
            changed[at - HEAD] = value;
            decode_as::<M>(&changed);
        }
    }
}

#[test]
fn one_changed_byte() {
    let path = String::from("/a/b");
    let exec = ExecRequest {
        program: Program::Argv(vec!["sh".into(), "-c".into(), "true".into()]),
        env: vec![("PATH".into(), "/bin".into())],
        working_dir: "/".into(),
        user: "app:app".into(),
        stdio: Stdio::Terminal(TerminalSize { rows: 24, cols: 80 }),
        privileged: false,
        detached: false,
        first: false,
    };
    let read = FileRequest::Read { path: path.clone(), offset: 1 << 40, length: 7, size_limit: Some(300) };
    let write = FileRequest::Write { path: path.clone(), mode: 0o644, at: WriteAt::Offset(9) };
    for request in [
        Request::Exec(Box::new(exec)),
        Request::File(read),
        Request::File(write),
        Request::File(FileRequest::Rename { from: path.clone(), to: path }),
        Request::Connect { port: 8080 },
        Request::HostChanges,
        Request::AddMount(AddedMount {
            path: "/a".into(),
            is_file: false,
            readonly: true,
            set_ids: false,
            make: true,
        }),
        Request::RemoveMount { path: "/a".into(), force: true },
    ] {
        change_each_byte(&request);
    }
    let moved = HostAct::Moved { to_directory: b"c".to_vec(), to: b"d".to_vec() };
    change_each_byte(&HostChange { share: 1, directory: b"a".to_vec(), name: b"b".to_vec(), what: moved });
    change_each_byte(&Reply::Ok(HostChangeReply::Thread(300)));
    change_each_byte(&Reply::Ok(RemoveReply::Failed("no".into())));
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
    change_each_byte(&Reply::Ok(FileReply::Ok(vec![entry.clone(), entry])));
    change_each_byte(&WatchEvent::Change(Change { kind: ChangeKind::Removed, path: b"/a".to_vec() }));
    let failure = FileFailure::System { errno: 2, text: "open /a: no such file or directory".into() };
    change_each_byte(&Reply::Ok(FileReply::<()>::Err(failure)));
}

#[test]
fn claimed_counts_allocate_nothing() {
    // An argument vector of 2^32-1 strings, an environment of as many, in a message of a few bytes.
    for bytes in [&[1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
        assert_eq!(frame::decode::<Request>(bytes), Err(FrameError::Message));
    }
    // The same number of entries of a directory, and a name as long.
    for bytes in [&[0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
        assert_eq!(frame::decode::<Reply<FileReply<Vec<FileEntry>>>>(bytes), Err(FrameError::Message));
    }
}
