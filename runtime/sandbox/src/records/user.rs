//! The user behind this process, if it is root's on that user's behalf: under sudo the user who called sudo, else the owner
//! of root's `HOME` if that is another user's. Not here: becoming that user (`broker`).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use broker::User;
use rustix::process::{geteuid, getuid};

use crate::records::error::{Error, Result};

/// The user called `name` and their home directory, if this process is root on a user's behalf.
pub(crate) fn behind_sudo(name: Option<&OsStr>) -> Result<Option<(User, PathBuf)>> {
    let name = match name.map(|name| name.to_string_lossy()) {
        Some(name) if !name.is_empty() && getuid().is_root() && geteuid().is_root() => name,
        _ => return Ok(None),
    };
    match nix::unistd::User::from_name(&name).map_err(unknown)? {
        Some(user) if user.uid.is_root() => Ok(None),
        Some(user) if user.dir.is_absolute() => {
            let home = user.dir.clone();
            Ok(Some((named(user)?, home)))
        }
        _ => Err(Error::SudoUser(name.into_owned())),
    }
}

/// The user and the group who own a home directory. One that does not exist yet will be owned as the directory around it
/// is.
#[must_use]
pub fn owner_of_home(home: &Path) -> Option<(u32, u32)> {
    let found = home.ancestors().find_map(|path| path.metadata().ok())?;
    Some((found.uid(), found.gid()))
}

/// The owner of this home directory, if this process is root and the owner is not.
pub(crate) fn of_home(home: &Path) -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let Some((uid, gid)) = owner_of_home(home).filter(|(uid, _)| *uid != 0) else { return Ok(None) };
    // A user id without a name, such as a container's, has the group of its home and no other.
    let nameless = || Ok(User { uid, gid, groups: vec![gid] });
    let user = nix::unistd::User::from_uid(uid.into()).map_err(unknown)?;
    user.map_or_else(nameless, named).map(Some)
}

/// A user of the user database.
fn named(user: nix::unistd::User) -> Result<User> {
    let groups = CString::new(user.name)
        .map_err(|_| nix::errno::Errno::EINVAL)
        .and_then(|name| nix::unistd::getgrouplist(&name, user.gid))
        .map_err(unknown)?;
    let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    Ok(User { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups })
}

fn unknown(errno: nix::errno::Errno) -> Error {
    Error::system("user database")(io::Error::from(errno))
}

/// The home directory of this process's user, from the user database.
pub(crate) fn home_of_this_user() -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map(|user| user.dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_without_a_name() {
        assert_eq!(behind_sudo(None).unwrap(), None);
        assert_eq!(behind_sudo(Some(OsStr::new(""))).unwrap(), None);
        assert_eq!(behind_sudo(Some(OsStr::new("root"))).unwrap(), None);
        let unknown = behind_sudo(Some(OsStr::new("no such user")));
        match geteuid().is_root() {
            true => assert!(matches!(unknown, Err(Error::SudoUser(name)) if name == "no such user")),
            false => assert_eq!(unknown.unwrap(), None),
        }
    }

    #[test]
    fn a_home_is_its_owners() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(of_home(directory.path()).unwrap(), None, "one's own");
        if !geteuid().is_root() {
            return skip::skip("root", "only root can act for another user");
        }
        std::os::unix::fs::chown(directory.path(), Some(54321), Some(54322)).unwrap();
        let expected = User { uid: 54321, gid: 54322, groups: vec![54322] };
        for home in [directory.path().to_owned(), directory.path().join("not/there/yet")] {
            assert_eq!(of_home(&home).unwrap().as_ref(), Some(&expected), "{home:?}");
        }
        // A user with a name has all their groups.
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(nobody.uid.as_raw()), None).unwrap();
        let user = of_home(directory.path()).unwrap().unwrap();
        assert_eq!((user.gid, user.groups[0]), (nobody.gid.as_raw(), user.gid));
    }
}
