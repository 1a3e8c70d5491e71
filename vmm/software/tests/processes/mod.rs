//! The processes of a machine, found by the process that started each.

/// The processes that a thread has started, by the thread's path below /proc, in the order of starts.
pub(crate) fn children(thread: &str) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{thread}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The QEMU of a launcher, or the program that stands in for QEMU.
pub(crate) fn qemu(launcher: u32) -> u32 {
    let started = children(&format!("{launcher}/task/{launcher}"));
    assert_eq!(started.len(), 1, "a launcher starts one program");
    started[0]
}
