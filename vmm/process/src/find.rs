//! The places of this project's programs.

use std::path::{Path, PathBuf};

/// Finds a program of this project or of the host: beside this executable, in `../libexec/matchlock` seen from there,
/// then on `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    first_executable(own_directories().chain(std::env::split_paths(&path)), name)
}

/// Finds a program of this project beside this executable, or in `../libexec/matchlock` seen from there. A process that
/// is root's on a user's behalf starts no other: a directory on `PATH` may be that user's.
#[must_use]
pub fn find_own_program(name: &str) -> Option<PathBuf> {
    first_executable(own_directories(), name)
}

fn own_directories() -> impl Iterator<Item = PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let libexec = beside.as_ref().map(|dir| dir.join("../libexec/matchlock"));
    beside.into_iter().chain(libexec)
}

fn first_executable(mut directories: impl Iterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    directories.find_map(|directory| {
        // execvp(3) takes an empty entry of PATH for the working directory; a sandbox runs no program from there.
        let candidate = directory.is_absolute().then(|| directory.join(name))?;
        let executable = rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok();
        (executable && candidate.is_file()).then_some(candidate)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_searched_and_relative_entries_are_not() {
        assert!(find_program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program("no-such-program-anywhere"), None);
        assert_eq!(first_executable([PathBuf::from("../../../../../../bin")].into_iter(), "sh"), None);
        // A directory is executable too, in its way.
        assert_eq!(first_executable([PathBuf::from("/")].into_iter(), "bin"), None);
    }

    #[test]
    fn our_own_programs_are_beside_this_one() {
        let this = std::env::current_exe().unwrap();
        assert_eq!(find_own_program(this.file_name().unwrap().to_str().unwrap()), Some(this));
        assert!(find_program("sh").is_some());
        assert_eq!(find_own_program("sh"), None);
    }
}
