//! The program `matchlock-egress`.
//!
//! Three threads: the first obeys the supervisor, the second carries the network, the third writes the audit. All of them
//! run before the process may make no system call but those of carrying.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, bail};
use arrival::Sockets;
use egress::audit::{self, Events, Log};
use egress::{Datagram, Datagrams, Dns, DnsSettings, Flows, Shared};
use egress_policy::{Change as Edit, Policy, PolicyError};
use process::Channel;
use rustix::net::Shutdown;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use crate::channel::{self, Change, Report};
use crate::{Spec, confine};

const PROGRAM: &str = "matchlock-egress";

/// Most events that wait to be written.
const EVENTS: usize = 1024;

/// Most datagrams that wait to be sent to the guest.
const ANSWERS: usize = 64;

/// How long the last events may take to be written.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Carries a network until the supervisor hangs up, or nothing can be carried any more.
pub fn run(channel: Channel) -> anyhow::Result<()> {
    let channel = Arc::new(channel);
    let outcome = serve(&channel);
    if let Err(error) = &outcome {
        fail(&channel, error);
    }
    outcome
}

fn serve(channel: &Arc<Channel>) -> anyhow::Result<()> {
    confine::walls()?.warnings().for_each(|warning| say(&warning));
    let Some((spec, descriptors)) = channel::receive::<Spec>(channel).context("first message")? else {
        return Ok(());
    };
    let Ok([sockets @ .., file]) = <[OwnedFd; Sockets::COUNT + 1]>::try_from(descriptors) else {
        bail!("the supervisor broke the protocol");
    };
    let file = File::from(file);
    let len = file.metadata().context("audit")?.len();
    let runtime = Builder::new_current_thread().enable_io().enable_time().build().context("runtime")?;
    let handle = runtime.handle().clone();
    let (shared, events, carried) = prepare(&spec, sockets.into())?;

    let (go, begin) = mpsc::channel::<()>();
    let (stop, stopped) = oneshot::channel();
    let supervisor = Arc::clone(channel);
    start("network", move || {
        // Nothing comes if the filter was refused.
        if begin.recv().is_ok() {
            carry(runtime, carried, stopped, &supervisor);
        }
    })?;
    let (written, all_written) = mpsc::channel::<()>();
    start("audit", move || {
        Log::new(file, len).run(events);
        drop(written);
    })?;
    confine::close_the_last_door()?;
    go.send(())?;
    channel::send(channel, &Report::Serving, &[])?;

    let obeyed = obey(channel, &handle, &shared);
    // No event comes once the network and this thread have let go of the queue.
    drop(shared);
    let _ = stop.send(());
    let _ = all_written.recv_timeout(LAST_EVENTS);
    obeyed
}

/// All that carries a network.
struct Carried {
    sockets: Sockets,
    flows: Arc<Flows>,
    datagrams: Arc<Datagrams>,
    answers: Receiver<Datagram>,
}

fn prepare(spec: &Spec, sockets: Sockets) -> anyhow::Result<(Arc<Shared>, Events, Carried)> {
    let (queue, events) = audit::queue(EVENTS);
    let shared = Shared::new(spec.policy()?, spec.hosts()?, queue);
    let settings = DnsSettings { servers: spec.resolvers.clone(), ipv6: spec.ipv6 };
    let dns = Arc::new(Dns::new(Arc::clone(&shared), settings));
    let flows = Arc::new(Flows::new(Arc::clone(&shared), Arc::clone(&dns)));
    let (sender, answers) = tokio::sync::mpsc::channel(ANSWERS);
    let datagrams = Arc::new(Datagrams::new(Arc::clone(&shared), dns, sender));
    Ok((shared, events, Carried { sockets, flows, datagrams, answers }))
}

/// Carries a network until it is told to stop. An end by itself is told to the supervisor and to the first thread.
fn carry(runtime: Runtime, carried: Carried, stopped: oneshot::Receiver<()>, supervisor: &Channel) {
    let Carried { sockets, flows, datagrams, answers } = carried;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = sockets.carry(flows, datagrams, answers) => Some(ended),
            _ = stopped => None,
        }
    });
    drop(runtime);
    if let Some(ended) = ended {
        let why = ended.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        fail(supervisor, &anyhow::Error::new(why).context("network"));
        // The first thread takes it for the supervisor's.
        let _ = rustix::net::shutdown(supervisor, Shutdown::Read);
    }
}

/// Changes the policy as the supervisor asks, until the supervisor hangs up.
fn obey(channel: &Arc<Channel>, runtime: &Handle, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let mut policy = shared.policy().as_ref().clone();
    while let Some((change, _)) = channel::receive::<Change>(channel)? {
        match changed(&policy, change) {
            Ok(changed) => policy = changed,
            Err(why) => {
                channel::send(channel, &Report::Changed(Err(why.to_string())), &[])?;
                continue;
            }
        }
        let list = policy.allowed().map(str::to_owned).collect();
        let (shared, channel, policy) = (Arc::clone(shared), Arc::clone(channel), policy.clone());
        runtime.spawn(async move {
            shared.change_policy(policy).await;
            // A supervisor that is gone is noticed where it is waited for.
            let _ = channel::send(&channel, &Report::Changed(Ok(list)), &[]);
        });
    }
    Ok(())
}

fn changed(policy: &Policy, Change { add, delete }: Change) -> Result<Policy, PolicyError> {
    // To add nothing is no list.
    let (added, _) = policy.change(&Edit::Add(add))?;
    Ok(added.change(&Edit::Delete(delete))?.0)
}

/// Starts a thread, and returns once it runs: it has made all system calls of a thread's start.
fn start(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let (begin, begun) = mpsc::channel::<()>();
    let body = move || {
        drop(begin);
        body();
    };
    thread::Builder::new().name(name.to_owned()).spawn(body).context("thread")?;
    // Nothing comes but the end.
    let _ = begun.recv();
    Ok(())
}

fn fail(channel: &Channel, error: &anyhow::Error) {
    // If the supervisor is gone, the report is lost with it.
    let _ = channel::send(channel, &Report::Failed(format!("{error:#}")), &[]);
}

/// Tells the log.
fn say(what: &str) {
    // A log that is gone is no reason to end.
    let _ = io::stderr().write_all(format!("{PROGRAM}: {what}\n").as_bytes());
}
