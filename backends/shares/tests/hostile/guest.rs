//! A guest that says what it likes: requests by their bytes, without a kernel that would keep to the rules.

use std::path::Path;

use fuse::{Coherence, FileSystem, Scratch, Session};
use shares::{HostFs, Options};
use vm_memory::VolatileSlice;

/// The answer to a request: its body, or the number of an error.
pub(crate) type Answer = Result<Vec<u8>, i32>;

pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const E2BIG: i32 = 7;
pub(crate) const ENXIO: i32 = 6;
pub(crate) const EBADF: i32 = 9;
pub(crate) const EBUSY: i32 = 16;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const EISDIR: i32 = 21;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EFBIG: i32 = 27;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EROFS: i32 = 30;
pub(crate) const ENAMETOOLONG: i32 = 36;
pub(crate) const ENODATA: i32 = 61;
pub(crate) const ESTALE: i32 = 116;

pub(crate) const ROOT: u64 = 1;

/// A thread of the guest.
pub(crate) struct Guest<'a, F = HostFs> {
    session: &'a Session<F>,
    scratch: Scratch,
}

/// A shared directory, mounted.
pub(crate) fn share(path: &Path, options: Options) -> Session<HostFs> {
    mounted(HostFs::new(path, options).unwrap())
}

/// Files, mounted.
pub(crate) fn mounted<F: FileSystem>(files: F) -> Session<F> {
    let session = Session::new(files, Coherence::Shared);
    let init = words(&[7, 40, 1 << 17, u32::MAX, u32::MAX]);
    let mut guest = Guest { session: &session, scratch: Scratch::default() };
    guest.ask(26, 0, &[&init[..], &[0; 44]].concat()).unwrap();
    session
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn terminated(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

impl<'a, F: FileSystem> Guest<'a, F> {
    pub(crate) fn new(session: &'a Session<F>) -> Self {
        Self { session, scratch: Scratch::default() }
    }

    pub(crate) fn ask(&mut self, opcode: u32, node: u64, args: &[u8]) -> Answer {
        let len = u32::try_from(40 + args.len()).unwrap();
        let mut request =
            [words(&[len, opcode]), longs(&[7, node]), words(&[1000, 1000, 1, 0]), args.to_vec()].concat();
        let mut reply = vec![0; 1 << 16];
        let len = self.session.serve(
            &mut self.scratch,
            &[VolatileSlice::from(&mut request[..])],
            &[VolatileSlice::from(&mut reply[..])],
        );
        if len == 0 {
            return Ok(Vec::new());
        }
        match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(reply[16..len].to_vec()),
            error => Err(-error),
        }
    }

    /// The node that a name leads to.
    pub(crate) fn look_up(&mut self, parent: u64, name: &[u8]) -> Result<u64, i32> {
        self.ask(1, parent, &terminated(name)).map(|entry| long(&entry, 0))
    }

    pub(crate) fn forget(&mut self, node: u64, count: u64) {
        assert_eq!(self.ask(2, node, &longs(&[count])), Ok(Vec::new()));
    }

    pub(crate) fn attributes(&mut self, node: u64) -> Answer {
        self.ask(3, node, &longs(&[0, 0]))
    }

    pub(crate) fn make_directory(&mut self, parent: u64, name: &[u8]) -> Result<u64, i32> {
        self.ask(9, parent, &[words(&[0o755, 0]), terminated(name)].concat()).map(|entry| long(&entry, 0))
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: &[u8]) -> Answer {
        self.ask(10, parent, &terminated(name))
    }

    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Answer {
        let names = [terminated(from.1), terminated(to.1)].concat();
        self.ask(45, from.0, &[longs(&[to.0]), words(&[flags, 0]), names].concat())
    }

    pub(crate) fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.ask(14, node, &words(&[flags, 0])).map(|opened| long(&opened, 0))
    }

    pub(crate) fn open_directory(&mut self, node: u64) -> Result<u64, i32> {
        self.ask(27, node, &words(&[0, 0])).map(|opened| long(&opened, 0))
    }

    pub(crate) fn release(&mut self, node: u64, handle: u64) {
        self.ask(18, node, &longs(&[handle, 0, 0])).unwrap();
    }

    pub(crate) fn read(&mut self, node: u64, handle: u64) -> Answer {
        self.ask(15, node, &[longs(&[handle, 0]), words(&[4096, 0]), longs(&[0, 0])].concat())
    }

    pub(crate) fn write(&mut self, node: u64, handle: u64, data: &[u8]) -> Answer {
        let len = u32::try_from(data.len()).unwrap();
        self.ask(16, node, &[longs(&[handle, 0]), words(&[len, 0]), longs(&[0, 0]), data.to_vec()].concat())
    }

    /// A list of a directory from `cookie` on, with nodes or without.
    pub(crate) fn list(&mut self, node: u64, handle: u64, cookie: u64, nodes: bool) -> Answer {
        let opcode = if nodes { 44 } else { 28 };
        self.ask(opcode, node, &[longs(&[handle, cookie]), words(&[4096, 0]), longs(&[0, 0])].concat())
    }

    /// All names of a directory.
    pub(crate) fn names(&mut self, node: u64, nodes: bool) -> Vec<Vec<u8>> {
        let handle = self.open_directory(node).unwrap();
        let head = if nodes { 128 } else { 0 };
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let list = self.list(node, handle, cookie, nodes).unwrap();
            let mut rest = &list[..];
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                let entry = &rest[head..];
                let len = usize::try_from(u32::from_le_bytes(entry[16..20].try_into().unwrap())).unwrap();
                cookie = long(entry, 8);
                names.push(entry[24..24 + len].to_vec());
                rest = &rest[(head + 24 + len).next_multiple_of(8)..];
            }
        }
        self.ask(29, node, &longs(&[handle, 0, 0])).unwrap();
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        names
    }
}
