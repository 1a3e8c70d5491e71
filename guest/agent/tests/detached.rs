//! Detached programs: their end is reported when it comes, and their descendants live until the host hangs up.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::time::{Duration, Instant};

use guest_protocol::frame::Kind;
use guest_protocol::{ExecRequest, Exit, ProgramControl, ProgramEvent, Stdio, TerminalSize};
use support::{Client, guest, processes_with, shell, wait_for_processes};

fn detached(text: &str) -> ExecRequest {
    ExecRequest { detached: true, ..shell(text) }
}

/// All output up to `Exited`, and the exit.
fn until_exit(client: &mut Client) -> (Vec<u8>, Exit) {
    let mut output = Vec::new();
    loop {
        match client.next().expect("an exit") {
            (Kind::Message, payload) => match support::answered(&payload) {
                ProgramEvent::Started => {}
                ProgramEvent::Exited(exit, _) => return (output, exit),
                other => panic!("{other:?}"),
            },
            (_, bytes) => output.extend(bytes),
        }
    }
}

#[test]
fn what_it_started_lives_until_the_host_hangs_up() {
    let Some(agent) = guest() else { return };
    let text = "(until [ -e /tmp/go ]; do sleep 0.05; done; echo later $$; exec sleep 600.5) &
        setsid sleep 600.5 >&- 2>&- & echo now; exit 3";
    let mut client = Client::exec(&agent, detached(text));
    assert_eq!(until_exit(&mut client), (b"now\n".to_vec(), Exit::Code(3)));
    agent.programs.wait_for_none(Duration::from_secs(5));
    // The program was number 2 of its own namespaces.
    std::fs::write("/tmp/go", "").unwrap();
    assert_eq!(client.expect("later 2\n"), "later 2\n");
    wait_for_processes("600.5", 2);
    client.control(&ProgramControl::Signal(9));
    let hung_up = Instant::now();
    drop(client);
    agent.running.wait_for_none(Duration::from_secs(5));
    assert!(hung_up.elapsed() < Duration::from_secs(1), "{:?}", hung_up.elapsed());
    assert_eq!(processes_with("600.5"), []);
}

#[test]
fn what_it_wrote_comes_before_its_exit() {
    let Some(agent) = guest() else { return };
    for stdio in [Stdio::Null, Stdio::Terminal(TerminalSize { rows: 24, cols: 80 })] {
        for _ in 0..10 {
            let text = "sleep 600.75 & seq 1 8000";
            let mut client = Client::exec(&agent, ExecRequest { stdio, ..detached(text) });
            let (output, exit) = until_exit(&mut client);
            let output = String::from_utf8(output).unwrap();
            assert!(output.trim_end().ends_with("\n8000"), "{stdio:?}: the tail arrived");
            assert_eq!((output.lines().count(), exit), (8000, Exit::Code(0)));
        }
    }
    agent.running.wait_for_none(Duration::from_secs(5));
    assert_eq!(processes_with("600.75"), []);
}

#[test]
fn its_exit_is_not_put_off_by_what_it_started() {
    let Some(agent) = guest() else { return };
    let mut client = Client::exec(&agent, detached("yes & yes >&2 & exit 0"));
    let (output, exit) = until_exit(&mut client);
    assert_eq!(exit, Exit::Code(0));
    assert!(output.len() < 16 << 20, "{}", output.len());
    assert!(matches!(client.next(), Some((Kind::Stdout | Kind::Stderr, _))), "and it goes on");
    drop(client);
    agent.running.wait_for_none(Duration::from_secs(5));
}

#[test]
fn hanging_up_before_its_end_cancels() {
    let Some(agent) = guest() else { return };
    let mut client = Client::exec(&agent, detached("trap '' TERM; sleep 600.875 & echo up; sleep 600.875"));
    client.expect("up\n");
    let hung_up = Instant::now();
    drop(client);
    agent.running.wait_for_none(Duration::from_secs(5));
    assert!(hung_up.elapsed() < Duration::from_secs(2), "{:?}", hung_up.elapsed());
    assert_eq!(processes_with("600.875"), []);
}

#[test]
fn the_agent_can_hang_up_as_well() {
    let Some(agent) = guest() else { return };
    let mut client = Client::exec(&agent, detached("sleep 600.9 & echo up"));
    assert_eq!(until_exit(&mut client).1, Exit::Code(0));
    agent.hang_up();
    agent.running.wait_for_none(Duration::from_secs(5));
    assert_eq!(processes_with("600.9"), []);
    assert_eq!(client.next(), None);
}

#[test]
fn a_namespace_that_was_killed_ends_the_stream() {
    let Some(agent) = guest() else { return };
    let mut client = Client::exec(&agent, detached("sleep 600.95 & exit 0"));
    assert_eq!(until_exit(&mut client).1, Exit::Code(0));
    // The agent's shutdown does this to all processes; the sleep's parent is the namespace's own PID 1.
    let sleep = wait_for_processes("600.95", 1)[0];
    let status = std::fs::read_to_string(format!("/proc/{sleep}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    let parent = rustix::process::Pid::from_raw(parent.parse().unwrap()).unwrap();
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
    assert_eq!(client.next(), None);
    agent.running.wait_for_none(Duration::from_secs(5));
}
