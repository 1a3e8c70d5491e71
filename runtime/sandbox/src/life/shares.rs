//! The shared directories of a sandbox: opened before anything else of it is made, and served by a process of their own
//! from the moment when the machine is made.
//!
//! Not here: the checks of a mount (`policy::mounts`), and how files are served (`matchlock-shares`).

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use guest_protocol::{SHARES_TAG, ShareMount};
use machine::BackEnd;
use machine::shares::{Device, Shares as Process, View};
use policy::disks::{Disk, Owner};
use policy::mounts::{Content, Mount as Wanted};
use rustix::fs::{Mode, OFlags};

use crate::Home;
use crate::life::error::{Error, Result};

/// Most queues of the device: of more, guests make no use.
const MAX_QUEUES: u8 = 4;

/// A directory of the host and its place in the guest.
#[derive(Debug)]
struct Share {
    host_path: String,
    guest_path: String,
    readonly: bool,
    owner: Owner,
    /// The mount as it was asked for, for people.
    text: String,
}

/// Directories that are open.
#[derive(Debug)]
pub(crate) struct Shares(Vec<(Share, OwnedFd)>);

impl Shares {
    /// Opens all directories, as the user they belong to.
    pub(crate) fn attach(home: &Home, mounts: &[Wanted], disks: &[Disk]) -> Result<Self> {
        policy::mounts::check(mounts, disks)?;
        let attach = |mount: &Wanted| {
            let refused = |why: &str| Error::Share { share: mount.to_string(), why: why.to_owned() };
            let Content::Host { path, readonly, owner } = &mount.content else {
                return Err(refused(&format!("{} is not built yet; host_fs is", mount.kind())));
            };
            let inside = |other: &Wanted| {
                let rest = mount.guest_path.strip_prefix(other.guest_path.as_str());
                rest.is_some_and(|rest| rest.starts_with('/'))
            };
            // The inner one's place would be made on the host.
            if let Some(outer) = mounts.iter().find(|other| inside(other)) {
                return Err(refused(&format!("a mount in that at {} is not built yet", outer.guest_path)));
            }
            let share = Share {
                host_path: path.clone(),
                guest_path: mount.guest_path.clone(),
                readonly: *readonly,
                owner: *owner,
                text: mount.to_string(),
            };
            let directory = home.as_user(|| open(home, &share))?;
            Ok((share, directory))
        };
        Ok(Self(mounts.iter().map(attach).collect::<Result<_>>()?))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the guest has to write data back before it ends.
    pub(crate) fn any_writable(&self) -> bool {
        self.0.iter().any(|(share, _)| !share.readonly)
    }

    /// The shares as mounts of the guest, in the order in which they are served.
    pub(crate) fn mounts(&self) -> Vec<ShareMount> {
        let mount =
            |(share, _): &(Share, _)| ShareMount { path: share.guest_path.clone(), readonly: share.readonly };
        self.0.iter().map(mount).collect()
    }

    /// Starts to serve the shares to a machine with so much memory; returns what the machine has elsewhere for that.
    pub(crate) fn serve(
        &self,
        memory_mib: u32,
        vcpus: u8,
        log: OwnedFd,
    ) -> Result<Option<(Process, Vec<BackEnd>)>> {
        if self.is_empty() {
            return Ok(None);
        }
        let mount = |(share, directory): &(Share, OwnedFd)| {
            let view =
                View { readonly: share.readonly, owner_uid: share.owner.uid, owner_gid: share.owner.gid };
            Ok((directory.try_clone()?, view))
        };
        let mounts = self.0.iter().map(mount).collect::<std::io::Result<_>>();
        let mounts = mounts.map_err(Error::system("shared folders"))?;
        let request_queues = vcpus.clamp(1, MAX_QUEUES).into();
        let device = Device { tag: SHARES_TAG.to_owned(), request_queues, mounts };
        let memory = u64::from(memory_mib) << 20;
        Ok(Some(Process::start(vec![device], memory, Some(log))?))
    }
}

/// Opens a share's directory, unless what is in it is ours.
fn open(home: &Home, share: &Share) -> Result<OwnedFd> {
    let wrong = |why: std::io::Error| Error::Share { share: share.text.clone(), why: why.to_string() };
    let ours = |what: &str| Error::Share { share: share.text.clone(), why: what.to_owned() };
    let path = fs::canonicalize(&share.host_path).map_err(wrong)?;
    if path == Path::new("/") {
        return Err(ours("the whole host is not shared"));
    }
    for own in [home.state(), home.cache()].into_iter().filter_map(|own| fs::canonicalize(own).ok()) {
        if path.starts_with(&own) {
            return Err(ours("it is matchlock's own"));
        }
        // A guest that writes there has the kernels and images of all sandboxes.
        if !share.readonly && own.starts_with(&path) {
            return Err(ours("matchlock's own files are in it; share it read-only, or a directory below it"));
        }
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| wrong(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(home: &Home, path: &Path) -> Result<Shares> {
        attach_as(home, path, "ro")
    }

    fn attach_as(home: &Home, path: &Path, kind: &str) -> Result<Shares> {
        let mount = policy::mounts::volume(&format!("{}:/a:{kind}", path.display()), "").unwrap();
        Shares::attach(home, &[mount], &[])
    }

    #[test]
    fn what_is_no_directory_or_ours_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let inside = home.cache().join("images");
        fs::create_dir_all(&inside).unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(&inside, directory.path().join("link")).unwrap();
        fs::create_dir(directory.path().join("mine")).unwrap();
        for (name, why) in [
            ("no", "No such file or directory"),
            ("file", "Not a directory"),
            ("link", "it is matchlock's own"),
            ("/", "the whole host is not shared"),
        ] {
            let error = attach(&home, &directory.path().join(name)).unwrap_err().to_string();
            assert!(error.starts_with("invalid volume mount \"/") && error.contains(why), "{error}");
        }
        let shares = attach(&home, &directory.path().join("mine")).unwrap();
        assert_eq!(shares.mounts(), [ShareMount { path: "/a".into(), readonly: true }]);
        assert!(!shares.any_writable() && !shares.is_empty());
        // Around what is ours a guest may only read.
        attach(&home, directory.path()).unwrap();
        let error = attach_as(&home, directory.path(), "host_fs").unwrap_err().to_string();
        assert!(error.contains("matchlock's own files are in it"), "{error}");
        assert!(attach_as(&home, &directory.path().join("mine"), "host_fs").unwrap().any_writable());
    }

    #[test]
    fn what_is_not_built_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let inner = format!("{}:/a/b:ro", directory.path().display());
        for (texts, why) in [
            (&[":/a:memory"][..], "\":/a:memory\": memory is not built yet"),
            (&["/x:/a"], "\"/x:/a:overlay\": overlay is not built yet"),
            (&[&inner, "/x:/a:ro"], "a mount in that at /a is not built yet"),
        ] {
            let mounts: Vec<_> = texts.iter().map(|text| policy::mounts::volume(text, "").unwrap()).collect();
            let error = Shares::attach(&home, &mounts, &[]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
