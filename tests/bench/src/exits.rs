//! Exits of a guest to user space, by reason, from the kernel's own count (tracepoint `kvm:kvm_userspace_exit`).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Returns of KVM_RUN to user space.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Exits {
    /// All exits.
    pub(crate) all: u64,
    /// Exits for memory-mapped I/O.
    pub(crate) mmio: u64,
    /// Exits for port I/O.
    pub(crate) io: u64,
}

fn event() -> PathBuf {
    PathBuf::from("/sys/kernel/tracing/events/kvm/kvm_userspace_exit")
}

/// Counts while `work` runs; `None` if the kernel has no such tracepoint.
pub(crate) fn count(work: impl FnOnce() -> Result<()>) -> Result<Option<Exits>> {
    let trigger = event().join("trigger");
    if fs::write(&trigger, "hist:keys=reason").is_err() {
        work()?;
        return Ok(None);
    }
    let done = work();
    let histogram = fs::read_to_string(event().join("hist")).context("histogram of exits");
    fs::write(&trigger, "!hist:keys=reason").context("removing the histogram")?;
    done?;
    Ok(Some(parse(&histogram?)))
}

/// Lines such as `{ reason:          6 } hitcount:        123`.
fn parse(histogram: &str) -> Exits {
    let mut exits = Exits::default();
    for line in histogram.lines() {
        let Some((reason, count)) = line.split_once("} hitcount:") else { continue };
        let reason = reason.trim_start_matches(['{', ' ']).trim_start_matches("reason:").trim();
        let Ok(count) = count.trim().parse::<u64>() else { continue };
        exits.all += count;
        // linux/kvm.h: KVM_EXIT_IO 2, KVM_EXIT_MMIO 6
        match reason {
            "2" => exits.io += count,
            "6" => exits.mmio += count,
            _ => {}
        }
    }
    exits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up() {
        let text = "# event histogram\n{ reason:          6 } hitcount:        10\n{ reason:          2 } hitcount: 5\n\
                    { reason:         17 } hitcount:          1\n\nTotals:\n    Hits: 16\n";
        let exits = parse(text);
        assert_eq!((exits.all, exits.mmio, exits.io), (16, 10, 5));
    }
}
