//! The mounts of a sandbox that the host serves: opened before anything else of it is made, and served by a process of
//! their own from the moment when the machine is made.
//!
//! Not here: the checks of a mount (`policy::mounts`), and how files are served (`matchlock-shares`).

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use guest_protocol::{AddedMount, ShareDevice, ShareMount};
use machine::BackEnd;
use machine::shares::{
    Caching, Content, Device, Inner, Masks, MountSpec, Shares as Process, Source, View, Watch,
};
use policy::disks::Disk;
use policy::files::WantedMasks;
use policy::mounts::{self, Content as Wanted, MAX_ADDED, Mount};
use policy::resources::Grant;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::life::error::{Error, Result};
use crate::life::host_paths;
use crate::records::home::VmPaths;
use crate::records::overlay::{Identity, Note};
use crate::{Home, records, sys};

/// Most queues of a device: of more, guests make no use.
const MAX_QUEUES: u8 = 4;

/// Most bytes that a sandbox keeps of files that stay with it, in the host's memory, and most of that memory: one part of so
/// many. All of its mounts share them.
const MAX_KEPT_MIB: u64 = 1024;
const KEPT_PART: u64 = 4;

/// Most bytes of contents that the overlays of a sandbox have, and most of the free disk that these are: one part of so many.
const MAX_CONTENTS: u64 = 64 << 30;
const ROOM_PART: u64 = 2;

/// A mount that is added to a guest that runs, whose files are open.
#[derive(Debug)]
pub(crate) struct AddedShare {
    /// As the process that serves it is told.
    pub(crate) spec: MountSpec<OwnedFd>,
    /// Nobody but the guest changes its files.
    pub(crate) exclusive: bool,
    /// As the guest's agent is told of it.
    pub(crate) mount: AddedMount,
    /// Whether the guest may change files of the host.
    pub(crate) is_writable: bool,
}

impl AddedShare {
    /// Opens the files of a mount, beside those that are `there`. `make`: its place is made if it is missing.
    pub(crate) fn attach(home: &Home, mount: &Mount, there: &[Mount], make: bool) -> Result<Self> {
        let parts = u64::try_from(MAX_ADDED).unwrap_or(u64::MAX);
        let opener = Opener { home, written: &written(there) };
        let Share { mount, spec, is_file } = Share::attach(&opener, mount, kept_bytes() / parts)?;
        let ShareMount { path, device, number: _, readonly, set_ids } = mount;
        let is_writable = !spec.content.leaves_host();
        let spec = spec.try_map(|directory| directory.try_clone()).map_err(Error::system("shared folder"))?;
        let mount = AddedMount { path, is_file, readonly, set_ids, make };
        Ok(Self { spec, exclusive: device == ShareDevice::Own, mount, is_writable })
    }
}

/// Mounts whose files are open.
#[derive(Debug)]
pub(crate) struct Shares(Vec<Share>);

/// A mount.
#[derive(Debug)]
struct Share {
    /// As the guest's agent is told of it.
    mount: ShareMount,
    /// As the process that serves it is told.
    spec: MountSpec<Arc<OwnedFd>>,
    is_file: bool,
}

impl Shares {
    /// Opens the files of all mounts.
    pub(crate) fn attach(home: &Home, mounts: &[Mount], disks: &[Disk]) -> Result<Self> {
        mounts::check(mounts, disks)?;
        let limit = limit(mounts);
        let opener = Opener { home, written: &written(mounts) };
        let shares = mounts.iter().map(|mount| Share::attach(&opener, mount, limit));
        let mut shares = Self(shares.collect::<Result<_>>()?);
        for inner in mounts {
            shares.make_place(inner)?;
        }
        for device in ShareDevice::ALL {
            shares.of(device).zip(0..).for_each(|(share, number)| share.mount.number = number);
        }
        Ok(shares)
    }

    /// Has the mount that another one is in, if there is one, make room for that.
    fn make_place(&mut self, inner: &Mount) -> Result<()> {
        let is_file = self.0.iter().any(|share| share.mount.path == inner.guest_path && share.is_file);
        let rest = |share: &Share| {
            let rest = inner.guest_path.strip_prefix(&share.mount.path)?;
            rest.strip_prefix('/').map(str::to_owned)
        };
        let around = self.0.iter_mut().filter_map(|share| Some((rest(share)?, share)));
        // The innermost: what is left of the path is the shortest.
        let Some((path, outer)) = around.min_by_key(|(rest, _)| rest.len()) else { return Ok(()) };
        if outer.is_file {
            let why = format!("what is mounted at {} is a file", outer.mount.path);
            return Err(Error::Share { share: inner.to_string(), why });
        }
        outer.spec.inner.push(Inner { path, is_file });
        Ok(())
    }

    /// Makes an empty directory for the changes of each overlay, and says beside it what the overlay is over. Returns each
    /// with how many bytes may be in it.
    fn make_changes(&self, paths: &VmPaths) -> Result<Vec<(OwnedFd, u64)>> {
        let overlays = self.0.iter().filter_map(|share| match &share.spec.content {
            Content::Overlay { source, .. } => Some((share, source)),
            Content::Memory { .. } | Content::Host { .. } => None,
        });
        let overlays: Vec<_> = overlays.collect();
        let changes = paths.changes();
        // A machine that is started once more begins anew.
        match fs::remove_dir_all(&changes) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(records::Error::io(&changes)(error).into());
            }
            _ if overlays.is_empty() => return Ok(Vec::new()),
            _ => {}
        }
        let make =
            |path: &Path| fs::DirBuilder::new().mode(0o700).create(path).map_err(records::Error::io(path));
        make(&changes)?;
        let room =
            rustix::fs::statvfs(&changes).map_err(|errno| records::Error::io(&changes)(errno.into()))?;
        let room = room.f_bavail.saturating_mul(room.f_frsize) / ROOM_PART;
        let each = room.min(MAX_CONTENTS) / u64::try_from(overlays.len()).unwrap_or(u64::MAX);
        let mut all = Vec::new();
        for (number, (share, over)) in overlays.into_iter().enumerate() {
            let (directory, note) = paths.overlay(number);
            make(&directory)?;
            share.note(over).map_err(records::Error::io(&note))?.write(&note)?;
            all.push((fs::File::open(&directory).map_err(records::Error::io(&directory))?.into(), each));
        }
        Ok(all)
    }

    fn of(&mut self, device: ShareDevice) -> impl Iterator<Item = &mut Share> {
        self.0.iter_mut().filter(move |share| share.mount.device == device)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the guest has to write data back before it ends.
    pub(crate) fn any_writable(&self) -> bool {
        self.0.iter().any(|share| !share.spec.content.leaves_host())
    }

    /// The mounts as the guest's agent is told of them.
    pub(crate) fn mounts(&self) -> Vec<ShareMount> {
        self.0.iter().map(|share| share.mount.clone()).collect()
    }

    /// Starts to serve the mounts to a machine with so much memory; returns what the machine has elsewhere for that.
    pub(crate) fn serve(
        &self,
        paths: &VmPaths,
        grant: Grant,
        watch: Watch,
        log: OwnedFd,
    ) -> Result<Option<(Process, Vec<BackEnd>)>> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut changes = self.make_changes(paths)?.into_iter();
        let request_queues = grant.vcpus.clamp(1, MAX_QUEUES).into();
        let mut devices = Vec::new();
        for device in ShareDevice::ALL {
            let shares = self.0.iter().filter(|share| share.mount.device == device);
            let mounts = shares.map(|share| {
                let mut spec = share.spec.clone();
                if let Content::Overlay { limit, changes: kept, .. } = &mut spec.content {
                    let of = changes.next();
                    *limit = of.as_ref().map_or(*limit, |of| of.1);
                    *kept = of.map(|of| Arc::new(of.0));
                }
                spec.try_map(|directory| directory.try_clone())
            });
            let mounts = mounts.collect::<io::Result<Vec<_>>>();
            let mounts = mounts.map_err(Error::system("shared folders"))?;
            if !mounts.is_empty() {
                let exclusive = device == ShareDevice::Own;
                devices.push(Device { tag: device.tag().to_owned(), request_queues, exclusive, mounts });
            }
        }
        let memory = u64::from(grant.memory_mib) << 20;
        Ok(Some(Process::start(devices, watch, memory, Some(log))?))
    }
}

/// Most bytes of each mount whose files stay with the sandbox.
fn limit(mounts: &[Mount]) -> u64 {
    let stays = |mount: &&Mount| !matches!(mount.content, Wanted::Host { .. });
    let count = u64::try_from(mounts.iter().filter(stays).count()).unwrap_or(u64::MAX);
    kept_bytes() / count.max(1)
}

/// Most bytes of all mounts from the start together whose files stay with the sandbox, and of all that are added.
fn kept_bytes() -> u64 {
    (sys::memory_mb() / KEPT_PART).min(MAX_KEPT_MIB) << 20
}

impl Share {
    /// The directory that the share is of, for those who take its changes over.
    fn note(&self, over: &Source<Arc<OwnedFd>>) -> io::Result<Note> {
        let Masks { hidden, readonly, protect } = self.spec.masks.clone();
        let directory = fs::read_link(format!("/proc/self/fd/{}", over.directory.as_raw_fd()))?;
        Ok(Note {
            guest_path: self.mount.path.clone(),
            directory: directory.into(),
            identity: Identity::of(&over.directory.try_clone()?.into())?,
            file: over.file.clone().map(OsString::from_vec),
            hidden,
            readonly,
            protect,
        })
    }

    /// Opens what is mounted; its place in a device is not known yet.
    fn attach(opener: &Opener<'_>, mount: &Mount, limit: u64) -> Result<Self> {
        let open = |path, readonly| opener.open(mount, path, readonly);
        let content = match &mount.content {
            Wanted::Memory => Content::Memory { limit },
            Wanted::Host { path, readonly, owner, caching } => {
                let caching = match caching {
                    mounts::Caching::None => Caching::None,
                    mounts::Caching::Auto => Caching::Auto,
                    mounts::Caching::Always => Caching::Always,
                };
                let (owner_uid, owner_gid) = (owner.uid, owner.gid);
                let view = View { readonly: *readonly, owner_uid, owner_gid, caching };
                Content::Host { source: open(path, *readonly)?, view }
            }
            // Without changes there is nothing to keep.
            Wanted::Overlay { path, readonly: true } => {
                Content::Host { source: open(path, true)?, view: View { readonly: true, ..View::default() } }
            }
            Wanted::Overlay { path, readonly: false } => {
                Content::Overlay { source: open(path, true)?, limit, changes: None }
            }
        };
        let is_file = match &content {
            Content::Memory { .. } => false,
            Content::Host { source, .. } | Content::Overlay { source, .. } => source.file.is_some(),
        };
        let device = match content {
            Content::Memory { .. } => ShareDevice::Own,
            Content::Host { .. } | Content::Overlay { .. } => ShareDevice::Shared,
        };
        let place = mount.guest_path.clone();
        let WantedMasks { hidden, readonly, protect } = mount.masks.clone();
        let masks = Masks { hidden, readonly, protect };
        let mount = ShareMount {
            path: place.clone(),
            device,
            number: 0,
            readonly: mount.is_readonly(),
            set_ids: !matches!(content, Content::Host { .. }),
        };
        Ok(Self { mount, spec: MountSpec { content, inner: Vec::new(), place, masks }, is_file })
    }
}

/// The folders of the host's that the guest with these mounts may write to.
fn written(mounts: &[Mount]) -> Vec<PathBuf> {
    let written = mounts.iter().filter_map(|mount| match &mount.content {
        Wanted::Host { path, readonly: false, .. } => fs::canonicalize(path).ok(),
        Wanted::Host { .. } | Wanted::Memory | Wanted::Overlay { .. } => None,
    });
    written.collect()
}

/// Opens what is shared.
struct Opener<'a> {
    home: &'a Home,
    /// Folders in which a guest may have made any link.
    written: &'a [PathBuf],
}

impl Opener<'_> {
    /// Opens a directory of the host, or that of a file, unless what is in it is ours.
    fn open(&self, mount: &Mount, path: &str, readonly: bool) -> Result<Source<Arc<OwnedFd>>> {
        let refused = |why: &str| Error::Share { share: mount.to_string(), why: why.to_owned() };
        let wrong = |why: io::Error| refused(&why.to_string());
        let led_out =
            "a link in a folder that the guest may write leads out of that folder; name the target itself";
        let path = host_paths::resolve(Path::new(path), self.written).map_err(wrong)?;
        let path = path.ok_or_else(|| refused(led_out))?;
        let kind = fs::metadata(&path).map_err(wrong)?.file_type();
        let (directory, file) = match (path.parent(), path.file_name()) {
            _ if kind.is_dir() => (&*path, None),
            (Some(parent), Some(name)) if kind.is_file() => (parent, Some(name.as_bytes().to_vec())),
            _ => return Err(refused("it is neither a directory nor a file")),
        };
        if directory == Path::new("/") {
            return Err(refused("the whole host is not shared"));
        }
        for own in self.home.own() {
            if path.starts_with(&own) {
                return Err(refused("it is matchlock's own"));
            }
            // A guest that writes there has the kernels and images of all sandboxes.
            if !readonly && own.starts_with(&path) {
                return Err(refused(
                    "matchlock's own files are in it; share it read-only, or a directory below it",
                ));
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The path has no link. If it has got one since, a guest has made it.
        let directory = rustix::fs::openat2(CWD, directory, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let directory = directory.map_err(|errno| wrong(errno.into()))?;
        Ok(Source { directory: Arc::new(directory), file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach_all(home: &Home, texts: &[&str]) -> Result<Shares> {
        let mounts: Vec<_> = texts.iter().map(|text| mounts::volume(text, "/workspace").unwrap()).collect();
        Shares::attach(home, &mounts, &[])
    }

    fn attach_as(home: &Home, path: &Path, kind: &str) -> Result<Shares> {
        attach_all(home, &[&format!("{}:/a:{kind}", path.display())])
    }

    #[test]
    fn what_is_no_file_or_ours_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let inside = home.cache().join("images");
        fs::create_dir_all(&inside).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        std::os::unix::fs::symlink(&inside, directory.path().join("link")).unwrap();
        fs::create_dir(directory.path().join("mine")).unwrap();
        for kind in ["ro", "host_fs", "overlay"] {
            for (name, why) in [
                ("no", "No such file or directory"),
                ("socket", "it is neither a directory nor a file"),
                ("link", "it is matchlock's own"),
                ("/", "the whole host is not shared"),
            ] {
                let error = attach_as(&home, &directory.path().join(name), kind).unwrap_err().to_string();
                assert!(error.starts_with("invalid volume mount \"/") && error.contains(why), "{error}");
            }
        }
        let shares = attach_as(&home, &directory.path().join("mine"), "ro").unwrap();
        let mount = ShareMount {
            path: "/a".into(),
            device: ShareDevice::Shared,
            number: 0,
            readonly: true,
            set_ids: false,
        };
        assert_eq!(shares.mounts(), [mount]);
        assert!(!shares.any_writable() && !shares.is_empty());
        // Around what is ours a guest may only read.
        attach_as(&home, directory.path(), "ro").unwrap();
        attach_as(&home, directory.path(), "overlay").unwrap();
        // Directories of our own need not be there yet.
        for home in [&home, &Home::at(&directory.path().join("new"))] {
            let error = attach_as(home, directory.path(), "host_fs").unwrap_err().to_string();
            assert!(error.contains("matchlock's own files are in it"), "{error}");
        }
        assert!(attach_as(&home, &directory.path().join("mine"), "host_fs").unwrap().any_writable());
    }

    #[test]
    fn no_guest_chooses_what_is_shared() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let at = |name: &str| directory.path().join(name).display().to_string();
        fs::create_dir(at("mine")).unwrap();
        fs::create_dir(at("secret")).unwrap();
        std::os::unix::fs::symlink("../secret", at("mine/data")).unwrap();
        let (data, mine) =
            (format!("{}:/d:ro", at("mine/data")), |kind: &str| format!("{}:/m:{kind}", at("mine")));
        let refused = attach_all(&home, &[&mine("host_fs"), &data]).unwrap_err().to_string();
        assert!(refused.contains("leads out of that folder"), "{refused}");
        // No guest makes links there.
        for kind in ["ro", "overlay"] {
            attach_all(&home, &[&mine(kind), &data]).unwrap();
        }
        let there = [mounts::volume(&mine("host_fs"), "").unwrap()];
        let added = |text: &str| AddedShare::attach(&home, &mounts::volume(text, "").unwrap(), &there, false);
        assert!(added(&data).unwrap_err().to_string().contains("leads out of that folder"));
        added(&format!("{}:/d:ro", at("secret"))).unwrap();
    }

    #[test]
    fn every_kind_has_its_device_and_room_for_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        fs::write(directory.path().join("file"), "").unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        let at = |rest: &str| format!("{}/{rest}", directory.path().display());
        let texts = [
            at("d:/w/a/b:host_fs"),
            ":/w:memory".to_owned(),
            at("d:/w/a:overlay"),
            at("file:/w/a/conf:ro"),
            at("file:/w/a/b/deep/conf:overlay"),
            at("d:/other:overlay,ro"),
            ":/w/a/b/cache:memory".to_owned(),
        ];
        let shares = attach_all(&home, &texts.each_ref().map(String::as_str)).unwrap();
        let told = shares.mounts();
        let told: Vec<_> =
            told.iter().map(|one| (&*one.path, one.device, one.number, one.readonly, one.set_ids)).collect();
        let (shared, own) = (ShareDevice::Shared, ShareDevice::Own);
        assert_eq!(
            told,
            [
                ("/w/a/b", shared, 0, false, false),
                ("/w", own, 0, false, true),
                ("/w/a", shared, 1, false, true),
                ("/w/a/conf", shared, 2, true, false),
                ("/w/a/b/deep/conf", shared, 3, false, true),
                ("/other", shared, 4, true, false),
                ("/w/a/b/cache", own, 1, false, true),
            ]
        );
        let inner = |number: usize| {
            let inner = shares.0[number].spec.inner.iter().map(|inner| (&*inner.path, inner.is_file));
            inner.collect::<Vec<_>>()
        };
        assert_eq!(inner(1), [("a", false)]);
        assert_eq!(inner(2), [("b", false), ("conf", true)]);
        assert_eq!(inner(0), [("deep/conf", true), ("cache", false)]);
        assert!([3, 4, 5, 6].into_iter().all(|number| inner(number).is_empty()));
        let limits: Vec<_> = shares.0.iter().map(|share| share.spec.content.limit()).collect();
        assert!(limits[1] > 0 && limits.iter().sum::<u64>() <= MAX_KEPT_MIB << 20, "{limits:?}");
        assert_eq!((limits[1], limits[2], limits[0], limits[5]), (limits[6], limits[4], 0, 0));

        let texts = [at("file:/w/conf:ro"), at("d:/w/conf/d:ro")];
        let error = attach_all(&home, &texts.each_ref().map(String::as_str)).unwrap_err().to_string();
        assert!(error.ends_with("/w/conf/d:ro\": what is mounted at /w/conf is a file"), "{error}");
    }
}
