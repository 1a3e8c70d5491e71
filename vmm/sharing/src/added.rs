//! A mount that is added to a guest that runs: its kernel's requests come over a stream, on which the guest's agent carries
//! what it reads from `/dev/fuse`.
//!
//! Decoder, files, rules and walls are those of a device. A few threads take turns: one waits for the next request, the
//! others serve those that came before, so that one which takes long keeps only one thread, and what waits is in the
//! guest's memory. The stream is the guest's: a message whose length cannot be ends this process, and with it the mount.
//!
//! Not here: the host's changes, which programs that watch files in such a mount are not told.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, bail};
use confinement::User;
use fuse::{Coherence, FileSystem, MAX_REPLY_LEN, MAX_REQUEST_LEN, Scratch, Session};
use guest_protocol::messages::{MOST_REPLY, MOST_REQUEST, Messages};
use machine::descriptors::Incoming;
use machine::shares::{Later, MountSpec, SharesReport};
use process::Channel;
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use crate::confine::{self, Inside, Memory};
use crate::files::Maker;
use crate::watch::{self, Watched};
use crate::{BROKEN, apart_one, budget, fail};

const _: () =
    assert!(MOST_REQUEST == MAX_REQUEST_LEN && MOST_REPLY == MAX_REPLY_LEN, "the agent has other limits");

/// Threads that serve.
const THREADS: usize = 4;

/// A mount that is still without its files.
pub(crate) struct Planned {
    pub(crate) coherence: Coherence,
    pub(crate) mount: MountSpec<OwnedFd>,
}

/// Serves the mount until the supervisor hangs up, or the guest is done with it.
pub(crate) fn serve(
    channel: &Arc<Channel>,
    user: Option<&User>,
    planned: Planned,
    watched: &Watched,
) -> anyhow::Result<()> {
    let Planned { coherence, mount } = planned;
    let mut shared = Vec::new();
    let kept = mount.content.limit();
    let mount = apart_one(mount, &mut shared)?;
    let inside = confine::walls(shared, user, Memory { mapped: 0, kept })?;
    let session = Session::new(files(inside, mount, watched)?, coherence);
    confine::close_the_last_door()?;
    channel.send(&SharesReport::Serving, &[])?;
    if let Some(events) = watched.events() {
        watch::tell(events, channel)?;
    }
    let mut session = Some(session);
    while let Some((later, received)) = channel.recv()? {
        match (later, watched.events(), session.take()) {
            (Later::Guest(stream), _, Some(session)) => {
                let stream = Incoming::new(received).take(stream)?;
                rustix::io::ioctl_fionbio(&stream, false)?;
                Guest::new(stream, session).start(channel)?;
            }
            (Later::Mark(mark), Some(events), kept) => {
                events.mark(mark);
                session = kept;
            }
            _ => bail!(BROKEN),
        }
    }
    Ok(())
}

fn files(inside: Inside, mount: MountSpec<usize>, watched: &Watched) -> anyhow::Result<Arc<dyn FileSystem>> {
    let Inside { shared, own } = inside;
    let budget = budget(shared.len())?;
    let maker = Maker { own, budget, watched, changes: None, overlays: RefCell::default() };
    let mut shared: Vec<_> = shared.into_iter().map(Some).collect();
    let mount = mount.try_map(|number| {
        let directory = shared.get_mut(number).and_then(Option::take);
        directory.context("a directory is missing")
    })?;
    Ok(maker.mount(mount, 0)?.into())
}

/// The guest's kernel, behind its stream.
struct Guest {
    stream: OwnedFd,
    session: Session<Arc<dyn FileSystem>>,
    /// Held by the thread that waits for the next request.
    requests: Mutex<Messages>,
    /// Held by the thread that sends a reply.
    replying: Mutex<()>,
}

impl Guest {
    fn new(stream: OwnedFd, session: Session<Arc<dyn FileSystem>>) -> Arc<Self> {
        let (requests, replying) = (Mutex::new(Messages::requests()), Mutex::new(()));
        Arc::new(Self { stream, session, requests, replying })
    }

    /// Starts the threads. The first that comes to an end ends this process.
    fn start(self: &Arc<Self>, channel: &Arc<Channel>) -> anyhow::Result<()> {
        for number in 0..THREADS {
            let (guest, channel) = (Arc::clone(self), Arc::clone(channel));
            let serve = move || match guest.serve() {
                Ok(()) => std::process::exit(0),
                Err(error) => {
                    fail(&channel, &error);
                    std::process::exit(1);
                }
            };
            thread::Builder::new().name(format!("guest-{number}")).spawn(serve).context("thread")?;
        }
        Ok(())
    }

    /// Serves requests until the guest is done.
    fn serve(&self) -> anyhow::Result<()> {
        let (mut scratch, mut request, mut reply) = (Scratch::default(), Vec::new(), vec![0; MAX_REPLY_LEN]);
        while self.next(&mut request)? {
            let asked = [VolatileSlice::from(&mut request[..])];
            let len = self.session.serve(&mut scratch, &asked, &[VolatileSlice::from(&mut reply[..])]);
            if !self.reply(reply.get(..len).unwrap_or_default())? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits for the next request. Whether there is one.
    fn next(&self, request: &mut Vec<u8>) -> anyhow::Result<bool> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(next) = requests.next_message().context("the guest broke the protocol")? {
                request.clear();
                request.extend_from_slice(next);
                return Ok(true);
            }
            match rustix::io::read(&self.stream, requests.room()) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(false),
                Ok(count) => requests.received(count),
                Err(Errno::INTR) => {}
                Err(errno) => bail!("the stream to the guest: {errno}"),
            }
        }
    }

    /// Sends a reply, if there is one. Whether the guest is still there.
    fn reply(&self, mut rest: &[u8]) -> anyhow::Result<bool> {
        let _replying = self.replying.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            match rustix::io::write(&self.stream, rest) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(errno) => bail!("the stream to the guest: {errno}"),
            }
        }
        Ok(true)
    }
}
