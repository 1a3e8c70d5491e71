//! The program, started with the powers that it may have.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use arrival::{Arrival, Lack, ReceiveError, wanted};
use process::Spawn;
use tempfile::TempDir;

use super::guest::{PATIENCE, behind, possible};
use super::{accept, version};

/// A copy of the program in a folder that every user reads.
fn program() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_matchlock-arrival"), folder.path().join("program")).unwrap();
    folder
}

/// The network from the program that a shell starts as `script` says, in a mount namespace of its own.
fn started(script: &str) -> Result<Arrival, ReceiveError> {
    let folder = program();
    let shell = process::find_program("unshare").unwrap();
    let script = format!("set -e; cd {}; {script}", folder.path().display());
    let args = ["--mount", "sh", "-c", &script].map(Into::into).to_vec();
    let (mut child, channel) = process::spawn(Spawn { args, ..Spawn::new(&shell) }).unwrap();
    let arrival = Arrival::receive(&channel);
    // The program ends by itself, and the network stays.
    child.wait().unwrap();
    arrival
}

/// A device for everybody in place of the host's.
const DEVICE: &str = "mkdir dev; mount -t tmpfs none dev; mknod dev/tun c 10 200; chmod 666 dev/tun;
    mount --bind dev/tun /dev/net/tun";
const NOBODY: &str = "exec setpriv --reuid 65534 --regid 65534 --clear-groups ./program";

/// Connects to a few addresses as the guest of `arrival`.
fn works(arrival: Arrival) {
    behind(arrival, |sockets| {
        for target in
            ["203.0.113.7:80", "[2001:db8::5]:443"].map(|target| target.parse::<SocketAddr>().unwrap())
        {
            let guest = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
            let (host, peer) = accept(&sockets.connections[version(&target)]);
            assert_eq!((wanted(&host).unwrap(), peer), (target, guest.local_addr().unwrap()));
        }
    });
}

#[test]
fn root_s_program_hands_over_a_network() {
    if possible() {
        works(arrival::start(Path::new(env!("CARGO_BIN_EXE_matchlock-arrival"))).unwrap());
    }
}

#[test]
fn three_of_root_s_powers_are_enough() {
    if possible() {
        let powers = "-all,+sys_admin,+net_admin,+net_raw";
        works(started(&format!("exec setpriv --inh-caps=-all --bounding-set={powers} ./program")).unwrap());
    }
}

#[test]
fn a_user_s_program_does_so_in_a_user_namespace() {
    if !possible() {
        return;
    }
    match started(&format!("{DEVICE}; {NOBODY}")) {
        Ok(arrival) => works(arrival),
        Err(ReceiveError::Refused(refusal)) if refusal.lack == Lack::Namespace => {
            skip::skip("user-namespaces", refusal);
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_is_missing_is_said() {
    if !possible() {
        return;
    }
    let lack = |script: &str| match started(script) {
        Err(ReceiveError::Refused(refusal)) => (refusal.lack, refusal.to_string()),
        other => panic!("{script}: {other:?}"),
    };
    let (found, text) = lack("mount -t tmpfs none /dev/net; exec ./program");
    assert_eq!(found, Lack::Device, "{text}");
    assert!(text.starts_with("/dev/net/tun does not exist: "), "{text}");
    // A user namespace that can have no further one, and a process in it without powers.
    let (found, text) = lack(
        "exec unshare --user --map-root-user sh -c 'echo 0 > /proc/sys/user/max_user_namespaces
         exec setpriv --bounding-set=-all --inh-caps=-all ./program'",
    );
    assert_eq!(found, Lack::Namespace, "{text}");
    assert!(text.starts_with("no network namespace for the sandbox: "), "{text}");
    let closed = DEVICE.replace("666", "600");
    let (found, text) = lack(&format!("{closed}; {NOBODY}"));
    if found == Lack::Namespace {
        return skip::skip("user-namespaces", text);
    }
    assert_eq!((found, text.as_str()), (Lack::Permission, "no permission to open /dev/net/tun"));
}

#[test]
fn a_program_that_is_none_hands_over_nothing() {
    let nothing = Spawn::new(Path::new("/bin/true"));
    let (_child, channel) = process::spawn(nothing).unwrap();
    assert!(matches!(Arrival::receive(&channel), Err(ReceiveError::Nothing)));
    let (ours, theirs) = process::Channel::pair().unwrap();
    ours.send(&Ok::<(), arrival::Refusal>(()), &[]).unwrap();
    assert!(matches!(Arrival::receive(&theirs), Err(ReceiveError::Nothing)));
}
