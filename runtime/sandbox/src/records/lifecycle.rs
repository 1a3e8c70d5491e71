//! The one owner of a sandbox's lifecycle state.
//!
//! ```text
//! creating ─▶ created ─▶ starting ─▶ running ─▶ stopping ─▶ stopped ─▶ cleaning ─▶ cleaned
//!    │           │           │          │           │          └──────────────────▶ cleaned
//!    ▼           │           ▼          │           ▼
//! create_failed  │      start_failed    │       stop_failed
//!    │           │           │          │           │
//!    └───────────┴───────────┴──────────┴───────────┴─▶ cleaning ─▶ cleanup_failed ─▶ cleaning | cleaned
//! ```
//!
//! `starting`, `created` and `start_failed` may also go to `stopping`, and the failed states straight to
//! `cleanup_failed`. Staying is always allowed; `cleaned` is final. Not here: what is done in a state.

use std::fmt;

/// The phase of a sandbox's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Image, kernel and disks are being prepared.
    Creating,
    /// All parts of the machine are prepared.
    Created,
    /// The machine boots.
    Starting,
    /// The guest answers.
    Running,
    /// The guest and its machine are being ended.
    Stopping,
    /// No process is left.
    Stopped,
    /// The files are being removed.
    Cleaning,
    /// Nothing is left but the record and the log.
    Cleaned,
    /// Preparing the parts ended in an error.
    CreateFailed,
    /// Booting ended in an error.
    StartFailed,
    /// Ending guest and machine ended in an error.
    StopFailed,
    /// Removing the files ended in an error.
    CleanupFailed,
}

use Phase::{
    Cleaned, Cleaning, CleanupFailed, CreateFailed, Created, Creating, Running, StartFailed, Starting,
    StopFailed, Stopped, Stopping,
};

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 12] = [
        Creating,
        Created,
        Starting,
        Running,
        Stopping,
        Stopped,
        Cleaning,
        Cleaned,
        CreateFailed,
        StartFailed,
        StopFailed,
        CleanupFailed,
    ];

    /// The phases that may follow.
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        match self {
            Creating => &[Created, CreateFailed, Cleaning],
            Created => &[Starting, Stopping, Cleaning],
            Starting => &[Running, StartFailed, Stopping, Cleaning],
            Running => &[Stopping, Cleaning],
            Stopping => &[Stopped, StopFailed, Cleaning],
            Stopped => &[Cleaning, Cleaned],
            Cleaning => &[Cleaned, CleanupFailed],
            Cleaned => &[],
            CreateFailed | StopFailed => &[Cleaning, CleanupFailed],
            StartFailed => &[Stopping, Cleaning, CleanupFailed],
            CleanupFailed => &[Cleaning, Cleaned],
        }
    }

    /// The phase's name in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Creating => "creating",
            Created => "created",
            Starting => "starting",
            Running => "running",
            Stopping => "stopping",
            Stopped => "stopped",
            Cleaning => "cleaning",
            Cleaned => "cleaned",
            CreateFailed => "create_failed",
            StartFailed => "start_failed",
            StopFailed => "stop_failed",
            CleanupFailed => "cleanup_failed",
        }
    }
}

impl Phase {
    /// The phase with this name in records.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The phase of one sandbox, which moves along the table only.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
}

impl Lifecycle {
    /// The lifecycle of a new sandbox.
    #[must_use]
    pub fn new() -> Self {
        Self { phase: Creating }
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Moves to a phase.
    ///
    /// # Panics
    ///
    /// If the table has no such transition, which is a defect of this program and not of its input.
    pub fn to(&mut self, phase: Phase) {
        let from = self.phase;
        assert!(
            phase == from || from.next().contains(&phase),
            "no lifecycle transition from {from} to {phase}"
        );
        self.phase = phase;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as text, in the order of [`Phase::ALL`].
    #[test]
    fn table() {
        let table: String = Phase::ALL
            .iter()
            .map(|phase| {
                let next: Vec<_> = phase.next().iter().map(|next| next.name()).collect();
                format!("{phase}: {}\n", next.join(" "))
            })
            .collect();
        let expected = "\
creating: created create_failed cleaning
created: starting stopping cleaning
starting: running start_failed stopping cleaning
running: stopping cleaning
stopping: stopped stop_failed cleaning
stopped: cleaning cleaned
cleaning: cleaned cleanup_failed
cleaned: 
create_failed: cleaning cleanup_failed
start_failed: stopping cleaning cleanup_failed
stop_failed: cleaning cleanup_failed
cleanup_failed: cleaning cleaned
";
        assert_eq!(table, expected);
    }

    #[test]
    fn every_phase_can_reach_the_end_and_nothing_leaves_it() {
        for start in Phase::ALL {
            let mut reached = vec![start];
            let mut at = 0;
            while let Some(phase) = reached.get(at).copied() {
                for next in phase.next() {
                    if !reached.contains(next) {
                        reached.push(*next);
                    }
                }
                at += 1;
            }
            assert!(reached.contains(&Cleaned), "{start}");
        }
        assert!(Cleaned.next().is_empty());
    }

    #[test]
    fn staying_is_allowed() {
        for phase in Phase::ALL {
            Lifecycle { phase }.to(phase);
        }
    }

    #[test]
    fn other_transitions_panic() {
        for from in Phase::ALL {
            for to in Phase::ALL.into_iter().filter(|to| *to != from && !from.next().contains(to)) {
                let result = std::panic::catch_unwind(|| Lifecycle { phase: from }.to(to));
                assert!(result.is_err(), "{from} to {to}");
            }
        }
    }
}
