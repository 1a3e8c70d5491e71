//! The process of a network, as its supervisor and its guest meet it. The guest is the kernel of a network namespace
//! behind the TAP; the servers are in a third one, from which the process is started.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod asks;
#[path = "../../../arrival/tests/kernel/guest.rs"]
mod guest;
mod world;

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use arrival::Arrival;
use asks::{Answer, connect, connected, look_up, open, said_back, send};
use guest::{PATIENCE, possible, readable};
use outlet::{Lists, Outlet, Spec, StartError};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use world::{PROGRAM, show, started, within};

/// A network with such an allow list.
fn allowing(list: &[&str]) -> Spec {
    let allow = list.iter().map(ToString::to_string).collect();
    Spec { lists: Lists { allow: Some(allow), ..Lists::default() }, ipv6: true, ..Spec::default() }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn what_the_policy_allows_is_carried_and_nothing_else() {
    within(allowing(&["ok.test:7000"]), |world| {
        // No name was asked for yet.
        assert_eq!(open("203.0.113.10:7000"), Err(ErrorKind::ConnectionReset));
        assert_eq!(look_up("ok.test.", 4), Answer::Addresses(vec!["203.0.113.10".parse().unwrap()]));
        assert_eq!(look_up("ok.test.", 6), Answer::Addresses(vec!["2001:db8::5".parse().unwrap()]));
        assert_eq!(
            look_up("evil.test.", 4),
            Answer::Nothing("host not in allowlist [default:closed]".into())
        );
        assert_eq!(world.asked(), ["ok.test.", "ok.test."]);
        for address in ["203.0.113.10:7000", "[2001:db8::5]:7000"] {
            assert_eq!(said_back(&mut connect(address).unwrap(), 300_000), 300_000);
            assert_eq!(send(address, 1400), Ok(1400));
        }
        let reached = world.reached();
        for address in ["203.0.113.10:22", "203.0.113.20:7000", "10.0.0.1:7000", "[fd00::5]:7000"] {
            assert_eq!(open(address), Err(ErrorKind::ConnectionReset), "{address}");
            assert!(send(address, 10).is_err(), "{address}");
        }
        assert_eq!(world.reached(), reached);
        let audit = world.end();
        let is_flow = |outcome: &str| {
            let of = audit.iter().filter(|line| line.get("outcome").is_some_and(|own| own == outcome));
            of.map(|line| show(line, &["protocol", "destination", "rule", "sent", "received"]))
                .collect::<Vec<_>>()
        };
        let ended = is_flow("ended");
        assert!(
            ended.contains(&"tcp 203.0.113.10:7000 allow:ok.test:7000 300000 300000".into()),
            "{ended:?}"
        );
        let denied = is_flow("denied");
        for line in [
            "tcp 203.0.113.10:7000 default:closed - -",
            "tcp 203.0.113.20:7000 default:closed - -",
            "udp 203.0.113.20:7000 default:closed - -",
            "tcp 10.0.0.1:7000 class:private - -",
            "udp [fd00::5]:7000 class:private - -",
        ] {
            assert!(denied.contains(&line.into()), "{line}: {denied:?}");
        }
    });
}

#[test]
fn without_a_list_the_public_internet_is_open_but_the_host_is_not() {
    let host_addresses = vec!["203.0.113.30".parse().unwrap()];
    let spec = Spec { host_addresses, ipv6: true, ..Spec::default() };
    within(spec, |world| {
        connected("203.0.113.20:22");
        for closed in ["203.0.113.30:22", "10.0.0.1:22", "169.254.169.254:80", "198.18.0.1:9999"] {
            assert_eq!(open(closed), Err(ErrorKind::ConnectionReset), "{closed}");
        }
        let private = "addresses of this class are closed [class:private]";
        assert_eq!(look_up("inside.test.", 4), Answer::Nothing(private.into()));
        drop(world);
    });
}

#[test]
fn a_change_holds_when_it_is_answered() {
    within(allowing(&["203.0.113.10", "203.0.113.20"]), |world| {
        let mut kept = connected("203.0.113.10:7000");
        let mut cut: Vec<_> = (0..50).map(|_| connected("203.0.113.20:7000")).collect();
        assert!(send("203.0.113.20:7000", 9).is_ok());
        let start = Instant::now();
        let list = world.outlet.change(&texts(&["ok.test"]), &texts(&["203.0.113.20", "none.test"]));
        assert_eq!(list.unwrap(), ["203.0.113.10", "ok.test"]);
        for stream in &mut cut {
            assert_eq!(stream.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(said_back(&mut kept, 1000), 1000);
        assert_eq!(open("203.0.113.20:7000"), Err(ErrorKind::ConnectionReset));
        assert!(send("203.0.113.20:7000", 9).is_err());

        let refused = world.outlet.change(&texts(&["cdn.test", "http://x"]), &texts(&["ok.test"]));
        assert!(refused.unwrap_err().to_string().starts_with("allow list: "));
        let all = texts(&["203.0.113.10", "ok.test"]);
        assert_eq!(world.outlet.change(&[], &[]).unwrap(), all);
        // An emptied list is closed.
        assert!(world.outlet.change(&[], &all).unwrap().is_empty());
        assert_eq!(kept.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
        assert_eq!(open("203.0.113.30:7000"), Err(ErrorKind::ConnectionReset));
        assert_eq!(world.outlet.change(&texts(&["203.0.113.30"]), &[]).unwrap(), ["203.0.113.30"]);
        connected("203.0.113.30:7000");
        let audit = world.end();
        let policy = audit.iter().filter(|line| line.get("end").is_some_and(|end| end == "policy"));
        assert_eq!(policy.count(), 52);
    });
}

#[test]
fn a_long_list_is_one_change() {
    within(allowing(&["203.0.113.10"]), |world| {
        let many: Vec<_> = (0..9000).map(|number| format!("host-{number}.{}.test", "x".repeat(40))).collect();
        assert_eq!(world.outlet.change(&many, &[]).unwrap().len(), 9001);
        assert_eq!(world.outlet.change(&[], &many).unwrap(), ["203.0.113.10"]);
    });
}

#[test]
fn without_the_process_there_is_no_network() {
    within(allowing(&["203.0.113.10"]), |mut world| {
        let mut stream = connected("203.0.113.10:7000");
        let pid = Pid::from_raw(world.outlet.pid().cast_signed()).unwrap();
        assert!(!readable(world.outlet.ended(), Duration::ZERO));
        kill_process(pid, Signal::KILL).unwrap();
        assert!(readable(world.outlet.ended(), PATIENCE));
        let why = world.outlet.wait();
        assert!(why.contains("signal: 9"), "{why}");
        assert!(world.outlet.change(&[], &[]).is_err());
        // The open connection has ended, in the one way or the other, and none is opened any more.
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
        assert!(
            TcpStream::connect_timeout(&"203.0.113.10:7000".parse().unwrap(), Duration::from_millis(200))
                .is_err()
        );
        assert_ne!(look_up("ok.test.", 4), Answer::Addresses(vec!["203.0.113.10".parse().unwrap()]));
    });
}

#[test]
fn the_process_has_nothing_but_sockets_and_its_audit() {
    within(allowing(&["203.0.113.10"]), |world| {
        let _stream = connected("203.0.113.10:7000");
        let pid = world.outlet.pid();
        let of = |file: &str, name: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let user = (0x7800_0000 + pid).to_string();
        assert_eq!(of("status", "Uid:"), [user.as_str(); 4].join(" "));
        assert_eq!(of("status", "Gid:"), [user.as_str(); 4].join(" "));
        for (name, value) in
            [("Groups:", ""), ("CapPrm:", "0000000000000000"), ("NoNewPrivs:", "1"), ("Seccomp:", "2")]
        {
            assert_eq!(of("status", name), value, "{name}");
        }
        assert_eq!(of("limits", "Max core file size"), "1 1 bytes");
        assert_eq!(of("limits", "Max address space"), "1073741824 1073741824 bytes");
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        assert_eq!(threads, 3);
        let audit = world.audit.path().to_owned();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let file = fs::read_link(entry.unwrap().path()).unwrap();
            let text = file.to_str().unwrap();
            let kinds = ["socket:", "anon_inode:", "pipe:", "/dev/null"];
            assert!(kinds.iter().any(|kind| text.starts_with(kind)) || file == audit, "{text}");
        }
        // Undumpable: another process of the same user could not look into it.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
    });
}

#[test]
fn a_thousand_idle_connections_take_little_memory() {
    within(allowing(&["203.0.113.10"]), |world| {
        let _all: Vec<_> = (0..1000).map(|_| connected("203.0.113.10:7000")).collect();
        let status = fs::read_to_string(format!("/proc/{}/status", world.outlet.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(resident < 24 << 10, "{resident} KiB");
    });
}

#[test]
fn what_cannot_be_is_said() {
    if !possible() {
        return;
    }
    let arrival = || std::thread::spawn(Arrival::enter).join().unwrap().unwrap().sockets;
    let error = |program: &str, spec: &Spec| started(Path::new(program), spec, arrival()).0.unwrap_err();
    let wrong = allowing(&["http://x"]);
    assert!(matches!(error(PROGRAM, &wrong), StartError::Policy(_)));
    let spec = Spec { add_hosts: vec![("a b".into(), [203, 0, 113, 1].into())], ..Spec::default() };
    assert!(matches!(error(PROGRAM, &spec), StartError::Host(_)));
    assert!(matches!(error("/nowhere", &Spec::default()), StartError::Process(_)));
    let ended = error("/bin/true", &Spec::default()).to_string();
    assert_eq!(ended, "matchlock-egress: the process of the network ended: exit status: 0");
    let house = tempfile::tempdir().unwrap();
    let path = house.path().join("audit");
    let to_write = File::create(&path).unwrap();
    let to_read = File::options().read(true).append(true).open(&path).unwrap();
    for audit in [to_write, to_read] {
        let program = Path::new(PROGRAM);
        let started = Outlet::start(program, &Spec::default(), arrival().into(), &audit, None);
        assert!(matches!(started, Err(StartError::Audit)));
    }
    // A socket that takes nothing is an end, with the reason.
    let mut sockets: [_; 6] = arrival().into();
    sockets[0] =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)
            .unwrap();
    let audit = File::options().append(true).open(&path).unwrap();
    match Outlet::start(Path::new(PROGRAM), &Spec::default(), sockets, &audit, None) {
        Err(StartError::Refused(why)) => assert!(why.starts_with("network: "), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(mut outlet) => {
            assert!(readable(outlet.ended(), PATIENCE));
            let why = outlet.wait();
            assert!(why.starts_with("network: "), "{why}");
        }
    }
}
