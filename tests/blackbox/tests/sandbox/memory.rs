//! Memory that the guest frees goes back to the host.

use std::fs;
use std::time::{Duration, Instant};

use blackbox::Home;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("memory::that_is_freed_is_given_back", that_is_freed_is_given_back)];

/// The memory that the guest takes, and the part of it that may stay.
const TAKEN_MIB: u64 = 300;
const KEPT_MIB: u64 = 60;

/// How long the host may wait: Linux collects freed pages for two seconds (`PAGE_REPORTING_DELAY`), and an emulated
/// processor on a busy host takes several times as long for everything.
const LIMIT: Duration = Duration::from_secs(60);

/// The host's memory of all processes of this home's sandboxes, each page counted once.
fn resident_mib(home: &Home) -> u64 {
    let share = |process: String| {
        let pid = process.split(' ').next()?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    home.processes().into_iter().filter_map(share).sum::<u64>() >> 10
}

fn that_is_freed_is_given_back() {
    let home = Home::new();
    let id = home.detached(&["--memory", "1024"]);
    let before = resident_mib(&home);
    let take = format!("dd if=/dev/zero of=/dev/shm/x bs=1M count={TAKEN_MIB} 2>/dev/null && ls /dev/shm");
    assert_eq!(home.done(["exec", &id, "--", "sh", "-c", &take]).stdout, "x\n");
    let full = resident_mib(&home);
    assert!(full >= before + TAKEN_MIB - KEPT_MIB, "{before} MiB, then {full}");
    assert_eq!(home.done(["exec", &id, "--", "rm", "/dev/shm/x"]).status, 0);
    let removed = Instant::now();
    loop {
        let left = resident_mib(&home);
        if left <= before + KEPT_MIB {
            eprintln!("  {before} MiB, {full} when taken, {left} after {:?}", removed.elapsed());
            break;
        }
        assert!(removed.elapsed() < LIMIT, "{before} MiB, {full} when taken, still {left}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(home.done(["kill", &id]).status, 0);
    assert_eq!(home.done(["rm", &id]).status, 0);
    home.assert_nothing_left();
}
