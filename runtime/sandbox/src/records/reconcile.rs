//! Cleans up after dead owners, so that nothing else has to care about crashes.
//!
//! Every command that reads records begins with it, `run` does it beside its own start, and an exec only when it
//! cannot reach its sandbox.
//!
//! A sandbox is alive exactly as long as the lock in its directory is held. The kernel releases that lock when the
//! owner dies, so neither a reused pid nor a stale row misleads anyone. Not here: processes, which end by themselves
//! when their owner's descriptors close.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::records::error::{Error, Result};
use crate::records::external::TakenBack;
use crate::records::history::{Change, Step};
use crate::records::home::{Home, VmPaths};
use crate::records::lifecycle::Phase;
use crate::records::store::{Record, Records, Status};
use crate::{Id, sys};

/// How long a killed owner may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// One sandbox that was looked at.
#[derive(Debug)]
pub struct Found {
    /// The sandbox's id.
    pub name: String,
    /// The sandbox's judgement.
    pub judgement: Judgement,
}

/// The judgement on a sandbox: whether it has an owner, and what was done if not.
#[derive(Debug)]
pub enum Judgement {
    /// The sandbox's owner lives, so nothing was touched.
    Running,
    /// The sandbox has no owner, and these leftovers of it were removed.
    Cleaned(Vec<String>),
    /// The sandbox has no owner, and not all of its leftovers could be removed.
    Failed(Error),
}

/// Marks the records of dead owners as crashed and removes their leftovers. Logs and changes of overlays stay until the
/// record is removed.
pub fn reconcile(home: &Home, records: &Records) -> Result<()> {
    for Found { name, judgement } in gc(home, records, None)? {
        // The leftovers of one sandbox must not keep anyone from the others.
        if let Judgement::Failed(error) = judgement {
            tracing::warn!("cleaning up after {name}: {error}");
        }
    }
    Ok(())
}

/// Does the work of [`reconcile()`] for one sandbox or all, and returns a judgement on each.
pub fn gc(home: &Home, records: &Records, only: Option<&Id>) -> Result<Vec<Found>> {
    // No sandbox is added meanwhile, so a directory without a held lock has no owner.
    let _judging = home.lock_vms(FlockOperation::LockExclusive)?;
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for record in records.list()? {
        if only.is_none_or(|only| *only == record.id) {
            let judgement = judge(home, records, &record)?;
            found.push(Found { name: record.id.to_string(), judgement });
        }
        seen.push(record.id);
    }
    let mut unrecorded = directories(&home.vms())?;
    unrecorded.extend(records.claimants()?);
    unrecorded.retain(|id| only.is_none_or(|only| only == id) && !seen.contains(id));
    unrecorded.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    unrecorded.dedup();
    for id in unrecorded {
        found.push(Found { judgement: judge_unrecorded(home, records, &id)?, name: id.to_string() });
    }
    match only {
        Some(only) if found.is_empty() => Err(Error::UnknownVm(only.to_string())),
        _ => Ok(found),
    }
}

/// Judges a sandbox that has a record. Errors of the database are returned; those of the system are judgements.
fn judge(home: &Home, records: &Records, record: &Record) -> Result<Judgement> {
    let paths = home.vm(&record.id);
    let lives = paths.is_owned().map(|owned| owned || lives_without_its_lock(home, record));
    let removed = match lives.map_err(Error::io(paths.directory())) {
        Ok(true) => return Ok(Judgement::Running),
        Ok(false) => {
            let taken = records.take_back(&record.id)?;
            Removed::new(taken, paths.remove_leftovers().map_err(Error::io(paths.directory())))
        }
        Err(error) => Removed::new(TakenBack::default(), Err(error)),
    };
    if record.phase != Phase::Cleaned || record.status == Status::Running {
        records.together(|| {
            if record.status == Status::Running {
                // An owner that had ended its machine was not cut short in anything that matters.
                let ended = matches!(record.phase, Phase::Stopped | Phase::Cleaning | Phase::Cleaned);
                records.set_ended(&record.id, if ended { Status::Stopped } else { Status::Crashed })?;
            }
            finish_lifecycle(records, record, &removed)
        })?;
    }
    Ok(removed.judgement())
}

/// The leftovers of a sandbox without an owner.
struct Removed {
    names: Vec<String>,
    steps: Vec<Step>,
    failure: Option<Error>,
}

impl Removed {
    fn new(taken: TakenBack, files: Result<Vec<String>>) -> Self {
        let TakenBack { mut names, mut steps, failure } = taken;
        steps.push(Step::done("files", files.as_ref().err().map(ToString::to_string)));
        let failed = match files {
            Ok(files) => {
                names.extend(files);
                None
            }
            Err(error) => Some(error),
        };
        Self { names, steps, failure: failure.or(failed) }
    }

    fn judgement(self) -> Judgement {
        self.failure.map_or(Judgement::Cleaned(self.names), Judgement::Failed)
    }
}

/// Whether the sandbox's owner lives although somebody has removed its files, which that owner still holds. An owner
/// whose process may not be inspected counts as dead.
fn lives_without_its_lock(home: &Home, record: &Record) -> bool {
    let running = record.status == Status::Running;
    let owner = running.then(|| sys::ProcessHandle::open(record.pid).ok().flatten()).flatten();
    owner.is_some_and(|owner| owner.holds_removed(&removed_lock(home, &record.id)).unwrap_or(false))
}

/// The path of a removed lock in the kernel's words.
fn removed_lock(home: &Home, id: &Id) -> PathBuf {
    let vms = fs::canonicalize(home.vms()).unwrap_or_else(|_| home.vms());
    VmPaths::at(vms.join(id.as_str())).lock()
}

/// Takes an interrupted lifecycle to its end.
fn finish_lifecycle(records: &Records, record: &Record, removed: &Removed) -> Result<()> {
    let id = &record.id;
    let owner_died = record.status == Status::Running;
    let failure = removed.failure.as_ref().map(ToString::to_string);
    match (record.phase, &failure) {
        (Phase::Cleaned, _) => return Ok(()),
        // A cleaning that fails as it did before is not recorded twice.
        (Phase::CleanupFailed, Some(_)) => return Ok(()),
        (Phase::Cleaning, _) => {}
        _ => {
            let why = owner_died.then(|| format!("its owner (process {}) died", record.pid));
            records.advance(id, &Change::to(Phase::Cleaning).because(why))?;
        }
    }
    let phase = if failure.is_none() { Phase::Cleaned } else { Phase::CleanupFailed };
    records.advance(id, &Change::to(phase).because(failure).with(removed.steps.clone()))
}

/// The sandboxes that have a directory in `vms/`. Any other entry belongs to somebody else.
fn directories(vms: &Path) -> Result<Vec<Id>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(vms).map_err(Error::io(vms))? {
        let entry = entry.map_err(Error::io(vms))?;
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        ids.extend(is_directory.then(|| entry.file_name().to_str()?.parse::<Id>().ok()).flatten());
    }
    Ok(ids)
}

/// Judges a sandbox whose record was never written or is gone.
fn judge_unrecorded(home: &Home, records: &Records, id: &Id) -> Result<Judgement> {
    let paths = home.vm(id);
    let removed = match paths.is_owned().map_err(Error::io(paths.directory())) {
        Ok(true) => return Ok(Judgement::Running),
        Ok(false) => {
            let taken = records.take_back(id)?;
            let name = paths.directory().exists().then(|| "directory".to_owned());
            let removed = paths.remove().map_err(Error::io(paths.directory()));
            Removed::new(taken, removed.map(|()| Vec::from_iter(name)))
        }
        Err(error) => Removed::new(TakenBack::default(), Err(error)),
    };
    Ok(removed.judgement())
}

/// Removes an ended sandbox: its directory, then its record.
pub fn remove(home: &Home, records: &Records, id: &Id) -> Result<()> {
    let record = records.get(id)?.ok_or_else(|| Error::UnknownVm(id.to_string()))?;
    let paths = home.vm(id);
    // An owner that is about to end has recorded its end but still has files.
    if record.status == Status::Running || paths.is_owned().map_err(Error::io(paths.directory()))? {
        return Err(Error::StillRunning(record.id));
    }
    if let Some(failure) = records.take_back(id)?.failure {
        return Err(failure);
    }
    paths.remove().map_err(Error::io(paths.directory()))?;
    records.delete(id)
}

/// Waits until a sandbox has no owner, without a limit. Blocks.
pub fn wait_for_end(home: &Home, id: &Id) -> Result<()> {
    let paths = home.vm(id);
    let owner = paths.owner().map_err(Error::io(paths.directory()))?;
    owner.wait().map_err(Error::io(paths.directory()))
}

/// Kills the owner of a sandbox, however busy it is, and waits until it is gone. Its processes end with it; [`gc`]
/// removes its files.
pub fn end_by_force(home: &Home, records: &Records, id: &Id) -> Result<()> {
    let record = records.get(id)?.ok_or_else(|| Error::UnknownVm(id.to_string()))?;
    let paths = home.vm(id);
    let Some(owner) = sys::ProcessHandle::open(record.pid).map_err(Error::system("owner process"))? else {
        return Ok(());
    };
    // The row may be stale, or written to have some other process killed: only an owner holds the lock.
    let opened = paths.open_lock().map_err(Error::io(&paths.lock()))?;
    let holds = match opened {
        Some(lock) => owner.holds(&lock),
        None => owner.holds_removed(&removed_lock(home, id)),
    };
    let holds = holds.or_else(|error| match error.kind() {
        // A process that was root's is not looked into by its own user. As long as the lock is held, the owner lives, and
        // the row has the owner's number.
        io::ErrorKind::PermissionDenied => paths.is_owned(),
        _ => Err(error),
    });
    if !holds.map_err(Error::system("owner process"))? {
        return Ok(());
    }
    match owner.kill(KILL_LIMIT).map_err(Error::system("owner process"))? {
        true => Ok(()),
        false => Err(Error::NotKilled { id: id.clone(), after: KILL_LIMIT }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::records::home::OwnedVm;
    use crate::records::store::tests::record;

    const OWNER_HOME: &str = "MATCHLOCK_TEST_OWNER_HOME";

    fn insert(records: &Records, id: &Id) {
        records.insert(&Record { pid: std::process::id(), ..record(id.as_str()) }).unwrap();
    }

    /// The body of the process that the next tests kill, and no test of its own.
    #[test]
    fn owner_process() {
        let Some(home) = std::env::var_os(OWNER_HOME) else { return };
        let home = Home::at(home.as_ref());
        let owned = OwnedVm::create(&home).unwrap();
        fs::write(owned.paths.control(), "").unwrap();
        fs::create_dir(owned.paths.logs()).unwrap();
        insert(&Records::open(&home).unwrap(), &owned.id);
        // The process is killed before it records this second sandbox.
        let _unrecorded = OwnedVm::create(&home).unwrap();
        fs::write(home.vms().join("ready"), owned.id.as_str()).unwrap();
        println!("\nready");
        let _ = io::stdin().read(&mut [0]);
    }

    pub(in super::super) fn owner_below(home: &Home, directory: &Path) -> (Child, Id) {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["records::reconcile::tests::owner_process", "--exact", "--nocapture"])
            .env(OWNER_HOME, directory)
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
        let id = fs::read_to_string(&marker).unwrap().parse().unwrap();
        fs::remove_file(marker).unwrap();
        (owner, id)
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_killed_owner_leaves_a_crashed_record_and_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (mut owner, id) = owner_below(&home, directory.path());
        let records = Records::open(&home).unwrap();

        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Running);
        assert!(home.vm(&id).control().exists());
        assert!(matches!(remove(&home, &records, &id), Err(Error::StillRunning(_))));
        assert_eq!(names(&home.vms()).len(), 2);
        let found = gc(&home, &records, Some(&id)).unwrap();
        assert!(
            matches!(&found[..], [Found { name, judgement: Judgement::Running }] if *name == id.as_str())
        );

        owner.kill().unwrap();
        owner.wait().unwrap();
        reconcile(&home, &records).unwrap();
        let record = records.get(&id).unwrap().unwrap();
        assert_eq!((record.status, record.pid, record.phase), (Status::Crashed, 0, Phase::Cleaned));
        assert_eq!(names(&home.vms()), [id.as_str()], "the unrecorded one is gone");
        assert_eq!(names(home.vm(&id).directory()), ["logs"]);
        let history = records.history(&id).unwrap();
        let phases: Vec<_> = history.iter().map(|version| version.phase).collect();
        assert_eq!(phases, [Phase::Creating, Phase::Cleaning, Phase::Cleaned]);
        assert_eq!(
            history[1].last_error.as_deref(),
            Some(format!("its owner (process {}) died", owner.id()).as_str())
        );
        assert_eq!((history[2].cleanup[0].name.as_str(), &history[2].cleanup[0].error), ("files", &None));
        reconcile(&home, &records).unwrap();
        assert_eq!(records.history(&id).unwrap(), history, "done once");

        remove(&home, &records, &id).unwrap();
        assert!(!home.vm(&id).directory().exists());
        assert!(matches!(remove(&home, &records, &id), Err(Error::UnknownVm(_))));
        assert!(matches!(gc(&home, &records, Some(&id)), Err(Error::UnknownVm(_))));
    }

    #[test]
    fn an_owner_is_ended_by_force() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (mut owner, id) = owner_below(&home, directory.path());
        let records = Records::open(&home).unwrap();
        let (waiting, of) = (home.clone(), id.clone());
        let waiter = std::thread::spawn(move || wait_for_end(&waiting, &of));
        end_by_force(&home, &records, &id).unwrap();
        waiter.join().unwrap().unwrap();
        assert!(!home.vm(&id).is_owned().unwrap());
        let found = gc(&home, &records, Some(&id)).unwrap();
        let cleaned = ["control.sock", "lock"].map(str::to_owned);
        assert!(
            matches!(&found[..], [Found { judgement: Judgement::Cleaned(names), .. }] if *names == cleaned)
        );
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Crashed);
        owner.wait().unwrap();
    }

    #[test]
    fn one_whose_directory_was_removed_runs_until_its_owner_ends() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (mut owner, id) = owner_below(&home, directory.path());
        let records = Records::open(&home).unwrap();
        fs::remove_dir_all(home.vm(&id).directory()).unwrap();
        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Running);
        assert!(matches!(remove(&home, &records, &id), Err(Error::StillRunning(_))));
        end_by_force(&home, &records, &id).unwrap();
        assert!(owner.try_wait().unwrap().is_some(), "it was not ended");
        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Crashed);
    }

    /// The row names a living process that is not the owner, as after a reuse of its number.
    #[test]
    fn a_reused_pid_fools_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let records = Records::open(&home).unwrap();
        let id: Id = "vm-00000001".parse().unwrap();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        records.insert(&Record { pid: stranger.id(), ..record(id.as_str()) }).unwrap();
        fs::create_dir(home.vm(&id).directory()).unwrap();
        fs::write(home.vm(&id).lock(), "").unwrap();
        // A third process holds the lock.
        let lock = fs::File::open(home.vm(&id).lock()).unwrap();
        lock.lock().unwrap();

        end_by_force(&home, &records, &id).unwrap();
        assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
        // The lock is a link to a file that the stranger holds.
        let theirs = directory.path().join("theirs");
        fs::rename(home.vm(&id).lock(), &theirs).unwrap();
        std::os::unix::fs::symlink(&theirs, home.vm(&id).lock()).unwrap();
        let mut holder = Command::new("sleep").arg("1000").stdin(lock.try_clone().unwrap()).spawn().unwrap();
        records.delete(&id).unwrap();
        records.insert(&Record { pid: holder.id(), ..record(id.as_str()) }).unwrap();
        end_by_force(&home, &records, &id).unwrap();
        assert!(holder.try_wait().unwrap().is_none(), "a stranger was killed");
        holder.kill().unwrap();
        holder.wait().unwrap();
        drop(lock);
        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Crashed);
        remove(&home, &records, &id).unwrap();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    /// Objects in a lock's place are neither waited for nor followed.
    #[test]
    fn a_lock_that_is_none_is_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let records = Records::open(&home).unwrap();
        let fifo = directory.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let theirs = fs::File::create(directory.path().join("theirs")).unwrap();
        theirs.lock().unwrap();
        let ids: [Id; 2] = ["vm-00000001", "vm-00000002"].map(|id| id.parse().unwrap());
        for id in &ids {
            records.insert(&record(id.as_str())).unwrap();
            fs::create_dir(home.vm(id).directory()).unwrap();
        }
        fs::rename(&fifo, home.vm(&ids[0]).lock()).unwrap();
        std::os::unix::fs::symlink(directory.path().join("theirs"), home.vm(&ids[1]).lock()).unwrap();
        reconcile(&home, &records).unwrap();
        for id in &ids {
            assert_eq!(records.get(id).unwrap().unwrap().status, Status::Crashed);
            assert!(!home.vm(id).lock().exists());
        }
        assert!(directory.path().join("theirs").exists());
    }

    /// After a kill between any two writes, the next command reaches the same end.
    #[test]
    fn every_phase_is_taken_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let records = Records::open(&home).unwrap();
        for (number, phase) in Phase::ALL.into_iter().enumerate() {
            let id: Id = format!("vm-{number:08x}").parse().unwrap();
            records.insert(&Record { phase, ..record(id.as_str()) }).unwrap();
            fs::create_dir(home.vm(&id).directory()).unwrap();
            fs::create_dir(home.vm(&id).logs()).unwrap();
            for file in
                [home.vm(&id).lock(), home.vm(&id).control(), home.vm(&id).directory().join("upper.ext4")]
            {
                fs::write(file, "").unwrap();
            }
            reconcile(&home, &records).unwrap();
            let record = records.get(&id).unwrap().unwrap();
            let stopped = matches!(phase, Phase::Stopped | Phase::Cleaning | Phase::Cleaned);
            let status = if stopped { Status::Stopped } else { Status::Crashed };
            assert_eq!((record.phase, record.status, record.pid), (Phase::Cleaned, status, 0), "{phase}");
            assert_eq!(names(home.vm(&id).directory()), ["logs"], "{phase}");
            let history = records.history(&id).unwrap();
            for pair in history.windows(2) {
                assert!(pair[0].phase.next().contains(&pair[1].phase), "{phase}: {pair:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_removed_keeps_nobody_from_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let records = Records::open(&home).unwrap();
        let [stuck, other] = ["vm-00000001", "vm-00000002"].map(|id| id.parse::<Id>().unwrap());
        for id in [&stuck, &other] {
            insert(&records, id);
        }
        // Not even root can look into a file as if it were a directory.
        fs::write(home.vm(&stuck).directory(), "").unwrap();
        reconcile(&home, &records).unwrap();
        let record = records.get(&stuck).unwrap().unwrap();
        assert_eq!((record.status, record.phase), (Status::Crashed, Phase::CleanupFailed));
        assert_eq!(records.get(&other).unwrap().unwrap().phase, Phase::Cleaned);
        let history = records.history(&stuck).unwrap();
        assert!(history.last().unwrap().cleanup[0].error.is_some(), "{history:?}");

        let found = gc(&home, &records, Some(&stuck)).unwrap();
        assert!(matches!(found[0].judgement, Judgement::Failed(_)));
        assert_eq!(records.history(&stuck).unwrap(), history, "told once");
        fs::remove_file(home.vm(&stuck).directory()).unwrap();
        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&stuck).unwrap().unwrap().phase, Phase::Cleaned);
    }

    #[test]
    fn a_record_without_a_directory_is_crashed_and_what_is_no_sandbox_stays() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let records = Records::open(&home).unwrap();
        let id: Id = "vm-00000001".parse().unwrap();
        insert(&records, &id);
        for file in ["file", "vm-0000000a"] {
            fs::write(home.vms().join(file), "").unwrap();
        }
        for directory in ["vm-0000000b", "vm-0000000B", "vm-zzzz", "mine"] {
            fs::create_dir(home.vms().join(directory)).unwrap();
        }
        std::os::unix::fs::symlink("mine", home.vms().join("vm-0000000c")).unwrap();
        reconcile(&home, &records).unwrap();
        assert_eq!(records.get(&id).unwrap().unwrap().status, Status::Crashed);
        let stay = ["file", "mine", "vm-0000000B", "vm-0000000a", "vm-0000000c", "vm-zzzz"];
        assert_eq!(names(&home.vms()), stay);
    }
}
