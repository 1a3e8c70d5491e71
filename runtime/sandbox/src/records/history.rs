//! The history of a sandbox: every change of its phase is a row, and rows are only ever added.
//!
//! A row holds the time, the error up to then, and the steps of cleaning up. Not here: the changes that are allowed
//! ([`crate::records::lifecycle`]).

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::params;

use crate::Id;
use crate::records::error::Result;
use crate::records::lifecycle::Phase;
use crate::records::store::{BadRow, Records};

/// Longest error text that is kept.
const MAX_ERROR: usize = 4 << 10;

/// One version of a sandbox's lifecycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The version's number, counted from 1.
    pub version: u32,
    /// The phase that the sandbox entered.
    pub phase: Phase,
    /// The time of the change, in milliseconds since 1970.
    pub at_ms: u64,
    /// The error that led to the change, or was found by then.
    pub last_error: Option<String>,
    /// The steps of cleaning up before the change.
    pub cleanup: Vec<Step>,
}

/// One step of cleaning up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The step's name: `guest`, `machine`, `files`, or that of an external resource.
    pub name: String,
    /// The step's error.
    pub error: Option<String>,
    /// The time of the step, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Step {
    /// A step that was taken just now.
    pub(crate) fn done(name: &str, error: Option<String>) -> Self {
        Self { name: name.to_owned(), error: error.map(bounded), at_ms: now_ms() }
    }
}

/// A change that happens now, to become a [`Version`].
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) phase: Phase,
    pub(crate) at_ms: u64,
    pub(crate) error: Option<String>,
    pub(crate) cleanup: Vec<Step>,
}

impl Change {
    /// A change to this phase, now.
    pub(crate) fn to(phase: Phase) -> Self {
        Self { phase, at_ms: now_ms(), error: None, cleanup: Vec::new() }
    }

    /// Adds the error that led to the change.
    pub(crate) fn because(self, error: Option<String>) -> Self {
        Self { error: error.map(bounded), ..self }
    }

    /// Adds the steps of cleaning up.
    pub(crate) fn with(self, cleanup: Vec<Step>) -> Self {
        Self { cleanup, ..self }
    }
}

impl Records {
    /// The history of a sandbox, oldest version first.
    pub fn history(&self, id: &Id) -> Result<Vec<Version>> {
        let db = self.db();
        let mut steps = db.prepare(
            "SELECT step, error, at_ms FROM cleanup WHERE vm_id = ?1 AND version = ?2 ORDER BY at_ms, step",
        )?;
        let mut versions = db.prepare(
            "SELECT version, phase, at_ms, last_error FROM lifecycle WHERE vm_id = ?1 ORDER BY version",
        )?;
        let mut rows = versions.query([id.as_str()])?;
        let mut history = Vec::new();
        while let Some(row) = rows.next()? {
            let (version, phase): (u32, String) = (row.get(0)?, row.get(1)?);
            let cleanup = steps.query_map(params![id.as_str(), version], |row| {
                Ok(Step { name: row.get(0)?, error: row.get(1)?, at_ms: milliseconds(row.get(2)?) })
            })?;
            history.push(Version {
                version,
                phase: Phase::from_name(&phase).ok_or_else(|| BadRow::new(id.as_str()))?,
                at_ms: milliseconds(row.get(2)?),
                last_error: row.get(3)?,
                cleanup: cleanup.collect::<Result<_, _>>()?,
            });
        }
        Ok(history)
    }

    /// Adds a version, if the sandbox is known.
    pub(crate) fn advance(&self, id: &Id, change: &Change) -> Result<()> {
        let db = self.db();
        self.together(|| {
            let known = db.execute(
                "UPDATE vms SET phase = ?2, updated_at = datetime('now') WHERE id = ?1",
                [id.as_str(), change.phase.name()],
            )?;
            if known == 0 {
                return Ok(());
            }
            let version: u32 = db.query_row(
                "INSERT INTO lifecycle (vm_id, version, phase, at_ms, last_error)
                 SELECT ?1, COALESCE(MAX(version), 0) + 1, ?2, ?3, ?4 FROM lifecycle WHERE vm_id = ?1
                 RETURNING version",
                params![id.as_str(), change.phase.name(), stored(change.at_ms), change.error],
                |row| row.get(0),
            )?;
            for step in &change.cleanup {
                db.execute(
                    "INSERT OR IGNORE INTO cleanup (vm_id, version, step, error, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![id.as_str(), version, step.name, step.error, stored(step.at_ms)],
                )?;
            }
            Ok(())
        })
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// SQLite's integers have a sign.
fn stored(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

fn milliseconds(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

fn bounded(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        text.truncate(text.floor_char_boundary(MAX_ERROR));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::home::Home;
    use crate::records::store::tests::record;

    #[test]
    fn versions_are_added_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(&Home::at(directory.path())).unwrap();
        let record = record("vm-00000001");
        records.insert(&record).unwrap();
        records.advance(&record.id, &Change::to(Phase::StartFailed).because(Some("no luck".into()))).unwrap();
        let steps = vec![Step::done("machine", None), Step::done("files", Some("x".repeat(10_000)))];
        records.advance(&record.id, &Change::to(Phase::CleanupFailed).with(steps)).unwrap();

        let history = records.history(&record.id).unwrap();
        let phases: Vec<_> = history.iter().map(|version| (version.version, version.phase)).collect();
        assert_eq!(phases, [(1, Phase::Creating), (2, Phase::StartFailed), (3, Phase::CleanupFailed)]);
        assert!(history.is_sorted_by_key(|version| version.at_ms));
        assert_eq!(history[1].last_error.as_deref(), Some("no luck"));
        let mut steps: Vec<_> =
            history[2].cleanup.iter().map(|step| (step.name.as_str(), &step.error)).collect();
        // The steps may differ by a millisecond.
        steps.sort_unstable();
        assert_eq!(steps, [("files", &Some("x".repeat(MAX_ERROR))), ("machine", &None)]);
        assert_eq!(records.get(&record.id).unwrap().unwrap().phase, Phase::CleanupFailed);

        records.delete(&record.id).unwrap();
        assert_eq!(records.history(&record.id).unwrap(), []);
        records.advance(&record.id, &Change::to(Phase::Cleaned)).unwrap();
        assert_eq!(records.history(&record.id).unwrap(), [], "nobody's history is not written");
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        assert_eq!(bounded("ä".repeat(MAX_ERROR)).len(), MAX_ERROR);
        assert_eq!(bounded(format!("x{}", "ä".repeat(MAX_ERROR))).len(), MAX_ERROR - 1);
    }
}
