//! Mounts that are added to a guest that runs, each with a process of its own.
//!
//! ```text
//! add: files opened ─▶ process serves ─▶ agent mounts, on a stream ─▶ the process gets that stream
//! ```
//!
//! One task serves all wishes, one after another. When a process ends by itself, the guest gets errors from that mount,
//! which stays in the list with the reason until it is taken away; the sandbox goes on. Not here: mounts from the start
//! (`life::shares`), and the files (`matchlock-shares`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_protocol::RemoveReply;
use machine::shares::{Shares as Process, Watch};
use policy::disks::Disk;
use policy::files::WantedMasks;
use policy::mounts::{self, Mount};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::base::Base;
use super::running::read_pipe;
use super::stages::joined;
use crate::agent::descriptors;
use crate::agent::detached::Log;
use crate::agent::mounts::{Call, MountInfo, Mounts};
use crate::agent::own::OwnGuest;
use crate::life::error::{Error, Result};
use crate::life::files::Told;
use crate::life::shares::AddedShare;
use crate::{Home, Id, MountConfig, Records, agent};

/// How long the guest's agent may take to mount, or to take a mount away.
const AGENT_LIMIT: Duration = Duration::from_secs(30);

/// How long the host's files may take to be opened, and their process to start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The task that serves mounts. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Adding {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    writable: Arc<AtomicBool>,
}

impl Adding {
    /// Starts the task for a guest that is ready.
    pub(super) fn start(base: &Base, guest: &OwnGuest) -> Self {
        let (mounts, calls) = Mounts::new();
        let (stop, stopped) = watch::channel(false);
        let (tell, ended) = mpsc::unbounded_channel();
        let writable = Arc::new(AtomicBool::new(false));
        let adder = Adder {
            home: base.home.clone(),
            id: base.vm.id.clone(),
            guest: guest.clone(),
            from_start: base.spec.mounts.clone(),
            disks: base.spec.disks.clone(),
            masks: base.spec.masks.clone(),
            watch: base.spec.watch.spec(),
            files: Arc::clone(&base.files),
            log: base.log(),
            writable: Arc::clone(&writable),
            added: Vec::new(),
            last: 0,
            tell,
        };
        let task = tokio::spawn(adder.run(calls, ended, stopped));
        guest.set_mounts(mounts);
        Self { task, stop, writable }
    }

    /// Whether the guest may have something to write back to the host.
    pub(super) fn any_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Ends the processes.
    pub(super) async fn end(&mut self) {
        self.stop.send_replace(true);
        // A task that panicked has dropped its processes.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Adding {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task's state.
struct Adder {
    home: Home,
    id: Id,
    guest: OwnGuest,
    from_start: Vec<Mount>,
    disks: Vec<Disk>,
    /// The masks of every mount.
    masks: WantedMasks,
    watch: Watch,
    files: Arc<Told>,
    log: Log,
    writable: Arc<AtomicBool>,
    added: Vec<Added>,
    /// The number of the last mount that was added.
    last: u64,
    /// Takes the numbers of mounts whose process has ended.
    tell: mpsc::UnboundedSender<u64>,
}

/// A mount that was added.
struct Added {
    number: u64,
    mount: Mount,
    /// The process, until it ends by itself; then the reason is here.
    process: Result<Process, String>,
}

impl Adder {
    async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut ended: mpsc::UnboundedReceiver<u64>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            let work = async {
                tokio::select! {
                    biased;
                    Some(number) = ended.recv() => self.note_end(number).await,
                    Some(call) = calls.recv() => self.serve(call).await,
                }
            };
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => break,
                () = work => {}
            }
        }
        let processes: Vec<_> = self.added.drain(..).filter_map(|added| added.process.ok()).collect();
        joined(spawn_blocking(move || processes.into_iter().for_each(Process::end)).await);
    }

    async fn serve(&mut self, call: Call) {
        // The one who asked may have gone.
        match call {
            Call::Add { mount, answer } => drop(answer.send(self.add(*mount).await.map_err(refused))),
            Call::Remove { guest_path, force, answer } => {
                drop(answer.send(self.remove(&guest_path, force).await.map_err(refused)));
            }
            Call::List { answer } => drop(answer.send(Ok(self.list()))),
        }
    }

    async fn add(&mut self, mount: Mount) -> Result<()> {
        let mount = mount.masked(&self.masks).map_err(|why| agent::Error::Refused(why.to_string()))?;
        let there: Vec<_> =
            self.from_start.iter().chain(self.added.iter().map(|added| &added.mount)).cloned().collect();
        mounts::check_added(&there, self.added.len(), &self.disks, &mount)?;
        // Nothing is made on the host for a place in one of its folders.
        let make = !there.iter().any(|outer| mounts::is_within(&mount.guest_path, &outer.guest_path));
        let (home, wanted) = (self.home.clone(), mount.clone());
        let (watch, log, files) = (self.watch.clone(), self.log.clone(), Arc::clone(&self.files));
        let (reader, writer) = std::io::pipe().map_err(Error::system("log pipe"))?;
        tokio::spawn(read_pipe(reader, move |bytes| log.add(bytes)));
        let start = move || {
            let AddedShare { spec, exclusive, mount, is_writable } =
                AddedShare::attach(&home, &wanted, &there, make)?;
            let tells = watch.events;
            let mut process = Process::start_added(spec, exclusive, watch, Some(writer.into()))?;
            process.wait_until_serving()?;
            if tells {
                files.listen_too(&mut process)?;
            }
            Ok::<_, Error>((process, mount, is_writable))
        };
        // A process that starts too late ends by itself.
        let started = timeout(START_LIMIT, spawn_blocking(start)).await;
        let hung = |_| agent::Error::Refused("the host's files do not answer".to_owned());
        let (process, asked, is_writable) = joined(started.map_err(hung)?)?;
        self.last += 1;
        let number = self.last;
        watch_end(&process, number, self.tell.clone())?;
        let stream = in_time(self.guest.add_mount(asked)).await?;
        if is_writable {
            self.writable.store(true, Ordering::Relaxed);
        }
        if let Err(error) = give(&process, stream) {
            let _ = in_time(self.guest.remove_mount(&mount.guest_path, true)).await;
            return Err(error);
        }
        self.added.push(Added { number, mount, process: Ok(process) });
        self.record().await;
        Ok(())
    }

    async fn remove(&mut self, guest_path: &str, force: bool) -> Result<()> {
        let path = if guest_path.len() > 1 { guest_path.trim_end_matches('/') } else { guest_path };
        let refuse = |why: String| Err(agent::Error::Refused(why).into());
        let Some(index) = self.added.iter().position(|added| added.mount.guest_path == path) else {
            let from_start = self.from_start.iter().any(|mount| mount.guest_path == path);
            return refuse(if from_start {
                format!("what is mounted at {path} is there from the sandbox's start, and stays")
            } else {
                format!("nothing is mounted at {path}")
            });
        };
        if let Some(inner) = self.within(path) {
            return refuse(format!("{inner} is mounted in {path}"));
        }
        let reply = in_time(self.guest.remove_mount(path, force)).await;
        match reply {
            Ok(RemoveReply::Removed) => {}
            // The files go with the process, whatever the guest says, if it says anything.
            _ if force => {}
            Ok(RemoveReply::Busy) => return Err(agent::Error::MountBusy(path.to_owned()).into()),
            // A privileged guest may have unmounted or moved it, and the process has ended for that.
            Ok(RemoveReply::Failed(_))
                if self.added.get(index).is_some_and(|added| added.process.is_err()) => {}
            Ok(RemoveReply::Failed(why)) => return refuse(format!("unmount {path}: {why}")),
            Err(error) => return Err(error),
        }
        if let Ok(process) = self.added.remove(index).process {
            joined(spawn_blocking(move || process.end()).await);
        }
        self.record().await;
        Ok(())
    }

    /// The place of a mount that was added within this one.
    fn within(&self, path: &str) -> Option<String> {
        let mut others = self.added.iter().map(|added| &added.mount.guest_path);
        others.find(|other| *other != path && mounts::is_within(other, path)).cloned()
    }

    fn list(&self) -> Vec<MountInfo> {
        let from_start =
            self.from_start.iter().map(|mount| MountInfo { mount: MountConfig::new(mount), failure: None });
        let added = self.added.iter().map(|added| MountInfo {
            mount: MountConfig { added: true, ..MountConfig::new(&added.mount) },
            failure: added.process.as_ref().err().cloned(),
        });
        from_start.chain(added).collect()
    }

    /// Notes that the process of a mount has ended, which nobody asked for.
    async fn note_end(&mut self, number: u64) {
        let Some(added) = self.added.iter_mut().find(|added| added.number == number) else { return };
        let Ok(mut process) = std::mem::replace(&mut added.process, Err(String::new())) else { return };
        let why = joined(spawn_blocking(move || process.failure()).await);
        let place = &added.mount.guest_path;
        self.log.add(format!("matchlock: the files at {place} are gone: {why}\n").as_bytes());
        tracing::warn!("{}: the files at {place} are gone: {why}", self.id);
        added.process = Err(why);
    }

    /// Writes the mounts into the sandbox's record.
    async fn record(&self) {
        let mounts: Vec<_> = self.list().into_iter().map(|info| info.mount).collect();
        let (home, id) = (self.home.clone(), self.id.clone());
        let write = move || Records::open(&home)?.set_mounts(&id, &mounts);
        if let Err(error) = joined(spawn_blocking(write).await) {
            tracing::warn!("recording the mounts: {error}");
        }
    }
}

/// Gives a process the stream to the guest's kernel.
fn give(process: &Process, stream: UnixStream) -> Result<()> {
    let stream = stream.into_std().map_err(Error::system("agent's stream"))?;
    Ok(process.give_guest(stream.into())?)
}

/// Tells when a process has ended.
fn watch_end(process: &Process, number: u64, tell: mpsc::UnboundedSender<u64>) -> Result<()> {
    let ended = process.ended().try_clone_to_owned();
    let ended = ended.and_then(|ended| descriptors::watched(ended, Interest::READABLE));
    let ended = ended.map_err(Error::system("process"))?;
    tokio::spawn(async move {
        if ended.readable().await.is_ok() {
            // The task may be gone.
            let _ = tell.send(number);
        }
    });
    Ok(())
}

/// The agent's answer, if it comes in time.
async fn in_time<T>(answer: impl Future<Output = Result<T, agent::Error>>) -> Result<T> {
    let late = || agent::Error::Refused("the guest does not answer".to_owned());
    Ok(timeout(AGENT_LIMIT, answer).await.map_err(|_| late())??)
}

/// An error as it is told to whoever asked.
fn refused(error: Error) -> agent::Error {
    match error {
        Error::Agent(error) => error,
        error => agent::Error::Refused(error.to_string()),
    }
}
