//! Each request as bytes, what the file system is asked for it, and the bytes of the answer.

use zerocopy::IntoBytes;

use super::*;
use crate::fake::{CONTENTS, ENTRY, MISSING, Notes, OPENED, STAT};
use crate::{MAX_DATA_LEN, MAX_REPLY_LEN, MAX_REQUEST_LEN, fuzz};

/// A part of a request's arguments.
pub(super) enum Part {
    W(u32),
    Q(u64),
    B(&'static [u8]),
}
use Part::{B, Q, W};

/// An answer, behind its header.
enum Answer {
    /// FORGET and its like get none at all.
    Nothing,
    Error(Errno),
    Empty,
    Entry,
    Stat,
    Statx,
    Opened,
    Created,
    Bytes(&'static [Part]),
}

/// A request in order: its opcode, its arguments, what the file system is asked, and the answer.
pub(crate) struct Example(u32, &'static [Part], &'static str, Answer);

fn bytes(parts: &[Part]) -> Vec<u8> {
    let part = |part: &Part| match part {
        W(word) => word.to_le_bytes().to_vec(),
        Q(word) => word.to_le_bytes().to_vec(),
        B(bytes) => bytes.to_vec(),
    };
    parts.iter().flat_map(part).collect()
}

const UNIQUE: u64 = 0x1234_5678_9abc_def0;

fn request_to(node: u64, opcode: u32, args: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + args.len()).unwrap();
    let header = [W(len), W(opcode), Q(UNIQUE), Q(node), W(1000), W(1001), W(42), W(0)];
    [bytes(&header), args.to_vec()].concat()
}

fn request(opcode: u32, args: &[u8]) -> Vec<u8> {
    request_to(9, opcode, args)
}

impl Example {
    pub(crate) fn request(&self) -> Vec<u8> {
        request(self.0, &bytes(self.1))
    }
}

impl Answer {
    fn bytes(&self) -> Vec<u8> {
        let entry = || encode::entry(&ENTRY).as_bytes().to_vec();
        let opened = || encode::opened(&OPENED).as_bytes().to_vec();
        let body = match self {
            Self::Nothing => return Vec::new(),
            Self::Empty | Self::Error(_) => Vec::new(),
            Self::Entry => entry(),
            Self::Stat => encode::stat(&STAT).as_bytes().to_vec(),
            Self::Statx => encode::statx(&STAT).as_bytes().to_vec(),
            Self::Opened => opened(),
            Self::Created => [entry(), opened()].concat(),
            Self::Bytes(parts) => bytes(parts),
        };
        let error = if let Self::Error(errno) = self { (-errno.number()).cast_unsigned() } else { 0 };
        [bytes(&[W(u32::try_from(16 + body.len()).unwrap()), W(error), Q(UNIQUE)]), body].concat()
    }
}

/// An example of each request, and of each form that a request has.
pub(crate) const EXAMPLES: &[Example] = &[
    Example(1, &[B(b"name\0")], "entry Name(\"name\") Existing", Answer::Entry),
    Example(2, &[Q(3)], "Lookups(3)", Answer::Nothing),
    Example(3, &[Q(0), Q(5)], "attributes None None", Answer::Stat),
    Example(3, &[W(1), W(0), Q(5)], "attributes Some(Handle(5)) None", Answer::Stat),
    // Handle, mode, user, size, time of access, time of change: now.
    Example(
        4,
        &[
            W(64 | 1 | 2 | 8 | 16 | 32 | 256),
            W(0),
            Q(5),
            Q(100),
            Q(0),
            Q(u64::MAX),
            Q(1),
            Q(2), //
            W(6),
            W(7),
            W(8),
            W(0o106_755),
            W(0),
            W(9),
            W(10),
            W(0),
        ],
        "attributes Some(Handle(5)) Some(SetAttributes { mode: Some(3565), uid: Some(9), gid: None, \
         size: Some(100), atime: Some(At(Time { seconds: -1, nanoseconds: 6 })), mtime: Some(Now), ctime: None, \
         kill_privileges: false })",
        Answer::Stat,
    ),
    // Group, time of change, time of status, privileges.
    Example(
        4,
        &[
            W(4 | 32 | 1024 | 2048),
            W(0),
            Q(5),
            Q(100),
            Q(0),
            Q(0),
            Q(1),
            Q(2), //
            W(6),
            W(7),
            W(8),
            W(0),
            W(0),
            W(9),
            W(10),
            W(0),
        ],
        "attributes None Some(SetAttributes { mode: None, uid: None, gid: Some(10), size: None, atime: None, \
         mtime: Some(At(Time { seconds: 1, nanoseconds: 7 })), ctime: Some(Time { seconds: 2, nanoseconds: 8 }), \
         kill_privileges: true })",
        Answer::Stat,
    ),
    Example(5, &[], "read_link", Answer::Bytes(&[B(CONTENTS)])),
    Example(
        6,
        &[B(b"link\0../../x\0")],
        "entry Name(\"link\") SymbolicLink { target: LinkTarget(\"../../x\") }",
        Answer::Entry,
    ),
    // A block device 8:257.
    Example(
        8,
        &[W(0o060_660), W(0x10_0801), W(0o22), W(0), B(b"disk\0")],
        "entry Name(\"disk\") Node { mode: 25008, device: Device { major: 8, minor: 257 } }",
        Answer::Entry,
    ),
    Example(
        8,
        &[W(0o644), W(0), W(0), W(0), B(b"file\0")],
        "entry Name(\"file\") Node { mode: 33188, device: Device { major: 0, minor: 0 } }",
        Answer::Entry,
    ),
    Example(
        9,
        &[W(0o042_770), W(0), B(b"dir\0")],
        "entry Name(\"dir\") Directory { mode: 1528 }",
        Answer::Entry,
    ),
    Example(10, &[B(b"a\0")], "Unlink(Name(\"a\"))", Answer::Empty),
    Example(11, &[B(b"a\0")], "RemoveDirectory(Name(\"a\"))", Answer::Empty),
    Example(
        12,
        &[Q(6), B(b"a\0b\0")],
        "Rename { from: Name(\"a\"), to_parent: NodeId(6), to: Name(\"b\"), how: Replace }",
        Answer::Empty,
    ),
    Example(13, &[Q(6), B(b"a\0")], "entry Name(\"a\") HardLink { node: NodeId(6) }", Answer::Entry),
    // O_RDWR, O_APPEND, O_NONBLOCK, and privileges.
    Example(
        14,
        &[W(0o6002), W(1)],
        "open File { access: ReadWrite, flags: OpenFlags(APPEND | KILL_PRIVILEGES) }",
        Answer::Opened,
    ),
    Example(
        14,
        &[W(0o4_011_001), W(0)],
        "open File { access: Write, flags: OpenFlags(TRUNCATE | SYNC | DATA_SYNC) }",
        Answer::Opened,
    ),
    Example(
        15,
        &[Q(5), Q(4096), W(5), W(0), Q(0), W(0), W(0)],
        "read 5 4096 5",
        Answer::Bytes(&[B(b"conte")]),
    ),
    Example(15, &[Q(5), Q(0), W(100), W(0), Q(0), W(0), W(0)], "read 5 0 100", Answer::Bytes(&[B(CONTENTS)])),
    Example(
        16,
        &[Q(5), Q(4096), W(3), W(4), Q(0), W(0o2001), W(0), B(b"new")],
        "write 5 4096 new WriteHow(APPEND | KILL_PRIVILEGES)",
        Answer::Bytes(&[W(3), W(0)]),
    ),
    // The kernel's own pages go where they are.
    Example(
        16,
        &[Q(5), Q(4096), W(0), W(1), Q(0), W(0o2001), W(0)],
        "write 5 4096  WriteHow(DELAYED)",
        Answer::Bytes(&[Q(0)]),
    ),
    Example(
        17,
        &[],
        "statistics",
        Answer::Bytes(&[Q(1), Q(2), Q(3), Q(4), Q(5), W(4096), W(255), W(4096), W(0), Q(0), Q(0), Q(0)]),
    ),
    Example(18, &[Q(5), W(0), W(0), Q(0)], "File(Handle(5))", Answer::Empty),
    Example(20, &[Q(5), W(1), W(0)], "sync File { handle: Handle(5), data_only: true }", Answer::Empty),
    Example(
        21,
        &[W(3), W(2), B(b"user.a\0\0b\0")],
        "xattr Set { name: XattrName(\"user.a\"), value: [0, 98, 0], how: Replace }",
        Answer::Empty,
    ),
    Example(22, &[W(0), W(0), B(b"user.a\0")], "xattr Get(XattrName(\"user.a\"))", Answer::Bytes(&[Q(8)])),
    Example(22, &[W(7), W(0), B(b"a.\0")], "xattr Get(XattrName(\"a.\"))", Answer::Error(Errno::ERANGE)),
    Example(23, &[W(8), W(0)], "xattr List", Answer::Bytes(&[B(CONTENTS)])),
    Example(24, &[B(b"user.a\0")], "xattr Remove(XattrName(\"user.a\"))", Answer::Empty),
    Example(25, &[Q(5), Q(0), Q(0)], "", Answer::Error(Errno::ENOSYS)),
    Example(27, &[W(0o200_000), W(0)], "open Directory", Answer::Opened),
    Example(
        28,
        &[Q(5), Q(6), W(40), W(0), Q(0), W(0), W(0)],
        "list 5 6 false",
        Answer::Bytes(&[Q(11), Q(34), W(6), W(8), B(b"listed\0\0")]),
    ),
    Example(29, &[Q(5), W(0), W(0), Q(0)], "Directory(Handle(5))", Answer::Empty),
    Example(30, &[Q(5), W(0), W(0)], "sync Directory { handle: Handle(5) }", Answer::Empty),
    Example(31, &[B(&[0; 48])], "", Answer::Error(Errno::ENOSYS)),
    Example(32, &[B(&[0; 48])], "", Answer::Error(Errno::ENOSYS)),
    Example(33, &[B(&[0; 48])], "", Answer::Error(Errno::ENOSYS)),
    Example(34, &[Q(4)], "", Answer::Error(Errno::ENOSYS)),
    Example(
        35,
        &[W(0o301), W(0o100_444), W(0), W(0), B(b"new\0")],
        "create Some(Name(\"new\")) Creation { mode: 292, access: Write, flags: OpenFlags(0x0), exclusive: true }",
        Answer::Created,
    ),
    Example(36, &[Q(1)], "", Answer::Error(Errno::ENOSYS)),
    Example(37, &[Q(0), Q(512)], "", Answer::Error(Errno::ENOSYS)),
    Example(39, &[B(&[0; 32])], "", Answer::Error(Errno::ENOTTY)),
    Example(40, &[B(&[0; 24])], "", Answer::Error(Errno::ENOSYS)),
    Example(41, &[B(&[0; 40])], "", Answer::Nothing),
    Example(42, &[W(1), W(0), Q(9), Q(4)], "Lookups(4)", Answer::Nothing),
    Example(
        43,
        &[Q(5), Q(6), Q(7), W(3), W(0)],
        "5 Allocate { offset: 6, len: 7, how: Punch }",
        Answer::Empty,
    ),
    Example(44, &[Q(5), Q(0), W(100), W(0), Q(0), W(0), W(0)], "list 5 0 true", Answer::Empty),
    Example(
        45,
        &[Q(6), W(2), W(0), B(b"a\0b\0")],
        "Rename { from: Name(\"a\"), to_parent: NodeId(6), to: Name(\"b\"), how: Exchange }",
        Answer::Empty,
    ),
    Example(46, &[Q(5), Q(6), W(4), W(0)], "5 Seek { offset: 6, what: Hole }", Answer::Bytes(&[Q(33)])),
    Example(
        47,
        &[Q(5), Q(6), Q(7), Q(8), Q(10), Q(1 << 40), Q(0)],
        "5 Copy { offset: 6, to_node: NodeId(7), to: Handle(8), to_offset: 10, len: 16777216 }",
        Answer::Bytes(&[Q(33)]),
    ),
    Example(48, &[B(&[0; 40])], "", Answer::Error(Errno::ENOSYS)),
    Example(49, &[W(0)], "", Answer::Error(Errno::ENOSYS)),
    Example(50, &[Q(0)], "sync All", Answer::Empty),
    // Linux names a file without a name "/".
    Example(
        51,
        &[W(2), W(0o600), W(0), W(0), B(b"/\0")],
        "create None Creation { mode: 384, access: ReadWrite, flags: OpenFlags(0x0), exclusive: false }",
        Answer::Created,
    ),
    Example(52, &[W(1), W(0), Q(5), W(0), W(0xfff)], "attributes Some(Handle(5)) None", Answer::Statx),
    Example(4096, &[B(&[0; 16])], "", Answer::Error(Errno::ENOSYS)),
    Example(99, &[B(b"news")], "", Answer::Error(Errno::ENOSYS)),
];

/// A session, and a thread that serves it.
struct Mount {
    session: Session<Notes>,
    scratch: Scratch,
}

impl Mount {
    /// A mount whose version is not agreed on.
    fn unborn() -> Self {
        Self { session: Session::new(Notes::default(), Coherence::Shared), scratch: Scratch::default() }
    }

    fn new() -> Self {
        let mut mount = Self::unborn();
        assert_eq!(mount.serve(&fuzz::init()).len(), 80);
        mount
    }

    fn serve_within(&mut self, request: &[u8], piece: usize, room: usize) -> Vec<u8> {
        let (mut request, mut reply) = (request.to_vec(), vec![0; room]);
        let len = {
            let request: Vec<_> = request.chunks_mut(piece).map(VolatileSlice::from).collect();
            let reply: Vec<_> = reply.chunks_mut(piece).map(VolatileSlice::from).collect();
            self.session.serve(&mut self.scratch, &request, &reply)
        };
        reply.truncate(len);
        reply
    }

    fn serve(&mut self, request: &[u8]) -> Vec<u8> {
        self.serve_within(request, 4096, MAX_REPLY_LEN)
    }

    /// The error of a request that is refused without the file system being asked.
    fn refused(&mut self, request: &[u8]) -> Errno {
        let reply = self.serve(request);
        assert_eq!(reply.len(), 16, "{}", reply.escape_ascii());
        assert_eq!(self.session.files.take(), [""; 0]);
        Errno::from_number(-i32::from_le_bytes(reply[4..8].try_into().unwrap()))
    }
}

#[test]
fn each_request_is_understood_and_answered() {
    let mut mount = Mount::new();
    for example in EXAMPLES {
        let Example(opcode, _, asked, answer) = example;
        for piece in [1, 7, 40, 4096] {
            let reply = mount.serve_within(&example.request(), piece, 4096);
            assert_eq!(reply, answer.bytes(), "answer to {opcode}");
            let noted = mount.session.files.take();
            let first = noted.first().map_or("", String::as_str);
            assert_eq!(first.strip_prefix("9 ").unwrap_or_default(), *asked, "asked by {opcode}");
        }
    }
}

#[test]
fn every_request_of_the_protocol_is_among_the_examples() {
    // INIT and DESTROY have tests of their own.
    let known = (0..200).filter(|opcode| fuse_opcode::try_from(*opcode).is_ok());
    let missing: Vec<u32> =
        known.filter(|opcode| EXAMPLES.iter().all(|example| example.0 != *opcode)).collect();
    assert_eq!(missing, [26, 38]);
}

#[test]
fn each_request_that_is_cut_short_or_too_long_is_refused() {
    let mut mount = Mount::new();
    for example in EXAMPLES.iter().filter(|example| !matches!(example.3, Answer::Error(_) | Answer::Nothing))
    {
        let Example(opcode, parts, ..) = example;
        let args = bytes(parts);
        for len in 0..args.len() {
            let errno = mount.refused(&request(*opcode, &args[..len]));
            // Half a symbolic link may have no target, which has its own error.
            assert!(matches!(errno, Errno::EINVAL | Errno::ENOENT), "{opcode} of {len} bytes: {errno:?}");
        }
        let errno = mount.refused(&request(*opcode, &[&args[..], b"\0"].concat()));
        assert_eq!(errno, Errno::EINVAL, "{opcode} with a byte more");
    }
}

#[test]
fn requests_without_an_answer_get_none_even_when_they_are_broken() {
    let mut mount = Mount::new();
    for (opcode, args) in [(2, &b"short"[..]), (42, b"short"), (42, &bytes(&[W(u32::MAX), W(0), Q(9), Q(4)]))]
    {
        assert_eq!(mount.serve(&request(opcode, args)), b"");
        assert_eq!(mount.session.files.take(), [""; 0]);
    }
    let many: Vec<u8> = (0..60_000u64).flat_map(|node| bytes(&[Q(node), Q(1)])).collect();
    assert_eq!(mount.serve(&request(42, &[bytes(&[W(60_000), W(0)]), many].concat())), b"");
    let noted = mount.session.files.take();
    assert_eq!((noted.len(), noted[59_999].as_str()), (60_000, "59999 Lookups(1)"));
}

#[test]
fn no_name_leads_out_of_its_directory() {
    let mut mount = Mount::new();
    // The arguments before each name, and after it.
    let places: &[(u32, &[Part], &[u8])] = &[
        (1, &[], b""),
        (6, &[], b"target\0"),
        (8, &[W(0o100_644), W(0), W(0), W(0)], b""),
        (9, &[W(0o755), W(0)], b""),
        (10, &[], b""),
        (11, &[], b""),
        (12, &[Q(6)], b"other\0"),
        (12, &[Q(6), B(b"other\0")], b""),
        (13, &[Q(6)], b""),
        (35, &[W(1), W(0o644), W(0), W(0)], b""),
        (45, &[Q(6), W(0), W(0)], b"other\0"),
        (45, &[Q(6), W(0), W(0), B(b"other\0")], b""),
    ];
    let long = [b'a'; 256];
    let names: &[(&[u8], Errno)] = &[
        (b"", Errno::ENOENT),
        (b".", Errno::EINVAL),
        (b"..", Errno::EINVAL),
        (b"/", Errno::EINVAL),
        (b"../etc", Errno::EINVAL),
        (b"a/b", Errno::EINVAL),
        (&long, Errno::ENAMETOOLONG),
    ];
    for (opcode, before, after) in places {
        for (name, errno) in names {
            let args = [&bytes(before), *name, b"\0", *after].concat();
            assert_eq!(mount.refused(&request(*opcode, &args)), *errno, "{opcode} {}", name.escape_ascii());
        }
        // A name that goes on behind its NUL, and one without.
        let args = [&bytes(before), &b"a\0b\0"[..], *after].concat();
        assert_eq!(mount.refused(&request(*opcode, &args)), Errno::EINVAL, "{opcode}");
        if after.is_empty() {
            let args = [&bytes(before), &b"a"[..]].concat();
            assert_eq!(mount.refused(&request(*opcode, &args)), Errno::EINVAL, "{opcode}");
        }
    }
    for (target, errno) in [(&b"\0"[..], Errno::ENOENT), (&[b'a'; 4096], Errno::ENAMETOOLONG)] {
        let args = [&b"name\0"[..], target, b"\0"].concat();
        let args = if target == b"\0" { b"name\0\0".to_vec() } else { args };
        assert_eq!(mount.refused(&request(6, &args)), errno);
    }
}

#[test]
fn numbers_are_those_that_a_file_can_have() {
    let mut mount = Mount::new();
    let end = i64::MAX as u64;
    let setattr = |valid: u32, size: u64, nanoseconds: u32, id: u32| {
        let times = [W(nanoseconds), W(nanoseconds), W(nanoseconds)];
        let head = [W(valid), W(0), Q(5), Q(size), Q(0), Q(0), Q(0), Q(0)];
        [bytes(&head), bytes(&times), bytes(&[W(0), W(0), W(id), W(id), W(0)])].concat()
    };
    let read = |offset: u64, size: u32| bytes(&[Q(5), Q(offset), W(size), W(0), Q(0), W(0), W(0)]);
    let allocate = |offset, len, mode| bytes(&[Q(5), Q(offset), Q(len), W(mode), W(0)]);
    let copy = |from, to, flags| bytes(&[Q(5), Q(from), Q(7), Q(8), Q(to), Q(u64::MAX), Q(flags)]);
    let cases = [
        (4, setattr(8, end + 1, 0, 0), Errno::EINVAL),
        (4, setattr(16, 0, 1_000_000_000, 0), Errno::EINVAL),
        (4, setattr(32, 0, u32::MAX, 0), Errno::EINVAL),
        (4, setattr(1024, 0, u32::MAX, 0), Errno::EINVAL),
        (4, setattr(2, 0, 0, u32::MAX), Errno::EINVAL),
        (4, setattr(4, 0, 0, u32::MAX), Errno::EINVAL),
        (8, bytes(&[W(0o040_755), W(0), W(0), W(0), B(b"a\0")]), Errno::EINVAL),
        (8, bytes(&[W(0o120_777), W(0), W(0), W(0), B(b"a\0")]), Errno::EINVAL),
        (14, bytes(&[W(3), W(0)]), Errno::EINVAL),
        (15, read(end, 1), Errno::EINVAL),
        (15, read(u64::MAX, 1), Errno::EINVAL),
        (15, read(0, u32::MAX), Errno::EINVAL),
        (15, read(0, u32::try_from(MAX_DATA_LEN + 1).unwrap()), Errno::EINVAL),
        (16, [read(end, 1), b"x".to_vec()].concat(), Errno::EFBIG),
        (16, [read(0, 2), b"x".to_vec()].concat(), Errno::EINVAL),
        (16, [read(0, 0), b"x".to_vec()].concat(), Errno::EINVAL),
        (16, read(0, u32::MAX), Errno::EINVAL),
        (16, [read(0, 0), vec![0; MAX_DATA_LEN + 1]].concat(), Errno::E2BIG),
        (21, bytes(&[W(1), W(3), B(b"a\0b")]), Errno::EINVAL),
        (21, [bytes(&[W(65_537), W(0), B(b"a\0")]), vec![0; 65_537]].concat(), Errno::E2BIG),
        (21, bytes(&[W(0), W(0), B(b"\0")]), Errno::ERANGE),
        (43, allocate(0, 0, 0), Errno::EINVAL),
        (43, allocate(end, 1, 0), Errno::EFBIG),
        (43, allocate(u64::MAX, u64::MAX, 0), Errno::EFBIG),
        (43, allocate(0, 1, 2), Errno::EOPNOTSUPP),
        (43, allocate(0, 1, 8), Errno::EOPNOTSUPP),
        (45, bytes(&[Q(6), W(4), W(0), B(b"a\0b\0")]), Errno::EINVAL),
        (45, bytes(&[Q(6), W(3), W(0), B(b"a\0b\0")]), Errno::EINVAL),
        (46, bytes(&[Q(5), Q(0), W(2), W(0)]), Errno::EINVAL),
        (46, bytes(&[Q(5), Q(end + 1), W(3), W(0)]), Errno::ENXIO),
        (47, copy(end, 0, 0), Errno::EINVAL),
        (47, copy(0, end, 0), Errno::EFBIG),
        (47, copy(0, 0, 1), Errno::EINVAL),
    ];
    for (opcode, args, errno) in &cases {
        assert_eq!(mount.refused(&request(*opcode, args)), *errno, "{opcode} {}", args[..8].escape_ascii());
    }
    // The largest that go.
    for (opcode, args) in [(4, setattr(8, end, 0, 0)), (15, read(end - 1, 1)), (43, allocate(end - 1, 1, 0))]
    {
        mount.serve(&request(opcode, &args));
        assert_eq!(mount.session.files.take().len(), 1, "{opcode}");
    }
    let value = [bytes(&[W(65_536), W(0), B(b"a\0")]), vec![7; 65_536]].concat();
    assert_eq!(mount.serve(&request(21, &value)), Answer::Empty.bytes());
    let data = vec![b'x'; MAX_DATA_LEN];
    let len = u32::try_from(data.len()).unwrap();
    let reply = mount.serve(&request(16, &[read(0, len), data].concat()));
    assert_eq!(reply, [bytes(&[W(24), W(0), Q(UNIQUE)]), bytes(&[W(len), W(0)])].concat());
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    let mut mount = Mount::new();
    for len in [0, 8, 39, 40, 44, 46, u32::MAX] {
        let mut request = request(1, b"name\0");
        request[..4].copy_from_slice(&u32::to_le_bytes(len));
        assert_eq!(mount.refused(&request), Errno::EINVAL, "{len}");
    }
    for len in [0, 8, 39] {
        assert_eq!(mount.serve(&request(1, b"name\0")[..len]), b"", "{len} bytes");
    }
    let long = [vec![b'a'; 9000], vec![0]].concat();
    assert_eq!(mount.refused(&request(1, &long)), Errno::E2BIG);
    assert_eq!(mount.refused(&request(99, &vec![0; MAX_REQUEST_LEN])), Errno::E2BIG);
}

#[test]
fn nothing_is_done_that_could_not_be_told() {
    let mut mount = Mount::new();
    for example in EXAMPLES.iter().filter(|example| !matches!(example.3, Answer::Error(_) | Answer::Nothing))
    {
        let needs = example.3.bytes().len();
        for room in [0, 1, 15] {
            assert_eq!(mount.serve_within(&example.request(), 4096, room), b"");
            assert_eq!(mount.session.files.take(), [""; 0]);
        }
        let fits = matches!(example.3, Answer::Empty) || matches!(example.0, 5 | 15 | 23 | 28);
        if !fits {
            let reply = mount.serve_within(&example.request(), 4096, needs - 1);
            assert_eq!(reply, Answer::Error(Errno::EIO).bytes(), "{}", example.0);
            assert_eq!(mount.session.files.take(), [""; 0]);
        }
        assert_eq!(mount.serve_within(&example.request(), 4096, needs), example.3.bytes(), "{}", example.0);
        mount.session.files.take();
    }
    // Contents and lists are cut to their room, but neither a link's target nor an attribute.
    let cut =
        |opcode, args: &[Part], room| Mount::new().serve_within(&request(opcode, &bytes(args)), 4096, room);
    let read = [Q(5), Q(0), W(100), W(0), Q(0), W(0), W(0)];
    assert_eq!(cut(15, &read, 20)[16..], *b"cont");
    assert_eq!(cut(28, &read, 16 + 31), Answer::Empty.bytes());
    assert_eq!(cut(5, &[], 20), Answer::Error(Errno::ERANGE).bytes());
    assert_eq!(cut(23, &[W(8), W(0)], 20), Answer::Error(Errno::ERANGE).bytes());
}

#[test]
fn errors_of_the_file_system_are_passed_on() {
    let mut mount = Mount::new();
    for example in EXAMPLES.iter().filter(|example| !matches!(example.3, Answer::Error(_) | Answer::Nothing))
    {
        // The kernel hears of no error of a release.
        if !matches!(example.0, 18 | 29) {
            let reply = mount.serve(&request_to(MISSING.0, example.0, &bytes(example.1)));
            assert_eq!(reply, Answer::Error(Errno::ESTALE).bytes(), "{}", example.0);
        }
    }
}

#[test]
fn who_asks_and_what_is_appended_arrive_together() {
    let mut mount = Mount::new();
    let label = b"\x05\0\0\0\0\0\0\0security.selinux\0a:b:c\0\0";
    let extensions = bytes(&[W(40), W(1), B(label), W(16), W(32), W(1), W(50)]);
    let mut asked = request(9, &[bytes(&[W(0o755), W(0), B(b"dir\0")]), extensions].concat());
    asked[36] = 7;
    assert_eq!(mount.serve(&asked), Answer::Entry.bytes());
    let expected = "9 for 1000 1001 42 [Label { name: XattrName(\"security.selinux\"), value: [97, 58, 98, 58, 99] }] [50]";
    assert_eq!(mount.session.files.take()[1], expected);
    for units in [1, 8, 0xffff_u16] {
        asked[36..38].copy_from_slice(&units.to_le_bytes());
        let errno = mount.refused(&asked);
        assert!(matches!(errno, Errno::EINVAL | Errno::E2BIG), "{units}: {errno:?}");
    }
}

#[test]
fn a_mount_begins_before_all_else_and_ends_with_the_next_one() {
    let mut mount = Mount::unborn();
    for example in EXAMPLES.iter().filter(|example| !matches!(example.3, Answer::Nothing)) {
        assert_eq!(mount.refused(&example.request()), Errno::EIO, "{}", example.0);
    }
    assert_eq!(mount.serve(&request(2, &bytes(&[Q(1)]))), b"");
    assert_eq!(mount.session.files.take(), [""; 0]);

    // A kernel of another version may offer again, one that is too old may not.
    let mut newer = fuzz::init();
    newer[40] = 8;
    assert_eq!(mount.serve(&newer)[16..24], bytes(&[W(7), W(40)]));
    let mut older = fuzz::init();
    older[44] = 12;
    assert_eq!(mount.refused(&older), Errno::EPROTO);
    assert_eq!(mount.refused(&request(26, &[7; 15])), Errno::EINVAL);
    assert_eq!(mount.serve_within(&fuzz::init(), 4096, 79)[4..8], (-5i32).to_le_bytes());

    // Of 5.4, without the second half of the flags.
    let short = request(26, &bytes(&[W(7), W(31), W(1 << 17), W(u32::MAX)]));
    let reply = mount.serve(&short);
    assert_eq!((reply.len(), &reply[16..24], &reply[48..52]), (80, &bytes(&[W(7), W(31)])[..], &[0; 4][..]));
    assert_eq!(mount.session.files.take(), [""; 0]);
    // A kernel that starts once more has forgotten everything. One that does not agree has not started.
    assert_eq!(mount.refused(&older), Errno::EPROTO);
    assert_eq!(mount.session.files.take(), [""; 0]);
    assert_eq!(mount.serve(&fuzz::init()).len(), 80);
    assert_eq!(mount.session.files.take(), ["1 Everything"]);

    assert_eq!(mount.serve(&request(38, b"")), Answer::Empty.bytes());
    assert_eq!(mount.session.files.take(), ["1 Everything"]);
    assert_eq!(mount.refused(&request(1, b"name\0")), Errno::EIO);
    assert_eq!(mount.serve(&fuzz::init()).len(), 80);
    mount.session.reset();
    assert_eq!(mount.session.files.take(), ["1 Everything"]);
}

#[test]
fn threads_serve_one_session_at_once() {
    let session = Session::new(Notes::default(), Coherence::Exclusive);
    let serve = |request: &[u8]| {
        let (mut scratch, mut request, mut reply) = (Scratch::default(), request.to_vec(), vec![0; 4096]);
        let len = session.serve(
            &mut scratch,
            &[VolatileSlice::from(&mut request[..])],
            &[VolatileSlice::from(&mut reply[..])],
        );
        reply.truncate(len);
        reply
    };
    let agreed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| serve(&fuzz::init()).len())).collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap() == 80)).sum()
    });
    assert_eq!(agreed, 4);
    assert_eq!(session.files.take(), ["1 Everything"; 3], "each but the first ends the mount before");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for example in EXAMPLES {
                    assert_eq!(serve(&example.request()), example.3.bytes());
                }
            });
        }
    });
    assert_eq!(session.files.take().iter().filter(|note| note.ends_with("statistics")).count(), 4);
}
