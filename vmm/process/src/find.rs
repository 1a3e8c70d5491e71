//! The places of this project's programs.

use std::path::{Path, PathBuf};

/// Finds a program of this project or of the host: beside this executable, in `../libexec/matchlock` seen from there,
/// then on `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let libexec = beside.as_ref().map(|dir| dir.join("../libexec/matchlock"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = beside.into_iter().chain(libexec).chain(std::env::split_paths(&path));
    first_executable(directories, name)
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
}
