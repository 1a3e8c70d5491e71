//! Devices, FIFOs and sockets that the guest makes: its kernel serves them, and the host gets none. For as long as the
//! sandbox lives, their names appear in directories of the host.

use std::collections::{BTreeMap, HashMap};

use fuse::{Attributes, Errno, Result, Time};

use crate::sys::Identity;

/// Most names of such files, and most files, of which some may have no name.
pub(crate) const MAX_NAMES: usize = 1 << 16;

/// The largest number of a file system, which none of the host's has.
const DEVICE: u64 = u64::MAX;

/// The first number of such a file; no file system of the host gives numbers from here on.
const FIRST_INO: u64 = 1 << 63;

/// Whether this is the identity of a file that the host does not have.
pub(crate) fn is_special(identity: Identity) -> bool {
    identity.device == DEVICE
}

/// A name of such a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named {
    /// A number that rises with each name, so that a list can go on behind a name.
    pub(crate) serial: u64,
    /// The file.
    pub(crate) ino: u64,
}

/// All such files and their names.
#[derive(Debug, Default)]
pub(crate) struct Specials {
    /// Names by directory and name.
    names: BTreeMap<(Identity, Vec<u8>), Named>,
    files: HashMap<u64, Attributes>,
    made: u64,
}

impl Specials {
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether nothing is kept, of files without a name neither.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn keeps_nothing(&self) -> bool {
        self.names.is_empty() && self.files.is_empty()
    }

    /// Whether there are so many names that those in directories that may no longer exist are better dropped.
    pub(crate) fn is_crowded(&self) -> bool {
        self.names.len() >= MAX_NAMES / 2
    }

    /// The identity of the file with this number.
    pub(crate) fn identity(ino: u64) -> Identity {
        Identity { device: DEVICE, ino, btime: (0, 0) }
    }

    /// The file that a name in a directory leads to.
    pub(crate) fn find(&self, directory: Identity, name: &[u8]) -> Option<u64> {
        // Most calls end here: an empty map has no key to compare with.
        if self.names.is_empty() {
            return None;
        }
        self.names.get(&(directory, name.to_vec())).map(|named| named.ino)
    }

    pub(crate) fn attributes(&self, identity: Identity) -> Result<Attributes> {
        self.files.get(&identity.ino).copied().filter(|_| is_special(identity)).ok_or(Errno::ESTALE)
    }

    pub(crate) fn change(&mut self, identity: Identity, change: impl FnOnce(&mut Attributes)) -> Result<()> {
        let file = self.files.get_mut(&identity.ino).filter(|_| is_special(identity)).ok_or(Errno::ESTALE)?;
        change(file);
        Ok(())
    }

    /// Makes a file under a name.
    pub(crate) fn make(&mut self, directory: Identity, name: &[u8], attributes: Attributes) -> Result<u64> {
        self.is_free(directory, name)?;
        if self.files.len() >= MAX_NAMES {
            return Err(Errno::ENOSPC);
        }
        self.made += 1;
        let ino = FIRST_INO + self.made;
        self.files.insert(ino, Attributes { ino, links: 0, ..attributes });
        self.name(directory, name, ino);
        Ok(ino)
    }

    /// Refuses a name that is taken, and a name beyond the limit.
    fn is_free(&self, directory: Identity, name: &[u8]) -> Result<()> {
        match self.find(directory, name) {
            Some(_) => Err(Errno::EEXIST),
            None if self.names.len() >= MAX_NAMES => Err(Errno::ENOSPC),
            None => Ok(()),
        }
    }

    /// Gives a file a name, which must be free.
    fn name(&mut self, directory: Identity, name: &[u8], ino: u64) {
        self.made += 1;
        self.names.insert((directory, name.to_vec()), Named { serial: self.made, ino });
        if let Some(file) = self.files.get_mut(&ino) {
            file.links += 1;
        }
    }

    /// Gives a file one more name.
    pub(crate) fn link(
        &mut self,
        directory: Identity,
        name: &[u8],
        identity: Identity,
        now: Time,
    ) -> Result<()> {
        self.is_free(directory, name)?;
        if self.attributes(identity)?.links == 0 {
            return Err(Errno::ENOENT);
        }
        self.change(identity, |file| file.ctime = now)?;
        self.name(directory, name, identity.ino);
        Ok(())
    }

    /// Takes a name, and returns the file that had it. A file without a name keeps its attributes for as long as the
    /// kernel has the file.
    pub(crate) fn unlink(&mut self, directory: Identity, name: &[u8], now: Time) -> Option<Identity> {
        let named = self.names.remove(&(directory, name.to_vec()))?;
        if let Some(file) = self.files.get_mut(&named.ino) {
            file.links = file.links.saturating_sub(1);
            file.ctime = now;
        }
        Some(Self::identity(named.ino))
    }

    /// Renames `from` to `to`.
    pub(crate) fn rename(&mut self, from: (Identity, &[u8]), to: (Identity, &[u8]), now: Time) -> Result<()> {
        if self.find(to.0, to.1).is_some() {
            return Err(Errno::EEXIST);
        }
        let named = self.names.remove(&(from.0, from.1.to_vec())).ok_or(Errno::ENOENT)?;
        self.made += 1;
        self.names.insert((to.0, to.1.to_vec()), Named { serial: self.made, ..named });
        if let Some(file) = self.files.get_mut(&named.ino) {
            file.ctime = now;
        }
        Ok(())
    }

    /// Gives two files each other's name.
    pub(crate) fn exchange(&mut self, a: (Identity, &[u8]), b: (Identity, &[u8]), now: Time) -> Result<()> {
        let files = [self.find(a.0, a.1).ok_or(Errno::ENOENT)?, self.find(b.0, b.1).ok_or(Errno::ENOENT)?];
        for ((directory, name), ino) in [a, b].into_iter().zip(files.into_iter().rev()) {
            self.made += 1;
            self.names.insert((directory, name.to_vec()), Named { serial: self.made, ino });
            if let Some(file) = self.files.get_mut(&ino) {
                file.ctime = now;
            }
        }
        Ok(())
    }

    /// Notes that the kernel no longer has the file; returns whether the file is gone, because it has no name.
    pub(crate) fn forget(&mut self, identity: Identity) -> bool {
        let gone = is_special(identity) && self.files.get(&identity.ino).is_some_and(|file| file.links == 0);
        if gone {
            self.files.remove(&identity.ino);
        }
        gone
    }

    /// Notes that the kernel no longer has any file; returns the files that are gone, because they have no name.
    pub(crate) fn forget_all(&mut self) -> Vec<Identity> {
        self.files.extract_if(|_, file| file.links == 0).map(|(ino, _)| Self::identity(ino)).collect()
    }

    /// Names in a directory behind a serial number, in order.
    pub(crate) fn list(&self, directory: Identity, behind: u64) -> Vec<(Named, Vec<u8>)> {
        let all = self.names.range((directory, Vec::new())..);
        let here = all.take_while(|((place, _), _)| *place == directory);
        let mut later: Vec<_> = here
            .filter(|(_, named)| named.serial > behind)
            .map(|((_, name), named)| (*named, name.clone()))
            .collect();
        later.sort_by_key(|(named, _)| named.serial);
        later
    }

    /// Whether a directory has any such name.
    pub(crate) fn any_in(&self, directory: Identity) -> bool {
        let mut all = self.names.range((directory, Vec::new())..);
        all.next().is_some_and(|((place, _), _)| *place == directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Identity = Identity { device: 1, ino: 2, btime: (0, 0) };
    const B: Identity = Identity { device: 1, ino: 3, btime: (0, 0) };
    const NOW: Time = Time { seconds: 9, nanoseconds: 0 };

    #[test]
    fn names_come_and_go() {
        let mut specials = Specials::default();
        let fifo = Attributes { mode: 0o010_644, ..Attributes::default() };
        let ino = specials.make(A, b"fifo", fifo).unwrap();
        let identity = Specials::identity(ino);
        assert!(is_special(identity) && !is_special(A));
        specials.link(B, b"again", identity, NOW).unwrap();
        assert_eq!(specials.attributes(identity).unwrap().links, 2);
        specials.rename((A, b"fifo"), (B, b"moved"), NOW).unwrap();
        assert!(!specials.any_in(A) && specials.any_in(B));
        assert_eq!((specials.find(A, b"fifo"), specials.find(B, b"moved")), (None, Some(ino)));
        let listed = specials.list(B, 0);
        assert_eq!(
            listed.iter().map(|(_, name)| name.as_slice()).collect::<Vec<_>>(),
            [&b"again"[..], b"moved"]
        );
        assert_eq!(specials.list(B, listed[0].0.serial), listed[1..]);
        assert!(!specials.forget(identity));
        assert_eq!(specials.link(B, b"moved", identity, NOW), Err(Errno::EEXIST));
        assert_eq!(specials.make(B, b"moved", fifo), Err(Errno::EEXIST));
        assert_eq!(specials.unlink(B, b"again", NOW), Some(identity));
        assert_eq!(specials.unlink(B, b"moved", NOW), Some(identity));
        assert_eq!(specials.unlink(B, b"moved", NOW), None);
        assert!(specials.is_empty());
        assert_eq!(specials.attributes(identity).unwrap().links, 0);
        let other = Specials::identity(specials.make(A, b"other", fifo).unwrap());
        specials.unlink(A, b"other", NOW);
        assert!(specials.forget(identity));
        assert_eq!(specials.forget_all(), [other]);
        assert_eq!(specials.attributes(other), Err(Errno::ESTALE));
        assert_eq!(specials.attributes(identity), Err(Errno::ESTALE));
    }
}
