//! A sandbox, and the task that owns it from its start to its end.
//!
//! ```text
//! starting ─▶ ready ─▶ ended (why) ─▶ gone
//!     └────────────────▶
//! ```
//!
//! Whoever holds a [`Vm`] can wait for each of these, and ask for the end. When nobody holds it any more it ends too. Not
//! here: what a client is told of it.

use std::sync::Arc;
use std::time::Duration;

use sandbox::{Error, Forwards, Guest, Home, Id, Sandbox, Spec, Start};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::Failure;

/// How long a sandbox that ended by itself, or is thrown away, may take to be cleaned up.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(2);

/// The same for a sandbox that has something to write back to the user's disks.
const WRITE_BACK_LIMIT: Duration = Duration::from_secs(10);

/// How much of the time to end in is left for the machine and the files once the guest had its part.
const MACHINE_SHARE: u32 = 4;

/// How long a guest that hung up may take to show why.
const REASON_LIMIT: Duration = Duration::from_secs(5);

/// Most requests that have a stream of the guest's at once; more wait. The guest has 512 streams: what is left is for
/// detached programs and forwarded connections, 128 each, and for other processes.
pub(crate) const MAX_STREAMS: usize = 240;

/// A sandbox that some task owns.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) id: Id,
    /// How long its end may take if nobody says.
    pub(crate) patience: Duration,
    state: watch::Receiver<State>,
    stop: watch::Sender<Option<Stop>>,
    /// Its forwarded ports; none come any more once it has ended.
    pub(crate) forwards: Arc<Mutex<Option<Forwards>>>,
    /// Whose turn it is to have a stream of the guest's.
    pub(crate) streams: Arc<Semaphore>,
}

/// Where it is in its life.
#[derive(Debug, Default)]
pub(crate) struct State {
    ready: Option<Ready>,
    ended: Option<Ended>,
    gone: Option<Result<(), String>>,
}

/// What is there once the guest answers.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) guest: Guest,
    /// Entrypoint and its arguments.
    pub(crate) entrypoint: Vec<String>,
    /// Since when.
    pub(crate) since: Instant,
}

/// Why it ended, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) why: String,
    /// The guest may still answer, but is not to: every request is to be answered with `why`.
    pub(crate) cut: bool,
}

/// How it is to end.
#[derive(Debug, Clone, Copy)]
struct Stop {
    by: Instant,
    discard: bool,
}

impl Vm {
    /// Makes a sandbox and starts it. Needs a tokio runtime.
    pub(crate) fn start(home: &Home, spec: Spec) -> Result<Arc<Self>, Error> {
        let writes_back = spec.disks.iter().any(policy::disks::Disk::is_writable);
        let patience = if writes_back { WRITE_BACK_LIMIT } else { CLEAN_UP_LIMIT };
        let limit = spec.time_limit;
        let sandbox = Sandbox::create(home, spec, Start::now())?;
        let id = sandbox.id().clone();
        let (vm, sender, stop) = Self::new(id, patience);
        tokio::spawn(own(sandbox, limit, patience, sender, stop, Arc::clone(&vm.forwards)));
        Ok(vm)
    }

    fn new(id: Id, patience: Duration) -> (Arc<Self>, watch::Sender<State>, watch::Receiver<Option<Stop>>) {
        let (sender, state) = watch::channel(State::default());
        let (stop, stopped) = watch::channel(None);
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        (Arc::new(Self { id, patience, state, stop, forwards: Arc::default(), streams }), sender, stopped)
    }

    /// Waits until the guest answers, or says why it never will.
    pub(crate) async fn ready(&self) -> Result<Ready, Failure> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| state.ready.is_some() || state.ended.is_some()).await;
        match settled.ok().and_then(|state| state.ready.clone()) {
            Some(ready) => Ok(ready),
            None => Err(Failure::vm(self.ended().map_or_else(String::new, |ended| ended.why))),
        }
    }

    /// Its guest, as long as it runs.
    pub(crate) fn running(&self) -> Result<Ready, Failure> {
        let state = self.state.borrow();
        match (&state.ended, &state.ready) {
            (None, Some(ready)) => Ok(ready.clone()),
            (Some(ended), _) => Err(Failure::vm(format!("VM {} is not running: {}", self.id, ended.why))),
            (None, None) => Err(Failure::no_vm()),
        }
    }

    fn ended(&self) -> Option<Ended> {
        self.state.borrow().ended.clone()
    }

    /// Returns when its requests are to be answered with a reason, whatever they still do.
    pub(crate) async fn cut(&self) -> String {
        let cut = |state: &State| state.ended.as_ref().is_some_and(|ended| ended.cut);
        let mut state = self.state.clone();
        let is_cut = state.wait_for(cut).await.is_ok();
        match is_cut.then(|| self.ended()).flatten() {
            Some(ended) => ended.why,
            None => std::future::pending().await,
        }
    }

    /// Returns when it has ended, with the reason.
    pub(crate) async fn over(&self) -> String {
        // An error means that nothing changes any more.
        let _ = self.state.clone().wait_for(|state| state.ended.is_some()).await;
        self.ended().map(|ended| ended.why).unwrap_or_default()
    }

    /// What to say of an error of the guest's: why the guest ended, if that is what it comes from.
    pub(crate) async fn explain(&self, error: Error) -> String {
        match error {
            Error::HangUp => {
                let by = Instant::now() + REASON_LIMIT;
                timeout_at(by, self.over()).await.unwrap_or_else(|_| Error::HangUp.to_string())
            }
            error => error.to_string(),
        }
    }

    /// Asks for its end by then. The first request counts.
    pub(crate) fn stop(&self, by: Instant, discard: bool) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(Stop { by, discard });
            first
        });
    }

    /// Throws it away, and waits until that is done.
    pub(crate) async fn discard(&self) {
        self.stop(Instant::now() + CLEAN_UP_LIMIT, true);
        let _ = self.gone().await;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state.borrow().gone.is_some()
    }

    /// Waits until nothing is left of it, and says if that went wrong.
    pub(crate) async fn gone(&self) -> Result<(), String> {
        match self.state.clone().wait_for(|state| state.gone.is_some()).await {
            Ok(state) => state.gone.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }
}

/// Returns once an end was asked for, or nobody is left to ask.
async fn asked(stop: &mut watch::Receiver<Option<Stop>>) -> Ended {
    let _ = stop.wait_for(Option::is_some).await;
    Ended { why: "the sandbox was closed".to_owned(), cut: true }
}

async fn own(
    mut sandbox: Sandbox,
    limit: Option<Duration>,
    patience: Duration,
    state: watch::Sender<State>,
    mut stop: watch::Receiver<Option<Stop>>,
    forwards: Arc<Mutex<Option<Forwards>>>,
) {
    let mut discard = false;
    let mut killed = sandbox.stop_requested();
    let mut ended = tokio::select! {
        biased;
        ended = asked(&mut stop) => Some(ended),
        () = killed.wait() => Some(by_another_command()),
        started = sandbox.start(Arc::new(Progress)) => started.err().map(|error| {
            discard = true;
            Ended { why: error.to_string(), cut: false }
        }),
    };
    if ended.is_none() {
        ended = match sandbox.guest() {
            Ok(guest) => {
                let entrypoint = sandbox.command(&[]);
                let ready = Ready { guest, entrypoint, since: Instant::now() };
                state.send_modify(|state| state.ready = Some(ready));
                let mut machine = sandbox.ended();
                tokio::select! {
                    biased;
                    ended = asked(&mut stop) => Some(ended),
                    () = killed.wait() => Some(by_another_command()),
                    () = machine.wait() => None,
                    ended = time_limit(limit) => Some(ended),
                }
            }
            Err(error) => Some(Ended { why: error.to_string(), cut: false }),
        };
    }
    let ended = match ended {
        Some(ended) => ended,
        None => Ended { why: sandbox.why_ended("by itself").await.to_string(), cut: false },
    };
    tracing::info!("{}: {}", sandbox.id(), ended.why);
    state.send_modify(|state| state.ended = Some(ended));
    if let Some(forwards) = forwards.lock().await.take() {
        forwards.close().await;
    }

    let stop = *stop.borrow();
    if discard || stop.is_some_and(|stop| stop.discard) {
        sandbox.discard();
    }
    let left = stop.map_or(patience, |stop| stop.by.saturating_duration_since(Instant::now()));
    let gone = sandbox.end_within(left - left / MACHINE_SHARE).await;
    let gone = gone.map(drop).map_err(|error| error.to_string());
    state.send_modify(|state| state.gone = Some(gone));
}

fn by_another_command() -> Ended {
    Ended { why: "the sandbox was ended by another matchlock command".to_owned(), cut: true }
}

async fn time_limit(limit: Option<Duration>) -> Ended {
    let Some(limit) = limit else { return std::future::pending().await };
    sleep(limit).await;
    Ended { why: format!("the sandbox reached its time limit of {} s", limit.as_secs_f64()), cut: true }
}

/// Says what is being prepared, to whoever reads the log.
struct Progress;

impl images::Progress for Progress {
    fn step(&self, name: &str, _total_bytes: Option<u64>) {
        tracing::info!("{name}");
    }

    fn advance(&self, _bytes: u64) {}
}

/// For tests: a sandbox that is nothing but a guest.
#[cfg(test)]
pub(crate) struct Fake {
    pub(crate) vm: Arc<Vm>,
    pub(crate) state: watch::Sender<State>,
}

#[cfg(test)]
impl Fake {
    /// It is ready when `guest` comes, and gone soon after it is stopped or has ended.
    pub(crate) fn new(number: u32, guest: impl Future<Output = Guest> + Send + 'static) -> Self {
        let id = format!("vm-{number:08x}").parse().unwrap();
        let (vm, state, mut stop) = Vm::new(id, CLEAN_UP_LIMIT);
        let theirs = state.clone();
        tokio::spawn(async move {
            let over = async |state: &watch::Sender<State>| {
                let _ = state.subscribe().wait_for(|state| state.ended.is_some()).await;
            };
            tokio::select! {
                guest = guest => {
                    let ready = Ready { guest, entrypoint: vec!["entry".into()], since: Instant::now() };
                    theirs.send_modify(|state| state.ready = Some(ready));
                    tokio::select! {
                        ended = asked(&mut stop) => theirs.send_modify(|state| state.ended = Some(ended)),
                        () = over(&theirs) => {}
                    }
                }
                ended = asked(&mut stop) => theirs.send_modify(|state| state.ended = Some(ended)),
            }
            theirs.send_modify(|state| state.gone = Some(Ok(())));
        });
        Self { vm, state }
    }

    /// It ends by itself.
    pub(crate) fn end(&self, why: &str, cut: bool) {
        let ended = Ended { why: why.to_owned(), cut };
        self.state.send_modify(|state| state.ended = Some(ended));
    }
}
