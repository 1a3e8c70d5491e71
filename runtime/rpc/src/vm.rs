//! A sandbox as requests see it: its guest while it runs, and the reason once it does not.
//!
//! Not here: the life of a sandbox (`sandbox`), and the wording for clients.

use std::sync::Arc;
use std::time::Duration;

use sandbox::{Error, Handle, Home, Id, Ready, Spec, Stage, Start, Stop, Terms};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::failure::Failure;

/// How long the clean-up of a sandbox may take that ended by itself or is discarded.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(2);

/// The same limit for a sandbox with data to write back to the user's disks.
const WRITE_BACK_LIMIT: Duration = Duration::from_secs(10);

/// Most requests with a stream of the guest's at once; more wait. The guest has 512 streams: the rest is for detached
/// programs and forwarded connections, 128 each, and for other processes.
pub(crate) const MAX_STREAMS: usize = 240;

/// A sandbox, and the queue for its streams.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) id: Id,
    /// How long the end may take unless a request says.
    pub(crate) patience: Duration,
    pub(crate) sandbox: Handle,
    /// The turns to have a stream of the guest's.
    pub(crate) streams: Semaphore,
}

impl Vm {
    /// Makes a sandbox and starts it. Needs a tokio runtime.
    pub(crate) fn start(home: &Home, spec: Spec) -> Result<Arc<Self>, Error> {
        let writes_back = spec.disks.iter().any(policy::disks::Disk::is_writable);
        let patience = if writes_back { WRITE_BACK_LIMIT } else { CLEAN_UP_LIMIT };
        let terms = Terms { patience: Some(patience), forget_failed_start: true };
        let sandbox = sandbox::spawn(home, spec, Start::now(), terms, Arc::new(Progress))?;
        Ok(Self::new(sandbox, patience))
    }

    fn new(sandbox: Handle, patience: Duration) -> Arc<Self> {
        let (id, streams) = (sandbox.id().clone(), Semaphore::new(MAX_STREAMS));
        Arc::new(Self { id, patience, sandbox, streams })
    }

    /// Waits until the guest answers, or returns the reason why it never will.
    pub(crate) async fn ready(&self) -> Result<Ready, Failure> {
        self.sandbox.ready().await.map_err(|why| Failure::vm(why.to_string()))
    }

    /// The guest of a sandbox that runs.
    pub(crate) fn running(&self) -> Result<Ready, Failure> {
        match self.sandbox.stage() {
            Stage::Ready(ready) => Ok(ready),
            Stage::Ending(why) | Stage::Gone(why, _) => {
                Err(Failure::vm(format!("VM {} is not running: {why}", self.id)))
            }
            Stage::Rising => Err(Failure::no_vm()),
        }
    }

    /// The message for an error of the guest's: the reason for the guest's end, if that is its cause.
    pub(crate) async fn explain(&self, error: impl Into<Error>) -> String {
        self.sandbox.explain(error).await.to_string()
    }

    /// Asks for the end of the sandbox by this time. The first request counts.
    pub(crate) fn stop(&self, by: Instant, discard: bool) {
        self.sandbox.stop(Stop { by: Some(by), discard, finished: false });
    }

    /// Discards the sandbox, and waits until that is done.
    pub(crate) async fn discard(&self) {
        self.stop(Instant::now() + CLEAN_UP_LIMIT, true);
        let _ = self.gone().await;
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.sandbox.stage(), Stage::Gone(..))
    }

    /// Waits until nothing is left of the sandbox; an error is one of its end.
    pub(crate) async fn gone(&self) -> Result<(), String> {
        self.sandbox.gone().await.map(drop).map_err(|error| error.to_string())
    }
}

/// Logs the steps of preparations.
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
    driver: sandbox::StandIn,
}

#[cfg(test)]
impl Fake {
    /// A sandbox that is ready when `guest` completes, and gone soon after it is stopped or ended.
    pub(crate) fn new(number: u32, guest: impl Future<Output = sandbox::Guest> + Send + 'static) -> Self {
        let id = format!("vm-{number:08x}").parse().unwrap();
        let (sandbox, driver) = sandbox::StandIn::spawn(id, guest);
        Self { vm: Vm::new(sandbox, CLEAN_UP_LIMIT), driver }
    }

    /// Ends the sandbox.
    pub(crate) fn end(&self, why: sandbox::Why) {
        self.driver.end(why);
    }
}
