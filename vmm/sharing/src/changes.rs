//! Changes of the host, on their way to programs of the guest that watch files: each is told to the guest's agent, which
//! repeats it, and the next one when the agent has answered.
//!
//! The guest is hostile: it can keep a change waiting for a while, after which nothing is told any more, and learns no name
//! that a mask hides from it. Changes wait in the host's kernel, which drops those that become too many. Not here: which
//! directories are watched, and what an event means (`shares`).

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use fuse::FileSystem;
use guest_protocol::frame::{self, Kind, Splitter};
use guest_protocol::{HostAct, HostChange, HostChangeReply, NewFile, Reply};
use policy::files::{Masks, Verdict};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use shares::{Act, Change, HostFs, Made, Reenacted, Stage, Watches};

/// How long the agent may take for a change.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Events are read at most this often, so that those of one file become few.
const GAP: Duration = Duration::from_millis(20);

/// The log is told of losses at most this often.
const LOSSES_EVERY: Duration = Duration::from_secs(60);

const BROKEN: &str = "the agent broke the protocol";

/// Bytes of the agent's answers that are read at once.
const ANSWERS_LEN: usize = 256;

/// Folders whose changes are told.
pub(crate) struct Changes {
    watches: Arc<Watches>,
    stage: Arc<Stage>,
    folders: RefCell<Vec<Folder>>,
}

/// A folder.
struct Folder {
    /// Its number on its device.
    share: u16,
    files: Arc<HostFs>,
    masks: Masks,
    /// Places of other mounts in it.
    places: Vec<String>,
}

impl Changes {
    /// No folder yet. The working directory of this process is `/proc/self/fd`.
    pub(crate) fn new() -> std::io::Result<Self> {
        let watches = Arc::new(Watches::new("")?);
        Ok(Self { watches, stage: Arc::default(), folders: RefCell::default() })
    }

    /// Adds the folder with this number on its device; `files` leads to the files of `host`.
    pub(crate) fn add(
        &self,
        share: u64,
        files: Box<dyn FileSystem>,
        host: Arc<HostFs>,
        masks: Masks,
        places: Vec<String>,
    ) -> anyhow::Result<Box<dyn FileSystem>> {
        let mut folders = self.folders.borrow_mut();
        let (number, share) = (folders.len(), u16::try_from(share)?);
        host.watch(number, &self.watches);
        host.watch_root();
        folders.push(Folder { share, files: Arc::clone(&host), masks, places });
        Ok(Box::new(Reenacted::new(number, files, host, Arc::clone(&self.stage))))
    }

    /// Begins to tell the agent at the other end of a stream, on a thread of its own.
    pub(crate) fn tell(self, stream: OwnedFd) -> anyhow::Result<()> {
        let Self { watches, stage, folders } = self;
        let telling = Telling { watches, stage, folders: folders.into_inner() };
        if telling.folders.is_empty() {
            return Ok(());
        }
        let tell = move || {
            if let Err(error) = telling.tell(stream) {
                crate::say(&format!(
                    "programs of the guest that watch files miss what the host does: {error:#}"
                ));
            }
            telling.watches.end();
        };
        thread::Builder::new().spawn(tell).map(drop).context("thread")
    }
}

struct Telling {
    watches: Arc<Watches>,
    stage: Arc<Stage>,
    folders: Vec<Folder>,
}

impl Telling {
    /// Tells until the agent is gone.
    fn tell(&self, stream: OwnedFd) -> anyhow::Result<()> {
        let mut agent = Agent { stream, input: Splitter::default() };
        match agent.answer()? {
            None => return Ok(()),
            Some(HostChangeReply::Thread(thread)) if thread != 0 => self.stage.admit(thread),
            Some(_) => bail!("{BROKEN}"),
        }
        let mut losses = Losses::default();
        while self.wait(&agent)? {
            let mut batch = self.watches.read();
            losses.note(batch.overflow, self.watches.refused());
            while let Some(folder) = batch.folder() {
                let Some(folder) = self.folders.get(folder) else { break };
                let change = folder.files.next_change(&mut batch);
                let Some(change) = change.and_then(|change| folder.seen(change)) else { continue };
                match self.repeat(&mut agent, folder, change)? {
                    // A change that cannot be repeated has been overtaken by another one.
                    Some(HostChangeReply::Done(_)) => {}
                    Some(HostChangeReply::Thread(_)) => bail!("{BROKEN}"),
                    None => return Ok(()),
                }
            }
            agent.pause()?;
        }
        Ok(())
    }

    /// Waits for events. Whether the agent is still there.
    fn wait(&self, agent: &Agent) -> anyhow::Result<bool> {
        let events = self.watches.readable();
        let mut fds = [
            PollFd::from_borrowed_fd(events, PollFlags::IN),
            PollFd::new(&agent.stream, PollFlags::IN | PollFlags::RDHUP),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        let said = fds[1].revents();
        let is_gone = said.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
        // The agent only answers.
        ensure!(is_gone || said.is_empty(), "{BROKEN}");
        Ok(!is_gone)
    }

    /// The agent's answer to a change, unless it is gone.
    fn repeat(
        &self,
        agent: &mut Agent,
        folder: &Folder,
        change: Change,
    ) -> anyhow::Result<Option<HostChangeReply>> {
        let message = folder.message(&change);
        self.stage.expect(change);
        let answer = agent.send(&message).and_then(|there| if there { agent.answer() } else { Ok(None) });
        self.stage.done();
        answer
    }
}

impl Folder {
    /// The change as the guest may know of it, if it may.
    fn seen(&self, change: Change) -> Option<Change> {
        let from = self.shows(&change.path, change.name.to_bytes());
        let Act::Moved { to_directory, to_path, to, made } = &change.act else {
            return from.then_some(change);
        };
        match (from, self.shows(to_path, to.to_bytes())) {
            (true, true) => Some(change),
            (true, false) => {
                let act = Act::Vanished { directory: *made == Made::Directory };
                Some(Change { act, ..change })
            }
            (false, true) => Some(Change {
                folder: change.folder,
                directory: *to_directory,
                path: to_path.clone(),
                name: to.clone(),
                act: Act::Appeared(*made),
            }),
            (false, false) => None,
        }
    }

    /// Whether the guest sees what the host has at a name: no mask hides it, and no other mount is there, nor on the way.
    fn shows(&self, directory: &[u8], name: &[u8]) -> bool {
        let path = if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
        let is_below = |above: &[u8], path: &[u8]| {
            path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let is_apart = |place: &String| {
            let place = place.as_bytes();
            let is_on_the_way = is_below(&path, place) || !directory.is_empty() && is_below(directory, place);
            !is_on_the_way && !is_below(place, &path)
        };
        self.places.iter().all(is_apart) && self.masks.look(&path).verdict != Verdict::Hidden
    }

    fn message(&self, change: &Change) -> HostChange {
        let what = match &change.act {
            Act::Appeared(made) => HostAct::Appeared(match made {
                Made::File => NewFile::File,
                Made::Directory => NewFile::Directory,
                Made::Link => NewFile::Link,
            }),
            Act::Vanished { directory } => HostAct::Vanished { directory: *directory },
            Act::Moved { to_path, to, .. } => {
                HostAct::Moved { to_directory: to_path.clone(), to: to.to_bytes().to_vec() }
            }
            Act::Written => HostAct::Written,
            Act::Changed => HostAct::Changed,
        };
        let (directory, name) = (change.path.clone(), change.name.to_bytes().to_vec());
        HostChange { share: self.share, directory, name, what }
    }
}

/// The guest's agent.
struct Agent {
    stream: OwnedFd,
    input: Splitter,
}

impl Agent {
    /// Whether the agent is there to take the message.
    fn send(&self, message: &HostChange) -> anyhow::Result<bool> {
        let (message, by) = (frame::encode(message)?, Instant::now() + ANSWER_LIMIT);
        let mut rest = &message[..];
        while !rest.is_empty() {
            match rustix::io::write(&self.stream, rest) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, by)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(errno) => bail!("the stream to the agent: {errno}"),
            }
        }
        Ok(true)
    }

    /// The agent's next words, unless it is gone.
    fn answer(&mut self) -> anyhow::Result<Option<HostChangeReply>> {
        let by = Instant::now() + ANSWER_LIMIT;
        let mut room = [0; ANSWERS_LEN];
        loop {
            if let Some((kind, payload)) = self.input.next_frame()? {
                ensure!(kind == Kind::Message, "{BROKEN}");
                let reply: Reply<HostChangeReply> = frame::decode(payload)?;
                // Bytes behind an answer would be taken for the answer to a change that is still to be told.
                ensure!(self.input.at_boundary(), "{BROKEN}");
                return reply.map(Some).map_err(|_| anyhow!("the agent refuses to hear of changes"));
            }
            self.wait(PollFlags::IN, by)?;
            match rustix::io::read(&self.stream, &mut room) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
                Ok(count) => self.input.push(room.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => bail!("the stream to the agent: {errno}"),
            }
        }
    }

    fn wait(&self, events: PollFlags, by: Instant) -> anyhow::Result<()> {
        ensure!(process::wait_for(&self.stream, events, Some(by))?, "the agent takes too long");
        Ok(())
    }

    /// Lets events come together, unless the agent is gone.
    fn pause(&self) -> anyhow::Result<()> {
        process::wait_for(&self.stream, PollFlags::RDHUP, Some(Instant::now() + GAP))?;
        Ok(())
    }
}

/// Changes that were not told.
#[derive(Default)]
struct Losses {
    /// How often the host's kernel dropped events.
    overflows: u64,
    /// Directories that could not be watched.
    refused: u64,
    said: Option<Instant>,
}

impl Losses {
    fn note(&mut self, overflow: bool, refused: u64) {
        self.overflows += u64::from(overflow);
        self.refused += refused;
        let any = self.overflows > 0 || self.refused > 0;
        if any && self.said.is_none_or(|said| said.elapsed() >= LOSSES_EVERY) {
            let Self { overflows, refused, .. } = self;
            crate::say(&format!(
                "programs of the guest that watch files missed changes: too many at once {overflows} times, and \
                 {refused} directories could not be watched (fs.inotify.max_user_watches)"
            ));
            *self = Self { said: Some(Instant::now()), ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use policy::files::WantedMasks;
    use shares::Options;

    use super::*;

    #[test]
    fn what_a_guest_does_not_see_is_not_told() {
        let directory = tempfile::tempdir().unwrap();
        let files = Arc::new(HostFs::new(directory.path(), Options::default()).unwrap());
        let wanted = WantedMasks { hidden: vec![".env*".into(), "/a/secret".into()], ..Default::default() };
        let places = vec!["x/y/place".to_owned()];
        let folder = Folder { share: 0, files, masks: Masks::new(&wanted).unwrap(), places };
        for (directory, name, shown) in [
            ("", "a", true),
            ("a", "secret", false),
            ("a/secret/b", "c", false),
            ("b", "secret", true),
            ("b/c", ".ENV.local", false),
            // On the way to a place, at the place, and below; and directories with nodes of their own.
            ("", "x", false),
            ("", "xx", true),
            ("x", "z", false),
            ("x/y", "place", false),
            ("x/y/place", "z", false),
            ("x/z", "place", true),
        ] {
            assert_eq!(folder.shows(directory.as_bytes(), name.as_bytes()), shown, "{directory}/{name}");
        }
    }
}
