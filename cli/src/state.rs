//! `matchlock list`, `kill`, `rm` and `prune`: the records of sandboxes.
//!
//! Each begins with a reconcile, so that the records are true. Not here: the records themselves (`sandbox`).

use sandbox::{Client, ControlError, Error, Home, Id, Record, Records, RecordsError, Status};

use crate::args::{KillArgs, ListArgs, RmArgs};
use crate::failure::{self, FAILED};
use crate::hint::Hint;
use crate::say::{self, say};
use crate::{inspect, table};

/// Lists sandboxes, newest first.
pub(crate) fn list(args: &ListArgs, home: &Home) -> anyhow::Result<u8> {
    let records = open(home)?;
    let mut list = records.list()?;
    let unknown = args.ids.iter().filter(|id| !list.iter().any(|record| record.id.as_str() == *id));
    let unknown: Vec<_> = unknown.map(|id| RecordsError::UnknownVm(id.clone())).collect();
    let wanted = |record: &Record| args.ids.is_empty() || args.ids.iter().any(|id| record.id.as_str() == id);
    list.retain(|record| wanted(record) && (!args.running || record.status == Status::Running));
    match args.json {
        true => say::json(&list.iter().map(wire_vm).collect::<Vec<_>>())?,
        false => table::print(["ID", "STATUS", "IMAGE", "CREATED", "PID"], list.iter().map(row)),
    }
    unknown.iter().for_each(|error| failure::print(&error.to_string(), error.hint()));
    Ok(if unknown.is_empty() { 0 } else { FAILED })
}

fn row(record: &Record) -> [String; 5] {
    let created = record.created_at.get(..16).unwrap_or(&record.created_at);
    let pid = if record.pid == 0 { "-".to_owned() } else { record.pid.to_string() };
    [record.id.to_string(), record.status.name().to_owned(), record.image.clone(), created.to_owned(), pid]
}

fn wire_vm(record: &Record) -> wire::Vm {
    wire::Vm {
        id: record.id.to_string(),
        status: record.status.name().to_owned(),
        image: record.image.clone(),
        created_at: table::from_record(&record.created_at),
        pid: record.pid,
        vfs: inspect::vfs(&record.config),
    }
}

/// Ends sandboxes, and waits until they have ended.
pub(crate) fn kill(args: &KillArgs, home: &Home) -> anyhow::Result<u8> {
    let records = open(home)?;
    if args.all {
        let running = records.list()?.into_iter().filter(|record| record.status == Status::Running);
        return Ok(for_each(running, "Killed", |id| Ok(Client::connect(home, id)?.stop()?)).status);
    }
    each(&args.ids, "VM ID required (or use --all)", |id| {
        match Client::connect(home, id).and_then(Client::stop) {
            Err(ControlError::NotRunning { .. }) => anyhow::bail!("VM {id} is not running"),
            result => result?,
        }
        say!("Killed {id}");
        Ok(())
    })
}

/// Removes what is left of ended sandboxes.
pub(crate) fn rm(args: &RmArgs, home: &Home) -> anyhow::Result<u8> {
    let records = open(home)?;
    if args.stopped {
        let ended = records.list()?.into_iter().filter(|record| record.status != Status::Running);
        // Failures are printed but do not change the status: the command did as much as it could.
        for_each(ended, "Removed", |id| Ok(sandbox::remove(home, &records, id)?));
        return Ok(0);
    }
    each(&args.ids, "VM ID required (or use --stopped)", |id| {
        sandbox::remove(home, &records, id)?;
        say!("Removed {id}");
        Ok(())
    })
}

/// Removes what is left of every ended sandbox.
pub(crate) fn prune(home: &Home) -> anyhow::Result<u8> {
    let records = open(home)?;
    let ended = records.list()?.into_iter().filter(|record| record.status != Status::Running);
    let Counted { done, status } = for_each(ended, "Pruned", |id| Ok(sandbox::remove(home, &records, id)?));
    say!("Pruned {done} VMs");
    Ok(status)
}

struct Counted {
    done: usize,
    status: u8,
}

fn for_each(
    records: impl Iterator<Item = Record>,
    verb: &str,
    mut act: impl FnMut(&Id) -> sandbox::Result<()>,
) -> Counted {
    let (mut done, mut status) = (0, 0);
    for Record { id, .. } in records {
        match act(&id) {
            Ok(()) => {
                say!("{verb} {id}");
                done += 1;
            }
            // The sandbox ended by itself meanwhile.
            Err(
                Error::Control(ControlError::NotRunning { .. }) | Error::Records(RecordsError::UnknownVm(_)),
            ) => {}
            Err(error) => {
                failure::print(&format!("{id}: {error}"), error.hint());
                status = FAILED;
            }
        }
    }
    Counted { done, status }
}

/// Runs `act` for each named sandbox; a failure for one does not affect the others.
pub(crate) fn each(
    ids: &[String],
    missing: &'static str,
    mut act: impl FnMut(&Id) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    anyhow::ensure!(!ids.is_empty(), missing);
    let mut status = 0;
    for id in ids {
        if let Err(error) = id.parse().map_err(anyhow::Error::from).and_then(|id| act(&id)) {
            failure::show(&error);
            status = FAILED;
        }
    }
    Ok(status)
}

/// The records, after a reconcile.
pub(crate) fn open(home: &Home) -> anyhow::Result<Records> {
    let records = Records::open(home)?;
    sandbox::reconcile(home, &records)?;
    Ok(records)
}
