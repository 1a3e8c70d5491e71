//! Mounts of a guest that runs: the wish to add one or to take one away, on its way to whoever serves them.
//!
//! Not here: that task, and the checks (`life::added`).

use policy::disks::Owner;
use policy::files::WantedMasks;
use policy::mounts::{Mount, WantedMount};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::MountConfig;
use crate::agent::error::{Error, Result};

/// Wishes that wait to be taken.
const WAITING: usize = 8;

/// A mount of a guest that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// The mount.
    pub mount: MountConfig,
    /// The reason why nothing of it can be reached any more.
    pub failure: Option<String>,
}

/// A wish, and the way for the answer.
#[derive(Debug)]
pub(crate) enum Call {
    /// Add a mount.
    Add { mount: Box<Mount>, answer: oneshot::Sender<Result<()>> },
    /// Take one away.
    Remove { guest_path: String, force: bool, answer: oneshot::Sender<Result<()>> },
    /// Tell of all.
    List { answer: oneshot::Sender<Result<Vec<MountInfo>>> },
}

/// The way to the task that serves mounts.
#[derive(Debug, Clone)]
pub(crate) struct Mounts(mpsc::Sender<Call>);

impl Mounts {
    /// The way, and its other end.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Call>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Adds a mount.
    pub(crate) async fn add(&self, mount: Mount) -> Result<()> {
        self.ask(|answer| Call::Add { mount: Box::new(mount), answer }).await
    }

    /// Takes one away; by force even if it is in use.
    pub(crate) async fn remove(&self, guest_path: String, force: bool) -> Result<()> {
        self.ask(|answer| Call::Remove { guest_path, force, answer }).await
    }

    /// All mounts, those from the start first.
    pub(crate) async fn list(&self) -> Result<Vec<MountInfo>> {
        self.ask(|answer| Call::List { answer }).await
    }

    /// The answer to a call; without one, the sandbox has ended.
    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<Result<T>>) -> Call) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.0.send(call(answer)).await.map_err(|_| Error::HangUp)?;
        answered.await.map_err(|_| Error::HangUp)?
    }
}

/// A mount on its way from one process to another. The receiver checks it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AskedMount {
    mount: MountConfig,
    hidden: Vec<String>,
    masked_readonly: Vec<String>,
    protect: bool,
}

impl From<&Mount> for AskedMount {
    fn from(mount: &Mount) -> Self {
        let WantedMasks { hidden, readonly, protect } = mount.masks.clone();
        Self { mount: MountConfig::new(mount), hidden, masked_readonly: readonly, protect }
    }
}

impl AskedMount {
    /// The mount, if it is one.
    pub(crate) fn mount(self) -> Result<Mount> {
        let Self { mount, hidden, masked_readonly, protect } = self;
        let wanted = WantedMount {
            guest_path: &mount.guest_path,
            kind: &mount.kind,
            host_path: mount.host_path.as_deref().unwrap_or_default(),
            readonly: mount.readonly,
            owner: Owner { uid: mount.uid, gid: mount.gid },
            caching: mount.cache.as_deref().unwrap_or_default(),
        };
        let refused = |why: String| Error::Refused(format!("invalid volume mount: {why}"));
        // A relative path would start at the owner's working directory.
        if mount.host_path.as_ref().is_some_and(|path| !path.is_empty() && !path.starts_with('/')) {
            return Err(refused("the path on the host is not absolute".to_owned()));
        }
        let checked = Mount::new(&wanted).map_err(|why| refused(why.to_string()))?;
        let masks = WantedMasks { hidden, readonly: masked_readonly, protect };
        checked.masked(&masks).map_err(|why| refused(why.to_string()))
    }
}

impl MountConfig {
    /// The part of a mount that is recorded and shown.
    pub(crate) fn new(mount: &Mount) -> Self {
        let Owner { uid, gid } = mount.owner();
        Self {
            guest_path: mount.guest_path.clone(),
            kind: mount.kind().to_owned(),
            host_path: mount.host_path().map(absolute),
            readonly: mount.is_readonly(),
            uid,
            gid,
            cache: mount.caching().map(|caching| caching.name().to_owned()),
            added: false,
        }
    }
}

/// The path from the root on. Without a working directory it stays relative.
pub(crate) fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_arrives_as_it_was_sent() {
        for text in [
            "/src:/work:host_fs,uid=7,cache=none,mask=.env*,mask-ro=/x,protect",
            "/src:/work:overlay",
            "/src:/work:ro",
            ":/work:memory",
        ] {
            let mount = policy::mounts::volume(text, "").unwrap();
            assert_eq!(AskedMount::from(&mount).mount().unwrap(), mount, "{text}");
        }
        let mount = policy::mounts::volume(":/work:memory", "").unwrap();
        let asked = AskedMount::from(&mount);
        let lie = |change: fn(&mut AskedMount)| {
            let mut lie = asked.clone();
            change(&mut lie);
            lie.mount().unwrap_err().to_string()
        };
        let error = lie(|lie| lie.mount.guest_path = "/proc/x".into());
        assert_eq!(error, "invalid volume mount: /proc is the kernel's own");
        assert!(lie(|lie| lie.hidden = vec!["a/../b".into()]).contains("matches nothing"));
        assert!(lie(|lie| lie.mount.kind = "nfs".into()).contains("unknown mount type"));
        assert!(lie(|lie| lie.mount.host_path = Some("src".into())).contains("not absolute"));
    }
}
