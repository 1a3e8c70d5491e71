//! Programs, as the host sees them: status, streams, terminal, signals, and the end of either side.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]
#![allow(clippy::pedantic, reason = "tests")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_protocol::frame;
use guest_protocol::{
    ExecFailure, ExecRequest, Exit, Pong, ProgramControl, ProgramEvent, Refusal, Request, Stdio, TerminalSize,
};
use support::{Client, guest, processes_with, request, run, shell};

/// A cancelled program is gone within a second; a busy test machine gets a few.
const GONE: Duration = Duration::from_secs(4);

#[test]
fn output_and_status() {
    let Some(agent) = guest() else { return };
    let outcome = run(&agent, shell("echo hi; echo oh >&2; exit 7"));
    assert!(outcome.started, "{outcome:?}");
    assert_eq!(
        (outcome.text(), outcome.stderr.as_slice(), outcome.status()),
        ("hi\n", b"oh\n".as_slice(), 7)
    );
    let usage = outcome.exit.unwrap().1;
    assert!(usage.spawn_us > 0 && usage.spawn_us <= usage.wall_us, "{usage:?}");
    assert_eq!(run(&agent, request(&["printf", "%s|", "a b", "", "$HOME"])).text(), "a b||$HOME|");
    assert_eq!(run(&agent, request(&["true"])).exit.unwrap().0, Exit::Code(0));
}

#[test]
fn death_by_signal() {
    let Some(agent) = guest() else { return };
    for (text, signal) in [("kill -9 $$", 9), ("kill -TERM $$", 15), ("kill -SEGV $$", 11)] {
        assert_eq!(run(&agent, shell(text)).exit.unwrap().0, Exit::Signal(signal), "{text}");
    }
    assert_eq!(run(&agent, shell("(kill -9 $$)")).status(), 137);
}

#[test]
fn programs_that_never_run() {
    let Some(agent) = guest() else { return };
    let failure = |request| {
        let outcome = run(&agent, request);
        assert!(!outcome.started && outcome.exit.is_none(), "{outcome:?}");
        outcome.failure.unwrap()
    };
    let not_found = |text: &str| ExecFailure::NotFound(text.to_owned());
    let not_executable = |text: &str| ExecFailure::NotExecutable(text.to_owned());
    assert_eq!(failure(request(&["nosuch"])), not_found("nosuch: not found in PATH"));
    assert_eq!(failure(request(&["/bin/nosuch"])), not_found("/bin/nosuch: no such file or directory"));
    assert_eq!(failure(request(&["/bin/plain/x"])), not_found("/bin/plain/x: not a directory"));
    assert_eq!(failure(request(&["orphaned"])), not_found("orphaned: its interpreter does not exist"));
    assert_eq!(failure(request(&["plain"])), not_executable("plain: permission denied"));
    assert_eq!(failure(request(&["/etc"])), not_executable("/etc: permission denied"));
    assert_eq!(failure(request(&["garbage"])), not_executable("garbage: exec format error"));
    assert_eq!(failure(request(&[""])), not_found("no program given"));
    assert_eq!(failure(request(&[])), not_found("no program given"));
    let mut no_shell = shell("true");
    no_shell.env = vec![("PATH".to_owned(), "/nowhere".to_owned())];
    assert_eq!(failure(no_shell), not_found("sh: not found in PATH"));

    let long = format!("/{}", "x/".repeat(4000));
    for (directory, why) in [
        ("/etc/passwd", "not a directory"),
        ("/etc/passwd/x", "not a directory"),
        ("/bin/dangling", "no such file or directory"),
        (&long, "file name too long"),
    ] {
        let mut lost = shell("true");
        lost.working_dir = directory.to_owned();
        assert_eq!(failure(lost), ExecFailure::WorkingDir(format!("{directory}: {why}")));
    }
    let mut nobody = shell("true");
    nobody.user = "nobody".to_owned();
    assert_eq!(failure(nobody), ExecFailure::User("no such user: nobody".to_owned()));
    let mut nul = request(&["echo", "a\0b"]);
    nul.privileged = true;
    assert!(matches!(failure(nul), ExecFailure::Other(_)));
    assert!(matches!(failure(request(&["echo", &"x".repeat(200 << 10)])), ExecFailure::NotExecutable(_)));
}

#[test]
fn environment_and_directory() {
    let Some(agent) = guest() else { return };
    let mut request = request(&["env"]);
    request.env =
        vec![("PATH".into(), "/bin".into()), ("A".into(), "x=y z".into()), ("E".into(), String::new())];
    assert_eq!(run(&agent, request.clone()).text(), "PATH=/bin\nA=x=y z\nE=\n");
    request.user = "app".into();
    assert_eq!(run(&agent, request).text(), "PATH=/bin\nA=x=y z\nE=\nHOME=/home/app\n");
    let mut there = shell("pwd");
    assert_eq!(run(&agent, there.clone()).text(), "/\n");
    there.working_dir = "/home/app".into();
    assert_eq!(run(&agent, there).text(), "/home/app\n");
}

#[test]
fn a_working_directory_is_made_and_entered_as_root() {
    let Some(agent) = guest() else { return };
    let pwd = |directory: &str, user: &str| {
        let mut pwd = shell("pwd; ls -ld . | cut -c1-10; stat -c '%u %g' . ..");
        (pwd.working_dir, pwd.user) = (directory.to_owned(), user.to_owned());
        run(&agent, pwd).text().to_owned()
    };
    for (directory, user) in [("/srv/one/two", ""), ("//srv//three/four/", "app"), ("relative/five", "app")] {
        let plain = format!(
            "/{}",
            directory.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        );
        assert_eq!(pwd(directory, user), format!("{plain}\ndrwxr-xr-x\n0 0\n0 0\n"), "{directory}");
    }
    std::os::unix::fs::symlink("/srv", "/link").unwrap();
    assert_eq!(pwd("/link/six", ""), "/srv/six\ndrwxr-xr-x\n0 0\n0 0\n");
    // The directory is entered as root; work in it is done as the user.
    let mut closed = shell("id -u; ls");
    (closed.working_dir, closed.user) = ("/private".to_owned(), "app".to_owned());
    let outcome = run(&agent, closed);
    assert_eq!(outcome.text(), "1000\n");
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("denied"), "{outcome:?}");
}

/// The agent has directories open all its life; as a working directory, one would lead out of the program's root.
#[test]
fn no_descriptor_of_the_agent_is_a_working_directory() {
    let Some(agent) = guest() else { return };
    let open = agent.terminals.as_raw_fd();
    std::os::unix::fs::symlink(format!("/proc/self/fd/{open}"), "/out").unwrap();
    let numbered = (3..=open.max(40)).map(|number| format!("/proc/self/fd/{number}"));
    for directory in numbered.chain(["/out".to_owned(), "/out/made".to_owned()]) {
        for first in [false, true] {
            let lost = ExecRequest { working_dir: directory.clone(), first, ..shell("pwd; ls") };
            let outcome = run(&agent, lost);
            assert!(matches!(outcome.failure, Some(ExecFailure::WorkingDir(_))), "{directory}: {outcome:?}");
        }
    }
}

/// A process can make a child of its parent's (CLONE_PARENT), here of the agent's thread; nobody else reaps it.
#[test]
fn a_child_made_for_the_agent_keeps_nothing_waiting() {
    let Some(agent) = guest() else { return };
    if std::env::consts::ARCH != "x86_64" {
        return skip::skip("x86_64", "the program is in its machine code");
    }
    std::fs::write("/adopt", adopting()).unwrap();
    std::fs::set_permissions("/adopt", std::fs::Permissions::from_mode(0o755)).unwrap();
    for _ in 0..3 {
        assert_eq!(run(&agent, request(&["/adopt"])).status(), 0);
        let begun = Instant::now();
        agent.running.wait_for_none(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(10), "it is waited for");
    }
}

/// execve(2) waits for the holder of a lease on the file, 45 s by default.
#[test]
fn a_program_whose_file_is_leased_can_be_cancelled() {
    let Some(agent) = guest() else { return };
    std::fs::copy("/bin/busybox", "/leased").unwrap();
    let leased = std::fs::File::open("/leased").unwrap();
    // SAFETY: no memory is involved. The signal announces a process that waits for the lease.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: no memory is involved.
    let lease = unsafe { libc::fcntl(leased.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(lease, 0, "{}", std::io::Error::last_os_error());
    let client = Client::exec(&agent, request(&["/leased", "true"]));
    let begun = Instant::now();
    // SAFETY: no memory is involved. While a lease is being broken, its future type is reported.
    while unsafe { libc::fcntl(leased.as_raw_fd(), libc::F_GETLEASE) } == libc::F_WRLCK {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody executes it");
    }
    let begun = Instant::now();
    drop(client);
    agent.running.wait_for_none(Duration::from_secs(20));
    assert!(begun.elapsed() < GONE, "{:?}", begun.elapsed());
}

/// A static program: clone(CLONE_PARENT | SIGCHLD), exit(0).
fn adopting() -> Vec<u8> {
    const AT: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let code = [
        // xor esi, esi; xor edx, edx; xor r10, r10; xor r8, r8
        [0x31, 0xf6, 0x31, 0xd2, 0x4d, 0x31, 0xd2, 0x4d, 0x31, 0xc0].as_slice(),
        // mov edi, 0x8011; mov eax, 56; syscall
        &[0xbf, 0x11, 0x80, 0, 0, 0xb8, 56, 0, 0, 0, 0x0f, 0x05],
        // xor edi, edi; mov eax, 60; syscall
        &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05],
    ]
    .concat();
    let halves = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let longs = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let len = HEADERS + code.len() as u64;
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        halves(&[2, 62]),
        words(&[1]),
        longs(&[AT + HEADERS, 64, 0]),
        words(&[0]),
        halves(&[64, 56, 1, 0, 0, 0]),
        // PT_LOAD, readable and executable
        words(&[1, 5]),
        longs(&[0, AT, AT, len, len, 0x1000]),
        code,
    ]
    .concat()
}

#[test]
fn users_and_groups() {
    let Some(agent) = guest() else { return };
    for (user, expected) in [
        ("", "0 0 0"),
        ("root", "0 0 0 10"),
        ("app", "1000 1001 1001 10 29"),
        ("1000", "1000 1001 1001 10 29"),
        ("app:audio", "1000 29 29"),
        ("4000", "4000 4000 4000"),
        ("4000:7", "4000 7 7"),
        ("app:", "1000 1001 1001 10 29"),
        (":audio", "0 29 29"),
        (":1000", "0 1000 1000"),
        (":", "0 0 0 10"),
    ] {
        let mut who = shell("echo $(id -u) $(id -g) $(id -G)");
        who.user = user.to_owned();
        assert_eq!(run(&agent, who).text().trim(), expected, "user {user:?}");
    }
    let mut open = shell("cat /proc/self/fd/0 >/proc/self/fd/1; echo err >/proc/self/fd/2");
    open.user = "app".to_owned();
    open.stdio = Stdio::Pipe;
    let mut client = Client::exec(&agent, open);
    client.stdin(b"in");
    client.stdin(b"");
    let outcome = client.finish();
    assert_eq!(
        (outcome.text(), outcome.stderr.as_slice()),
        ("in", b"err\n".as_slice()),
        "a user may open its streams"
    );
}

#[test]
fn a_namespace_of_its_own() {
    let Some(agent) = guest() else { return };
    let outcome = run(&agent, shell("echo $$; ls /proc | grep -c '^[0-9]'"));
    let mut lines = outcome.text().lines();
    assert_eq!(lines.next(), Some("2"), "PID 2, under the namespace's init");
    let visible: u32 = lines.next().unwrap().parse().unwrap();
    assert!(visible <= 4, "init, sh, ls, grep; not {visible}");
    let mut mounts = shell("mount -t tmpfs none /home && touch /home/x && ls /home");
    mounts.privileged = true;
    assert_eq!(run(&agent, mounts).text(), "x\n");
    assert_eq!(
        run(&agent, request(&["ls", "/home"])).text(),
        "app\n",
        "mounts of one exec are not seen by others"
    );
    assert_eq!(
        run(&agent, shell("sleep 0.1 & for i in 1 2 3; do (sleep 0 &); done; wait; echo ok")).text(),
        "ok\n"
    );
}

#[test]
fn the_first_of_its_namespace() {
    let Some(agent) = guest() else { return };
    let first = |text: &str| ExecRequest { first: true, ..shell(text) };
    assert_eq!(run(&agent, first("echo $$; exit 5")).text(), "1\n");
    assert_eq!(run(&agent, first("exit 5")).exit.unwrap().0, Exit::Code(5));
    // A PID 1 ignores signals from its own namespace without a handler, and SIGKILL in any case.
    assert_eq!(run(&agent, first("kill -TERM $$; kill -9 $$; echo alive")).text(), "alive\n");
    assert_eq!(run(&agent, first("trap 'echo heard; exit 3' TERM; kill -TERM $$")).text(), "heard\n");
    // The program has mounts of its own, and reaps orphans.
    let mut mounts = first("mount -t tmpfs none /home && touch /home/x && ls /home");
    mounts.privileged = true;
    assert_eq!(run(&agent, mounts).text(), "x\n");
    assert_eq!(run(&agent, request(&["ls", "/home"])).text(), "app\n");
    let reaped = "(sleep 0.05 & echo) >/dev/null; sleep 0.3; wait; set -- /proc/[0-9]*; echo $#";
    assert_eq!(run(&agent, first(reaped)).text(), "1\n");
    // A program that fails to start reports that as any other does.
    let missing = ExecRequest { first: true, ..request(&["nosuch"]) };
    assert!(matches!(run(&agent, missing).failure, Some(ExecFailure::NotFound(_))));
}

/// Signals from outside have no effect on a PID 1 without a handler, except for SIGKILL.
#[test]
fn signals_to_the_first_of_its_namespace() {
    let Some(agent) = guest() else { return };
    let mut sleep = Client::exec(&agent, ExecRequest { first: true, ..shell("echo up; exec sleep 1000") });
    sleep.expect("up\n");
    sleep.control(&ProgramControl::Signal(15));
    sleep.control(&ProgramControl::Signal(9));
    assert_eq!(sleep.finish().exit.unwrap().0, Exit::Signal(9));
    let text = "trap 'echo heard; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut handler = Client::exec(&agent, ExecRequest { first: true, ..shell(text) });
    handler.expect("up\n");
    handler.control(&ProgramControl::Signal(15));
    let outcome = handler.finish();
    assert_eq!((outcome.text(), outcome.status()), ("heard\n", 3));
}

#[test]
fn all_ends_with_the_first_of_its_namespace() {
    let Some(agent) = guest() else { return };
    let text = "sleep 600.375 & setsid sleep 600.375 >/dev/null 2>&1 & echo up";
    for detached in [false, true] {
        let started = Instant::now();
        let outcome = run(&agent, ExecRequest { first: true, detached, ..shell(text) });
        assert_eq!((outcome.text(), outcome.status()), ("up\n", 0));
        agent.running.wait_for_none(Duration::from_secs(5));
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(processes_with("600.375"), []);
    }
    let mut cancelled = Client::exec(&agent, ExecRequest { first: true, ..shell("echo up; sleep 600.375") });
    cancelled.expect("up\n");
    let hung_up = Instant::now();
    drop(cancelled);
    agent.running.wait_for_none(Duration::from_secs(10));
    assert!(hung_up.elapsed() < GONE, "{:?}", hung_up.elapsed());
    assert_eq!(processes_with("600.375"), []);
}

#[test]
fn background_processes_end_with_the_program() {
    let Some(agent) = guest() else { return };
    let started = Instant::now();
    let outcome =
        run(&agent, shell("sleep 600.125 & sleep 600.125 >/dev/null 2>&1 & setsid sleep 600.125 & echo up"));
    assert_eq!((outcome.text(), outcome.status()), ("up\n", 0));
    agent.running.wait_for_none(Duration::from_secs(5));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(processes_with("600.125"), []);
}

#[test]
fn input() {
    let Some(agent) = guest() else { return };
    assert_eq!(run(&agent, request(&["cat"])).text(), "", "without a pipe, input is /dev/null");

    let mut cat = request(&["cat"]);
    cat.stdio = Stdio::Pipe;
    let mut client = Client::exec(&agent, cat.clone());
    client.stdin(b"one\n");
    client.expect("one\n");
    client.stdin(b"two\n");
    client.stdin(b"");
    let outcome = client.finish();
    assert_eq!((outcome.text(), outcome.status()), ("two\n", 0));

    let data: Vec<u8> =
        (0..8 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let client = Client::exec(&agent, cat);
    let mut writer = client.sender();
    let sent = data.clone();
    let feeding = std::thread::spawn(move || {
        for piece in sent.chunks(100_000) {
            writer.stdin(piece);
        }
        writer.stdin(b"");
    });
    let outcome = client.finish();
    feeding.join().unwrap();
    assert!(outcome.stdout == data, "{} of {} bytes", outcome.stdout.len(), data.len());
}

#[test]
fn input_nobody_reads() {
    let Some(agent) = guest() else { return };
    let mut deaf = shell("exec <&-; echo closed; sleep 0.2; exit 3");
    deaf.stdio = Stdio::Pipe;
    let mut client = Client::exec(&agent, deaf);
    client.expect("closed\n");
    for _ in 0..20 {
        client.stdin(&[b'x'; 50_000]);
    }
    assert_eq!(client.finish().status(), 3);

    let mut ignoring = shell("sleep 0.2; exit 4");
    ignoring.stdio = Stdio::Pipe;
    let mut client = Client::exec(&agent, ignoring);
    client.stdin(&[b'x'; 200_000]);
    assert_eq!(client.finish().status(), 4);
}

#[test]
fn much_output_and_a_slow_reader() {
    let Some(agent) = guest() else { return };
    let outcome = run(
        &agent,
        shell("dd if=/proc/self/exe bs=1M count=0 2>/dev/null; yes 0123456789abcde | head -c 67108864"),
    );
    assert_eq!(outcome.stdout.len(), 64 << 20);
    assert!(outcome.stdout.chunks(16).all(|line| line == b"0123456789abcde\n"));

    let client = Client::exec(&agent, shell("yes | head -c 3000000; echo over >&2"));
    std::thread::sleep(Duration::from_millis(300));
    let outcome = client.finish();
    assert_eq!((outcome.stdout.len(), outcome.stderr.as_slice()), (3_000_000, b"over\n".as_slice()));
}

#[test]
fn output_closed_early() {
    let Some(agent) = guest() else { return };
    assert_eq!(run(&agent, shell("exec >&- 2>&-; sleep 0.1; exit 9")).status(), 9);
}

#[test]
fn signals_from_the_host() {
    let Some(agent) = guest() else { return };
    let mut client =
        Client::exec(&agent, shell("trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.05; done"));
    client.expect("up\n");
    client.control(&ProgramControl::Signal(0));
    client.control(&ProgramControl::Signal(-9));
    client.control(&ProgramControl::Signal(65));
    client.control(&ProgramControl::Signal(10));
    let outcome = client.finish();
    assert_eq!((outcome.text(), outcome.status()), ("got\n", 5));

    let mut client = Client::exec(&agent, shell("echo up; sleep 600"));
    client.expect("up\n");
    client.control(&ProgramControl::Signal(15));
    assert_eq!(client.finish().exit.unwrap().0, Exit::Signal(15));
}

const SIZE: TerminalSize = TerminalSize { rows: 33, cols: 111 };

#[test]
fn terminal() {
    let Some(agent) = guest() else { return };
    let mut request = shell("tty; stty size; read line; stty size; echo \"<$line>\"; echo err >&2; exit 6");
    request.stdio = Stdio::Terminal(SIZE);
    request.user = "app".to_owned();
    let mut client = Client::exec(&agent, request);
    assert!(client.expect("33 111\r\n").starts_with("/dev/pts/"));
    client.control(&ProgramControl::Resize(TerminalSize { rows: 50, cols: 99 }));
    client.stdin(b"");
    client.stdin(b"hello\r");
    let outcome = client.finish();
    assert_eq!((outcome.text(), outcome.status()), ("hello\r\n50 99\r\n<hello>\r\nerr\r\n", 6));
    assert!(outcome.stderr.is_empty());
}

#[test]
fn terminal_keys_and_last_bytes() {
    let Some(agent) = guest() else { return };
    // Not a shell: dash may lose a SIGINT that comes just before it executes its last command.
    let mut cat = request(&["cat"]);
    cat.stdio = Stdio::Terminal(SIZE);
    let mut client = Client::exec(&agent, cat);
    client.stdin(b"up\n");
    client.expect("up\r\nup\r\n");
    client.stdin(&[3]);
    assert_eq!(client.finish().exit.unwrap().0, Exit::Signal(2), "^C");

    for _ in 0..20 {
        let mut request = shell("seq 1 3000");
        request.stdio = Stdio::Terminal(SIZE);
        let outcome = run(&agent, request);
        assert!(outcome.text().ends_with("\r\n3000\r\n"), "the tail arrived");
        assert_eq!(outcome.text().lines().count(), 3000);
    }
    let mut lingering = shell("sleep 600.25 & echo last");
    lingering.stdio = Stdio::Terminal(SIZE);
    assert_eq!(run(&agent, lingering).text(), "last\r\n");
}

#[test]
fn hanging_up_cancels() {
    let Some(agent) = guest() else { return };
    let mut pipe = shell("trap '' TERM HUP INT; echo up; while :; do sleep 0.05; done");
    pipe.stdio = Stdio::Pipe;
    let mut terminal = pipe.clone();
    terminal.stdio = Stdio::Terminal(SIZE);
    let mut stopped = shell("echo up; kill -STOP $$; sleep 600");
    stopped.stdio = Stdio::Pipe;
    for (request, up) in
        [(shell("echo up; exec sleep 600"), "up\n"), (pipe, "up\n"), (terminal, "up\r\n"), (stopped, "up\n")]
    {
        let mut client = Client::exec(&agent, request);
        client.expect(up);
        let hung_up = Instant::now();
        drop(client);
        agent.running.wait_for_none(Duration::from_secs(10));
        assert!(hung_up.elapsed() < GONE, "{:?}", hung_up.elapsed());
    }
}

#[test]
fn hanging_up_lets_programs_clean_up() {
    let Some(agent) = guest() else { return };
    let mut client = Client::exec(
        &agent,
        shell("trap 'echo bye; echo done >/tmp/cleaned; exit' TERM; echo up; while :; do sleep 0.05; done"),
    );
    client.expect("up\n");
    drop(client);
    agent.running.wait_for_none(Duration::from_secs(10));
    assert_eq!(std::fs::read_to_string("/tmp/cleaned").unwrap(), "done\n");
}

#[test]
fn hanging_up_with_both_directions_full() {
    let Some(agent) = guest() else { return };
    let mut busy = shell("yes & sleep 600");
    busy.stdio = Stdio::Pipe;
    let mut client = Client::exec(&agent, busy);
    assert_eq!(client.answer(), Some(ProgramEvent::Started));
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // Neither side reads, so the program's input and the output to the host both fill up.
    let head = frame::Head::bytes(frame::Kind::Stdin, 1 << 20).unwrap();
    client.stream.write_all(&head).unwrap();
    while client.stream.write(&[0; 65536]).is_ok() {}
    let hung_up = Instant::now();
    drop(client);
    agent.running.wait_for_none(Duration::from_secs(10));
    assert!(hung_up.elapsed() < GONE, "{:?}", hung_up.elapsed());
}

#[test]
fn pings_then_a_program() {
    let Some(agent) = guest() else { return };
    let mut client = Client::connect(&agent);
    for _ in 0..3 {
        client.send(&Request::Ping);
        assert_eq!(client.answer(), Some(Pong));
    }
    // Two pings, a request and its input, all at once.
    let mut cat = request(&["cat"]);
    cat.stdio = Stdio::Pipe;
    client.send(&Request::Ping);
    client.send(&Request::Exec(Box::new(cat)));
    client.stdin(b"early");
    client.stdin(b"");
    assert_eq!(client.answer(), Some(Pong));
    assert_eq!(client.finish().text(), "early");
}

#[test]
fn a_hundred_at_once() {
    let Some(agent) = guest() else { return };
    let clients: Vec<_> = (0..100)
        .map(|index| {
            Client::exec(
                &agent,
                shell(&format!("read x < /etc/passwd; sleep 0.2; echo {index}; exit {index}")),
            )
        })
        .collect();
    for (index, client) in clients.into_iter().enumerate() {
        let outcome = client.finish();
        assert_eq!((outcome.text(), usize::from(outcome.status())), (format!("{index}\n").as_str(), index));
    }
}

#[test]
fn more_streams_than_the_limit() {
    let Some(agent) = guest() else { return };
    let mut clients: Vec<_> =
        (0..guest_agent::service::STREAM_LIMIT).map(|_| Client::connect(&agent)).collect();
    let refused = Client::connect(&agent).reply::<ProgramEvent>();
    assert_eq!(refused, Some(Err(Refusal("512 requests are running".into()))));
    let last = clients.pop().unwrap();
    last.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(last.finish().failure.is_none());
    // The place is free once the thread has ended, which can only be seen by trying.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut client = Client::connect(&agent);
        // The stream may be refused, and closed, before its request.
        let ping = frame::encode(&Request::Ping).unwrap();
        if client.stream.write_all(&ping).is_ok() && client.reply() == Some(Ok(Pong)) {
            return;
        }
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn an_agent_is_shared() {
    let Some(agent) = guest() else { return };
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let agent = Arc::clone(&agent);
            std::thread::spawn(move || {
                for _ in 0..20 {
                    assert_eq!(run(&agent, request(&["echo", "x"])).text(), "x\n");
                }
            })
        })
        .collect();
    streams.into_iter().for_each(|stream| stream.join().unwrap());
}
