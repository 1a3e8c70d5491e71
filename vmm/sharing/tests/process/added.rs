//! A mount that is served over a stream: to this host's kernel, whose requests the test carries, and to a guest that lies.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use confinement::User;
use guest_protocol::messages::{MOST_REQUEST, Messages};
use machine::shares::{Content, Masks, MountSpec, Shares, View, Watch};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use crate::guest::{at, long, longs, plain, request, source, terminated, words};
use crate::{EACCES, EINVAL, EIO, ENOSYS, EROFS, PROGRAM, USER, house, of_proc};

/// Starts the process, and gives it a stream; returns the guest's end of that.
fn start(mount: MountSpec<OwnedFd>, exclusive: bool, user: Option<User>) -> (Shares, UnixStream) {
    let log = rustix::io::dup(std::io::stderr()).unwrap();
    let program = Path::new(PROGRAM);
    let mut shares =
        Shares::start_added_with(program, mount, exclusive, Watch::default(), user, Some(log)).unwrap();
    shares.wait_until_serving().unwrap();
    let (guest, stream) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    shares.give_guest(stream.into()).unwrap();
    (shares, guest)
}

fn host(directory: &Path, view: View) -> Content<OwnedFd> {
    Content::Host { source: source(directory, None), view }
}

/// Mounts what is served at the stream, for this thread and those that it starts.
fn mount(stream: &UnixStream, place: &Path) -> bool {
    let device = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) if rustix::process::geteuid().is_root() => Arc::new(device),
        _ => {
            skip::skip("/dev/fuse", "it mounts through /dev/fuse");
            return false;
        }
    };
    // SAFETY: neither flag takes the descriptor table away from other threads.
    #[allow(unsafe_code, reason = "a mount namespace of the test's own")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other\0",
        device.as_raw_fd()
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
    rustix::mount::mount("x", place, "fuse", MountFlags::NODEV, options).unwrap();
    let (kernel, mut to_host) = (Arc::clone(&device), stream.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut request = vec![0; MOST_REQUEST];
        while let Ok(len) = (&*kernel).read(&mut request) {
            if to_host.write_all(&request[..len]).is_err() {
                return;
            }
        }
    });
    let mut from_host = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut replies = Messages::replies();
        loop {
            while let Some(reply) = replies.next_message().unwrap() {
                // The kernel may have given the request up.
                let _ = (&*device).write(reply);
            }
            match from_host.read(replies.room()) {
                Ok(0) | Err(_) => return,
                Ok(count) => replies.received(count),
            }
        }
    });
    true
}

/// Sends a request and reads the reply to it: its body, or the number of an error.
fn ask(stream: &mut UnixStream, opcode: u32, node: u64, args: &[u8]) -> Result<Vec<u8>, i32> {
    stream.write_all(&request(opcode, node, args)).unwrap();
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(0) as usize - 16];
    stream.read_exact(&mut body).unwrap();
    match word(4).cast_signed() {
        0 => Ok(body),
        error => Err(-error),
    }
}

fn init(stream: &mut UnixStream) {
    let init = [words(&[7, 40, 1 << 17, u32::MAX, u32::MAX]), vec![0; 44]].concat();
    ask(stream, 26, 0, &init).unwrap();
}

fn code(error: std::io::Result<()>) -> Option<i32> {
    error.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_kernel_has_it_mounted() {
    let house = house();
    let (shared, place) = (house.path().join("shared"), house.path().join("other"));
    fs::write(shared.join("of the host"), "hello").unwrap();
    fs::write(shared.join(".env"), "secret").unwrap();
    let masks = Masks { hidden: vec![".env*".into()], ..Masks::default() };
    let (shares, stream) = start(at("/w", host(&shared, View::default()), masks), false, None);
    if !mount(&stream, &place) {
        return;
    }
    assert_eq!(fs::read(place.join("of the host")).unwrap(), b"hello");
    assert!(!place.join(".env").exists());
    let names = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["of the host"]);
    let data: Vec<u8> = (0..5 << 20).map(|at: u32| (at % 251) as u8).collect();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (data, file) = (&data, place.join(format!("large {number}")));
            scope.spawn(move || {
                fs::write(&file, data).unwrap();
                assert!(fs::read(&file).unwrap() == *data);
            });
        }
    });
    assert!(fs::read(shared.join("large 3")).unwrap() == data);
    fs::create_dir(place.join("d")).unwrap();
    fs::rename(place.join("large 3"), place.join("d/moved")).unwrap();
    assert!(shared.join("d/moved").is_file());

    // The process may do no more than one with a device.
    let status = |name| of_proc(shares.pid(), "status", name);
    assert_eq!((status("CapEff:"), status("Seccomp:")), ("0000000000000000".into(), "2".into()));
    let root = fs::read_dir(format!("/proc/{}/root", shares.pid())).unwrap();
    assert_eq!(root.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["0"]);

    // Its end is an error here, and nothing more.
    shares.end();
    stream.shutdown(Shutdown::Both).unwrap();
}

#[test]
fn a_read_only_one_and_one_in_memory() {
    let house = house();
    let (shared, place) = (house.path().join("shared"), house.path().join("other"));
    fs::write(shared.join("kept"), "kept").unwrap();
    let readonly = View { readonly: true, ..View::default() };
    let (_readonly, stream) = start(plain(host(&shared, readonly)), false, None);
    if !mount(&stream, &place) {
        return;
    }
    assert_eq!(fs::read(place.join("kept")).unwrap(), b"kept");
    assert_eq!(code(fs::write(place.join("kept"), "x")), Some(EROFS));
    assert_eq!(code(fs::remove_file(place.join("kept"))), Some(EROFS));
    assert_eq!(code(File::create(place.join("new")).map(drop)), Some(EROFS));
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 1);

    let (_memory, stream) = start(plain(Content::Memory { limit: 8 << 20 }), true, None);
    let place = house.path().join("private");
    assert!(mount(&stream, &place));
    fs::write(place.join("x"), vec![7; 1 << 20]).unwrap();
    assert_eq!(fs::metadata(place.join("x")).unwrap().len(), 1 << 20);
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o7777, 0o1777);
    let mut file = File::create(place.join("full")).unwrap();
    let full = file.write_all(&vec![1; 9 << 20]).and_then(|()| file.sync_all());
    assert_eq!(code(full), Some(crate::ENOSPC));
}

#[test]
fn a_guest_that_lies_gets_errors_or_ends_it() {
    let house = house();
    let shared = house.path().join("shared");
    fs::write(shared.join("file"), "file").unwrap();
    let (mut shares, mut stream) = start(plain(host(&shared, View::default())), false, None);
    // Nothing before both have agreed; and then nothing that no kernel asks.
    assert_eq!(ask(&mut stream, 1, 1, &terminated(b"file")), Err(EIO));
    init(&mut stream);
    for name in [&b".."[..], b".", b"a/b", b"../private/secret", b"/etc/passwd"] {
        assert_eq!(ask(&mut stream, 1, 1, &terminated(name)), Err(EINVAL), "{}", name.escape_ascii());
    }
    for opcode in [0, 7, 53, 4096, u32::MAX] {
        assert!(ask(&mut stream, opcode, 1, &[0; 64]).is_err());
    }
    assert_eq!(ask(&mut stream, 36, 1, &[0; 8]), Err(ENOSYS));
    assert!(ask(&mut stream, 3, 1 << 48, &longs(&[0, 0])).is_err());
    let found = ask(&mut stream, 1, 1, &terminated(b"file")).unwrap();
    assert_ne!(long(&found, 0), 1);
    // Many at once, whose replies nobody reads yet, and a request in pieces.
    let look_up = request(1, 1, &terminated(b"file"));
    for _ in 0..100 {
        stream.write_all(&look_up).unwrap();
    }
    for piece in look_up.chunks(7) {
        stream.write_all(piece).unwrap();
    }
    let mut replies = vec![0; 101 * 144];
    stream.read_exact(&mut replies).unwrap();
    assert!(replies.chunks(144).all(|reply| reply[4..8] == [0; 4]));
    // A length that cannot be is the end.
    stream.write_all(&words(&[39, 1, 0, 0])).unwrap();
    assert_eq!(
        shares.failure(),
        "shared folders: the guest broke the protocol: frame is not the expected message"
    );
    let (mut shares, mut stream) = start(plain(host(&shared, View::default())), false, None);
    stream.write_all(&words(&[u32::MAX, 1, 0, 0])).unwrap();
    assert!(shares.failure().contains("is over the limit"));
    // A guest that is done is no failure.
    let (mut shares, stream) = start(plain(host(&shared, View::default())), false, None);
    drop(stream);
    assert!(shares.failure().ends_with("exit status: 0"));
    assert_eq!(fs::read_dir(house.path().join("private")).unwrap().count(), 1);
}

#[test]
fn root_serves_it_as_the_user() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "takes on another user");
    }
    let house = tempfile::tempdir().unwrap();
    let shared = house.path().join("shared");
    fs::create_dir(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(USER), Some(USER)).unwrap();
    fs::write(shared.join("of root"), "x").unwrap();
    fs::set_permissions(shared.join("of root"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let user = User { uid: USER, gid: USER, groups: vec![USER] };
    let (shares, mut stream) = start(plain(host(&shared, View::default())), false, Some(user));
    assert_eq!(of_proc(shares.pid(), "status", "Uid:"), format!("{USER} {USER} {USER} {USER}"));
    init(&mut stream);
    let made = [words(&[0o102, 0o100_644, 0, 0]), terminated(b"new")].concat();
    ask(&mut stream, 35, 1, &made).unwrap();
    assert_eq!(fs::metadata(shared.join("new")).unwrap().uid(), USER);
    let found = ask(&mut stream, 1, 1, &terminated(b"of root")).unwrap();
    assert_eq!(ask(&mut stream, 14, long(&found, 0), &words(&[0, 0])), Err(EACCES));
}
