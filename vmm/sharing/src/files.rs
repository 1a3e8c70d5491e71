//! The file systems of a device, made of what its specification says.

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use fuse::FileSystem;
use machine::shares::{Content, Inner, MountSpec, Source, View};
use overlay::Files;
use shares::{Budget, Caching, HostFs, OneFile, Options, OwnFiles, Place, Places, Router};

use crate::changes::Changes;
use crate::watch::Watched;

/// A folder in memory is as free to all as `/tmp`.
const FOLDER_MODE: u32 = 0o1777;

/// The needs of all file systems.
pub(crate) struct Maker<'a> {
    /// `/proc/self/fd`.
    pub(crate) own: OwnedFd,
    /// Descriptors for each of them.
    pub(crate) budget: Budget,
    /// Rules and events.
    pub(crate) watched: &'a Watched,
    /// Where folders of the host's are added whose changes the guest is to hear of; nothing if it cannot.
    pub(crate) changes: Option<&'a Changes>,
    /// The overlays that were made.
    pub(crate) overlays: RefCell<Vec<Arc<Files>>>,
}

/// The files of a mount, the name of the file if that is only one, and the same files if they are the host's own.
type Made = (Box<dyn FileSystem>, Option<CString>, Option<Arc<HostFs>>);

impl Maker<'_> {
    /// The file systems of a device as one.
    pub(crate) fn router(&self, mounts: Vec<MountSpec<OwnedFd>>) -> anyhow::Result<Router> {
        let mounts = mounts.into_iter().zip(0u64..).map(|(mount, number)| self.mount(mount, number));
        Ok(Router::new(mounts.collect::<anyhow::Result<_>>()?))
    }

    /// The files of one mount, whose number on its device this is.
    pub(crate) fn mount(
        &self,
        mount: MountSpec<OwnedFd>,
        number: u64,
    ) -> anyhow::Result<Box<dyn FileSystem>> {
        let MountSpec { content, inner, place: at, masks } = mount;
        let guard = self.watched.guard(masks)?;
        let is_own = !matches!(content, Content::Host { .. });
        let (files, only, host) = self.files(content)?;
        if let Some(name) = only {
            // Numbers of files that are not in the same file system, and must not seem to be one.
            let file = OneFile::new(files, name, number + 2);
            let file = file.map_err(refused).context("file")?;
            return Ok(guard.over(&at, Box::new(file)));
        }
        let (masks, paths) = (guard.masks.clone(), inner.iter().map(|inner| inner.path.clone()).collect());
        let files = guard.over(&at, Self::with_places(files, inner, is_own)?);
        match (self.changes, host) {
            (Some(changes), Some(host)) => changes.add(number, files, host, masks, paths),
            _ => Ok(files),
        }
    }

    fn with_places(
        files: Box<dyn FileSystem>,
        inner: Vec<Inner>,
        is_own: bool,
    ) -> anyhow::Result<Box<dyn FileSystem>> {
        if inner.is_empty() {
            return Ok(files);
        }
        let inner = inner.into_iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
        // A place is made in files of the guest's own only, never on the host.
        let places = Places::new(files, &inner, is_own).map_err(refused).context("places of mounts")?;
        Ok(Box::new(places))
    }

    /// The files of a mount.
    fn files(&self, content: Content<OwnedFd>) -> anyhow::Result<Made> {
        Ok(match content {
            Content::Memory { limit } => {
                let options = overlay::Options { limit, mode: FOLDER_MODE, uid: 0, gid: 0 };
                (
                    Box::new(Files::in_memory(options).map_err(refused).context("folder in memory")?),
                    None,
                    None,
                )
            }
            Content::Host { source, view } => {
                let (files, only) = self.host(source, view)?;
                let files = Arc::new(files);
                (Box::new(Arc::clone(&files)), only, Some(files))
            }
            Content::Overlay { source, limit, changes } => {
                let view = View { readonly: true, ..View::default() };
                let (below, only) = self.host(source, view)?;
                let below = Arc::new(below);
                let files = match changes {
                    Some(changes) => Files::over_kept(below, limit, changes),
                    None => Files::over(below, limit),
                };
                let files = Arc::new(files.map_err(refused).context("overlay")?);
                self.overlays.borrow_mut().push(Arc::clone(&files));
                (Box::new(files), only, None)
            }
        })
    }

    fn host(&self, source: Source<OwnedFd>, view: View) -> anyhow::Result<(HostFs, Option<CString>)> {
        let Source { directory, file } = source;
        let View { readonly, owner_uid, owner_gid, caching } = view;
        let caching = match caching {
            machine::shares::Caching::None => Caching::None,
            machine::shares::Caching::Auto => Caching::Auto,
            machine::shares::Caching::Always => Caching::Always,
        };
        let budget = self.budget;
        let options = Options { readonly, owner_uid, owner_gid, caching, budget, ..Options::default() };
        let own = OwnFiles::of(self.own.try_clone().context("descriptor")?);
        let files = HostFs::of(directory, own, options)?;
        match file {
            None => Ok((files, None)),
            Some(name) => {
                let name = CString::new(name).context("name of a file")?;
                Ok((files.only(name.clone())?, Some(name)))
            }
        }
    }
}

fn place(inner: Inner) -> anyhow::Result<Place> {
    let Inner { path, is_file } = inner;
    let path = path.split('/').map(|name| CString::new(name).context("place of a mount"));
    Ok(Place { path: path.collect::<anyhow::Result<_>>()?, is_file })
}

fn refused(errno: fuse::Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.number())
}
