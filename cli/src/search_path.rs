//! The `PATH` in which this program, and every program that it starts, looks for programs.
//!
//! A service may have no `PATH` at all, and one with relative entries leads to the working directory, which may be a
//! checkout that nobody has reviewed. Programs are started in many places, some of them in libraries, so `PATH` is
//! corrected once for all of them: by starting this program again with the right one. Not here: the programs.

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The default of a shell without a `PATH`, and the directories of administrators' programs.
const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns if `PATH` is right, and else starts this program again.
pub(crate) fn put_right() -> io::Result<()> {
    match right(env::var_os("PATH").as_deref()) {
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

/// The right `PATH`; `None` if this one is.
fn right(path: Option<&OsStr>) -> Option<OsString> {
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
            let found = right(path.map(OsStr::new));
            assert_eq!(found.as_deref(), expected.map(OsStr::new), "{path:?}");
            if let Some(found) = found {
                assert_eq!(right(Some(&found)), None, "once is enough");
            }
        }
    }
}
