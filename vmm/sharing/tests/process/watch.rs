//! Rules, masks and events, as a guest and a supervisor meet them.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use machine::shares::{Content, Files, Marker, Masks, Rule, View, Watch};
use policy::files::Op;
use rustix::process::{Pid, Signal};

use crate::guest::{Driver, FIRST, ROOT, at, device, longs, source, start_watched, terminated, words};
use crate::{EINVAL, ENOENT, EPERM, EROFS, EXDEV, PROGRAM, house, write_args};

fn rule(ops: &[&str], path: &str) -> Rule {
    let ops = ops.iter().map(ToString::to_string).collect();
    Rule { phase: "before".into(), ops, path: path.into(), action: "block".into() }
}

/// Operations and their paths up to a mark, and how many were lost.
fn told(heard: &mpsc::Receiver<Files>, marker: &Marker, mark: u64) -> (Vec<String>, u64) {
    assert!(marker.mark(mark));
    let (mut all, mut lost) = (Vec::new(), 0);
    loop {
        let files = heard.recv_timeout(Duration::from_secs(10)).unwrap();
        let text = |event: &machine::shares::FileEvent| {
            let op = Op::of_code(event.op).and_then(Op::name).unwrap();
            format!(
                "{op} {} {} {:o} {}",
                String::from_utf8_lossy(&event.path),
                event.size,
                event.mode,
                event.uid
            )
        };
        all.extend(files.events.iter().map(text));
        lost += files.lost;
        if files.mark == Some(mark) {
            return (all, lost);
        }
    }
}

#[test]
fn what_is_masked_blocked_and_told() {
    let house = house();
    let (shared, other) = (house.path().join("shared"), house.path().join("other"));
    fs::create_dir_all(shared.join(".git/hooks")).unwrap();
    fs::write(shared.join(".env"), "key").unwrap();
    fs::write(other.join("conf"), "text").unwrap();
    let host =
        |directory: &Path, file| Content::Host { source: source(directory, file), view: View::default() };
    let masks = Masks { hidden: vec![".env*".into()], readonly: Vec::new(), protect: true };
    let mounts = vec![
        at("/w", host(&shared, None), masks),
        at("/etc/app.conf", host(&other, Some("conf")), Masks::default()),
    ];
    let watch = Watch { rules: vec![rule(&["remove"], "/w/kept"), rule(&["write"], "/etc/*")], events: true };
    let (mut shares, mut sockets) =
        start_watched(Path::new(PROGRAM), vec![device(false, mounts)], watch, None);
    let (sender, heard) = mpsc::channel();
    let marker = shares.listen(move |files| sender.send(files).unwrap()).unwrap();
    let mut guest = Driver::new(sockets.remove(0));

    let w = guest.look_up(ROOT, b"0").unwrap();
    assert_eq!(guest.look_up(w, b".env"), Err(ENOENT));
    assert_eq!(guest.create(w, b".env.local"), Err(EPERM));
    let git = guest.look_up(w, b".git").unwrap();
    let hooks = guest.look_up(git, b"hooks").unwrap();
    assert_eq!(guest.create(hooks, b"pre-commit"), Err(EROFS));
    assert_eq!(guest.rename((w, b".git"), (w, b"x")), Err(EXDEV));
    let (kept, handle) = guest.create(w, b"kept").unwrap();
    assert_eq!(guest.ask(FIRST, 16, kept, &write_args(handle, b"12345")), Ok(words(&[5, 0])));
    assert_eq!(guest.ask(FIRST, 10, w, &terminated(b"kept")), Err(EPERM));
    guest.ask(FIRST, 18, kept, &longs(&[handle, 0, 0])).unwrap();
    assert_eq!(fs::read(shared.join("kept")).unwrap(), b"12345");
    // A single file has the path of its place.
    let file = guest.look_up(ROOT, b"1").unwrap();
    let handle = guest.open(file, 2).unwrap();
    assert_eq!(guest.ask(FIRST, 16, file, &write_args(handle, b"x")), Err(EPERM));
    assert_eq!(fs::read(other.join("conf")).unwrap(), b"text");

    let (events, lost) = told(&heard, &marker, 1);
    let expected = [
        "stat /w 0 0 1000",
        "stat /w/.git 0 0 1000",
        "stat /w/.git/hooks 0 0 1000",
        "create /w/kept 0 644 1000",
        "write /w/kept 5 100644 1000",
        "close /w/kept 0 0 0",
        "stat /etc/app.conf 0 0 1000",
        "open /etc/app.conf 0 0 1000",
    ];
    assert_eq!((events, lost), (expected.map(str::to_owned).to_vec(), 0));
    // A mark comes even if there is nothing before it.
    assert_eq!(told(&heard, &marker, 2), (Vec::new(), 0));

    // More than anybody reads: nothing waits, and nothing is lost unseen.
    for _ in 0..2000 {
        guest.look_up(w, b"kept").unwrap();
    }
    let (events, lost) = told(&heard, &marker, 3);
    assert_eq!(events.len() as u64 + lost, 2000);
    // The end of a process that is listened to is told as well.
    let pid = Pid::from_raw(i32::try_from(shares.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    assert!(shares.failure().contains("signal: 9"));
    while heard.recv().is_ok() {}
}

#[test]
fn a_supervisor_that_reads_nothing_keeps_no_guest_waiting() {
    let house = house();
    let shared = house.path().join("shared");
    let content = Content::Host { source: source(&shared, None), view: View::default() };
    let mounts = vec![at("/w", content, Masks::default())];
    let watch = Watch { rules: Vec::new(), events: true };
    let (mut shares, mut sockets) =
        start_watched(Path::new(PROGRAM), vec![device(false, mounts)], watch, None);
    let (sender, heard) = mpsc::sync_channel(0);
    let marker = shares.listen(move |files| drop(sender.send(files))).unwrap();
    let mut driver = Driver::new(sockets.remove(0));
    let w = driver.look_up(ROOT, b"0").unwrap();
    for _ in 1..12_000 {
        assert_eq!(driver.look_up(w, b"a name that is not there"), Err(ENOENT));
    }
    assert_eq!(driver.ask(FIRST, 1, w, &terminated(b"..")), Err(EINVAL));
    let (events, lost) = told(&heard, &marker, 1);
    assert_eq!(events.len() as u64 + lost, 12_000);
    assert!(lost > 0, "{} events waited", events.len());
    drop(shares);
    // The thread that listens ends with the process.
    while heard.recv().is_ok() {}
}

#[test]
fn rules_that_the_supervisor_should_have_refused_are_refused() {
    let house = house();
    let content = Content::Host { source: source(&house.path().join("shared"), None), view: View::default() };
    let masks = Masks { hidden: vec!["[".into()], ..Masks::default() };
    let mounts = vec![at("/w", content, masks)];
    let (mut shares, _sockets) =
        start_watched(Path::new(PROGRAM), vec![device(false, mounts)], Watch::default(), None);
    assert!(shares.wait_until_serving().unwrap_err().to_string().contains("mask \"[\""));
    let watch = Watch { rules: vec![rule(&["wriet"], "")], events: false };
    let (mut shares, _sockets) = start_watched(Path::new(PROGRAM), Vec::new(), watch, None);
    assert!(shares.wait_until_serving().unwrap_err().to_string().contains("unknown operation"));
}
