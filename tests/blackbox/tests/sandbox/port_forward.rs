//! Port forwards: `run --publish` and `port-forward`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};

use blackbox::{Done, Home, end, read_until, signal, spawn};
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] = &[("port_forward::bad_specifications", bad_specifications)];

pub(crate) const TESTS: &[Test] = &[("port_forward::published_and_forwarded", published_and_forwarded)];

fn bad_specifications() {
    let home = Home::new();
    for (arguments, expected) in [
        (&["-p", "http"][..], "invalid port-forward specification \"http\""),
        (&["-p", "80:0"], "invalid port-forward specification \"80:0\""),
        (
            &["-p", "53/udp"],
            "invalid port-forward specification \"53/udp\": udp is not forwarded, only tcp is",
        ),
        (&["-p", "1-2:3"], "invalid port-forward specification \"1-2:3\": the ranges differ in length"),
        (&["-p", "80", "-p", "80:81"], "invalid port-forward specification \"80:81\""),
        (&["-p", "80", "--address", "example.com"], "invalid port-forward bind address \"example.com\""),
    ] {
        let done = blackbox::done(home.run(arguments).arg("true"));
        assert!(done.stderr.starts_with(&format!("matchlock: {expected}")), "{done:?}");
        assert_eq!((done.status, done.stdout.as_str(), done.stderr.lines().count()), (1, "", 1));
    }
    let done = home.done(["port-forward", "vm-00000000", "70000"]);
    assert!(done.stderr.starts_with("matchlock: invalid port-forward specification \"70000\""), "{done:?}");
    home.assert_nothing_left();
}

/// A port of this host that nothing listens on.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Sends a question and its end, and returns the server's answer.
fn ask(address: IpAddr, port: u16, question: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((address, port))?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn published_and_forwarded() {
    let home = Home::new();
    let (published, forwarded, cut) = (free_port(), free_port(), free_port());
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    // The server answers when it has read everything, so a lost half-close would hang.
    let script = "printf '#!/bin/sh\nrev; echo bye\n' > /answer; chmod +x /answer; \
                  printf '#!/bin/sh\ndd bs=1 count=1 >/dev/null 2>&1; printf half' > /cut; chmod +x /cut; \
                  nc -ll -p 8 -e /cut & echo up; \
                  exec nc -ll -p 7 -e /answer";
    let (published_spec, cut_spec) = (format!("{published}:7"), format!("127.0.0.1:{cut}-{cut}:8-8/tcp"));
    let mut run = spawn(&mut home.run(["-p", &published_spec, "-p", &cut_spec, "--", "sh", "-c", script]));
    read_until(&mut run, "up\n");
    let id = blackbox::names(&home.vms()).pop().unwrap();
    assert_eq!(ask_until_served(local, published), "cba\nbye\n");

    answers_cut_short_do_not_look_whole(local, cut);

    let taken = home.done(["port-forward", &id, &published_spec]);
    assert_eq!((taken.status, taken.stdout.as_str()), (1, ""), "{taken:?}");

    let spec = format!("{forwarded}:7");
    let mut forward = spawn(&mut home.matchlock(["port-forward", &id, &spec, "--address", "localhost"]));
    let words = format!("Forwarding {} -> sandbox:7\n", SocketAddr::new(local, forwarded));
    let mut seen = vec![0; words.len()];
    forward.stderr.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), words);
    assert_eq!(ask(local, forwarded, "abc\n").unwrap(), "cba\nbye\n");
    signal(&forward, Signal::TERM);
    assert_eq!(end(forward), Done { status: 0, stdout: String::new(), stderr: String::new() });
    assert!(TcpStream::connect((local, forwarded)).is_err(), "still listening");

    let mut forward = spawn(&mut home.matchlock(["port-forward", &id, &spec]));
    let mut seen = vec![0; words.len()];
    forward.stderr.as_mut().unwrap().read_exact(&mut seen).unwrap();
    signal(&run, Signal::INT);
    let run = end(run);
    let said = [(published, 7), (cut, 8)]
        .map(|(port, to)| format!("Forwarding {} -> sandbox:{to}\n", SocketAddr::new(local, port)));
    assert_eq!((run.status, run.stderr), (130, said.concat()));
    let ended = Done { status: 1, stdout: String::new(), stderr: format!("matchlock: VM {id} ended\n") };
    assert_eq!(end(forward), ended);
    home.assert_nothing_left();
}

/// The server leaves some of the question unread, so its kernel resets the connection. A connection to a port on
/// which nothing listens yet is reset as well.
fn answers_cut_short_do_not_look_whole(address: IpAddr, port: u16) {
    let mut stream = TcpStream::connect((address, port)).unwrap();
    stream.write_all(b"question").unwrap();
    let mut answer = String::new();
    let error = stream.read_to_string(&mut answer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{answer:?}");
}

/// Asks again until the server is up, which takes a moment longer than its first output.
fn ask_until_served(address: IpAddr, port: u16) -> String {
    for _ in 0..100 {
        // Until a server listens in the guest, the connection is reset.
        if let Ok(answer) = ask(address, port, "abc\n") {
            return answer;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("nobody answers")
}
