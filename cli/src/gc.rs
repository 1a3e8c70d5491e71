//! `matchlock gc`: removes and reports the leftovers of dead owners.
//!
//! Every other command removes them too, but silently. Not here: finding them (`sandbox`).

use sandbox::{Found, Home, Id, Judgement, Records, RecordsError};

use crate::args::GcArgs;
use crate::failure::{self, FAILED};
use crate::hint::Hint;
use crate::say::say;

/// Cleans up after one sandbox, several or all.
pub(crate) fn gc(args: &GcArgs, home: &Home) -> anyhow::Result<u8> {
    let records = Records::open(home)?;
    let only = args.ids.iter().map(|id| id.parse::<Id>()).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    match only.is_empty() {
        true => found = sandbox::gc(home, &records, None)?,
        false => {
            for id in &only {
                found.append(&mut sandbox::gc(home, &records, Some(id))?);
            }
        }
    }
    if args.force_running {
        for found in &mut found {
            if matches!(found.judgement, Judgement::Running) {
                found.judgement = by_force(home, &records, &found.name).unwrap_or_else(Judgement::Failed);
            }
        }
    }
    let mut status = 0;
    let mut reconciled = 0;
    for Found { name, judgement } in &found {
        match judgement {
            Judgement::Cleaned(what) => {
                reconciled += 1;
                match what.is_empty() {
                    true => say!("{name}: no resources to clean"),
                    false => say!("{name}: cleaned {}", what.join(", ")),
                }
            }
            Judgement::Running => {
                say!("{name}: skipped (VM is running)");
                // A sandbox that was named should have been cleaned.
                status = if only.is_empty() { status } else { FAILED };
            }
            Judgement::Failed(error) => {
                failure::print(&format!("{name}: {error}"), error.hint());
                status = FAILED;
            }
        }
    }
    say!("Reconciled {reconciled} VMs");
    Ok(status)
}

/// Ends a sandbox that runs, and judges it again.
fn by_force(home: &Home, records: &Records, name: &str) -> Result<Judgement, RecordsError> {
    let id: Id = name.parse()?;
    sandbox::end_by_force(home, records, &id)?;
    let found = sandbox::gc(home, records, Some(&id))?;
    // A sandbox that is not kept takes its record with it if it ends by itself meanwhile.
    Ok(found.into_iter().next().map_or(Judgement::Cleaned(Vec::new()), |found| found.judgement))
}
