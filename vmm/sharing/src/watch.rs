//! Rules, masks and events: what was asked for becomes a guard for each mount, and what was done goes to the supervisor.

use std::sync::Arc;
use std::thread;

use anyhow::Context;
use machine::shares::{FileEvent, Files, Masks, SharesReport, Watch};
use policy::files::{Rules, WantedMasks, WantedRule};
use process::Channel;
use rules::{Batch, Event, Events, Guard};

/// Most operations of one message, and most bytes of their paths: a quarter of what a message may have.
const MAX_EVENTS: usize = 512;
const MAX_PATHS: usize = process::MAX_MESSAGE / 4;

/// The part that is the same for all mounts.
#[derive(Debug)]
pub(crate) struct Watched {
    rules: Arc<Rules>,
    events: Option<Arc<Events>>,
}

impl Watched {
    /// Reads rules that the supervisor has read before.
    pub(crate) fn new(watch: Watch) -> anyhow::Result<Self> {
        let Watch { rules, events } = watch;
        let rule = |rule: machine::shares::Rule| WantedRule {
            name: String::new(),
            phase: rule.phase,
            ops: rule.ops,
            path: rule.path,
            action: rule.action,
        };
        let rules = Rules::new(&rules.into_iter().map(rule).collect::<Vec<_>>())?;
        Ok(Self { rules: Arc::new(rules), events: events.then(Arc::default) })
    }

    /// Rules, masks and events of a mount.
    pub(crate) fn guard(&self, masks: Masks) -> anyhow::Result<Guard> {
        let Masks { hidden, readonly, protect } = masks;
        let masks = policy::files::Masks::new(&WantedMasks { hidden, readonly, protect })?;
        Ok(Guard { rules: Arc::clone(&self.rules), masks, events: self.events.clone() })
    }

    /// Where operations are told, if they are.
    pub(crate) fn events(&self) -> Option<&Arc<Events>> {
        self.events.as_ref()
    }
}

/// Begins to tell the supervisor of operations, on a thread of its own.
pub(crate) fn tell(events: &Arc<Events>, channel: &Arc<Channel>) -> anyhow::Result<()> {
    let (events, channel) = (Arc::clone(events), Arc::clone(channel));
    let tell = move || {
        // A send fails once the supervisor is gone.
        while channel.send(&SharesReport::Files(report(events.take(MAX_EVENTS, MAX_PATHS))), &[]).is_ok() {}
    };
    thread::Builder::new().spawn(tell).map(drop).context("thread")
}

fn report(batch: Batch) -> Files {
    let Batch { events, lost, mark } = batch;
    let event = |event: Event| {
        let Event { op, path, size, mode, uid, gid } = event;
        Some(FileEvent { op: op.code()?, path, size, mode, uid, gid })
    };
    Files { events: events.into_iter().filter_map(event).collect(), lost, mark }
}
