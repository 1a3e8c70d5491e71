//! Makes whole what dead owners left, so that nothing else has to clean up after a crash.
//!
//! Every command that looks at records begins with it, `run` does it beside its own start, and an exec only when it
//! cannot reach its sandbox.
//!
//! A sandbox is alive exactly as long as the lock in its directory is held. The kernel lets go of it with the owner's
//! last breath, so neither a reused pid nor a stale row can fool anyone. Not here: processes; they end by themselves
//! when their owner's descriptors close.

use std::fs;
use std::io;

use rustix::fs::FlockOperation;

use crate::home::{Home, VmPaths};
use crate::records::{Records, Status};
use crate::{Error, Id, Result};

/// Marks the records of dead owners as crashed and removes their leftovers. Logs stay until the record is removed.
pub fn reconcile(home: &Home, records: &Records) -> Result<()> {
    // Nobody adds a sandbox meanwhile, so a directory without a held lock is nobody's.
    let _judging = home.lock_vms(FlockOperation::LockExclusive)?;
    let vms = home.vms();
    for entry in fs::read_dir(&vms).map_err(Error::io(&vms))? {
        let path = entry.map_err(Error::io(&vms))?.path();
        let paths = VmPaths::at(path.clone());
        if paths.is_owned().map_err(Error::io(&path))? {
            continue;
        }
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Id>().ok());
        let record = match &id {
            Some(id) => records.get(id)?,
            None => None,
        };
        match record {
            Some(record) => {
                paths.remove_leftovers().map_err(Error::io(&path))?;
                if record.status == Status::Running {
                    records.set_ended(&record.id, Status::Crashed)?;
                }
            }
            None => remove_any(&path).map_err(Error::io(&path))?,
        }
    }
    for record in records.list()?.iter().filter(|record| record.status == Status::Running) {
        if !home.vm(&record.id).is_owned().map_err(Error::io(&vms))? {
            records.set_ended(&record.id, Status::Crashed)?;
        }
    }
    Ok(())
}

/// Removes an ended sandbox: its directory, then its record.
pub fn remove(home: &Home, records: &Records, id: &Id) -> Result<()> {
    let record = records.get(id)?.ok_or_else(|| Error::UnknownVm(id.to_string()))?;
    let paths = home.vm(id);
    // An owner that is about to end has written so, but is not done with its files.
    if record.status == Status::Running || paths.is_owned().map_err(Error::io(paths.directory()))? {
        return Err(Error::StillRunning(record.id));
    }
    paths.remove().map_err(Error::io(paths.directory()))?;
    records.delete(id)
}

fn remove_any(path: &std::path::Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::home::OwnedVm;
    use crate::records::Record;

    const OWNER_HOME: &str = "MATCHLOCK_TEST_OWNER_HOME";

    fn insert(records: &Records, id: &Id) {
        let record = Record {
            id: id.clone(),
            pid: std::process::id(),
            status: Status::Running,
            image: "busybox".into(),
            created_at: String::new(),
            cpus: 1.0,
            memory_mb: 512,
            disk_size_mb: 5120,
        };
        records.insert(&record).unwrap();
    }

    /// Not a test of its own: the body of the process that the next test kills.
    #[test]
    fn owner_process() {
        let Some(home) = std::env::var_os(OWNER_HOME) else { return };
        let home = Home::at(home.as_ref());
        let owned = OwnedVm::create(&home).unwrap();
        fs::write(owned.paths.control(), "").unwrap();
        fs::create_dir(owned.paths.logs()).unwrap();
        insert(&Records::open(&home).unwrap(), &owned.id);
        // A second one is killed before its record is written.
        let _unrecorded = OwnedVm::create(&home).unwrap();
        fs::write(home.vms().join("ready"), owned.id.as_str()).unwrap();
        println!("\nready");
        let _ = io::stdin().read(&mut [0]);
    }

    #[test]
    fn a_killed_owner_leaves_a_crashed_record_and_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["reconcile::tests::owner_process", "--exact", "--nocapture"])
            .env(OWNER_HOME, directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = io::BufReader::new(owner.stdout.take().unwrap());
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            assert_ne!(io::BufRead::read_line(&mut output, &mut line).unwrap(), 0, "owner ended early");
        }
        let marker = home.vms().join("ready");
        let id: Id = fs::read_to_string(&marker).unwrap().parse().unwrap();
        fs::remove_file(marker).unwrap();
        let records = Records::open(&home).unwrap();

        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Running);
        assert!(home.vm(&id).control().exists());
        assert!(matches!(remove(&home, &records, &id), Err(Error::StillRunning(_))));
        assert_eq!(fs::read_dir(home.vms()).unwrap().count(), 2);

        owner.kill().unwrap();
        owner.wait().unwrap();
        reconcile(&home, &records).unwrap();
        let record = records.get(&id).unwrap().unwrap();
        assert_eq!((record.status, record.pid), (Status::Crashed, 0));
        let left: Vec<_> = fs::read_dir(home.vms()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [home.vm(&id).directory()], "the unrecorded one is gone");
        let left: Vec<_> = fs::read_dir(&left[0]).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["logs"]);

        remove(&home, &records, &id).unwrap();
        assert!(!home.vm(&id).directory().exists());
        assert!(matches!(remove(&home, &records, &id), Err(Error::UnknownVm(_))));
    }

    #[test]
    fn a_record_without_a_directory_is_crashed_and_strange_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let records = Records::open(&home).unwrap();
        let id: Id = "vm-00000001".parse().unwrap();
        insert(&records, &id);
        fs::write(home.vms().join("stray"), "").unwrap();
        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Crashed);
        assert_eq!(fs::read_dir(home.vms()).unwrap().count(), 0);
    }
}
