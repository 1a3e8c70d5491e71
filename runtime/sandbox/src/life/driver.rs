//! The task that owns a sandbox from its start to its end.
//!
//! Not here: the stages ([`super::stages`]).

use std::sync::Arc;
use std::time::Duration;

use images::Progress;
use machine::Kind;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::base::{Base, Created};
use super::handle::{self, Ends, Handle, Ready, Stop, Terms, Why};
use super::spec::{Spec, TimeLimit};
use super::stages::{Booting, Prepared, Preparing, Stage, Starting, Up};
use crate::life::error::{Error, Result};
use crate::life::timings::{Start, Timings};
use crate::records::history::Step;
use crate::records::home::Home;
use crate::records::lifecycle::Phase;

/// The share of the time to end in that is left for machine and files after the guest's part.
const MACHINE_SHARE: u32 = 4;

/// The line in the sandbox's log when its machine is started once more.
const NO_TIMER: &[u8] = b"matchlock: the guest's kernel found no timer, and is started once more\n";

/// Makes a sandbox, and takes it through its life in a task of its own. An error means that no sandbox was made.
/// Needs a tokio runtime.
pub fn spawn(
    home: &Home,
    spec: Spec,
    start: Start,
    terms: Terms,
    progress: Arc<dyn Progress + Send + Sync>,
) -> Result<Handle> {
    let (base, created) = Base::create(home, spec, start)?;
    let (handle, ends) = base.handle();
    let calls = Calls {
        stop: ends.stop.clone(),
        killed: base.shared.stop.subscribe(),
        time: match base.spec.time_limit {
            Some(TimeLimit::FromStart(limit)) => Time::from_now(limit),
            Some(TimeLimit::FromReady(_)) | None => None,
        },
    };
    tokio::spawn(Driver { base, ends, calls, terms }.run(created, progress));
    Ok(handle)
}

/// The driver's state beside the stage.
struct Driver {
    base: Base,
    ends: Ends,
    calls: Calls,
    terms: Terms,
}

/// A stage that is to be ended, and the reason.
struct Halt {
    stage: Stage,
    why: Why,
}

impl Driver {
    async fn run(mut self, created: Created, progress: Arc<dyn Progress + Send + Sync>) {
        let risen = self.rise(created, progress).await;
        let failed_to_start = matches!(&risen, Err(Halt { why: Why::Failed(_), .. }));
        let Halt { stage, why } = match risen {
            Ok(up) => self.stay(up).await,
            Err(halt) => halt,
        };
        tracing::info!("{}: {why}", self.base.vm.id);
        self.ends.stage.send_replace(handle::Stage::Ending(why.clone()));
        if let Some(forwards) = self.ends.forwards.lock().await.take() {
            forwards.close().await;
        }
        self.heed_how_it_is_to_end(failed_to_start);
        let (stages, files) = (self.ends.stage, Arc::clone(&self.base.files));
        let result = end(self.base, stage, &why, failed_to_start).await;
        files.end();
        stages.send_replace(handle::Stage::Gone(why, result.map_err(Arc::new)));
    }

    /// Applies the wishes for how the sandbox is to end.
    fn heed_how_it_is_to_end(&mut self, failed_to_start: bool) {
        let stop = *self.calls.stop.borrow();
        let discard = stop.is_some_and(|stop| stop.discard);
        if discard || failed_to_start && self.terms.forget_failed_start {
            self.base.spec.keep = false;
        }
        if discard || failed_to_start || stop.is_some_and(|stop| stop.finished) {
            self.base.spec.grace = Duration::ZERO;
        }
        self.base.end_by = end_by(stop, self.terms.patience);
    }

    /// Takes the sandbox from nothing to a ready guest.
    async fn rise(
        &mut self,
        created: Created,
        progress: Arc<dyn Progress + Send + Sync>,
    ) -> Result<Up, Halt> {
        let Self { base, calls, .. } = self;
        let mut preparing = Preparing::begin(base, created, progress);
        let prepared = match calls.unless_asked(preparing.finished(base)).await {
            Ok(prepared) => prepared,
            Err(why) => return Err(Halt { stage: Stage::Preparing(preparing), why }),
        };
        base.timings.prepared_us = base.now_us();
        base.journal.to(Phase::Created, None);
        base.journal.to(Phase::Starting, None);

        // An emulated processor may stand still while its kernel measures the timer.
        let again = (base.kind == Kind::Software).then(|| prepared.again()).transpose();
        let again = again.map_err(|error| Halt { stage: Stage::Bare, why: Why::failed(error) })?;
        match (self.start(prepared).await, again) {
            (Err(Halt { stage: Stage::Configuring(stage), why }), Some(again)) if why.is_no_timer() => {
                stage.give_up().await;
                self.base.log().add(NO_TIMER);
                tracing::warn!("{}: {why}; it is started once more", self.base.vm.id);
                self.start(again).await
            }
            (result, _) => result,
        }
    }

    /// Makes a machine and takes it to a ready guest.
    async fn start(&mut self, prepared: Prepared) -> Result<Up, Halt> {
        let Self { base, calls, .. } = self;
        let mut booting = match Booting::begin(base, prepared) {
            Ok(booting) => booting,
            Err(error) => return Err(Halt { stage: Stage::Bare, why: Why::failed(error) }),
        };
        let booted = match calls.unless_asked(booting.booted()).await {
            Ok(booted) => booted,
            Err(why) => return Err(Halt { stage: Stage::Booting(booting), why }),
        };
        base.timings.machine_us = base.now_us();
        self.greet(booting.start(booted)).await
    }

    /// Takes a machine to a ready guest.
    async fn greet(&mut self, mut starting: Starting) -> Result<Up, Halt> {
        let Self { base, calls, .. } = self;
        let (control, agent_start_us) = match calls.unless_asked(starting.hello(base)).await {
            Ok(hello) => hello,
            Err(why) => return Err(halt(base, Stage::Starting(starting), why).await),
        };
        base.timings.hello_us = base.now_us();
        base.timings.guest_agent_us = Some(agent_start_us);

        let mut configuring = starting.configure(control);
        let (ready, guest) = match calls.unless_asked(configuring.ready(base)).await {
            Ok(ready) => ready,
            Err(why) => return Err(halt(base, Stage::Configuring(configuring), why).await),
        };
        base.timings.guest = Some(ready);
        base.timings.ready_us = base.now_us();
        base.journal.to(Phase::Running, None);
        Ok(configuring.up(base, guest))
    }

    /// Waits for a reason to end the sandbox.
    async fn stay(&mut self, up: Up) -> Halt {
        if let Some(TimeLimit::FromReady(limit)) = self.base.spec.time_limit {
            self.calls.time = Time::from_now(limit);
        }
        let ready = Ready {
            guest: up.guest.clone().into(),
            since: Instant::now(),
            no_network: self.base.network.lack(),
            image: up.image.clone(),
            entrypoint: self.base.spec.entrypoint.clone(),
        };
        self.base.shared.guest.send_replace(Some(up.guest.clone()));
        self.ends.stage.send_replace(handle::Stage::Ready(ready));
        let ended = up.running.ended();
        tokio::select! {
            biased;
            why = self.calls.asked() => return Halt { stage: Stage::Up(up), why },
            () = ended => {}
        }
        let activity = *self.ends.activity.borrow();
        let (stage, error) = Stage::Up(up).why(&self.base.console, activity).await;
        Halt { stage, why: Why::failed(error) }
    }
}

/// Gives up a stage on the way up. If the guest hung up, the end of its machine shows why.
async fn halt(base: &Base, stage: Stage, why: Why) -> Halt {
    match &why {
        Why::Failed(error) if error.is_hang_up() => {
            let (stage, error) = stage.why(&base.console, "before the sandbox was ready").await;
            Halt { stage, why: Why::failed(error) }
        }
        _ => Halt { stage, why },
    }
}

/// Ends a stage, and removes every file that is not to be kept.
async fn end(mut base: Base, stage: Stage, why: &Why, failed_to_start: bool) -> Result<Timings> {
    let mut because = match why {
        Why::Failed(error) => Some(error.to_string()),
        Why::Asked | Why::Killed | Why::TimeLimit(_) => None,
    };
    let phase = base.journal.phase();
    if failed_to_start {
        let failed = if phase == Phase::Creating { Phase::CreateFailed } else { Phase::StartFailed };
        base.journal.to(failed, because.take());
    }
    let may_have_machine = phase != Phase::Creating;
    if may_have_machine {
        base.journal.to(Phase::Stopping, because);
    }
    let mut ending = stage.end(&base).await;
    ending.steps.extend(changes_kept(&base));
    ending.steps.extend(base.end_network().await);
    if may_have_machine {
        base.journal.to(Phase::Stopped, None);
    }
    base.timings.stopped_us = base.now_us();
    let cleaned = base.clean(ending.steps);
    match ending.unwritten {
        Some(after) => cleaned.and(Err(Error::NotWrittenBack { after })),
        None => cleaned,
    }
}

/// Tells whether changes of overlays are written down, if the sandbox has overlays and somebody may ask for them.
fn changes_kept(base: &Base) -> Option<Step> {
    let keeper = base.shared.keeper()?;
    if !base.spec.keep || base.timings.ready_us.is_none() {
        return None;
    }
    let failure = keeper.failure();
    failure.iter().for_each(|failure| tracing::warn!("{failure}"));
    Some(Step::done("changes", failure))
}

/// The time by which the guest must have done its part.
fn end_by(stop: Option<Stop>, patience: Option<Duration>) -> Option<std::time::Instant> {
    let now = Instant::now();
    let asked = stop.and_then(|stop| stop.by).map(|by| by.saturating_duration_since(now));
    let left = asked.or(patience)?;
    now.into_std().checked_add(left - left / MACHINE_SHARE)
}

/// The requests to end the sandbox that may come.
struct Calls {
    stop: watch::Receiver<Option<Stop>>,
    killed: watch::Receiver<bool>,
    time: Option<Time>,
}

/// A time limit.
#[derive(Clone, Copy)]
struct Time {
    limit: Duration,
    end: Instant,
}

impl Time {
    /// A limit that counts from now; `None` if no clock can hold it.
    fn from_now(limit: Duration) -> Option<Self> {
        Some(Self { limit, end: Instant::now().checked_add(limit)? })
    }
}

impl Calls {
    /// Returns the reason once the sandbox is to end.
    async fn asked(&mut self) -> Why {
        tokio::select! {
            biased;
            // An error means that the last handle is gone.
            _ = self.stop.wait_for(Option::is_some) => Why::Asked,
            Ok(_) = self.killed.wait_for(|killed| *killed) => Why::Killed,
            limit = reached(self.time) => Why::TimeLimit(limit),
        }
    }

    /// The result of `work`, unless the sandbox is to end first.
    async fn unless_asked<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T, Why> {
        tokio::select! {
            biased;
            why = self.asked() => Err(why),
            result = work => result.map_err(Why::failed),
        }
    }
}

async fn reached(time: Option<Time>) -> Duration {
    let Some(Time { limit, end }) = time else { return std::future::pending().await };
    sleep_until(end).await;
    limit
}

#[cfg(test)]
mod tests;
