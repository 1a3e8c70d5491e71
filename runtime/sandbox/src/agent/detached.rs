//! Detached programs: the sandbox's owner holds their streams, so that they outlive the process that asked for them.
//!
//! ```text
//! Running ──▶ Exited ──▶ (stream's end: nothing of it is left)
//!         └─▶ Lost   ──▶
//! ```
//!
//! The owner drains their output, into the log and a bounded tail, so that no program waits for a reader. A program's
//! descendants live on after its end, until the stream ends. Not here: requests of other processes
//! ([`crate::control::owner`]).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use guest_protocol::{Exit, Program, Stdio};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::agent::command::Exec;
use crate::agent::error::{Error, Result};
use crate::agent::own::OwnGuest;
use crate::agent::program::{Event, Input, Output};

/// Most detached programs at once, those included that ended and left something behind. Each holds a stream.
pub const MAX_DETACHED: usize = 128;

/// Bytes of a program's last output that are kept.
pub const DETACHED_TAIL: usize = 64 << 10;

/// Longest description of a program.
const MAX_COMMAND: usize = 200;

/// How long a program may take to end when it is killed, or to take a signal.
const PATIENCE: Duration = Duration::from_secs(5);

const SIGKILL: i32 = 9;

/// Takes the output of detached programs.
#[derive(Clone)]
pub(crate) struct Log(Arc<Take>);

type Take = dyn Fn(&[u8]) + Send + Sync;

impl Log {
    pub(crate) fn new(take: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Hands these bytes to the log.
    pub(crate) fn add(&self, bytes: &[u8]) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

/// A detached program, for lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedInfo {
    /// The program's number in this sandbox, counted from 1.
    pub id: u32,
    /// The program's command, cut to a line's length.
    pub command: String,
    /// The program's start.
    pub started: SystemTime,
    /// The program's state.
    pub state: DetachedState,
}

/// The state of a detached program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetachedState {
    /// The program runs.
    Running,
    /// The program ended; processes that it started may run on.
    Exited(Exit),
    /// The guest ended, or broke the protocol, before it reported the program's end.
    Lost,
}

/// The detached programs of one sandbox.
#[derive(Debug)]
pub(crate) struct Detached {
    log: Log,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u32,
    programs: BTreeMap<u32, Arc<Kept>>,
}

/// A detached program and the host's ends of its stream.
#[derive(Debug)]
struct Kept {
    command: String,
    started: SystemTime,
    /// Gone once the stream has ended, or is about to.
    input: tokio::sync::Mutex<Option<Input>>,
    progress: watch::Sender<Progress>,
    tail: Mutex<VecDeque<u8>>,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    state: DetachedState,
    /// The stream has ended, so nothing of the program is left.
    gone: bool,
}

impl Detached {
    pub(crate) fn new(log: Log) -> Self {
        Self { log, table: Mutex::default() }
    }

    /// Starts a program in this guest, and keeps its stream.
    pub(crate) async fn start(&self, guest: &OwnGuest, exec: Exec) -> Result<u32> {
        self.table().make_room()?;
        let command = describe(&exec.program);
        let mut program = guest.exec(Exec { stdio: Stdio::Null, detached: true, ..exec }).await?;
        match program.output.next().await? {
            Event::Started => {}
            Event::Failed(failure) => return Err(Error::NotStarted(failure)),
            _ => return Err(Error::Guest("output of a program that has not started")),
        }
        let mut table = self.table();
        // Other calls may have taken the last place meanwhile; this program is then cancelled.
        table.make_room()?;
        table.last += 1;
        let id = table.last;
        let state = DetachedState::Running;
        let kept = Arc::new(Kept {
            command,
            started: SystemTime::now(),
            input: tokio::sync::Mutex::new(Some(program.input)),
            progress: watch::Sender::new(Progress { state, gone: false }),
            tail: Mutex::default(),
        });
        tokio::spawn(drain(program.output, Arc::clone(&kept), self.log.clone()));
        table.programs.insert(id, kept);
        Ok(id)
    }

    pub(crate) fn list(&self) -> Vec<DetachedInfo> {
        let table = self.table();
        let info = |(id, kept): (&u32, &Arc<Kept>)| DetachedInfo {
            id: *id,
            command: kept.command.clone(),
            started: kept.started,
            state: kept.progress.borrow().state,
        };
        table.programs.iter().map(info).collect()
    }

    /// Waits for the program's own end.
    pub(crate) async fn wait(&self, id: u32) -> Result<Exit> {
        let mut progress = self.get(id)?.progress.subscribe();
        let over = progress.wait_for(|progress| progress.state != DetachedState::Running).await;
        match over.map(|progress| progress.state) {
            Ok(DetachedState::Exited(exit)) => Ok(exit),
            _ => Err(Error::HangUp),
        }
    }

    pub(crate) async fn signal(&self, id: u32, signal: i32) -> Result<()> {
        let kept = self.get(id)?;
        if kept.progress.borrow().state != DetachedState::Running {
            return Err(Error::ProgramEnded(id));
        }
        kept.signal(signal).await
    }

    /// Kills the program and all it started.
    pub(crate) async fn kill(&self, id: u32) -> Result<()> {
        let kept = self.get(id)?;
        // The kill goes on even if the caller is gone.
        let killed = tokio::spawn(async move { kept.kill().await }).await;
        killed.unwrap_or(Err(Error::HangUp))
    }

    pub(crate) fn output(&self, id: u32) -> Result<Vec<u8>> {
        let kept = self.get(id)?;
        let tail = kept.tail.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(tail.iter().copied().collect())
    }

    fn get(&self, id: u32) -> Result<Arc<Kept>> {
        self.table().programs.get(&id).cloned().ok_or(Error::UnknownProgram(id))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Forgets the oldest program of which nothing is left, if there is no room for one more.
    fn make_room(&mut self) -> Result<()> {
        if self.programs.len() < MAX_DETACHED {
            return Ok(());
        }
        let gone = self.programs.iter().find(|(_, kept)| kept.progress.borrow().gone).map(|(id, _)| *id);
        let gone = gone.ok_or(Error::TooManyPrograms(MAX_DETACHED))?;
        self.programs.remove(&gone);
        Ok(())
    }
}

impl Kept {
    async fn signal(&self, signal: i32) -> Result<()> {
        let mut input = self.input.lock().await;
        let Some(open) = input.as_mut() else { return Err(Error::HangUp) };
        match timeout(PATIENCE, open.signal(signal)).await {
            Ok(sent) => sent,
            Err(_) => {
                // Half a message may have been sent: nothing can follow it.
                *input = None;
                Err(Error::Guest("signals are not taken"))
            }
        }
    }

    async fn kill(&self) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let killed = async {
            // A signal first, so that the guest still reports the program's end.
            if progress.borrow().state == DetachedState::Running && self.signal(SIGKILL).await.is_ok() {
                let _ = progress.wait_for(|progress| progress.state != DetachedState::Running).await;
            }
            // The end of this direction kills the program's descendants; the guest then ends the other direction.
            *self.input.lock().await = None;
            let _ = progress.wait_for(|progress| progress.gone).await;
        };
        timeout(PATIENCE, killed).await.map_err(|_| Error::Guest("a killed program does not end"))
    }

    fn keep(&self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(DETACHED_TAIL)..];
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = (tail.len() + bytes.len()).saturating_sub(DETACHED_TAIL);
        tail.drain(..surplus);
        tail.extend(bytes);
    }

    fn told(&self, exit: Exit) {
        self.progress.send_if_modified(|progress| {
            let first = progress.state == DetachedState::Running;
            if first {
                progress.state = DetachedState::Exited(exit);
            }
            first
        });
    }
}

/// Takes all output of a program until its stream ends.
async fn drain(mut output: Output, kept: Arc<Kept>, Log(log): Log) {
    loop {
        match output.next().await {
            Ok(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                log(bytes);
                kept.keep(bytes);
            }
            Ok(Event::Exited(exit, _)) => kept.told(exit),
            Ok(Event::Started | Event::Failed(_)) | Err(_) => break,
        }
    }
    drop(output);
    *kept.input.lock().await = None;
    kept.progress.send_modify(|progress| {
        progress.gone = true;
        if progress.state == DetachedState::Running {
            progress.state = DetachedState::Lost;
        }
    });
}

/// A command as one line, for lists.
fn describe(program: &Program) -> String {
    let text = match program {
        Program::Shell(text) => text.clone(),
        Program::Argv(argv) => argv.join(" "),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_COMMAND).collect()
}

#[cfg(test)]
mod tests {
    use guest_protocol::frame::Kind;
    use guest_protocol::{ExecFailure, ProgramControl, ProgramEvent, Request, Usage};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::fake::{control, data, exec, guest_with, request, run, say};
    use crate::{Guest, GuestError, stand_in};

    /// Plays a program that does not exist (`nothing`), or one that prints its name and then obeys signals: 15 ends
    /// it, 9 kills it, 1 lets it end and leave a child behind, 2 crashes the guest. The child ends when the host
    /// hangs up.
    async fn program(mut stream: UnixStream) {
        let Some(Request::Exec(asked)) = request(&mut stream).await else { return };
        assert!(asked.detached && asked.stdio == Stdio::Null, "{asked:?}");
        let Program::Argv(argv) = asked.program else { panic!("{:?}", asked.program) };
        if argv == ["nothing"] {
            let failure = ExecFailure::NotFound("nothing: not found".into());
            return say(&mut stream, &ProgramEvent::Failed(failure)).await;
        }
        say(&mut stream, &ProgramEvent::Started).await;
        stream.write_all(&data(Kind::Stdout, argv.join(" ").as_bytes())).await.unwrap();
        let exited = |exit| ProgramEvent::Exited(exit, Usage::default());
        while let Some(ProgramControl::Signal(signal)) = control(&mut stream).await {
            match signal {
                15 => return say(&mut stream, &exited(Exit::Code(3))).await,
                9 => say(&mut stream, &exited(Exit::Signal(9))).await,
                1 => {
                    say(&mut stream, &exited(Exit::Code(0))).await;
                    stream.write_all(&data(Kind::Stderr, b" and its child")).await.unwrap();
                }
                _ => return,
            }
        }
    }

    async fn state(guest: &Guest, id: u32) -> DetachedState {
        guest.detached().await.unwrap().into_iter().find(|info| info.id == id).unwrap().state
    }

    #[test]
    fn programs_are_told_apart_and_their_ends_are_remembered() {
        run(async {
            let guest = guest_with(program);
            let (one, two) =
                (guest.detach(exec(&["one"])).await.unwrap(), guest.detach(exec(&["two"])).await.unwrap());
            assert_eq!((one, two), (1, 2));
            let waiting = tokio::spawn({
                let guest = guest.clone();
                async move { guest.wait(two).await }
            });
            guest.signal(two, 15).await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap(), Exit::Code(3));
            assert_eq!(guest.wait(two).await.unwrap(), Exit::Code(3), "however often");
            let list = guest.detached().await.unwrap();
            let list: Vec<_> = list.iter().map(|info| (info.id, info.command.as_str(), info.state)).collect();
            let ended = DetachedState::Exited(Exit::Code(3));
            assert_eq!(list, [(1, "one", DetachedState::Running), (2, "two", ended)]);
            assert!(matches!(guest.signal(two, 15).await, Err(GuestError::Agent(Error::ProgramEnded(2)))));
            for nobody in [0, 3] {
                assert!(matches!(guest.wait(nobody).await, Err(GuestError::Agent(Error::UnknownProgram(_)))));
                assert!(matches!(guest.kill(nobody).await, Err(GuestError::Agent(Error::UnknownProgram(_)))));
            }
        });
    }

    #[test]
    fn output_goes_to_the_log_and_a_tail() {
        run(async {
            let (sender, mut logged) = mpsc::unbounded_channel();
            let log = Log::new(move |bytes| sender.send(bytes.to_vec()).unwrap());
            let guest: Guest = stand_in::own(log, |stream| drop(tokio::spawn(program(stream)))).into();
            let id = guest.detach(exec(&["echo", "hi"])).await.unwrap();
            assert_eq!(logged.recv().await.unwrap(), b"echo hi");
            guest.signal(id, 1).await.unwrap();
            assert_eq!(guest.wait(id).await.unwrap(), Exit::Code(0));
            assert_eq!(logged.recv().await.unwrap(), b" and its child", "after its end");
            assert_eq!(guest.detached_output(id).await.unwrap(), b"echo hi and its child");
            // The program has ended, its child has not.
            guest.kill(id).await.unwrap();
            assert_eq!(state(&guest, id).await, DetachedState::Exited(Exit::Code(0)));
        });
    }

    #[test]
    fn the_tail_is_bounded() {
        let kept = Kept {
            command: String::new(),
            started: SystemTime::UNIX_EPOCH,
            input: tokio::sync::Mutex::default(),
            progress: watch::Sender::new(Progress { state: DetachedState::Running, gone: false }),
            tail: Mutex::default(),
        };
        kept.keep(&[1; DETACHED_TAIL]);
        kept.keep(&[2; 10]);
        kept.keep(&[3; DETACHED_TAIL - 11]);
        let tail: Vec<u8> = kept.tail.lock().unwrap().iter().copied().collect();
        assert_eq!((tail.len(), tail[..12].to_vec()), (DETACHED_TAIL, [&[1][..], &[2; 10], &[3]].concat()));
        kept.keep(&[4; 3 * DETACHED_TAIL]);
        assert_eq!(kept.tail.lock().unwrap().len(), DETACHED_TAIL);
    }

    #[test]
    fn killed_programs_are_gone_and_how_is_told() {
        run(async {
            let (sender, mut gone) = mpsc::unbounded_channel();
            let guest = guest_with(move |stream| {
                let sender = sender.clone();
                async move {
                    program(stream).await;
                    sender.send(()).unwrap();
                }
            });
            let id = guest.detach(exec(&["sleep"])).await.unwrap();
            guest.kill(id).await.unwrap();
            gone.recv().await.unwrap();
            assert_eq!(guest.wait(id).await.unwrap(), Exit::Signal(9));
            guest.kill(id).await.unwrap();
        });
    }

    #[test]
    fn programs_that_never_run_or_whose_guest_ends() {
        run(async {
            let guest = guest_with(program);
            let error = guest.detach(exec(&["nothing"])).await.unwrap_err();
            assert_eq!(error.to_string(), "nothing: not found");
            assert!(guest.detached().await.unwrap().is_empty());
            let id = guest.detach(exec(&["x"])).await.unwrap();
            guest.signal(id, 2).await.unwrap();
            assert!(matches!(guest.wait(id).await, Err(GuestError::Agent(Error::HangUp))));
            assert_eq!(state(&guest, id).await, DetachedState::Lost);
        });
    }

    #[test]
    fn room_is_made_by_forgetting_the_oldest_that_is_gone() {
        run(async {
            let guest = guest_with(program);
            for _ in 0..MAX_DETACHED {
                guest.detach(exec(&["x"])).await.unwrap();
            }
            assert!(matches!(
                guest.detach(exec(&["x"])).await,
                Err(GuestError::Agent(Error::TooManyPrograms(MAX_DETACHED)))
            ));
            for id in [1, 7, 5] {
                guest.kill(id).await.unwrap();
            }
            let last = guest.detach(exec(&["x"])).await.unwrap();
            assert_eq!(last, u32::try_from(MAX_DETACHED).unwrap() + 1);
            let list = guest.detached().await.unwrap();
            assert_eq!(list.len(), MAX_DETACHED);
            assert!(list.iter().all(|info| info.id != 1) && list.iter().any(|info| info.id == 5));
        });
    }

    #[test]
    fn a_guest_that_talks_nonsense_loses_the_program() {
        run(async {
            let guest = guest_with(|mut stream: UnixStream| async move {
                if request(&mut stream).await.is_some() {
                    say(&mut stream, &ProgramEvent::Started).await;
                    say(&mut stream, &ProgramEvent::Started).await;
                    while control(&mut stream).await.is_some() {}
                }
            });
            let id = guest.detach(exec(&["x"])).await.unwrap();
            assert!(matches!(guest.wait(id).await, Err(GuestError::Agent(Error::HangUp))));
            guest.kill(id).await.unwrap();
        });
    }

    #[test]
    fn commands_become_lines() {
        assert_eq!(describe(&Program::Shell("echo a\n\techo b".into())), "echo a  echo b");
        assert_eq!(describe(&Program::Argv(vec!["x".repeat(999)])).len(), MAX_COMMAND);
    }
}
