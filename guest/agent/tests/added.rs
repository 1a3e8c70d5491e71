//! Mounts that are added while programs run: the agent carries between a real `/dev/fuse` and a server that is played.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use guest_agent::added::{self, Added};
use guest_agent::service::Agent;
use guest_protocol::frame::{HEAD, Head};
use guest_protocol::messages::Messages;
use guest_protocol::{AddReply, AddedMount, RemoveReply, Request};
use rustix::io::Errno;
use support::{Client, answered, guest_with, run, shell};

const CONTENT: &[u8] = b"hello\n";

/// An agent that can mount; `None`, with the reason printed, if the host lacks something that it needs.
fn agent() -> Option<Arc<Agent>> {
    let Ok(devices) = File::open("/dev") else { return None };
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        skip::skip("/dev/fuse", "it mounts through /dev/fuse");
        return None;
    }
    let agent = guest_with(move |agent| agent.with_added(Added::with_devices(devices.into())))?;
    added::let_in().unwrap();
    Some(agent)
}

fn wanted(path: &str) -> AddedMount {
    AddedMount { path: path.to_owned(), is_file: false, readonly: false, set_ids: false, make: true }
}

/// Mounts; returns the host's end of the stream.
fn add(agent: &Arc<Agent>, mount: AddedMount) -> Result<UnixStream, String> {
    let mut client = Client::connect(agent);
    client.send(&Request::AddMount(mount));
    // Nothing beyond the answer is read: the kernel's first request may be behind it.
    let mut head = [0; HEAD];
    client.stream.read_exact(&mut head).unwrap();
    let mut payload = vec![0; Head::parse(head).unwrap().len];
    client.stream.read_exact(&mut payload).unwrap();
    answered::<AddReply>(&payload).map(|()| client.stream)
}

fn remove(agent: &Arc<Agent>, path: &str, force: bool) -> RemoveReply {
    let mut client = Client::connect(agent);
    client.send(&Request::RemoveMount { path: path.to_owned(), force });
    client.answer().unwrap()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Attributes of a directory (node 1), or of a file.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == 1 { (0o40755, 0) } else { (0o100_644, CONTENT.len() as u64) };
    [longs(&[node, size, 0, 0, 0, 0]), words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

/// The answer to a request of FUSE, or the number of an error; no answer to some.
fn answer(opcode: u32, node: u64, args: &[u8], is_file: bool) -> Option<Result<Vec<u8>, Errno>> {
    let node_is_file = is_file || node != 1;
    let shown = if node_is_file { 2 } else { 1 };
    Some(Ok(match opcode {
        1 if args == b"file\0" => [longs(&[2, 0, 0, 0]), words(&[0, 0]), attributes(2)].concat(),
        1 => return Some(Err(Errno::NOENT)),
        2 | 42 => return None,
        3 => [longs(&[0, 0]), attributes(shown)].concat(),
        14 | 27 => [longs(&[7]), words(&[0, 0])].concat(),
        15 => CONTENT.to_vec(),
        18 | 25 | 28 | 29 => Vec::new(),
        26 => [words(&[7, 31, 1 << 17, 0, 0, 1 << 20, 1, 0, 0]), vec![0; 28]].concat(),
        _ => return Some(Err(Errno::NOSYS)),
    }))
}

/// Serves one file until the stream ends, or until it is to hang up.
fn serve(mut stream: UnixStream, is_file: bool) -> JoinHandle<()> {
    stream.set_read_timeout(None).unwrap();
    std::thread::spawn(move || {
        let mut requests = Messages::requests();
        loop {
            while let Some(request) = requests.next_message().unwrap() {
                let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
                let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
                let Some(answer) = answer(word(4), long(16), &request[40..], is_file) else { continue };
                let error = answer.as_ref().err().map_or(0, |errno| -errno.raw_os_error());
                let body = answer.unwrap_or_default();
                let head = words(&[16 + u32::try_from(body.len()).unwrap(), error.cast_unsigned()]);
                let reply = [head, longs(&[long(8)]), body].concat();
                if stream.write_all(&reply).is_err() {
                    return;
                }
            }
            match stream.read(requests.room()) {
                Ok(0) | Err(_) => return,
                Ok(count) => requests.received(count),
            }
        }
    })
}

#[test]
fn a_mount_comes_to_programs_that_run_and_goes() {
    let Some(agent) = agent() else { return };
    let script = "echo up; until [ -e /mnt/a/file ]; do sleep 0.05; done; cat /mnt/a/file; \
                  grep -c ' /mnt/a fuse.*nosuid,nodev' /proc/mounts; exec 3< /mnt/a/file; echo open; \
                  until ! cat /mnt/a/file > /dev/null 2>&1; do sleep 0.05; done; echo gone";
    let mut program = Client::exec(&agent, shell(script));
    program.expect("up\n");
    let stream = add(&agent, wanted("/mnt/a")).unwrap();
    let served = serve(stream, false);
    assert!(program.expect("open\n").starts_with("hello\n1\n"));
    assert_eq!(fs::read("/mnt/a/file").unwrap(), CONTENT);
    // The program has a file of it open.
    assert_eq!(remove(&agent, "/mnt/a", false), RemoveReply::Busy);
    assert_eq!(remove(&agent, "/mnt/a", true), RemoveReply::Removed);
    served.join().unwrap();
    program.expect("gone\n");
    assert_eq!(fs::read_dir("/mnt/a").unwrap().count(), 0);
    let again = remove(&agent, "/mnt/a", true);
    assert_eq!(again, RemoveReply::Failed("nothing was added at /mnt/a".into()));

    // Nobody uses it: no force is needed, and a place can be used again.
    let served = serve(add(&agent, wanted("/mnt/a")).unwrap(), false);
    assert_eq!(run(&agent, shell("cat /mnt/a/file")).text(), "hello\n");
    assert_eq!(remove(&agent, "/mnt/a", false), RemoveReply::Removed);
    served.join().unwrap();
}

#[test]
fn a_single_file() {
    let Some(agent) = agent() else { return };
    let stream = add(&agent, AddedMount { is_file: true, ..wanted("/etc/one") }).unwrap();
    let served = serve(stream, true);
    assert_eq!(run(&agent, shell("cat /etc/one; stat -c %F /etc/one")).text(), "hello\nregular file\n");
    assert_eq!(remove(&agent, "/etc/one", false), RemoveReply::Removed);
    served.join().unwrap();
}

/// Whether an error is one of a connection that is cut: of a request that was under way, or of a later one.
fn is_cut(errno: Option<i32>) -> bool {
    [Errno::CONNABORTED, Errno::NOTCONN].map(|errno| Some(errno.raw_os_error())).contains(&errno)
}

#[test]
fn without_its_server_a_mount_fails_and_can_be_removed() {
    let Some(agent) = agent() else { return };
    let stream = add(&agent, wanted("/mnt/a")).unwrap();
    let hang_up = stream.try_clone().unwrap();
    let served = serve(stream, false);
    let mut open = File::open("/mnt/a/file").unwrap();
    hang_up.shutdown(Shutdown::Both).unwrap();
    served.join().unwrap();
    let until_error = || {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            match fs::metadata("/mnt/a/file") {
                Err(error) => return error.raw_os_error(),
                Ok(_) => assert!(std::time::Instant::now() < deadline, "it goes on"),
            }
        }
    };
    assert!(is_cut(until_error()));
    assert!(open.read(&mut [0; 9]).is_err());
    drop(open);
    assert_eq!(remove(&agent, "/mnt/a", false), RemoveReply::Removed);
    assert!(fs::metadata("/mnt/a").unwrap().is_dir());
}

#[test]
fn bytes_that_are_no_replies_end_the_mount() {
    let Some(agent) = agent() else { return };
    for (number, bytes) in
        [vec![0; 16], words(&[15, 0, 0, 0]), words(&[u32::MAX, 0, 0, 0]), words(&[16, 1, 9, 9])]
            .into_iter()
            .enumerate()
    {
        let place = format!("/mnt/{number}");
        let mut stream = add(&agent, wanted(&place)).unwrap();
        stream.write_all(&bytes).unwrap();
        // The agent hangs up; or, where the reply is one to no request, the kernel does not care.
        if number < 3 {
            let mut rest = Vec::new();
            // The stream may end with a reset.
            let _ = stream.read_to_end(&mut rest);
            assert!(is_cut(fs::metadata(&place).unwrap_err().raw_os_error()));
        }
        assert_eq!(remove(&agent, &place, true), RemoveReply::Removed);
    }
    assert_eq!(run(&agent, shell("echo alive")).text(), "alive\n");
}

#[test]
fn no_link_leads_a_mount_elsewhere_and_nothing_is_made_where_it_must_not() {
    let Some(agent) = agent() else { return };
    fs::create_dir_all("/mnt/there").unwrap();
    symlink("/etc", "/mnt/link").unwrap();
    let names = || fs::read_dir("/mnt").unwrap().count();
    let before = names();
    for (path, make, why) in [
        ("/mnt/link", true, "mount /mnt/link: /mnt/link is a symbolic link"),
        ("/mnt/link/below", true, "mount /mnt/link/below: /mnt/link is a symbolic link"),
        ("/mnt/new", false, "mount /mnt/new: /mnt/new: no such file or directory"),
    ] {
        assert_eq!(add(&agent, AddedMount { make, ..wanted(path) }).unwrap_err(), why);
    }
    assert_eq!((names(), fs::metadata("/etc/below").is_err()), (before, true));
    let served = serve(add(&agent, AddedMount { make: false, ..wanted("/mnt/there") }).unwrap(), false);
    // A program puts something else in the place: that is not what is unmounted.
    fs::rename("/mnt", "/moved").unwrap();
    fs::create_dir_all("/mnt/there").unwrap();
    let why = "/mnt/there is not where it was mounted";
    assert_eq!(remove(&agent, "/mnt/there", true), RemoveReply::Failed(why.into()));
    fs::remove_dir_all("/mnt").unwrap();
    fs::rename("/moved", "/mnt").unwrap();
    assert_eq!(remove(&agent, "/mnt/there", false), RemoveReply::Removed);
    served.join().unwrap();
    assert_eq!(fs::metadata("/mnt/there").unwrap().dev(), fs::metadata("/mnt").unwrap().dev());
}
