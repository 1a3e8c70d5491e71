//! External resources: objects that the kernel keeps for a sandbox outside its directory, even after its owner's
//! death.
//!
//! An owner records a resource before it makes it, and releases it after it has taken it back. Every resource that
//! exists is therefore recorded, and [`reconcile`](mod@crate::records::reconcile) takes back those of a killed owner.
//! The database belongs to the user while it is root that undoes them, so a row is obeyed only if it names the resource
//! that a sandbox of this id would have made. Not here: making a resource.

use std::fmt;
use std::io;

use rusqlite::params;

use crate::Id;
use crate::records::error::{Error, Result};
use crate::records::history::Step;
use crate::records::store::{BadRow, Records};

/// A kind of external resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A network interface, such as a TAP.
    Interface,
}

/// An external resource of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    kind: Kind,
    name: String,
}

impl Kind {
    /// The word in records.
    fn name(self) -> &'static str {
        match self {
            Self::Interface => "interface",
        }
    }

    /// The resource of this kind that a sandbox may have.
    fn of(self, id: &Id) -> Resource {
        let name = match self {
            Self::Interface => broker::interface(id.number()),
        };
        Resource { kind: self, name }
    }
}

impl Resource {
    /// A sandbox's network interface.
    #[must_use]
    pub fn interface(id: &Id) -> Self {
        Kind::Interface.of(id)
    }

    /// The resource's own name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn from_row(id: &Id, kind: &str, name: &str) -> Result<Self, BadRow> {
        let known = [Kind::Interface].into_iter().find(|known| known.name() == kind);
        let resource = known.map(|kind| kind.of(id)).filter(|resource| resource.name == name);
        resource.ok_or_else(|| BadRow::new(&format!("{id} {kind} {name}")))
    }

    /// Takes the resource back from the sandbox that has it; one that was never made, or is gone, is no error.
    fn undo(&self, id: &Id) -> io::Result<()> {
        match self.kind {
            Kind::Interface => broker::delete_interface(id.number()),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// The result of taking back the external resources of a sandbox without an owner.
#[derive(Debug, Default)]
pub(crate) struct TakenBack {
    /// The resources that are gone.
    pub(crate) names: Vec<String>,
    /// One step for each resource that was recorded.
    pub(crate) steps: Vec<Step>,
    /// The first failure, whose resource stays recorded.
    pub(crate) failure: Option<Error>,
}

impl Records {
    /// Records a resource of a sandbox, before it is made.
    pub fn claim(&self, id: &Id, resource: &Resource) -> Result<()> {
        self.db().execute(
            "INSERT OR IGNORE INTO resources (vm_id, kind, name) VALUES (?1, ?2, ?3)",
            params![id.as_str(), resource.kind.name(), resource.name],
        )?;
        Ok(())
    }

    /// Forgets a resource that is gone.
    pub fn release(&self, id: &Id, resource: &Resource) -> Result<()> {
        self.db().execute(
            "DELETE FROM resources WHERE vm_id = ?1 AND kind = ?2 AND name = ?3",
            params![id.as_str(), resource.kind.name(), resource.name],
        )?;
        Ok(())
    }

    /// The sandboxes that have resources, with or without a record of their own. A row that names no sandbox is left alone.
    pub(crate) fn claimants(&self) -> Result<Vec<Id>> {
        let mut statement = self.db().prepare("SELECT DISTINCT vm_id FROM resources ORDER BY vm_id")?;
        let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
        let mut claimants = Vec::new();
        for id in ids {
            let id = id?;
            match id.parse() {
                Ok(id) => claimants.push(id),
                Err(_) => tracing::warn!("the records name a resource of {id:?}, which is no sandbox"),
            }
        }
        Ok(claimants)
    }

    /// The resources of a sandbox. A row that is not understood is an error in its place.
    pub(crate) fn resources(&self, id: &Id) -> Result<Vec<Result<Resource, BadRow>>> {
        let mut statement =
            self.db().prepare("SELECT kind, name FROM resources WHERE vm_id = ?1 ORDER BY kind, name")?;
        let rows = statement.query_map([id.as_str()], |row| {
            let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(Resource::from_row(id, &kind, &name))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Takes back the resources of a sandbox without an owner.
    pub(crate) fn take_back(&self, id: &Id) -> Result<TakenBack> {
        let mut taken = TakenBack::default();
        for resource in self.resources(id)? {
            let (name, undone) = match resource {
                Ok(resource) => {
                    let name = resource.to_string();
                    let undone = resource
                        .undo(id)
                        .map_err(|source| Error::External { resource: name.clone(), source });
                    if undone.is_ok() {
                        self.release(id, &resource)?;
                        taken.names.push(name.clone());
                    }
                    (name, undone)
                }
                Err(bad) => ("resource".to_owned(), Err(bad.into())),
            };
            taken.steps.push(Step::done(&name, undone.as_ref().err().map(ToString::to_string)));
            taken.failure = taken.failure.or(undone.err());
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

    use super::*;
    use crate::Home;
    use crate::records::lifecycle::Phase;
    use crate::records::reconcile::tests::owner_below;
    use crate::records::reconcile::{Judgement, gc, reconcile, remove};
    use crate::records::store::tests::record;

    const INSIDE: &str = "MATCHLOCK_TEST_NETWORK_NAMESPACE";

    /// Runs the test called `test` again in a network namespace, and returns whether this process is the one inside.
    fn in_a_network(test: &str) -> bool {
        if std::env::var_os(INSIDE).is_some() {
            return true;
        }
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
            skip::skip("/dev/net/tun", error);
            return false;
        }
        let done = Command::new("unshare")
            .args(["--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        let ran = done.status.success() && said.contains("1 passed");
        assert!(ran, "{test}: {said}{}", String::from_utf8_lossy(&done.stderr));
        false
    }

    /// Runs ip(8), and says whether it succeeded.
    fn ip(arguments: &[&str]) -> bool {
        Command::new("ip").args(arguments).output().unwrap().status.success()
    }

    fn is_there(interface: &Resource) -> bool {
        ip(&["link", "show", "dev", interface.name()])
    }

    /// Makes the interface: a TAP that outlives its maker.
    fn make(interface: &Resource) {
        assert!(ip(&["tuntap", "add", "dev", interface.name(), "mode", "tap"]), "{interface}");
    }

    fn recorded(home: &Home, id: &str) -> (Records, Id) {
        let records = Records::open(home).unwrap();
        records.insert(&record(id)).unwrap();
        (records, id.parse().unwrap())
    }

    #[test]
    fn a_killed_owners_interface_is_taken_back() {
        if !in_a_network("records::external::tests::a_killed_owners_interface_is_taken_back") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (mut owner, id) = owner_below(&home, directory.path());
        let records = Records::open(&home).unwrap();
        let interface = Resource::interface(&id);
        records.claim(&id, &interface).unwrap();
        make(&interface);
        reconcile(&home, &records).unwrap();
        assert!(is_there(&interface), "its owner lives");

        owner.kill().unwrap();
        owner.wait().unwrap();
        let found = gc(&home, &records, Some(&id)).unwrap();
        assert!(!is_there(&interface));
        let Judgement::Cleaned(names) = &found[0].judgement else { panic!("{found:?}") };
        assert_eq!(names[0], interface.to_string());
        assert!(records.claimants().unwrap().is_empty());
        let history = records.history(&id).unwrap();
        let steps = &history.last().unwrap().cleanup;
        assert!(steps.iter().any(|step| step.name == interface.to_string() && step.error.is_none()));
    }

    #[test]
    fn an_interface_that_was_never_made_is_released() {
        if !in_a_network("records::external::tests::an_interface_that_was_never_made_is_released") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (records, id) = recorded(&home, "vm-00000001");
        // A sandbox whose record is gone, or was never written, may have resources all the same.
        let other: Id = "vm-00000002".parse().unwrap();
        make(&Resource::interface(&other));
        for id in [&id, &other] {
            records.claim(id, &Resource::interface(id)).unwrap();
        }
        reconcile(&home, &records).unwrap();
        assert!(!is_there(&Resource::interface(&other)));
        assert!(records.claimants().unwrap().is_empty());
        assert_eq!(records.get(&id).unwrap().unwrap().phase, Phase::Cleaned);
    }

    #[test]
    fn an_interface_that_cannot_be_deleted_stays_recorded() {
        if !in_a_network("records::external::tests::an_interface_that_cannot_be_deleted_stays_recorded") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (records, id) = recorded(&home, "vm-00000001");
        let interface = Resource::interface(&id);
        records.claim(&id, &interface).unwrap();
        make(&interface);
        // Programs that this thread executes from now on lack the capability.
        let (of, told) = (home.clone(), id.clone());
        let judged = std::thread::spawn(move || {
            remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN).unwrap();
            let records = Records::open(&of).unwrap();
            reconcile(&of, &records).unwrap();
            let removed = remove(&of, &records, &told).unwrap_err().to_string();
            (gc(&of, &records, Some(&told)).unwrap(), removed)
        });
        let (found, removed) = judged.join().unwrap();
        let Judgement::Failed(error) = &found[0].judgement else { panic!("{found:?}") };
        assert!(error.to_string().starts_with("interface ml-00000001: "), "{error}");
        assert_eq!(error.to_string(), removed);
        assert!(is_there(&interface));
        assert_eq!(records.get(&id).unwrap().unwrap().phase, Phase::CleanupFailed);

        reconcile(&home, &records).unwrap();
        assert!(!is_there(&interface));
        assert_eq!(records.get(&id).unwrap().unwrap().phase, Phase::Cleaned);
        remove(&home, &records, &id).unwrap();
    }

    /// The user can write any row into a database that root obeys.
    #[test]
    fn a_row_that_names_what_is_somebody_elses_is_not_obeyed() {
        if !in_a_network("records::external::tests::a_row_that_names_what_is_somebody_elses_is_not_obeyed") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (records, id) = recorded(&home, "vm-00000001");
        let stranger = Resource { name: "eth7".into(), ..Resource::interface(&id) };
        make(&stranger);
        records.claim(&id, &stranger).unwrap();
        let found = gc(&home, &records, Some(&id)).unwrap();
        let Judgement::Failed(error) = &found[0].judgement else { panic!("{found:?}") };
        assert!(error.to_string().contains("vm-00000001 interface eth7"), "{error}");
        assert!(is_there(&stranger));
    }
}
