//! The folders that a guest has beside its image's, and their places.
//!
//! ```text
//! HOST:GUEST[:OPTIONS]                 OPTIONS = overlay, host_fs, memory; ro; uid=N, gid=N, owner=UID:GID;
//!                                      cache=none|auto|always; mask=GLOB, mask-ro=GLOB, protect
//! type=TYPE,source=HOST,target=GUEST[,OPTIONS]
//! ```
//!
//! The first form ([`volume`]) is read from its end, so that a path of the host may have colons; the second one
//! ([`mount()`]) names its parts, so that a path has no commas. A front end with words of its own fills a [`WantedMount`].
//! Not here: the folders themselves.

use std::fmt;

use crate::disks::{self, Disk, Owner};
use crate::files::{MaskError, Masks, WantedMasks};

/// The workspace of a guest with mounts unless the user says otherwise.
pub const DEFAULT_WORKSPACE: &str = "/workspace";

/// Most mounts of a sandbox.
pub const MAX_MOUNTS: usize = 32;

/// Most mounts that are added to a sandbox while it runs, and are there at the same time.
pub const MAX_ADDED: usize = 8;

/// A folder of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The folder's place: absolute, without `.`, `..` and needless slashes.
    pub guest_path: String,
    /// The files in the folder.
    pub content: Content,
    /// Names in the folder that the guest does not see, or does not change.
    pub masks: WantedMasks,
}

/// The files in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// None at first; those that the guest makes end with it.
    Memory,
    /// A directory or file of the host's, and what the guest does there is done on the host.
    Host {
        /// The path on the host; not empty.
        path: String,
        /// Whether the guest may only read.
        readonly: bool,
        /// The owner that the guest sees of files to which it gave no other; `None` is the host's.
        owner: Owner,
        /// When the guest sees what the host changes.
        caching: Caching,
    },
    /// A directory or file of the host's; the guest's changes stay with the guest, and end with it.
    Overlay {
        /// The path on the host; not empty.
        path: String,
        /// Whether the guest may only read.
        readonly: bool,
    },
}

/// The parts of the host's files that a guest keeps, and with them a promise of when it sees what the host changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Caching {
    /// Nothing: it sees everything at once.
    None,
    /// Contents until the next open of a file that has changed; names and attributes for a second.
    #[default]
    Auto,
    /// Everything, for an hour: nobody else changes the files.
    Always,
}

impl Caching {
    const ALL: [Self; 3] = [Self::None, Self::Auto, Self::Always];

    /// The name by which a user asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Auto => "auto",
            Self::Always => "always",
        }
    }

    /// The promise of this name.
    fn named(name: &str) -> Result<Self, Wrong> {
        let found = Self::ALL.into_iter().find(|caching| caching.name() == name);
        found.ok_or_else(|| Wrong::Caching(name.to_owned()))
    }
}

/// A requested mount, in a front end's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WantedMount<'a> {
    /// The place in the guest.
    pub guest_path: &'a str,
    /// `memory`, `host_fs` (also called `real_fs`) or `overlay`; empty = `memory`.
    pub kind: &'a str,
    /// The path on the host; empty = none.
    pub host_path: &'a str,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// The owner of files to which the guest gave no other.
    pub owner: Owner,
    /// `none`, `auto` or `always`; empty = not said.
    pub caching: &'a str,
}

/// A mount that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid volume mount {mount:?}: {why}")]
pub struct MountError {
    /// The mount, as it was given.
    pub mount: String,
    /// The fault.
    pub why: Wrong,
}

/// The fault of a mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The text is not `HOST:GUEST[:OPTIONS]`.
    #[error("expected HOST:GUEST or HOST:GUEST:OPTIONS")]
    Shape,
    /// The text does not say what kind of mount it means.
    #[error("type= is missing: memory, host_fs or overlay")]
    NoKind,
    /// The text does not say where the mount is to be.
    #[error("target= is missing")]
    NoTarget,
    /// Nothing can be mounted at the path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// There is no such kind of mount.
    #[error("unknown mount type {0:?}; there are memory, host_fs, overlay")]
    Kind(String),
    /// The path on the host is missing.
    #[error("no path of the host is named")]
    NoSource,
    /// Memory has no path on the host.
    #[error("a memory mount has no path of the host")]
    Source,
    /// Memory has nothing to read until it is written to.
    #[error("a memory mount cannot be read-only")]
    ReadOnlyMemory,
    /// Files of the mount are the guest's own, so that there is no owner to choose.
    #[error("owner_uid/owner_gid are only supported for host_fs mounts")]
    Owner,
    /// No promise of caching has this name.
    #[error("unknown cache mode {0:?}; there are none, auto, always")]
    Caching(String),
    /// The mount is not of files that the host and the guest change together.
    #[error("cache= is only supported for host_fs mounts")]
    NotCaching,
    /// The option is unknown.
    #[error("unknown option {0:?}; there are {OPTIONS}")]
    UnknownOption(String),
    /// The text is no user or group id.
    #[error("{0:?} is no id: a number from 0 to 4294967294")]
    Id(String),
    /// A mask is none.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The option was given before, or one that says the same.
    #[error("option {0:?} comes twice")]
    Twice(String),
    /// Another mount is there.
    #[error("something else is mounted at {0}")]
    Taken(String),
    /// The place of a disk is below the mount's.
    #[error("the disk at {0} would be in it")]
    HoldsDisk(String),
    /// The place of another mount is below the mount's.
    #[error("what is mounted at {0} would be hidden")]
    HoldsMount(String),
    /// As many were added as there can be.
    #[error("it is one too many: at most {MAX_ADDED} mounts are added to a sandbox")]
    TooManyAdded,
    /// There are as many as there can be.
    #[error("it is one too many: a sandbox has at most {MAX_MOUNTS} mounts")]
    TooMany,
}

/// The options of both forms, for people.
const OPTIONS: &str = "host_fs, overlay, memory, ro, readonly, uid=N, gid=N, owner=UID:GID, cache=MODE, \
                       mask=GLOB, mask-ro=GLOB, protect";

/// The reason why nothing can be mounted at a path of the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path does not begin with a slash.
    #[error("guest path must be absolute: {0:?}")]
    Relative(String),
    /// The path is not `^/[a-zA-Z0-9/_.-]+$`, is too long, or has a `.` or `..`.
    #[error("invalid guest mount path {0:?}")]
    Shape(String),
    /// The directory is the kernel's.
    #[error("{0} is the kernel's own")]
    Reserved(String),
}

impl Mount {
    /// Checks the parts of a mount.
    pub fn new(wanted: &WantedMount<'_>) -> Result<Self, Wrong> {
        let guest_path = place(wanted.guest_path)?;
        let (path, readonly) = (wanted.host_path.to_owned(), wanted.readonly);
        let caching = Some(wanted.caching).filter(|name| !name.is_empty()).map(Caching::named).transpose()?;
        let content = match wanted.kind {
            "" | "memory" if !path.is_empty() => return Err(Wrong::Source),
            "" | "memory" if readonly => return Err(Wrong::ReadOnlyMemory),
            "" | "memory" => Content::Memory,
            "host_fs" | "real_fs" => {
                let caching = caching.unwrap_or_default();
                Content::Host { path, readonly, owner: wanted.owner, caching }
            }
            "overlay" => Content::Overlay { path, readonly },
            kind => return Err(Wrong::Kind(kind.to_owned())),
        };
        let mount = Self { guest_path, content, masks: WantedMasks::default() };
        if mount.owner() != wanted.owner {
            return Err(Wrong::Owner);
        }
        if caching.is_some() && mount.caching().is_none() {
            return Err(Wrong::NotCaching);
        }
        if mount.host_path() == Some("") {
            return Err(Wrong::NoSource);
        }
        Ok(mount)
    }

    /// The mount with these masks besides its own.
    pub fn masked(mut self, masks: &WantedMasks) -> Result<Self, MaskError> {
        self.masks.hidden.extend_from_slice(&masks.hidden);
        self.masks.readonly.extend_from_slice(&masks.readonly);
        self.masks.protect |= masks.protect;
        Masks::new(&self.masks)?;
        Ok(self)
    }

    /// The name of the mount's kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.content {
            Content::Memory => "memory",
            Content::Host { .. } => "host_fs",
            Content::Overlay { .. } => "overlay",
        }
    }

    /// The path on the host.
    #[must_use]
    pub fn host_path(&self) -> Option<&str> {
        match &self.content {
            Content::Memory => None,
            Content::Host { path, .. } | Content::Overlay { path, .. } => Some(path),
        }
    }

    /// Whether the guest may only read.
    #[must_use]
    pub fn is_readonly(&self) -> bool {
        match self.content {
            Content::Memory => false,
            Content::Host { readonly, .. } | Content::Overlay { readonly, .. } => readonly,
        }
    }

    /// The owner that the guest sees of files to which it gave no other.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match self.content {
            Content::Host { owner, .. } => owner,
            Content::Memory | Content::Overlay { .. } => Owner::default(),
        }
    }

    /// When the guest sees what the host changes, where that is the user's to choose.
    #[must_use]
    pub fn caching(&self) -> Option<Caching> {
        match self.content {
            Content::Host { caching, .. } => Some(caching),
            Content::Memory | Content::Overlay { .. } => None,
        }
    }
}

/// The form that [`volume`] reads.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.content {
            Content::Host { readonly: true, .. } => "ro",
            Content::Overlay { readonly: true, .. } => "overlay,ro",
            _ => self.kind(),
        };
        write!(f, "{}:{}:{kind}", self.host_path().unwrap_or_default(), self.guest_path)?;
        let ids = [("uid", self.owner().uid), ("gid", self.owner().gid)];
        ids.into_iter()
            .filter_map(|(name, id)| Some((name, id?)))
            .try_for_each(|(name, id)| write!(f, ",{name}={id}"))?;
        if let Some(caching) = self.caching().filter(|caching| *caching != Caching::default()) {
            write!(f, ",cache={}", caching.name())?;
        }
        let WantedMasks { hidden, readonly, protect } = &self.masks;
        hidden.iter().try_for_each(|glob| write!(f, ",mask={glob}"))?;
        readonly.iter().try_for_each(|glob| write!(f, ",mask-ro={glob}"))?;
        if *protect { f.write_str(",protect") } else { Ok(()) }
    }
}

/// The directory that programs start in where neither image nor request names another: the wanted one, or
/// [`DEFAULT_WORKSPACE`] where there are mounts.
pub fn workspace(wanted: &str, has_mounts: bool) -> Result<Option<String>, PathError> {
    match wanted {
        "" if !has_mounts => Ok(None),
        "" => Ok(Some(DEFAULT_WORKSPACE.to_owned())),
        path => place(path).map(Some),
    }
}

/// Parses `HOST:GUEST[:OPTIONS]`. `GUEST` may be relative to the workspace; without options the mount is an overlay.
pub fn volume(text: &str, workspace: &str) -> Result<Mount, MountError> {
    parse_volume(text, workspace).map_err(|why| MountError { mount: text.to_owned(), why })
}

/// Parses `type=TYPE,source=HOST,target=GUEST[,OPTIONS]`, in any order. `GUEST` may be relative to the workspace.
pub fn mount(text: &str, workspace: &str) -> Result<Mount, MountError> {
    parse_mount(text, workspace).map_err(|why| MountError { mount: text.to_owned(), why })
}

/// Checks that mounts and disks go together in one guest. A mount may be in another one or in a disk, but no disk in a
/// mount.
pub fn check(mounts: &[Mount], disks: &[Disk]) -> Result<(), MountError> {
    let wrong = |mount: &Mount, why| Err(MountError { mount: mount.to_string(), why });
    if let Some(mount) = mounts.get(MAX_MOUNTS) {
        return wrong(mount, Wrong::TooMany);
    }
    for (index, mount) in mounts.iter().enumerate() {
        let place = &mount.guest_path;
        let others = mounts.iter().take(index).map(|other| &other.guest_path);
        let mut disks = disks.iter().map(|disk| &disk.guest_path);
        if others.chain(disks.clone()).any(|other| other == place) {
            return wrong(mount, Wrong::Taken(place.clone()));
        }
        if let Some(disk) = disks.find(|disk| is_within(disk, place)) {
            return wrong(mount, Wrong::HoldsDisk(disk.clone()));
        }
    }
    Ok(())
}

/// Checks that a mount can be added to a guest that runs with these mounts, of which so many were added, and disks. It may be
/// in another one, but hides none.
pub fn check_added(mounts: &[Mount], added: usize, disks: &[Disk], new: &Mount) -> Result<(), MountError> {
    let wrong = |why| Err(MountError { mount: new.to_string(), why });
    if added >= MAX_ADDED {
        return wrong(Wrong::TooManyAdded);
    }
    let place = &new.guest_path;
    let mut others = mounts.iter().map(|mount| &mount.guest_path);
    let mut disks = disks.iter().map(|disk| &disk.guest_path);
    if others.clone().chain(disks.clone()).any(|other| other == place) {
        return wrong(Wrong::Taken(place.clone()));
    }
    if let Some(disk) = disks.find(|disk| is_within(disk, place)) {
        return wrong(Wrong::HoldsDisk(disk.clone()));
    }
    match others.find(|other| is_within(other, place)) {
        Some(other) => wrong(Wrong::HoldsMount(other.clone())),
        None => Ok(()),
    }
}

/// Whether `path` is `directory` or below it.
#[must_use]
pub fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn parse_volume(text: &str, workspace: &str) -> Result<Mount, Wrong> {
    let (host_path, guest_path, options) = match text.rsplit_once(":/") {
        Some((host_path, rest)) => {
            let (guest_path, options) = apart(rest);
            (host_path, format!("/{guest_path}"), options)
        }
        None => {
            let (host_path, rest) = text.split_once(':').ok_or(Wrong::Shape)?;
            let (guest_path, options) = apart(rest);
            if guest_path.is_empty() {
                return Err(Wrong::Shape);
            }
            (host_path, within(workspace, guest_path), options)
        }
    };
    let mut read = Options::default();
    options.into_iter().flat_map(|options| options.split(',')).try_for_each(|option| read.take(option))?;
    // A word on access alone means the host's own files.
    let bare = if read.readonly && read.kind.is_none() { "host_fs" } else { "overlay" };
    read.mount(&guest_path, host_path, bare)
}

/// Splits `GUEST[:OPTIONS]`.
fn apart(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(path, options)| (path, Some(options)))
}

fn parse_mount(text: &str, workspace: &str) -> Result<Mount, Wrong> {
    let (mut read, mut source, mut target) = (Options::default(), None, None);
    for part in text.split(',') {
        let twice = match part.split_once('=') {
            Some(("type", kind)) => read.kind.replace(kind).is_some(),
            Some(("source" | "src", path)) => source.replace(path).is_some(),
            Some(("target" | "destination" | "dst", path)) => target.replace(path).is_some(),
            // The kind has a name of its own in this form.
            None if ["host_fs", "overlay", "memory"].contains(&part) => {
                return Err(Wrong::UnknownOption(part.to_owned()));
            }
            _ => read.take(part).map(|()| false)?,
        };
        if twice {
            return Err(Wrong::Twice(part.to_owned()));
        }
    }
    let target = target.filter(|path| !path.is_empty()).ok_or(Wrong::NoTarget)?;
    let guest_path = if target.starts_with('/') { target.to_owned() } else { within(workspace, target) };
    let kind = read.kind.filter(|kind| !kind.is_empty()).ok_or(Wrong::NoKind)?;
    read.mount(&guest_path, source.unwrap_or_default(), kind)
}

fn within(workspace: &str, path: &str) -> String {
    format!("{workspace}/{path}")
}

/// The options that were read so far.
#[derive(Default)]
struct Options<'a> {
    kind: Option<&'a str>,
    readonly: bool,
    owner: Owner,
    caching: Option<&'a str>,
    masks: WantedMasks,
}

impl<'a> Options<'a> {
    /// Reads one more.
    fn take(&mut self, option: &'a str) -> Result<(), Wrong> {
        let id = |digits: &str| disks::id(digits).map_err(|_| Wrong::Id(digits.to_owned()));
        let twice = match option.split_once('=') {
            None if ["host_fs", "overlay", "memory"].contains(&option) => self.kind.replace(option).is_some(),
            None if ["ro", "readonly"].contains(&option) => std::mem::replace(&mut self.readonly, true),
            Some(("uid", digits)) => self.owner.uid.replace(id(digits)?).is_some(),
            Some(("gid", digits)) => self.owner.gid.replace(id(digits)?).is_some(),
            Some(("cache", mode)) => {
                Caching::named(mode)?;
                self.caching.replace(mode).is_some()
            }
            None if option == "protect" => std::mem::replace(&mut self.masks.protect, true),
            Some(("mask", glob)) => {
                self.masks.hidden.push(glob.to_owned());
                false
            }
            Some(("mask-ro", glob)) => {
                self.masks.readonly.push(glob.to_owned());
                false
            }
            Some(("owner", both)) => {
                let (uid, gid) = both.split_once(':').ok_or_else(|| Wrong::Id(both.to_owned()))?;
                let (uid, gid) = (self.owner.uid.replace(id(uid)?), self.owner.gid.replace(id(gid)?));
                uid.or(gid).is_some()
            }
            _ => return Err(Wrong::UnknownOption(option.to_owned())),
        };
        if twice { Err(Wrong::Twice(option.to_owned())) } else { Ok(()) }
    }

    /// The mount at a place, of the kind `bare` if the options say none.
    fn mount(self, guest_path: &str, host_path: &str, bare: &str) -> Result<Mount, Wrong> {
        let (kind, readonly, owner) = (self.kind.unwrap_or(bare), self.readonly, self.owner);
        let caching = self.caching.unwrap_or_default();
        let mount = Mount::new(&WantedMount { guest_path, kind, host_path, readonly, owner, caching })?;
        Ok(mount.masked(&self.masks)?)
    }
}

/// Checks a guest path; needless parts are removed.
fn place(path: &str) -> Result<String, PathError> {
    disks::place(path).map_err(|wrong| match wrong {
        disks::Wrong::Reserved(directory) => PathError::Reserved(directory),
        _ if path.starts_with('/') => PathError::Shape(path.to_owned()),
        _ => PathError::Relative(path.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(path: &str, readonly: bool, uid: Option<u32>, gid: Option<u32>) -> Content {
        Content::Host { path: path.into(), readonly, owner: Owner { uid, gid }, caching: Caching::Auto }
    }

    fn overlay(path: &str, readonly: bool) -> Content {
        Content::Overlay { path: path.into(), readonly }
    }

    fn at(guest_path: &str, content: Content) -> Mount {
        Mount { guest_path: guest_path.into(), content, masks: WantedMasks::default() }
    }

    fn plain(text: &str) -> Result<Mount, MountError> {
        volume(text, "/w")
    }

    #[test]
    fn volumes_in_every_form() {
        for (text, guest_path, content) in [
            (".:/work:host_fs", "/work", host(".", false, None, None)),
            ("/a:/b:ro", "/b", host("/a", true, None, None)),
            ("/a:/b:ro,host_fs", "/b", host("/a", true, None, None)),
            ("/a:/b//c/:readonly,uid=7", "/b/c", host("/a", true, Some(7), None)),
            ("/a:/b:host_fs,gid=0,uid=4294967294", "/b", host("/a", false, Some(u32::MAX - 1), Some(0))),
            ("/a:/b:owner=1:2,host_fs", "/b", host("/a", false, Some(1), Some(2))),
            ("/od:d:/c:/b:ro", "/b", host("/od:d:/c", true, None, None)),
            ("/a:/b", "/b", overlay("/a", false)),
            ("/a:/b:overlay", "/b", overlay("/a", false)),
            ("a,b:/b:overlay,ro", "/b", overlay("a,b", true)),
            (":/b:memory", "/b", Content::Memory),
            (".:src", "/w/src", overlay(".", false)),
            (".:ro", "/w/ro", overlay(".", false)),
            ("a b:src/x:ro", "/w/src/x", host("a b", true, None, None)),
            (".:src:host_fs,owner=1:2", "/w/src", host(".", false, Some(1), Some(2))),
        ] {
            let expected = at(guest_path, content);
            assert_eq!(plain(text).as_ref(), Ok(&expected), "{text}");
            assert_eq!(plain(&expected.to_string()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_volumes_say_what_is_wrong() {
        let shape = |path: &str| Wrong::Path(PathError::Shape(path.into()));
        for (text, why) in [
            ("", Wrong::Shape),
            ("/a", Wrong::Shape),
            ("/a:", Wrong::Shape),
            ("/a::ro", Wrong::Shape),
            (":/b:ro", Wrong::NoSource),
            (":/b", Wrong::NoSource),
            (":src", Wrong::NoSource),
            ("/a:/b:uid=1", Wrong::Owner),
            ("/a:/b:overlay,gid=1", Wrong::Owner),
            (":/b:memory,uid=1", Wrong::Owner),
            ("/a:/b:memory", Wrong::Source),
            (":/b:memory,ro", Wrong::ReadOnlyMemory),
            ("/a:/:ro", shape("/")),
            ("/a:/b/../c:ro", shape("/b/../c")),
            ("/a:../c:ro", shape("/w/../c")),
            ("/a:/proc/x:ro", Wrong::Path(PathError::Reserved("/proc".into()))),
            ("/a:/b:", Wrong::UnknownOption(String::new())),
            ("/a:/b:rw", Wrong::UnknownOption("rw".into())),
            ("/a:/b:ro:rw", Wrong::UnknownOption("ro:rw".into())),
            ("/a:/b:type=memory", Wrong::UnknownOption("type=memory".into())),
            ("/a:/b:host_fs,overlay", Wrong::Twice("overlay".into())),
            ("/a:/b:ro,readonly", Wrong::Twice("readonly".into())),
            ("/a:/b:ro,uid=1,owner=1:1", Wrong::Twice("owner=1:1".into())),
            ("/a:/b:ro,uid=4294967295", Wrong::Id("4294967295".into())),
            ("/a:/b:ro,uid=-1", Wrong::Id("-1".into())),
            ("/a:/b:ro,owner=1", Wrong::Id("1".into())),
        ] {
            assert_eq!(plain(text), Err(MountError { mount: text.into(), why }), "{text}");
        }
    }

    #[test]
    fn caching_is_an_option_of_the_hosts_files() {
        for (text, caching, printed) in [
            ("/a:/b:host_fs,cache=none", Caching::None, "/a:/b:host_fs,cache=none"),
            ("/a:/b:cache=always,ro,uid=7", Caching::Always, "/a:/b:ro,uid=7,cache=always"),
            ("/a:/b:host_fs,cache=auto", Caching::Auto, "/a:/b:host_fs"),
            ("/a:/b:ro", Caching::Auto, "/a:/b:ro"),
        ] {
            let read = plain(text).unwrap();
            assert_eq!((read.caching(), read.to_string().as_str()), (Some(caching), printed), "{text}");
            assert_eq!(plain(printed), Ok(read));
        }
        let named = mount("cache=none,type=real_fs,source=/a,target=/b", "").unwrap();
        assert_eq!(named.caching(), Some(Caching::None));
        assert_eq!(plain("/a:/b:overlay").unwrap().caching(), None);
        for (option, why) in [
            ("host_fs,cache=", Wrong::Caching(String::new())),
            ("host_fs,cache=never", Wrong::Caching("never".into())),
            ("host_fs,cache", Wrong::UnknownOption("cache".into())),
            ("host_fs,cache=auto,cache=auto", Wrong::Twice("cache=auto".into())),
            ("cache=auto", Wrong::NotCaching),
            ("overlay,ro,cache=none", Wrong::NotCaching),
        ] {
            let text = format!("/a:/b:{option}");
            assert_eq!(plain(&text), Err(MountError { mount: text, why }));
        }
        assert_eq!(plain(":/b:memory,cache=always").unwrap_err().why, Wrong::NotCaching);
    }

    #[test]
    fn masks_are_options() {
        let text = "/a:/b:host_fs,mask=.env*,mask=/top,mask-ro=locked,protect";
        let masked = plain(text).unwrap();
        let WantedMasks { hidden, readonly, protect } = &masked.masks;
        assert_eq!((hidden.len(), hidden[1].as_str(), readonly.len(), *protect), (2, "/top", 1, true));
        assert_eq!((masked.to_string().as_str(), plain(text)), (text, Ok(masked)));
        let more = WantedMasks { hidden: vec!["x".into()], ..WantedMasks::default() };
        let both = mount("type=memory,target=/m,mask-ro=y", "").unwrap().masked(&more).unwrap();
        assert_eq!(both.to_string(), ":/m:memory,mask=x,mask-ro=y");
        for (option, why) in [
            ("mask=a//b", Wrong::Mask(MaskError::NoName("a//b".into()))),
            ("mask=", Wrong::Mask(MaskError::NoName(String::new()))),
            ("protect,protect", Wrong::Twice("protect".into())),
            ("mask", Wrong::UnknownOption("mask".into())),
        ] {
            let text = format!("/a:/b:{option}");
            assert_eq!(plain(&text), Err(MountError { mount: text, why }));
        }
    }

    #[test]
    fn mounts_in_every_form() {
        for (text, guest_path, content) in [
            ("type=memory,target=/m", "/m", Content::Memory),
            ("dst=m,type=memory", "/w/m", Content::Memory),
            ("type=host_fs,source=/a:b,target=/b", "/b", host("/a:b", false, None, None)),
            ("type=real_fs,src=a,destination=/b,ro,uid=7", "/b", host("a", true, Some(7), None)),
            (
                "readonly,owner=1:2,type=host_fs,source=a=b,target=b/",
                "/w/b",
                host("a=b", true, Some(1), Some(2)),
            ),
            ("type=overlay,source=.,target=/b", "/b", overlay(".", false)),
            ("type=overlay,source=.,target=/b,readonly", "/b", overlay(".", true)),
        ] {
            let expected = at(guest_path, content);
            assert_eq!(mount(text, "/w").as_ref(), Ok(&expected), "{text}");
            assert_eq!(plain(&expected.to_string()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_mounts_say_what_is_wrong() {
        for (text, why) in [
            ("", Wrong::UnknownOption(String::new())),
            ("type=memory", Wrong::NoTarget),
            ("type=memory,target=", Wrong::NoTarget),
            ("target=/a", Wrong::NoKind),
            ("type=,target=/a", Wrong::NoKind),
            ("memory,target=/a", Wrong::UnknownOption("memory".into())),
            ("type=tmpfs,target=/a", Wrong::Kind("tmpfs".into())),
            ("type=memory,target=/a,source=/b", Wrong::Source),
            ("type=memory,target=/a,readonly", Wrong::ReadOnlyMemory),
            ("type=host_fs,target=/a", Wrong::NoSource),
            ("type=overlay,source=,target=/a", Wrong::NoSource),
            ("type=overlay,source=/b,target=/a,uid=1", Wrong::Owner),
            ("type=overlay,source=/b,target=/sys", Wrong::Path(PathError::Reserved("/sys".into()))),
            ("type=overlay,source=/b,target=..", Wrong::Path(PathError::Shape("/w/..".into()))),
            ("type=overlay,source=/b,target=/a,dst=/c", Wrong::Twice("dst=/c".into())),
            ("type=overlay,type=overlay", Wrong::Twice("type=overlay".into())),
            ("type=overlay,source=/b,target=/a,rw", Wrong::UnknownOption("rw".into())),
            ("type=host_fs,source=/b,target=/a,uid=x", Wrong::Id("x".into())),
        ] {
            assert_eq!(mount(text, "/w"), Err(MountError { mount: text.into(), why }), "{text}");
        }
        let error = mount("type=nfs,target=/a", "").unwrap_err().to_string();
        assert_eq!(
            error,
            "invalid volume mount \"type=nfs,target=/a\": unknown mount type \"nfs\"; there are memory, host_fs, overlay"
        );
    }

    #[test]
    fn kinds_and_owners_of_a_front_ends_words() {
        for (kind, host_path) in
            [("", ""), ("memory", ""), ("host_fs", "/x"), ("real_fs", "/x"), ("overlay", "/x")]
        {
            let wanted = WantedMount { guest_path: "/a", kind, host_path, ..WantedMount::default() };
            let mount = Mount::new(&wanted).unwrap();
            assert_eq!(mount.host_path().unwrap_or_default(), host_path);
            // Zero is an owner, too.
            let owner = Owner { uid: Some(0), gid: None };
            let owned = Mount::new(&WantedMount { owner, ..wanted });
            let is_host = matches!(mount.content, Content::Host { .. });
            assert_eq!(owned.map(|mount| mount.owner()), if is_host { Ok(owner) } else { Err(Wrong::Owner) });
        }
        let relative = Mount::new(&WantedMount { guest_path: "a", ..WantedMount::default() });
        assert_eq!(relative, Err(Wrong::Path(PathError::Relative("a".into()))));
    }

    #[test]
    fn the_workspace() {
        for (wanted, has_mounts, expected) in [
            ("", false, None),
            ("", true, Some(DEFAULT_WORKSPACE)),
            ("/w", false, Some("/w")),
            ("/w//x/", true, Some("/w/x")),
        ] {
            assert_eq!(workspace(wanted, has_mounts), Ok(expected.map(ToOwned::to_owned)));
        }
        assert_eq!(workspace("w", false), Err(PathError::Relative("w".into())));
        assert_eq!(workspace("/proc", false), Err(PathError::Reserved("/proc".into())));
        for path in ["/", "/a b", "/a/../b", "/ä"] {
            assert_eq!(workspace(path, false), Err(PathError::Shape(path.into())));
        }
    }

    #[test]
    fn mounts_go_together_or_not() {
        let mounts = |texts: &[&str]| texts.iter().map(|text| plain(text).unwrap()).collect::<Vec<_>>();
        let disk = |path: &str| disks::spec(&format!("@d:{path}")).unwrap();
        let all = mounts(&["/x:/a:ro", "/x:/ab:host_fs", "/x:/b/c", ":/a/b:memory", "/x:/b/c/d"]);
        assert_eq!(check(&all, &[disk("/b"), disk("/abc")]), Ok(()));
        let twice = mounts(&[":/a:memory", "/x:/a/:ro"]);
        assert_eq!(check(&twice, &[]).unwrap_err().why, Wrong::Taken("/a".into()));
        assert_eq!(check(&all, &[disk("/ab")]).unwrap_err().why, Wrong::Taken("/ab".into()));
        assert_eq!(check(&all, &[disk("/a/c")]).unwrap_err().why, Wrong::HoldsDisk("/a/c".into()));
        let many: Vec<_> =
            (0..=MAX_MOUNTS).map(|number| at(&format!("/{number}"), Content::Memory)).collect();
        assert_eq!(check(&many[..MAX_MOUNTS], &[]), Ok(()));
        assert_eq!(check(&many, &[]).unwrap_err().why, Wrong::TooMany);
    }

    fn any_mount() -> impl Strategy<Value = Mount> {
        let path = prop::collection::vec("[a-z_-][a-z0-9._-]{0,6}", 1..4);
        let path = path.prop_map(|names| format!("/m-{}", names.join("/")));
        let id = || prop::option::of(0..u32::MAX);
        let source = || "[a-zA-Z/. :@,=ä-]{1,20}";
        let content = prop_oneof![
            Just(Content::Memory),
            (source(), any::<bool>(), id(), id(), prop::sample::select(&Caching::ALL[..])).prop_map(
                |(path, readonly, uid, gid, caching)| Content::Host {
                    path,
                    readonly,
                    owner: Owner { uid, gid },
                    caching
                }
            ),
            (source(), any::<bool>()).prop_map(|(path, readonly)| Content::Overlay { path, readonly }),
        ];
        (path, content).prop_map(|(guest_path, content)| at(&guest_path, content))
    }

    #[test]
    fn what_is_added_hides_nothing() {
        let mounts = ["/h:/a/b:host_fs", ":/m:memory"].map(|text| volume(text, "").unwrap());
        let disks = disks::specs(&["@v:/d/e"]).unwrap();
        let why = |place: &str, added| {
            let new = volume(&format!(":{place}:memory"), "").unwrap();
            check_added(&mounts, added, &disks, &new).err().map(|error| error.why)
        };
        for place in ["/a/c", "/a/b/c", "/a/bb", "/m/x/y", "/d/e/f", "/d/f"] {
            assert_eq!(why(place, MAX_ADDED - 1), None, "{place}");
        }
        assert_eq!(why("/a/b", 0), Some(Wrong::Taken("/a/b".into())));
        assert_eq!(why("/d/e", 0), Some(Wrong::Taken("/d/e".into())));
        assert_eq!(why("/a", 0), Some(Wrong::HoldsMount("/a/b".into())));
        assert_eq!(why("/d", 0), Some(Wrong::HoldsDisk("/d/e".into())));
        assert_eq!(why("/x", MAX_ADDED), Some(Wrong::TooManyAdded));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same(mount in any_mount()) {
            prop_assert_eq!(plain(&mount.to_string()), Ok(mount));
        }

        #[test]
        fn whatever_is_accepted_is_a_plain_path_and_a_fixed_point(text in "[/a.:,=-]{0,12}(:/?[a-z./]{0,8})?(:(ro|memory|uid=[0-9]{1,11}|[a-z,=]{0,6}))?") {
            if let Ok(mount) = plain(&text) {
                let names: Vec<&str> = mount.guest_path.split('/').skip(1).collect();
                prop_assert!(!names.is_empty() && names.iter().all(|name| !["", ".", ".."].contains(name)), "{}", mount.guest_path);
                prop_assert_eq!(plain(&mount.to_string()), Ok(mount));
            }
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>(), workspace in any::<String>()) {
            let _ = (volume(&text, &workspace), mount(&text, &workspace));
        }
    }
}
