//! A limit on the time of a test: a test that waits for ever fails, and tells what it waited for.
//!
//! At the limit, each thread of the test's processes is shown with what it does, and the processes are killed: what
//! the test waits for then comes to its end.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The longest that a test may take. The slowest takes a third of this time on a busy machine.
const TEST_LIMIT: Duration = Duration::from_secs(480);

/// The same for a test that makes as many attempts as nobody waits for in every run.
const LONG_LIMIT: Duration = Duration::from_secs(4800);

/// Set where tests make that many attempts.
const LONG: &str = "LONG_PROOFS";

/// Most bytes that are shown of one process.
const SHOWN: usize = 16 << 10;

thread_local! {
    /// The marks of the homes that this thread's test has made.
    static MARKS: RefCell<Arc<Mutex<Vec<String>>>> = RefCell::default();
}

/// Counts the processes with this mark to the running test's.
pub(crate) fn add_mark(mark: &str) {
    MARKS.with_borrow(|marks| marks.lock().unwrap_or_else(PoisonError::into_inner).push(mark.to_owned()));
}

/// Runs a test, which fails if it takes longer than a test may.
///
/// # Errors
/// Returns that the limit has passed.
pub fn within_limit(name: &'static str, test: fn()) -> Result<(), String> {
    let limit = if std::env::var_os(LONG).is_some() { LONG_LIMIT } else { TEST_LIMIT };
    within(limit, name, test)
}

fn within(limit: Duration, name: &'static str, test: fn()) -> Result<(), String> {
    let marks = Arc::new(Mutex::new(Vec::new()));
    MARKS.set(Arc::clone(&marks));
    let (ended, end) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let expired = end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if expired {
            let marks = marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
            end_all(name, limit, &marks);
        }
        expired
    });
    // A panic of the test goes on from here, and drops the sender as a return does.
    test();
    drop(ended);
    match watchdog.join() {
        Ok(false) => Ok(()),
        _ => Err(format!("took longer than {} s", limit.as_secs())),
    }
}

/// Shows the processes of these marks, and kills them.
#[allow(clippy::print_stderr, reason = "the test itself fails with words of its own, or with none")]
fn end_all(name: &str, limit: Duration, marks: &[String]) {
    eprintln!("{name} has not ended within {} s:", limit.as_secs());
    let found: Vec<String> = marks.iter().flat_map(|mark| crate::marked(mark)).collect();
    for process in &found {
        let directory = Path::new("/proc").join(process);
        eprintln!("{}", shown(&directory));
    }
    for process in found {
        if let Some(pid) = process.parse().ok().and_then(Pid::from_raw) {
            // The process may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The command of a process, the calls and kernel stacks of its threads, and its descriptors.
fn shown(process: &Path) -> String {
    let read = |path: &Path| fs::read(path).unwrap_or_default();
    let text = |path: &Path| String::from_utf8_lossy(&read(path)).trim_end().replace('\0', " ");
    let mut shown = format!("{}: {}\n", process.display(), text(&process.join("cmdline")));
    for thread in crate::names(&process.join("task")) {
        let thread = process.join("task").join(thread);
        let state = text(&thread.join("stat"))
            .rsplit_once(") ")
            .map_or(String::new(), |(_, rest)| rest.chars().take(1).collect());
        let [name, call, stack] = ["comm", "syscall", "stack"].map(|file| text(&thread.join(file)));
        let _ = writeln!(shown, "  {name} {state} call {call} at {}", stack.replace('\n', " "));
    }
    for descriptor in crate::names(&process.join("fd")) {
        let target = fs::read_link(process.join("fd").join(&descriptor)).unwrap_or_default();
        let position = text(&process.join("fdinfo").join(&descriptor));
        let position = position.lines().next().unwrap_or_default().replace('\t', " ");
        let _ = writeln!(shown, "  fd {descriptor} {} {position}", target.display());
    }
    shown.truncate(shown.floor_char_boundary(SHOWN));
    shown
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Waits for a process that would run much longer.
    fn waits_for_ever() {
        let mark = format!("/matchlock-test-of-the-limit-{}/", std::process::id());
        add_mark(&mark);
        let done = Command::new("sleep").arg("1000").env("PATH", format!("{mark}:/usr/bin:/bin")).status();
        assert_eq!(done.unwrap().code(), None, "killed");
    }

    #[test]
    fn a_test_that_waits_for_ever_fails() {
        let outcome = within(Duration::from_millis(200), "waits", waits_for_ever);
        assert_eq!(outcome, Err("took longer than 0 s".to_owned()));
        assert_eq!(within(Duration::from_secs(60), "ends", || ()), Ok(()));
    }

    #[test]
    fn a_process_is_shown_with_its_threads_and_descriptors() {
        let shown = shown(Path::new("/proc/self"));
        assert!(
            shown.starts_with("/proc/self: ") && shown.contains(" call ") && shown.contains("  fd 0 "),
            "{shown}"
        );
    }
}
