//! The world outside of a test's sandboxes: a network namespace of the test's own with servers at addresses that count as
//! public, and a DNS server that knows their names.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// The names that the DNS server knows, and their addresses: two of servers, and one of a site's network.
const NAMES: [(&str, Ipv4Addr); 3] = [("ok.test", OK), ("evil.test", EVIL), ("inside.test", INSIDE)];

pub(super) const OK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(super) const EVIL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
pub(super) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);

/// The DNS server's address.
pub(super) const DNS: &str = "203.0.113.53";

/// The port at which each server answers any request.
pub(super) const HTTP: u16 = 8080;

/// The port of the web, at which each server does the same, and which is looked into.
pub(super) const WEB: u16 = 80;

/// The port at which each server says `hello` and then nothing, for as long as it is listened to.
pub(super) const QUIET: u16 = 7000;

/// A network namespace with servers; they end with the test's process.
pub(super) struct World {
    namespace: File,
    asked: Arc<Mutex<Vec<String>>>,
}

/// The reason why there can be no such world here, if there is one.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces of a thread take root".to_owned());
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("/dev/net/tun does not exist".to_owned());
    }
    match Command::new("ip").arg("link").output() {
        Ok(_) => None,
        Err(error) => Some(format!("ip (iproute2): {error}")),
    }
}

impl World {
    pub(super) fn new() -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&asked);
        let made = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // Addresses of a local route are the namespace's, and no interface has them: they are not the host's own.
            for command in [
                "link set lo up",
                "route add local 203.0.113.0/24 dev lo",
                "route add local 10.9.9.0/24 dev lo",
                "route add local 169.254.169.254/32 dev lo",
            ] {
                let output = Command::new("ip").args(command.split(' ')).output().unwrap();
                assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
            }
            for address in [OK, EVIL, INSIDE, Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::LOCALHOST] {
                serve(address, HTTP, answer);
                serve(address, WEB, answer);
                serve(address, QUIET, stay);
            }
            let dns = UdpSocket::bind((DNS, 53)).unwrap();
            thread::spawn(move || resolve(&dns, &told));
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { namespace: made.join().unwrap(), asked }
    }

    /// Does `act` on a thread in the namespace; processes that it starts are in it too.
    pub(super) fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let run = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        thread::scope(|scope| match scope.spawn(run).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// The names that were asked for.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The interfaces in the namespace.
    pub(super) fn interfaces(&self) -> usize {
        let devices = self.within(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        devices.lines().count() - 2
    }
}

/// Serves connections to a port, each on a thread of its own.
fn serve(address: Ipv4Addr, port: u16, speak: fn(TcpStream)) {
    let listener = TcpListener::bind((address, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || speak(stream));
        }
    });
}

/// Answers a request with the server's address.
fn answer(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let address = stream.local_addr().unwrap().ip();
    // At once, so that a proxy does not divide it.
    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nserver {address}\n");
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
}

/// Says hello, and waits for the other side's end.
fn stay(mut stream: TcpStream) {
    let _ = stream.write_all(b"hello\n");
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Answers questions, and tells their names.
fn resolve(socket: &UdpSocket, told: &Mutex<Vec<String>>) {
    let mut bytes = [0; 1500];
    while let Ok((len, from)) = socket.recv_from(&mut bytes) {
        let Some((name, reply)) = reply(&bytes[..len]) else { continue };
        told.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        let _ = socket.send_to(&reply, from);
    }
}

/// The question's name, and the reply to it.
fn reply(question: &[u8]) -> Option<(String, Vec<u8>)> {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let len = usize::from(*question.get(at)?);
        let label = question.get(at + 1..at + 1 + len)?;
        at += 1 + len;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(label).to_lowercase());
    }
    let asked = question.get(HEADER..at + 4)?;
    let name = labels.join(".");
    let address = NAMES.iter().find(|(known, _)| *known == name).map(|(_, address)| address.octets());
    let flags = if address.is_some() { [0x81, 0x80] } else { [0x81, 0x83] };
    let address = address.filter(|_| question.get(at..at + 2) == Some(&A[..]));
    let answers = u8::from(address.is_some());
    let mut reply = [question.get(..2)?, &flags, &[0, 1, 0, answers, 0, 0, 0, 0], asked].concat();
    if let Some(address) = address {
        // The name is the question's; class IN, a minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address);
    }
    Some((name, reply))
}
