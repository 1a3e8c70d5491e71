//! Running programs: status, streams, environment, directory, user, terminal.
//!
//! One sandbox serves all tests; the last test ends it.

use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blackbox::{Done, Home, Terminal, done, done_with_input, end, read_until, signal, spawn};
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("programs::run_prints_hi_and_exits_7", run_prints_hi_and_exits_7),
    ("programs::run_sets_everything_up", run_sets_everything_up),
    (
        "programs::the_cpu_quota_is_for_the_privileged_to_change",
        the_cpu_quota_is_for_the_privileged_to_change,
    ),
    ("programs::a_exit_statuses", exit_statuses),
    ("programs::b_environment_directory_and_user", environment_directory_and_user),
    ("programs::c_streams_are_apart_and_whole", streams_are_apart_and_whole),
    ("programs::d_standard_input", standard_input),
    ("programs::e_a_closed_output_ends_the_command", a_closed_output_ends_the_command),
    ("programs::f_hanging_up_cancels", hanging_up_cancels),
    ("programs::g_many_at_once", many_at_once),
    ("programs::h_terminal", terminal),
    ("programs::i_the_guest_has_the_hosts_time", the_guest_has_the_hosts_time),
    ("programs::z_the_sandbox_ends", the_sandbox_ends),
];

/// The home and the sandbox that most tests share, made by the first test that needs them.
struct Shared {
    home: Home,
    id: String,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

fn shared() -> MutexGuard<'static, Option<Shared>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn with_sandbox<T>(test: impl FnOnce(&Home, &str) -> T) -> T {
    let mut shared = shared();
    let Shared { home, id } = shared.get_or_insert_with(|| {
        let home = Home::new();
        let id = home.detached(&["-e", "OF=sandbox", "-e", "BOTH=sandbox"]);
        Shared { home, id }
    });
    test(home, id)
}

fn exec(args: &[&str]) -> Done {
    with_sandbox(|home, id| done(home.matchlock(["exec", id]).args(args)))
}

fn output(args: &[&str]) -> String {
    let done = exec(args);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{args:?}: {done:?}");
    done.stdout
}

fn run_prints_hi_and_exits_7() {
    let home = Home::new();
    let done = done(&mut home.run(["--", "sh", "-c", "echo hi; echo ho >&2; exit 7"]));
    assert_eq!(done, Done { status: 7, stdout: "hi\n".into(), stderr: "ho\n".into() });
    home.assert_nothing_left();
}

fn run_sets_everything_up() {
    let home = Home::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# comment\nFILE=file\nLATER=file\n").unwrap();
    let script = "hostname; pwd; id -u; id -g; echo $FILE $LATER; grep db /etc/hosts; nproc; cat";
    let mut command =
        home.run(["-i", "--hostname", "box", "--add-host", "db:10.1.2.3", "-w", "/tmp", "-u", "1000:1001"]);
    command.args(["--env-file", file.path().to_str().unwrap(), "-e", "LATER=option", "--cpus", "1"]);
    // A user who did not ask for a sandbox without a network is told once where the host gives none.
    command.args(["--no-network=false", "--entrypoint", "sh", "--", "-c", script]);
    let done = done_with_input(&mut command, b"input\n");
    let expected = "box\n/tmp\n1000\n1001\nfile option\n10.1.2.3 db\n1\ninput\n";
    let stdout = done.stdout.replace('\t', " ");
    assert_eq!((done.status, stdout.as_str()), (0, expected), "{done:?}");
    let told = usize::from(crate::network::missing().is_some());
    assert_eq!(done.stderr.lines().count(), told, "{done:?}");
    assert!(
        done.stderr.lines().all(|line| line.starts_with("matchlock: the sandbox has no network: ")),
        "{done:?}"
    );
    home.assert_nothing_left();
}

/// The quota cannot be changed in the mounted cgroups, nor in a mount of the program's own; each attempt prints its
/// status.
fn the_cpu_quota_is_for_the_privileged_to_change() {
    let script = "cd /sys/fs/cgroup
        try() { sh -c \"$1\" 2>/dev/null && echo lifted; }
        own=.$(cut -d: -f3 /proc/self/cgroup)
        try 'echo max > programs/cpu.max'
        try 'echo $$ > cgroup.procs'
        try \"echo max > $own/cpu.max\"
        try \"mkdir $own/below\"
        try 'mount -o remount,bind,rw . && echo max > programs/cpu.max'
        try 'unshare -Urm sh -c \"mount -o remount,bind,rw . && echo max > programs/cpu.max\"'
        try 'unshare -Urm sh -c \"mount -t cgroup2 none /tmp && echo max > /tmp/programs/cpu.max\"'
        cat programs/cpu.max $own/cpu.max
        cut -d/ -f2 /proc/self/cgroup";
    let home = Home::new();
    let quota = "50000 100000\n50000 100000\nprograms\n";
    for (privileged, expected) in [(None, quota), (Some("--privileged"), "lifted\nlifted\n")] {
        let mut command = home.run(["--cpus", "0.5"]);
        let done = done(command.args(privileged).args(["--", "sh", "-c", script]));
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
        assert!(done.stdout.starts_with(expected), "{done:?}");
    }
    home.assert_nothing_left();
}

fn exit_statuses() {
    for (command, status) in [
        (&["true"][..], 0),
        (&["false"], 1),
        (&["--", "sh", "-c", "exit 255"], 255),
        // The shell is PID 1 and its child is not, so the child is the one that the signal ends.
        (&["--", "sh", "-c", "sh -c 'kill -9 $$'"], 137),
    ] {
        let done = exec(command);
        assert_eq!((done.status, done.stdout.as_str()), (status, ""), "{command:?}: {done:?}");
    }
    for (command, status, message) in [
        (&["no-such-program"][..], 127, "matchlock: no-such-program"),
        (&["/no/such/program"], 127, "matchlock: /no/such/program"),
        (&["/etc/passwd"], 126, "matchlock: /etc/passwd"),
        (&["-u", "nobody-at-all", "true"], 127, "matchlock: no such user: nobody-at-all"),
        (&["-w", "/etc/passwd", "true"], 1, "matchlock: working directory /etc/passwd: not a directory"),
    ] {
        let done = exec(command);
        assert_eq!((done.status, done.stdout.as_str()), (status, ""), "{command:?}: {done:?}");
        assert!(done.stderr.starts_with(message), "{command:?}: {done:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    }
}

fn environment_directory_and_user() {
    let printed =
        output(&["-e", "BOTH=exec", "-e", "MINE=a b=c", "--", "sh", "-c", "echo $OF $BOTH \"$MINE\" $HOME"]);
    assert_eq!(printed, "sandbox exec a b=c /\n");
    let path = output(&["--", "sh", "-c", "echo $PATH"]);
    assert!(path.contains("/usr/bin:"), "{path}");
    assert_eq!(output(&["pwd"]), "/\n");
    assert_eq!(output(&["-w", "/tmp", "pwd"]), "/tmp\n");
    assert_eq!(output(&["-w", "/made/for/it", "-u", "1000", "pwd"]), "/made/for/it\n");
    assert_eq!(output(&["--", "id", "-u"]), "0\n");
    assert_eq!(output(&["-u", "12:34", "--", "sh", "-c", "id -u; id -g"]), "12\n34\n");
    assert_eq!(output(&["hostname"]).trim(), with_sandbox(|_, id| id.to_owned()));
}

fn streams_are_apart_and_whole() {
    let done = exec(&["--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(done, Done { status: 0, stdout: "out\n".into(), stderr: "err\n".into() });
    let done = exec(&["--", "sh", "-c", "yes 0123456789abcde | head -c 4194304"]);
    assert_eq!(done.stdout.len(), 4 << 20);
    assert!(done.stdout.lines().all(|line| line == "0123456789abcde"));
}

fn standard_input() {
    let input: Vec<u8> =
        (0..3_000_000u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
    let done = with_sandbox(|home, id| {
        done_with_input(&mut home.matchlock(["exec", "-i", id, "--", "sh", "-c", "wc -c; echo end"]), &input)
    });
    assert_eq!((done.status, done.stdout.as_str()), (0, "3000000\nend\n"), "{done:?}");
    // A command that leaves some of its input unread ends all the same.
    let done = with_sandbox(|home, id| {
        done_with_input(&mut home.matchlock(["exec", "-i", id, "--", "head", "-c", "3"]), b"abcdef")
    });
    assert_eq!((done.status, done.stdout.as_str()), (0, "abc"), "{done:?}");
    // Without -i there is no input.
    assert_eq!(output(&["cat"]), "");
}

fn a_closed_output_ends_the_command() {
    let mut child = with_sandbox(|home, id| spawn(&mut home.matchlock(["exec", id, "yes"])));
    read_until(&mut child, "y\ny\n");
    drop(child.stdout.take());
    assert_eq!(end(child).status, 141);
}

/// Whether the command that a test started still counts.
fn alive() -> bool {
    let counts_on = "a=$(cat /tmp/alive); sleep 1; [ \"$a\" != \"$(cat /tmp/alive)\" ]";
    exec(&["--", "sh", "-c", counts_on]).status == 0
}

fn hanging_up_cancels() {
    for (signal_sent, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::KILL, 137)] {
        let script = "echo up; while :; do i=$((i+1)); echo $i > /tmp/alive; sleep 0.05; done";
        let mut child =
            with_sandbox(|home, id| spawn(&mut home.matchlock(["exec", id, "--", "sh", "-c", script])));
        read_until(&mut child, "up\n");
        assert!(alive());
        signal(&child, signal_sent);
        let done = end(child);
        assert_eq!((done.status, done.stderr.as_str()), (status, ""), "{done:?}");
        let start = Instant::now();
        while alive() {
            assert!(start.elapsed().as_secs() < 20, "the command still runs");
        }
    }
}

fn many_at_once() {
    with_sandbox(|home, id| {
        let children: Vec<_> = (0..20)
            .map(|number| {
                spawn(&mut home.matchlock([
                    "exec",
                    id,
                    "--",
                    "sh",
                    "-c",
                    &format!("echo {number}; exit {number}"),
                ]))
            })
            .collect();
        for (number, child) in children.into_iter().enumerate() {
            let done = end(child);
            assert_eq!((done.status, done.stdout), (i32::try_from(number).unwrap(), format!("{number}\n")));
        }
    });
}

fn terminal() {
    let mut terminal = Terminal::new(33, 99);
    let before = format!("{:?}", terminal.settings());
    let mut child = with_sandbox(|home, id| {
        let script = "tty >/dev/null && stty size; read line; echo got=$line; exit 3";
        let mut command = home.matchlock(["exec", id, "-it", "--", "sh", "-c", script]);
        terminal.spawn(command.env("TERM", "xterm"))
    });
    terminal.read_until("33 99");
    assert_ne!(format!("{:?}", terminal.settings()), before, "the terminal is raw meanwhile");
    terminal.resize(10, 20);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        Signal::WINCH,
    )
    .unwrap();
    terminal.write("typed\r");
    terminal.read_until("got=typed");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(format!("{:?}", terminal.settings()), before, "the terminal is as it was");

    let mut child = with_sandbox(|home, id| {
        let script =
            "echo ready; while [ \"$(stty size)\" != '11 22' ]; do read -t 1 x; done; echo $TERM resized";
        let mut command = home.matchlock(["exec", "-it", id, "--", "sh", "-c", script]);
        terminal.spawn(command.env("TERM", "xterm"))
    });
    terminal.read_until("ready");
    terminal.resize(11, 22);
    signal(&child, Signal::WINCH);
    terminal.read_until("xterm resized");
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // A signal ends the session and leaves the terminal as it was.
    let mut child = with_sandbox(|home, id| {
        terminal.spawn(&mut home.matchlock(["exec", "-it", id, "--", "sh", "-c", "echo up; cat"]))
    });
    terminal.read_until("up");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(format!("{:?}", terminal.settings()), before);
}

/// The guest's clock runs as fast as the host's, and shows the same time.
fn the_guest_has_the_hosts_time() {
    let date: f64 = output(&["date", "+%s"]).trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((date - now).abs() < 3.0, "guest {date}, host {now}");
    // A busy host delays either end of a measurement; a wrong clock is wrong every time.
    let mut errors = Vec::new();
    while errors.len() < 5 {
        let error = clock_error();
        if error.abs() < 0.01 {
            return;
        }
        errors.push(error);
    }
    panic!("relative errors {errors:?}");
}

/// How much faster the guest's clock is, measured over 5 s.
fn clock_error() -> f64 {
    let script = "cut -d' ' -f1 /proc/uptime; read x; cut -d' ' -f1 /proc/uptime";
    let mut child = with_sandbox(|home, id| {
        spawn(home.matchlock(["exec", "-i", id, "--", "sh", "-c", script]).stdin(Stdio::piped()))
    });
    let before = read_until(&mut child, "\n").trim().parse::<f64>().unwrap();
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let after = read_until(&mut child, "\n").trim().parse::<f64>().unwrap();
    let elapsed = start.elapsed().as_secs_f64();
    assert_eq!(end(child).status, 0);
    (after - before) / elapsed - 1.0
}

/// Ends the sandbox that tests share, if there is one.
pub(crate) fn end_shared() {
    if let Some(Shared { home, id }) = shared().take() {
        home.done(["kill", &id]);
    }
}

fn the_sandbox_ends() {
    let Some(Shared { home, id }) = shared().take() else { return };
    let killed = home.done(["kill", &id]);
    assert_eq!(killed, Done { status: 0, stdout: format!("Killed {id}\n"), stderr: String::new() });
    assert_eq!(home.done(["rm", &id]).stdout, format!("Removed {id}\n"));
    home.assert_nothing_left();
}
