//! The part of a sandbox that exists in every stage: its directory, its disks, its record, its log, its control
//! socket.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use machine::Kind;
use machine::tsc::Calibration;
use policy::machine::MachineKind;
use policy::resources::{self, Grant};
use rustix::fs::FlockOperation;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::handle::{Ends, Handle};
use super::running::read_pipe;
use super::spec::Spec;
use crate::Config;
use crate::agent::detached::Log;
use crate::control::owner::{self, Shared};
use crate::life::disks::Disks;
use crate::life::error::{Error, Result};
use crate::life::files::Told;
use crate::life::host;
use crate::life::network::Network;
use crate::life::shares::Shares;
use crate::life::timings::{Start, Timings};
use crate::records::console::Console;
use crate::records::history::{Change, Step};
use crate::records::home::{Home, OwnedVm, VmPaths};
use crate::records::lifecycle::{Lifecycle, Phase};
use crate::records::reconcile;
use crate::records::store::{Record, Status};
use crate::records::writer::RecordsWriter;
use crate::{Id, records};

/// How long ending a sandbox may take beyond its programs' grace; the limits of all steps fit in it.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The part of a sandbox that exists in every stage.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) spec: Spec,
    pub(super) home: Home,
    pub(super) grant: Grant,
    pub(super) kind: Kind,
    /// Started first of all, as a longer calibration is a better one.
    pub(super) clock: Calibration,
    pub(super) vm: OwnedVm,
    pub(super) disks: Disks,
    pub(super) shares: Shares,
    pub(super) network: Network,
    pub(super) files: Arc<Told>,
    pub(super) journal: Journal,
    pub(super) console: Arc<Console>,
    pub(super) shared: Arc<Shared>,
    pub(super) timings: Timings,
    start: Start,
    socket: JoinHandle<()>,
    /// When the sandbox must have ended.
    pub(super) end_by: Option<Instant>,
}

/// A sandbox of which nothing is prepared yet.
#[derive(Debug)]
pub(super) struct Created {
    /// Completes once the sandbox's record is written.
    pub(super) recorded: oneshot::Receiver<()>,
}

impl Base {
    /// Checks the spec, picks a machine, then makes the sandbox's directory, record and control socket. Needs a tokio runtime.
    pub(super) fn create(home: &Home, spec: Spec, start: Start) -> Result<(Self, Created)> {
        let clock = Calibration::start();
        let grant = check(&spec)?;
        let choice = policy::machine::choose(spec.machine, &host::facts())?;
        tracing::info!("machine {}: {}", choice.kind, choice.why);
        Self::create_on(home, spec, grant, start, choice.kind, clock)
    }

    /// Makes the directory, record and control socket of a sandbox on this kind of machine.
    pub(super) fn create_on(
        home: &Home,
        spec: Spec,
        grant: Grant,
        start: Start,
        kind: MachineKind,
        clock: Calibration,
    ) -> Result<(Self, Created)> {
        let shares = Shares::attach(home, &spec.mounts, &spec.disks)?;
        let disks = Disks::attach(home, &spec.disks)?;
        let vm = OwnedVm::create(home)?;
        // Made before the record, so that every known sandbox has a log.
        let console = Arc::new(Console::create(&vm.paths.logs())?);
        let (journal, recorded) = Journal::begin(home, &vm.id, &spec, grant, kind);
        let listener = owner::bind(&vm.paths)?;
        let listener =
            tokio::net::UnixListener::from_std(listener).map_err(Error::system("control socket"))?;
        let shared = Arc::new(Shared {
            guest: watch::Sender::new(None),
            stop: watch::Sender::new(false),
            stop_limit: spec.grace.saturating_add(STOP_LIMIT),
            keeper: Mutex::default(),
            gate: Arc::default(),
        });
        let socket = tokio::spawn(owner::serve(listener, Arc::clone(&shared)));
        let timings = Timings {
            start_monotonic_ns: start.monotonic_ns(),
            created_us: Some(start.elapsed_us()),
            ..Timings::default()
        };
        let base = Self {
            spec,
            home: home.clone(),
            grant,
            kind: machine_kind(kind),
            clock,
            vm,
            disks,
            shares,
            network: Network::None,
            files: Arc::default(),
            journal,
            console,
            shared,
            timings,
            start,
            socket,
            end_by: None,
        };
        Ok((base, Created { recorded }))
    }

    /// A handle on the sandbox, and its driver's ends.
    pub(super) fn handle(&self) -> (Handle, Ends) {
        let (log, files, gate) = (self.log(), Arc::clone(&self.files), Arc::clone(&self.shared.gate));
        Handle::new(self.vm.id.clone(), log, files, gate)
    }

    /// Microseconds since the program's start.
    pub(super) fn now_us(&self) -> Option<u64> {
        Some(self.start.elapsed_us())
    }

    /// Whether the guest has to write data back before it ends.
    pub(super) fn any_writable(&self) -> bool {
        self.disks.any_writable() || self.shares.any_writable()
    }

    /// Adds to the sandbox's log.
    pub(super) fn log(&self) -> Log {
        let console = Arc::clone(&self.console);
        Log::new(move |bytes| console.log(bytes))
    }

    /// A pipe into the sandbox's log, for a process. Needs a tokio runtime.
    pub(super) fn log_pipe(&self) -> Result<OwnedFd> {
        let (reader, writer) = std::io::pipe().map_err(Error::system("log pipe"))?;
        let log = self.log();
        // The task ends when the last process closes its end.
        tokio::spawn(read_pipe(reader, move |bytes| log.add(bytes)));
        Ok(writer.into())
    }

    /// Ends the network.
    pub(super) async fn end_network(&mut self) -> Option<Step> {
        std::mem::take(&mut self.network).end().await
    }

    /// The limit, or the rest of the time to end in if that is shorter.
    pub(super) fn at_most(&self, limit: Duration) -> Duration {
        self.end_by.map_or(limit, |by| limit.min(by.saturating_duration_since(Instant::now())))
    }

    /// Removes every file that is not to be kept; `steps` were taken before.
    pub(super) fn clean(mut self, steps: Vec<Step>) -> Result<Timings> {
        self.journal.to(Phase::Cleaning, None);
        self.socket.abort();
        let result = if self.spec.keep { self.clean_and_keep(steps) } else { self.clean_and_forget() };
        result?;
        Ok(self.timings)
    }

    /// Writes the record last, so that the next command cleans up if this process dies in between. The lock goes
    /// after it, so that nobody judges a sandbox that is still ending.
    fn clean_and_keep(&mut self, mut steps: Vec<Step>) -> Result<(), records::Error> {
        let cleaned = self.remove(VmPaths::remove_own);
        let failure = cleaned.as_ref().err().map(ToString::to_string);
        steps.push(Step::done("files", failure.clone()));
        let written = self.journal.close(failure, steps);
        cleaned.and(written).and_then(|()| self.remove(VmPaths::remove_lock))
    }

    /// Deletes the record first: the next command removes a directory without one, if this process dies in between.
    fn clean_and_forget(&mut self) -> Result<(), records::Error> {
        self.journal.forget();
        let cleaned = self.remove(VmPaths::remove);
        let written = self.journal.writer.finish();
        cleaned.and(written)
    }

    fn remove(&self, remove: impl FnOnce(&VmPaths) -> std::io::Result<()>) -> Result<(), records::Error> {
        // A search for orphans sees the whole directory or nothing.
        let _removing = self.home.lock_vms(FlockOperation::LockShared)?;
        let paths = &self.vm.paths;
        remove(paths).map_err(records::Error::io(paths.directory()))
    }
}

/// A sandbox's record, and the sandbox's place in its lifecycle; each change of the latter is written to the former.
#[derive(Debug)]
pub(super) struct Journal {
    id: Id,
    lifecycle: Lifecycle,
    pub(super) writer: RecordsWriter,
}

impl Journal {
    /// Starts the thread that writes records, with the sandbox's own record and the reconcile that every command
    /// begins with.
    fn begin(
        home: &Home,
        id: &Id,
        spec: &Spec,
        grant: Grant,
        kind: MachineKind,
    ) -> (Self, oneshot::Receiver<()>) {
        let record = Record {
            id: id.clone(),
            pid: std::process::id(),
            status: Status::Running,
            phase: Phase::Creating,
            backend: kind.to_string(),
            image: spec.image.clone(),
            created_at: String::new(),
            config: Config::new(spec, grant),
        };
        let writer = RecordsWriter::start(home.clone());
        let recorded = writer.write_and_tell(move |records| records.insert(&record));
        let home = home.clone();
        writer.alone(move |records| {
            // The leftovers of other sandboxes must not keep this one from starting.
            if let Err(error) = reconcile(&home, records) {
                tracing::warn!("cleaning up after earlier sandboxes: {error}");
            }
            Ok(())
        });
        (Self { id: id.clone(), lifecycle: Lifecycle::new(), writer }, recorded)
    }

    /// The sandbox's phase.
    pub(super) fn phase(&self) -> Phase {
        self.lifecycle.phase()
    }

    /// Changes the phase, and writes it with the reason, if there is one.
    pub(super) fn to(&mut self, phase: Phase, because: Option<String>) {
        self.lifecycle.to(phase);
        tracing::debug!("{}: {phase}", self.id);
        let (id, change) = (self.id.clone(), Change::to(phase).because(because));
        self.writer.write(move |records| records.advance(&id, &change));
    }

    /// Writes the last version of a record that is kept.
    fn close(&mut self, failure: Option<String>, steps: Vec<Step>) -> Result<(), records::Error> {
        let phase = if failure.is_none() { Phase::Cleaned } else { Phase::CleanupFailed };
        self.lifecycle.to(phase);
        let (id, change) = (self.id.clone(), Change::to(phase).because(failure).with(steps));
        self.writer.write(move |records| {
            records.advance(&id, &change)?;
            records.set_ended(&id, Status::Stopped)
        });
        self.writer.finish()
    }

    /// Deletes the record.
    fn forget(&mut self) {
        let id = self.id.clone();
        self.writer.write(move |records| records.delete(&id));
        self.writer.flush();
    }
}

/// Checks a spec, and returns the resources that it is granted.
pub(super) fn check(spec: &Spec) -> Result<Grant> {
    let grant = resources::grant(&spec.resources, &host::resources())?;
    if let Some(hostname) = &spec.network.hostname {
        policy::names::hostname(hostname)?;
    }
    spec.env.iter().try_for_each(|(name, value)| policy::names::env(name, value))?;
    Ok(grant)
}

fn machine_kind(kind: MachineKind) -> Kind {
    match kind {
        MachineKind::Kvm => Kind::Kvm,
        MachineKind::Hvf => Kind::Hvf,
        MachineKind::Software => Kind::Software,
    }
}
