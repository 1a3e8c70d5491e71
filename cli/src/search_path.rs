//! The `PATH` in which this program, and every program that it starts, looks for programs.
//!
//! A service may have no `PATH` at all, and one with relative entries leads to the working directory, which may be a
//! checkout that nobody has reviewed. Where sudo keeps `PATH`, it is the user's, and leads root to the user's programs; so
//! a process that is root's on a user's behalf has the default. Programs are started in many places, some of them in
//! libraries, so `PATH` is corrected once for all of them: by starting this program again with the right one. Not here:
//! the programs.

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;
use sandbox::owner_of_home;

/// The default of a shell without a `PATH`, and the directories of administrators' programs.
const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns if `PATH` is right, and else starts this program again.
pub(crate) fn put_right() -> io::Result<()> {
    let home = env::home_dir();
    let is_for_user =
        geteuid().is_root() && is_for_user(env::var_os("SUDO_USER").as_deref(), home.as_deref());
    match right(env::var_os("PATH").as_deref(), is_for_user) {
        None => Ok(()),
        Some(path) => again(&path).map(|never| match never {}),
    }
}

fn again(path: &OsStr) -> io::Result<Infallible> {
    let mut args = env::args_os();
    let mut command = Command::new(env::current_exe()?);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    Err(command.args(args).env("PATH", path).exec())
}

/// Whether a process of root's is there for another user: who called sudo, or whose home this is.
fn is_for_user(sudo_user: Option<&OsStr>, home: Option<&Path>) -> bool {
    let by_sudo = sudo_user.is_some_and(|name| !name.is_empty() && name != "root");
    by_sudo || home.and_then(owner_of_home).is_some_and(|(uid, _)| uid != 0)
}

/// The right `PATH`; `None` if this one is.
fn right(path: Option<&OsStr>, is_for_user: bool) -> Option<OsString> {
    if is_for_user {
        return (path != Some(DEFAULT.as_ref())).then(|| DEFAULT.into());
    }
    let entries: Vec<_> = path.map(|path| env::split_paths(path).collect()).unwrap_or_default();
    let absolute: Vec<_> = entries.iter().filter(|entry| entry.is_absolute()).map(|e| e.as_path()).collect();
    if absolute.is_empty() {
        return Some(DEFAULT.into());
    }
    // Entries that were split from a list can be joined again.
    let joined = |entries: &[&Path]| env::join_paths(entries).unwrap_or_else(|_| DEFAULT.into());
    (absolute.len() != entries.len()).then(|| joined(&absolute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_entries_are_right() {
        for (path, expected) in [
            (Some("/usr/bin:/bin"), None),
            (Some("/bin"), None),
            (None, Some(DEFAULT)),
            (Some(""), Some(DEFAULT)),
            (Some("."), Some(DEFAULT)),
            (Some("bin:/usr/bin::/bin:."), Some("/usr/bin:/bin")),
            (Some("/bin:"), Some("/bin")),
        ] {
            let found = right(path.map(OsStr::new), false);
            assert_eq!(found.as_deref(), expected.map(OsStr::new), "{path:?}");
            if let Some(found) = found {
                assert_eq!(right(Some(&found), false), None, "once is enough");
            }
        }
    }

    #[test]
    fn on_a_users_behalf_only_the_default_is_right() {
        for path in [None, Some("/home/user/bin:/usr/bin"), Some("/usr/bin"), Some("bin")] {
            assert_eq!(right(path.map(OsStr::new), true).as_deref(), Some(OsStr::new(DEFAULT)), "{path:?}");
        }
        assert_eq!(right(Some(OsStr::new(DEFAULT)), true), None, "once is enough");
    }

    #[test]
    fn a_user_is_who_called_sudo_or_whose_home_it_is() {
        let root = Path::new("/");
        assert!(is_for_user(Some(OsStr::new("user")), Some(root)));
        for nobody in [None, Some(""), Some("root")] {
            assert!(!is_for_user(nobody.map(OsStr::new), Some(root)), "{nobody:?}");
            assert!(!is_for_user(nobody.map(OsStr::new), None), "{nobody:?}");
        }
        if !geteuid().is_root() {
            return skip::skip("root", "only root can make another user's home");
        }
        let home = tempfile::tempdir().unwrap();
        assert!(!is_for_user(None, Some(home.path())));
        std::os::unix::fs::chown(home.path(), Some(54_321), None).unwrap();
        assert!(is_for_user(None, Some(home.path())));
        assert!(is_for_user(None, Some(&home.path().join("not/there/yet"))));
    }
}
