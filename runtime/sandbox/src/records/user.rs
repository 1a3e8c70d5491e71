//! The user who owns a home's files, if root acts for that user: under sudo the user who called sudo, else the owner
//! of root's `HOME` if that is another user's.
//!
//! A thread takes on the user for the length of one call, so that no file is ever root's, even for a moment, and no
//! symbolic link in the user's directories makes root touch a file that the user could not. The rest of the program
//! stays root, which `/dev/kvm` and the network need. Not here: the files.

use std::ffi::{CString, OsStr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Gid, Uid, getegid, geteuid, getgid, getgroups, getuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::records::error::{Error, Result};

/// Names the failed act if this process may not become another user.
const TAKING_ON: &str = "taking on the user whose home this is";

/// The user on whose behalf this process is root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    uid: Uid,
    gid: Gid,
    /// All groups of the user.
    groups: Arc<[Gid]>,
}

impl User {
    /// A user without a name.
    #[cfg(test)]
    pub(crate) fn nobodys(uid: u32) -> Self {
        let gid = Gid::from_raw(uid);
        Self { uid: Uid::from_raw(uid), gid, groups: Arc::new([gid]) }
    }

    /// The user called `name` and their home directory, if this process is root on a user's behalf.
    pub(crate) fn behind_sudo(name: Option<&OsStr>) -> Result<Option<(Self, PathBuf)>> {
        let name = match name.map(|name| name.to_string_lossy()) {
            Some(name) if !name.is_empty() && getuid().is_root() && geteuid().is_root() => name,
            _ => return Ok(None),
        };
        let found = nix::unistd::User::from_name(&name);
        let found = found.map_err(|errno| Error::system("user database")(errno.into()))?;
        match found {
            Some(user) if user.uid.is_root() => Ok(None),
            Some(user) if user.dir.is_absolute() => {
                let home = user.dir.clone();
                Ok(Some((Self::of(user)?, home)))
            }
            _ => Err(Error::SudoUser(name.into_owned())),
        }
    }

    /// The owner of this home directory, if this process is root and the owner is not. A home that does not exist yet
    /// will be owned as the directory around it is.
    pub(crate) fn of_home(home: &Path) -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let Some(found) = home.ancestors().find_map(|path| std::fs::metadata(path).ok()) else {
            return Ok(None);
        };
        let (uid, gid) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
        if uid.is_root() {
            return Ok(None);
        }
        // A user id without a name, such as a container's, has the group of its home and no other.
        let named = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(found.uid()));
        let named = named.map_err(|errno| Error::system("user database")(errno.into()))?;
        named.map_or_else(|| Ok(Self { uid, gid, groups: Arc::new([gid]) }), Self::of).map(Some)
    }

    /// A user of the user database.
    fn of(user: nix::unistd::User) -> Result<Self> {
        let (uid, gid) = (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()));
        let groups = CString::new(user.name)
            .map_err(|_| nix::errno::Errno::EINVAL)
            .and_then(|name| nix::unistd::getgrouplist(&name, user.gid))
            .map_err(|errno| Error::system("user database")(errno.into()))?;
        let groups = groups.into_iter().map(|gid| Gid::from_raw(gid.as_raw())).collect();
        Ok(Self { uid, gid, groups })
    }

    /// The user's number, its group's, and those of all of its groups.
    pub(crate) fn ids(&self) -> (u32, u32, Vec<u32>) {
        (self.uid.as_raw(), self.gid.as_raw(), self.groups.iter().map(|gid| gid.as_raw()).collect())
    }

    /// Does `act` as this user. Threads and processes that it starts stay this user's.
    pub(crate) fn run<T>(&self, act: impl FnOnce() -> T) -> Result<T> {
        let _back = self.take_on()?;
        Ok(act())
    }

    /// Makes this thread the user's until the returned value is dropped; `None` if it is the user's already.
    pub(crate) fn take_on(&self) -> Result<Option<Root>> {
        if geteuid() == self.uid {
            return Ok(None);
        }
        let failed = |errno: rustix::io::Errno| Error::system(TAKING_ON)(errno.into());
        // Made first, so that a failure halfway is undone.
        let root = Root { gid: getgid(), egid: getegid(), groups: getgroups().map_err(failed)? };
        // Root's own groups may read and write what the user may not.
        set_thread_groups(&self.groups).map_err(failed)?;
        set_thread_res_gid(self.gid, self.gid, None).map_err(failed)?;
        // The saved id stays root's, which is the way back.
        set_thread_res_uid(self.uid, self.uid, None).map_err(failed)?;
        Ok(Some(root))
    }

    /// Makes this thread this user's for good.
    pub(crate) fn become_for_good(&self) -> Result<()> {
        let failed = |errno: rustix::io::Errno| Error::system(TAKING_ON)(errno.into());
        set_thread_groups(&self.groups).map_err(failed)?;
        set_thread_res_gid(self.gid, self.gid, self.gid).map_err(failed)?;
        set_thread_res_uid(self.uid, self.uid, self.uid).map_err(failed)
    }
}

/// The home directory of this process's user, from the user database.
pub(crate) fn home_of_this_user() -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map(|user| user.dir)
}

/// The identity that a thread returns to when this is dropped.
#[derive(Debug)]
pub(crate) struct Root {
    gid: Gid,
    egid: Gid,
    groups: Vec<Gid>,
}

impl Drop for Root {
    fn drop(&mut self) {
        let back = set_thread_res_uid(Uid::ROOT, Uid::ROOT, None)
            .and_then(|()| set_thread_res_gid(self.gid, self.egid, None))
            .and_then(|()| set_thread_groups(&self.groups));
        if let Err(errno) = back {
            // The saved ids always allow the return; a thread that stays the user's can do less, never more.
            tracing::error!("going back to root: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn nobody_without_a_name() {
        assert_eq!(User::behind_sudo(None).unwrap(), None);
        assert_eq!(User::behind_sudo(Some(OsStr::new(""))).unwrap(), None);
        assert_eq!(User::behind_sudo(Some(OsStr::new("root"))).unwrap(), None);
        let unknown = User::behind_sudo(Some(OsStr::new("no such user")));
        match geteuid().is_root() {
            true => assert!(matches!(unknown, Err(Error::SudoUser(name)) if name == "no such user")),
            false => assert_eq!(unknown.unwrap(), None),
        }
    }

    #[test]
    fn a_home_is_its_owners() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(User::of_home(directory.path()).unwrap(), None, "one's own");
        if !geteuid().is_root() {
            return skip::skip("root", "only root can take on another user");
        }
        std::os::unix::fs::chown(directory.path(), Some(54321), Some(54322)).unwrap();
        let expected = User {
            uid: Uid::from_raw(54321),
            gid: Gid::from_raw(54322),
            groups: Arc::new([Gid::from_raw(54322)]),
        };
        for home in [directory.path().to_owned(), directory.path().join("not/there/yet")] {
            assert_eq!(User::of_home(&home).unwrap().as_ref(), Some(&expected), "{home:?}");
        }
        // A user with a name has all their groups.
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(nobody.uid.as_raw()), None).unwrap();
        let user = User::of_home(directory.path()).unwrap().unwrap();
        assert_eq!((user.gid.as_raw(), user.groups[0]), (nobody.gid.as_raw(), user.gid));
    }

    #[test]
    fn files_are_the_users_and_root_comes_back() {
        if !geteuid().is_root() {
            return skip::skip("root", "only root can take on another user");
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let groups = Arc::new([Gid::from_raw(54322), Gid::from_raw(54323)]);
        let user = User { uid: Uid::from_raw(54321), gid: Gid::from_raw(54322), groups };
        let path = directory.path().join("theirs");
        let nested = || user.run(|| fs::write(&path, "").unwrap()).unwrap();
        let (child, denied) = user
            .run(|| {
                nested();
                let child = std::thread::spawn(|| (getuid(), geteuid())).join().unwrap();
                (child, fs::read("/proc/1/environ").is_err())
            })
            .unwrap();
        assert_eq!((child, denied), ((user.uid, user.uid), true));
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (54321, 54322));
        assert!(getuid().is_root() && geteuid().is_root() && getegid().is_root());
        let of_root = directory.path().join("root's");
        fs::write(&of_root, "for root's group").unwrap();
        fs::set_permissions(&of_root, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        // Root's groups after sudo, whatever the groups of this test are.
        set_thread_groups(&[Gid::ROOT]).unwrap();
        let (groups, read) = user.run(|| (getgroups().unwrap(), fs::read(&of_root))).unwrap();
        assert_eq!((&groups[..], read.is_err()), (&user.groups[..], true));
        assert_eq!((getgroups().unwrap(), fs::read(&of_root).is_ok()), (vec![Gid::ROOT], true));
        let panicked = std::thread::spawn(move || {
            let caught = std::panic::catch_unwind(|| user.run(|| panic!("inside")));
            (caught.is_err(), geteuid())
        });
        assert_eq!(panicked.join().unwrap(), (true, Uid::ROOT));
    }
}
