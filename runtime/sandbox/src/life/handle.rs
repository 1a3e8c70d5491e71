//! A handle on a sandbox, for everyone but its driver: its stage, its guest, its end, and the request to end it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use images::ImageConfig;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use crate::Forwards;
use crate::agent::command;
use crate::agent::detached::Log;
use crate::control::allow_list::{AllowList, Gate, ListChange};
use crate::guest::Guest;
use crate::life::error::Error;
use crate::life::files::{FileNews, Told};
use crate::life::timings::Timings;
use crate::{Id, agent};

/// How long the machine of a guest that hung up may take to end, which tells the reason.
const REASON_LIMIT: Duration = Duration::from_secs(5);

/// The terms on which a sandbox ends unless a request says otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// How long the end may take; `None` leaves each step its own limit.
    pub patience: Option<Duration>,
    /// A sandbox that fails to start leaves nothing, whatever its spec says.
    pub forget_failed_start: bool,
}

/// A request to end a sandbox.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stop {
    /// When the sandbox must have ended; data that the guest has not written back by then is lost.
    pub by: Option<Instant>,
    /// The sandbox leaves nothing, whatever its spec says, and its programs get no grace.
    pub discard: bool,
    /// The sandbox's command has ended, so its other programs get no grace.
    pub finished: bool,
}

/// The stage of a sandbox, as a handle shows it.
#[derive(Debug, Clone)]
pub enum Stage {
    /// The sandbox is starting.
    Rising,
    /// The guest answers.
    Ready(Ready),
    /// The sandbox is being ended.
    Ending(Why),
    /// The sandbox has ended, and only the files that are kept are left.
    Gone(Why, Result<Timings, Arc<Error>>),
}

/// A sandbox whose guest answers.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The guest. It may outlive the sandbox: requests then fail.
    pub guest: Guest,
    /// When the guest became ready.
    pub since: Instant,
    /// Why there is no network, where one would have been taken.
    pub no_network: Option<String>,
    pub(super) image: ImageConfig,
    pub(super) entrypoint: Option<Vec<String>>,
}

impl Ready {
    /// The sandbox's command with these arguments.
    #[must_use]
    pub fn command(&self, args: &[String]) -> Vec<String> {
        command::command(&self.image, self.entrypoint.as_deref(), args)
    }
}

/// The reason why a sandbox ended, or is about to.
#[derive(Debug, Clone)]
pub enum Why {
    /// A holder of a handle asked for the end, or the last handle is gone.
    Asked,
    /// Another process asked for the end.
    Killed,
    /// The sandbox reached its time limit.
    TimeLimit(Duration),
    /// The sandbox could not start, or its machine ended.
    Failed(Arc<Error>),
}

impl Why {
    pub(super) fn failed(error: Error) -> Self {
        Self::Failed(Arc::new(error))
    }

    /// Whether another start may well succeed.
    pub(super) fn is_no_timer(&self) -> bool {
        matches!(self, Self::Failed(error) if matches!(**error, Error::Agent(agent::Error::NoTimer)))
    }

    /// Whether the sandbox is cut off while its guest may still answer.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("the sandbox was closed"),
            Self::Killed => f.write_str("the sandbox was ended by another matchlock command"),
            Self::TimeLimit(limit) => {
                write!(f, "the sandbox reached its time limit of {} s", limit.as_secs_f64())
            }
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// The phrase that tells when a machine ended, for its error: "by itself" if nothing was being done.
pub(super) type Activity = watch::Sender<&'static str>;

/// A handle on a sandbox that its driver takes through its life. The sandbox ends when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Handle {
    id: Id,
    stage: watch::Receiver<Stage>,
    stop: Arc<watch::Sender<Option<Stop>>>,
    activity: Arc<Activity>,
    forwards: Arc<Mutex<Option<Forwards>>>,
    log: Log,
    files: Arc<Told>,
    gate: Arc<Gate>,
}

/// The driver's ends of the channels of a [`Handle`].
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) stage: watch::Sender<Stage>,
    pub(super) stop: watch::Receiver<Option<Stop>>,
    pub(super) activity: Arc<Activity>,
    pub(super) forwards: Arc<Mutex<Option<Forwards>>>,
}

impl Handle {
    pub(super) fn new(id: Id, log: Log, files: Arc<Told>, gate: Arc<Gate>) -> (Self, Ends) {
        let (sender, stage) = watch::channel(Stage::Rising);
        let (stop, stopped) = watch::channel(None);
        let activity = Arc::new(Activity::new("by itself"));
        let forwards = Arc::default();
        let ends = Ends {
            stage: sender,
            stop: stopped,
            activity: Arc::clone(&activity),
            forwards: Arc::clone(&forwards),
        };
        (Self { id, stage, stop: Arc::new(stop), activity, forwards, log, files, gate }, ends)
    }

    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// The sandbox's current stage.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Waits until the guest answers, or returns the reason why it never will.
    pub async fn ready(&self) -> Result<Ready, Why> {
        match self.reached(|stage| !matches!(stage, Stage::Rising)).await {
            Stage::Ready(ready) => Ok(ready),
            Stage::Ending(why) | Stage::Gone(why, _) => Err(why),
            Stage::Rising => Err(Why::Asked),
        }
    }

    /// Returns the reason once the sandbox is being ended.
    pub async fn over(&self) -> Why {
        match self.reached(|stage| matches!(stage, Stage::Ending(_) | Stage::Gone(..))).await {
            Stage::Ending(why) | Stage::Gone(why, _) => why,
            Stage::Rising | Stage::Ready(_) => Why::Asked,
        }
    }

    /// Returns once somebody ends the sandbox, so that work in it is to be given up. Never returns for a sandbox that
    /// ends by itself.
    pub async fn cut(&self) -> Why {
        let why = self.over().await;
        if why.is_cut() { why } else { std::future::pending().await }
    }

    /// Waits until the sandbox has ended; an error is one of its end.
    pub async fn gone(&self) -> Result<Timings, Arc<Error>> {
        match self.reached(|stage| matches!(stage, Stage::Gone(..))).await {
            Stage::Gone(_, result) => result,
            // The driver's runtime is gone, and the driver with it.
            Stage::Rising | Stage::Ready(_) | Stage::Ending(_) => Err(Arc::new(agent::Error::HangUp.into())),
        }
    }

    /// Asks for the sandbox's end. The first request counts.
    pub fn stop(&self, how: Stop) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(how);
            first
        });
    }

    /// Names the current work in the sandbox, as in "while the command ran".
    pub fn set_activity(&self, activity: &'static str) {
        self.activity.send_replace(activity);
    }

    /// The error to show for an error of the guest's: the reason for the guest's end, if that is its cause.
    pub async fn explain(&self, error: impl Into<Error>) -> Arc<Error> {
        let error = error.into();
        if !error.is_hang_up() {
            return Arc::new(error);
        }
        match timeout(REASON_LIMIT, self.over()).await {
            Ok(Why::Failed(error)) => error,
            Ok(why) => Arc::new(Error::Over(why)),
            Err(_) => Arc::new(error),
        }
    }

    /// The sandbox's forwarded ports, which are closed before the sandbox ends.
    #[must_use]
    pub fn forwards(&self) -> &Mutex<Option<Forwards>> {
        &self.forwards
    }

    /// The operations on files as they are told, for the first who asks; none come if none are to be told.
    #[must_use]
    pub fn files(&self) -> Option<FileNews> {
        self.files.reader()
    }

    /// Returns once the reader of what is told of files has had all that was done before now, or after a while.
    pub async fn files_settled(&self) {
        self.files.settled().await;
    }

    /// Changes the sandbox's allow list, and returns it; the error is in words.
    pub async fn change_allow_list(&self, change: ListChange) -> Result<AllowList, String> {
        self.gate.change(change).await
    }

    /// Adds to the sandbox's log.
    pub fn log(&self, bytes: &[u8]) {
        self.log.add(bytes);
    }

    /// The first stage from now on that is `wanted`, or the last stage.
    async fn reached(&self, wanted: impl FnMut(&Stage) -> bool) -> Stage {
        let mut stage = self.stage.clone();
        let reached = stage.wait_for(wanted).await.map(|stage| stage.clone());
        reached.unwrap_or_else(|_| self.stage())
    }
}

/// For tests, of other crates too: a sandbox that is nothing but a guest, and whose driver is played by the test.
#[cfg(any(test, feature = "stand_in"))]
#[derive(Debug)]
pub struct StandIn(watch::Sender<Stage>);

#[cfg(any(test, feature = "stand_in"))]
impl StandIn {
    /// A sandbox that is ready when `guest` completes, and gone soon after it is stopped or ended. Needs a tokio
    /// runtime.
    #[must_use]
    pub fn spawn(id: Id, guest: impl Future<Output = Guest> + Send + 'static) -> (Handle, Self) {
        let (handle, mut ends) = Handle::new(id, Log::new(|_| {}), Arc::default(), Arc::default());
        let stand_in = Self(ends.stage.clone());
        tokio::spawn(async move {
            let mut watched = ends.stage.subscribe();
            let over = async {
                let _ = watched.wait_for(|stage| matches!(stage, Stage::Ending(_))).await;
            };
            let asked = async {
                let _ = ends.stop.wait_for(Option::is_some).await;
            };
            let life = async {
                let (image, entrypoint) = (ImageConfig::default(), Some(vec!["entry".to_owned()]));
                let (guest, since) = (guest.await, Instant::now());
                let ready = Ready { guest, since, no_network: None, image, entrypoint };
                ends.stage.send_replace(Stage::Ready(ready));
                std::future::pending::<()>().await;
            };
            let why = tokio::select! {
                () = asked => Some(Why::Asked),
                () = over => None,
                () = life => None,
            };
            if let Some(why) = why {
                ends.stage.send_replace(Stage::Ending(why));
            }
            ends.stage.send_modify(|stage| {
                if let Stage::Ending(why) = stage {
                    *stage = Stage::Gone(why.clone(), Ok(Timings::default()));
                }
            });
        });
        (handle, stand_in)
    }

    /// Ends the sandbox.
    pub fn end(&self, why: Why) {
        self.0.send_replace(Stage::Ending(why));
    }
}
