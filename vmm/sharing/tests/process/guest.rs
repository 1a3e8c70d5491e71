//! A guest's driver and the front end that stands for it, over a real connection: FUSE requests by their bytes, and chains
//! that no driver would make.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use confinement::User;
pub(crate) use driven::flag::{NEXT, TABLE as IN_TABLE, WRITE};
use driven::{Rings, Setup, descriptors, feature};
use machine::shares::{Content, Device, Inner, Masks, MountSpec, Shares, Source, View, Watch};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const MEMORY: usize = 16 << 20;
pub(crate) const QUEUE_SIZE: u16 = 1024;

/// Where requests, replies and indirect tables are.
pub(crate) const REQUEST: u64 = 0x40_0000;
pub(crate) const REPLY: u64 = 0x80_0000;
const TABLE: u64 = 0xc0_0000;

pub(crate) const URGENT: usize = 0;
pub(crate) const FIRST: usize = 1;

pub(crate) const ROOT: u64 = 1;

/// The answer to a request: its body, or the number of an error.
pub(crate) type Answer = Result<Vec<u8>, i32>;

/// A device, and the process that serves it.
pub(crate) struct Guest {
    pub(crate) shares: Shares,
    driver: Driver,
}

impl Deref for Guest {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
}

/// The guest's side of a device.
pub(crate) struct Driver {
    pub(crate) rings: Rings,
    told: Vec<Epoll>,
    /// Features of FUSE that both have, the lower half.
    pub(crate) agreed: u32,
}

/// A buffer of a chain: where, how long, flags, and the next one's number.
pub(crate) type Descriptor = (u64, u32, u16, u16);

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

/// A FUSE request.
pub(crate) fn request(opcode: u32, node: u64, args: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + args.len()).unwrap();
    [words(&[len, opcode]), longs(&[7, node]), words(&[1000, 1000, 1, 0]), args.to_vec()].concat()
}

/// A mount with nothing in it.
pub(crate) fn plain(content: Content<OwnedFd>) -> MountSpec<OwnedFd> {
    at("/w", content, Masks::default())
}

/// A mount at a place of the guest's, some of whose names are masked.
pub(crate) fn at(place: &str, content: Content<OwnedFd>, masks: Masks) -> MountSpec<OwnedFd> {
    MountSpec { content, inner: Vec::new(), place: place.to_owned(), masks }
}

/// A mount with a place in it.
pub(crate) fn with_place(content: Content<OwnedFd>, path: &str, is_file: bool) -> MountSpec<OwnedFd> {
    MountSpec { inner: vec![Inner { path: path.to_owned(), is_file }], ..plain(content) }
}

/// A directory, or one file in it.
pub(crate) fn source(directory: &Path, file: Option<&str>) -> Source<OwnedFd> {
    let directory = File::open(directory).unwrap().into();
    Source { directory, file: file.map(|name| name.as_bytes().to_vec()) }
}

/// The device with files that the host changes too, or the other one.
pub(crate) fn device(exclusive: bool, mounts: Vec<MountSpec<OwnedFd>>) -> Device {
    let tag = if exclusive { "matchlock-own" } else { "matchlock" };
    Device { tag: tag.to_owned(), request_queues: 2, exclusive, mounts }
}

/// Starts the process, and lets it come to where it serves.
pub(crate) fn start_devices(
    program: &Path,
    devices: Vec<Device>,
    user: Option<User>,
) -> (Shares, Vec<UnixStream>) {
    start_watched(program, devices, Watch::default(), user)
}

/// The same with rules and events.
pub(crate) fn start_watched(
    program: &Path,
    devices: Vec<Device>,
    watch: Watch,
    user: Option<User>,
) -> (Shares, Vec<UnixStream>) {
    let log = rustix::io::dup(std::io::stderr()).unwrap();
    let memory = MEMORY as u64;
    let (shares, back_ends) = Shares::start_with(program, devices, watch, memory, user, Some(log)).unwrap();
    (shares, back_ends.into_iter().map(|back_end| back_end.socket.into()).collect())
}

/// The same with one device that has these directories.
pub(crate) fn start(program: &Path, mounts: &[(&Path, View)], user: Option<User>) -> (Shares, UnixStream) {
    let mount =
        |(path, view): &(&Path, View)| plain(Content::Host { source: source(path, None), view: *view });
    let devices = vec![device(false, mounts.iter().map(mount).collect())];
    let (shares, mut sockets) = start_devices(program, devices, user);
    (shares, sockets.remove(0))
}

impl Guest {
    /// A guest that has mounted these directories.
    pub(crate) fn new(mounts: &[(&Path, View)]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_matchlock-shares"));
        Self::served_by(start(program, mounts, None))
    }

    pub(crate) fn served_by((mut shares, socket): (Shares, UnixStream)) -> Self {
        shares.wait_until_serving().unwrap();
        Self { shares, driver: Driver::new(socket) }
    }
}

impl Driver {
    pub(crate) fn new(socket: UnixStream) -> Self {
        let setup = Setup { queues: 3, queue_size: QUEUE_SIZE, features: feature::INDIRECT, memory: MEMORY };
        let mut rings = Rings::connect(socket, setup);
        let needed = feature::INDIRECT | feature::VERSION_1;
        assert_eq!((rings.offer.features & needed, rings.offer.queues), (needed, 3));
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        assert!(rings.offer.protocol.contains(wanted));
        let told = rings.calls.iter().map(|call| {
            let told = Epoll::new().unwrap();
            told.ctl(ControlOperation::Add, call.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
            told
        });
        let told = told.collect();
        rings.start(&[0; 3], true);
        let mut driver = Self { rings, told, agreed: 0 };
        let init = [words(&[7, 40, 1 << 17, u32::MAX, u32::MAX]), vec![0; 44]].concat();
        let agreed = driver.ask(FIRST, 26, 0, &init).unwrap();
        driver.agreed = u32::from_le_bytes(agreed[12..16].try_into().unwrap());
        driver
    }

    pub(crate) fn config(&mut self, len: usize) -> Vec<u8> {
        let len = u32::try_from(len).unwrap();
        let flags = VhostUserConfigFlags::empty();
        self.rings.front_end.get_config(0, len, flags, &vec![0; len as usize]).unwrap().1
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.rings.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rings.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn write_descriptor(&self, at: u64, (address, len, flags, next): Descriptor) {
        self.put(at, &[longs(&[address]), words(&[len, u32::from(flags) | u32::from(next) << 16])].concat());
    }

    /// Writes descriptors into a queue's table, from the first on.
    pub(crate) fn describe(&self, queue: usize, chain: &[Descriptor]) {
        for (number, descriptor) in (0u64..).zip(chain) {
            self.write_descriptor(descriptors(queue) + 16 * number, *descriptor);
        }
    }

    pub(crate) fn kick(&self, queue: usize) {
        self.rings.kicks[queue].write(1).unwrap();
    }

    /// Waits until so many chains have come back in all.
    pub(crate) fn wait_used(&self, queue: usize, count: u16) {
        let deadline = Instant::now() + PATIENCE;
        while self.rings.used(queue) != count {
            assert!(Instant::now() < deadline, "{} of {count} came back", self.rings.used(queue));
            let told = &mut [EpollEvent::default()];
            self.told[queue].wait(PATIENCE.as_millis() as i32, told).unwrap();
            self.rings.interrupted(queue);
        }
    }

    /// Serves one chain that begins at descriptor 0; returns how many bytes were written to it.
    pub(crate) fn serve(&self, queue: usize, chain: &[Descriptor]) -> u32 {
        self.describe(queue, chain);
        let before = self.rings.used(queue);
        self.rings.offer(queue, [0]);
        self.kick(queue);
        self.wait_used(queue, before.wrapping_add(1));
        self.rings.used_at(queue, before).1
    }

    /// Serves a request with so much room for its reply; returns what is there of the reply.
    pub(crate) fn serve_bytes(&self, queue: usize, request: &[u8], room: u32) -> Vec<u8> {
        self.put(REQUEST, request);
        let len = u32::try_from(request.len()).unwrap();
        let chain = match room {
            0 => vec![(REQUEST, len, 0, 0)],
            _ => vec![(REQUEST, len, NEXT, 1), (REPLY, room, WRITE, 0)],
        };
        let len = self.serve(queue, &chain);
        self.get(REPLY, len as usize)
    }

    /// As [`Self::serve_bytes`], by an indirect table with a descriptor for each page.
    pub(crate) fn serve_by_table(&self, queue: usize, request: &[u8], room: u32) -> Vec<u8> {
        self.put(REQUEST, request);
        let mut table = Vec::new();
        for (from, len, flags) in [(REQUEST, request.len(), 0), (REPLY, room as usize, WRITE)] {
            for at in (0..len).step_by(4096) {
                let piece = u32::try_from((len - at).min(4096)).unwrap();
                table.push((from + at as u64, piece, flags));
            }
        }
        for (number, (at, len, flags)) in (0u16..).zip(&table) {
            let last = usize::from(number) + 1 == table.len();
            let flags = if last { *flags } else { flags | NEXT };
            self.write_descriptor(TABLE + 16 * u64::from(number), (*at, *len, flags, number + 1));
        }
        let len = u32::try_from(16 * table.len()).unwrap();
        let len = self.serve(queue, &[(TABLE, len, IN_TABLE, 0)]);
        self.get(REPLY, len as usize)
    }

    pub(crate) fn ask(&mut self, queue: usize, opcode: u32, node: u64, args: &[u8]) -> Answer {
        answer(&self.serve_bytes(queue, &request(opcode, node, args), 1 << 16))
    }

    /// The node that a name leads to.
    pub(crate) fn look_up(&mut self, parent: u64, name: &[u8]) -> Result<u64, i32> {
        self.ask(FIRST, 1, parent, &terminated(name)).map(|entry| long(&entry, 0))
    }

    pub(crate) fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.ask(FIRST, 14, node, &words(&[flags, 0])).map(|opened| long(&opened, 0))
    }

    pub(crate) fn create(&mut self, parent: u64, name: &[u8]) -> Result<(u64, u64), i32> {
        let args = [words(&[0o102, 0o100_644, 0, 0]), terminated(name)].concat();
        self.ask(FIRST, 35, parent, &args).map(|made| (long(&made, 0), long(&made, 128)))
    }

    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) -> Answer {
        let names = [terminated(from.1), terminated(to.1)].concat();
        self.ask(FIRST, 45, from.0, &[longs(&[to.0]), words(&[0, 0]), names].concat())
    }
}

/// The answer in a reply.
pub(crate) fn answer(reply: &[u8]) -> Answer {
    match reply.get(4..8).map(|error| i32::from_le_bytes(error.try_into().unwrap())) {
        None => Ok(Vec::new()),
        Some(0) => Ok(reply[16..].to_vec()),
        Some(error) => Err(-error),
    }
}
