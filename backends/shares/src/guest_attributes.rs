//! Attributes that the guest gave to files and that the host does not have: owners, special bits, exact permissions,
//! extended attributes.
//!
//! The host's file keeps permissions that let this process go on working with it. If the host's user changes the
//! permissions afterwards, the host's count again.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuse::{Attributes, Errno, MAX_XATTR_LEN, Result, Time, XattrSet};

use crate::nodes::{Numbered, alone, shared};
use crate::sys::Identity;

/// Most files with attributes in the table; each takes some 150 bytes. Tests fill a smaller table.
pub(crate) const MAX_FILES: usize = if cfg!(test) { 1 << 12 } else { 1 << 20 };

/// Most bytes of extended attributes.
const MAX_XATTR_BYTES: usize = 64 << 20;

/// Special bits and permissions.
pub(crate) const MODE_BITS: u32 = 0o7777;

/// The attribute that gives a program capabilities.
const CAPABILITIES: &[u8] = b"security.capability";

/// Bytes that an attribute takes besides its name and value.
const XATTR_OVERHEAD: usize = 64;

/// Attributes of a file that the guest sees instead of the host's.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestAttributes {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// Special bits and permissions as the guest set them, and the host's file's permissions at that time.
    pub(crate) mode: Option<(u32, u32)>,
    /// Time at which one of these attributes was last changed.
    pub(crate) ctime: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl GuestAttributes {
    /// Puts these attributes over the host's.
    fn over(&self, host: &mut Attributes) {
        host.uid = self.uid.unwrap_or(host.uid);
        host.gid = self.gid.unwrap_or(host.gid);
        if let Some((guest, then)) = self.mode
            && host.mode & MODE_BITS == then
        {
            host.mode = host.mode & !MODE_BITS | guest;
        }
        host.ctime = self.ctime.map_or(host.ctime, |ctime| ctime.max(host.ctime));
    }
}

/// The attributes of all files.
#[derive(Debug, Default)]
pub(crate) struct Table {
    files: RwLock<Numbered<Identity, GuestAttributes>>,
    xattr_bytes: AtomicUsize,
    /// How many files have capabilities.
    capable: AtomicUsize,
}

impl Table {
    /// The number of files that have attributes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn len(&self) -> usize {
        shared(&self.files).len()
    }

    /// Whether a file has attributes.
    pub(crate) fn has(&self, identity: Identity) -> bool {
        shared(&self.files).contains_key(&identity)
    }

    /// Whether so many files have attributes that those of files that may no longer exist are better dropped.
    pub(crate) fn is_crowded(&self) -> bool {
        shared(&self.files).len() >= MAX_FILES / 2
    }

    /// Puts a file's attributes over the host's.
    pub(crate) fn over(&self, identity: Identity, host: &mut Attributes) {
        if let Some(guest) = shared(&self.files).get(&identity) {
            guest.over(host);
        }
    }

    /// Refuses an attribute for one file too many, before any step that would have to be undone.
    pub(crate) fn has_room(&self, identity: Identity) -> Result<()> {
        has_room(&shared(&self.files), identity)
    }

    /// Changes a file's attributes.
    pub(crate) fn change(&self, identity: Identity, change: impl FnOnce(&mut GuestAttributes)) -> Result<()> {
        let mut files = alone(&self.files);
        has_room(&files, identity)?;
        change(files.entry(identity).or_default());
        Ok(())
    }

    /// Drops the attributes of a file that no longer exists.
    pub(crate) fn remove(&self, identity: Identity) {
        if let Some(gone) = alone(&self.files).remove(&identity) {
            let bytes = gone.xattrs.iter().map(|(name, value)| cost(name, value)).sum();
            self.xattr_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if gone.xattrs.contains_key(CAPABILITIES) {
                self.capable.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn xattr(&self, identity: Identity, name: &[u8]) -> Result<Vec<u8>> {
        let files = shared(&self.files);
        files.get(&identity).and_then(|file| file.xattrs.get(name)).cloned().ok_or(Errno::ENODATA)
    }

    /// The names of a file's attributes, each with a NUL.
    pub(crate) fn xattr_names(&self, identity: Identity) -> Vec<u8> {
        let files = shared(&self.files);
        let names = files.get(&identity).map(|file| file.xattrs.keys()).into_iter().flatten();
        names.flat_map(|name| name.iter().copied().chain([0])).collect()
    }

    pub(crate) fn set_xattr(
        &self,
        identity: Identity,
        name: &[u8],
        value: &[u8],
        how: XattrSet,
        now: Time,
    ) -> Result<()> {
        let mut files = alone(&self.files);
        let xattrs = files.get(&identity).map(|file| &file.xattrs);
        let old = xattrs.and_then(|xattrs| xattrs.get(name));
        match how {
            XattrSet::Create if old.is_some() => return Err(Errno::EEXIST),
            XattrSet::Replace if old.is_none() => return Err(Errno::ENODATA),
            _ => {}
        }
        // The list of names has a limit, too.
        let others = xattrs.into_iter().flat_map(BTreeMap::keys).filter(|other| *other != name);
        let names: usize = others.map(|name| name.len() + 1).sum();
        let is_new = old.is_none();
        let old = old.map_or(0, |old| cost(name, old));
        let bytes = self.xattr_bytes.load(Ordering::Relaxed) - old + cost(name, value);
        has_room(&files, identity)?;
        if bytes > MAX_XATTR_BYTES || names + name.len() + 1 > MAX_XATTR_LEN {
            return Err(Errno::ENOSPC);
        }
        self.xattr_bytes.store(bytes, Ordering::Relaxed);
        if is_new && name == CAPABILITIES {
            self.capable.fetch_add(1, Ordering::Relaxed);
        }
        let file = files.entry(identity).or_default();
        file.xattrs.insert(name.to_vec(), value.to_vec());
        file.ctime = Some(now);
        Ok(())
    }

    pub(crate) fn remove_xattr(&self, identity: Identity, name: &[u8], now: Time) -> Result<()> {
        let mut files = alone(&self.files);
        let file = files.get_mut(&identity).ok_or(Errno::ENODATA)?;
        let value = file.xattrs.remove(name).ok_or(Errno::ENODATA)?;
        self.xattr_bytes.fetch_sub(cost(name, &value), Ordering::Relaxed);
        file.ctime = Some(now);
        if name == CAPABILITIES {
            self.capable.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes a file's capabilities. Most tables have none, and every write asks.
    pub(crate) fn drop_capabilities(&self, identity: Identity, now: impl FnOnce() -> Time) {
        if self.capable.load(Ordering::Relaxed) > 0 {
            // A file without any is as it should be.
            let _ = self.remove_xattr(identity, CAPABILITIES, now());
        }
    }
}

fn has_room(files: &Numbered<Identity, GuestAttributes>, identity: Identity) -> Result<()> {
    if files.len() < MAX_FILES || files.contains_key(&identity) { Ok(()) } else { Err(Errno::ENOSPC) }
}

fn cost(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + XATTR_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Identity = Identity { device: 1, ino: 2, btime: (3, 4) };
    const NOW: Time = Time { seconds: 5, nanoseconds: 6 };

    #[test]
    fn the_hosts_mode_counts_again_when_the_host_changes_it() {
        let table = Table::default();
        table.change(FILE, |file| file.mode = Some((0o4000, 0o600))).unwrap();
        let mode = |mode| {
            let mut host = Attributes { mode, ..Attributes::default() };
            table.over(FILE, &mut host);
            host.mode
        };
        assert_eq!(mode(0o100_600), 0o104_000);
        assert_eq!(mode(0o100_644), 0o100_644);
    }

    #[test]
    fn extended_attributes_are_counted() {
        let table = Table::default();
        let set = |name: &[u8], len, how| table.set_xattr(FILE, name, &vec![7; len], how, NOW);
        assert_eq!(set(b"user.a", 3, XattrSet::Replace), Err(Errno::ENODATA));
        set(b"user.a", 3, XattrSet::Create).unwrap();
        assert_eq!(set(b"user.a", 3, XattrSet::Create), Err(Errno::EEXIST));
        set(b"user.a", 5, XattrSet::Replace).unwrap();
        set(b"user.b", 0, XattrSet::Any).unwrap();
        assert_eq!(table.xattr(FILE, b"user.a").unwrap(), [7; 5]);
        assert_eq!(table.xattr_names(FILE), b"user.a\0user.b\0");
        assert_eq!(table.xattr_bytes.load(Ordering::Relaxed), 2 * (6 + 64) + 5);
        table.remove_xattr(FILE, b"user.b", NOW).unwrap();
        assert_eq!(table.remove_xattr(FILE, b"user.b", NOW), Err(Errno::ENODATA));
        table.remove(FILE);
        assert_eq!(table.xattr_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(table.xattr(FILE, b"user.a"), Err(Errno::ENODATA));
    }

    #[test]
    fn what_is_refused_leaves_nothing() {
        let table = Table::default();
        let set = |ino, how| table.set_xattr(Identity { ino, ..FILE }, b"user.a", b"", how, NOW);
        assert_eq!(set(1, XattrSet::Replace), Err(Errno::ENODATA));
        assert_eq!(table.len(), 0);
        for ino in 0..u64::try_from(MAX_FILES).unwrap() {
            set(ino, XattrSet::Create).unwrap();
        }
        assert_eq!(set(u64::MAX, XattrSet::Any), Err(Errno::ENOSPC));
        assert_eq!(table.len(), MAX_FILES);
        set(5, XattrSet::Replace).unwrap();
    }

    #[test]
    fn names_and_values_have_limits() {
        let table = Table::default();
        let name = |number: u32| format!("user.{number:0250}").into_bytes();
        let fits = (0..300)
            .take_while(|number| table.set_xattr(FILE, &name(*number), b"", XattrSet::Any, NOW).is_ok());
        assert_eq!(fits.count(), MAX_XATTR_LEN / 256);
        let large = vec![0; MAX_XATTR_LEN];
        let file = |ino| Identity { ino, ..FILE };
        let full = (10..).find(|ino| table.set_xattr(file(*ino), b"a", &large, XattrSet::Any, NOW).is_err());
        assert!((1000..1034).contains(&full.unwrap()), "{full:?}");
    }
}
