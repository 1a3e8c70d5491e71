//! A sandbox's log as other processes read it: the bytes that are there, and those that are added.
//!
//! The log is in `logs/` of the sandbox's directory and stays until the sandbox is removed. The owner moves a long
//! log aside (`vm.log.1`) and goes on in a new file. Not here: writing (`console`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Id;
use crate::records::console::{LOG, OLDER_LOG};
use crate::records::error::{Error, Result};
use crate::records::home::{Home, VmPaths};
use crate::sys::DirectoryWatch;

/// Most bytes of one chunk.
pub const CHUNK: usize = 32 << 10;

/// The names of a file that is only added to, and of the one that it is moved aside to.
pub(crate) type Names = [&'static str; 2];

const NAMES: Names = [LOG, OLDER_LOG];

/// The whole log of a sandbox that is not removed: the guest's bytes, at most some 16 MiB.
pub fn read(home: &Home, id: &Id) -> Result<Vec<u8>> {
    let paths = known(home, id)?;
    read_in(&paths.logs(), NAMES)
}

/// All that is in files of these names.
pub(crate) fn read_in(directory: &Path, names: Names) -> Result<Vec<u8>> {
    let mut log = Vec::new();
    for mut file in generations(directory, names)? {
        file.read_to_end(&mut log).map_err(Error::io(directory))?;
    }
    Ok(log)
}

/// The log from its beginning, and every byte that is added later. Needs a tokio runtime with I/O around it.
pub fn follow(home: &Home, id: &Id) -> Result<Follow> {
    let paths = known(home, id)?;
    follow_in(paths.logs(), paths.directory(), NAMES)
}

/// All that is in files of these names and that is added to them, until the directory is removed from the one above it.
pub(crate) fn follow_in(directory: PathBuf, above: &Path, names: Names) -> Result<Follow> {
    // The watch comes first, so that nothing is added unseen. A directory does not report its own end while a file in
    // it is open, but the directory above it does.
    let watch = DirectoryWatch::new(&[&directory, above]).map_err(Error::io(&directory))?;
    let mut next = generations(&directory, names)?;
    next.reverse();
    let current = next.pop();
    Ok(Follow { directory, names, watch, current, next, removed: false, buffer: vec![0; CHUNK] })
}

/// A log that is followed.
#[derive(Debug)]
pub struct Follow {
    directory: PathBuf,
    names: Names,
    watch: DirectoryWatch,
    /// The file that is being read.
    current: Option<File>,
    /// The files after it that are known, the next one last.
    next: Vec<File>,
    removed: bool,
    buffer: Vec<u8>,
}

impl Follow {
    /// Waits for more; `None` = the sandbox was removed. The call may be dropped at its await.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let length = self.read()?;
            if length != 0 {
                return Ok(Some(&self.buffer[..length]));
            }
            if self.removed {
                return Ok(None);
            }
            self.watch.changed().await.map_err(Error::io(&self.directory))?;
            self.removed = !exists(&self.directory)?;
        }
    }

    /// Reads the bytes that are there now; 0 = none.
    fn read(&mut self) -> Result<usize> {
        loop {
            if let Some(file) = &mut self.current {
                let length = file.read(&mut self.buffer).map_err(Error::io(&self.directory))?;
                if length != 0 {
                    return Ok(length);
                }
            }
            if self.next.is_empty() && !self.moved_on()? {
                return Ok(0);
            }
            // The file was moved aside, so nobody adds to it any more; the rest of it is read first.
            if let Some(file) = &mut self.current {
                let length = file.read(&mut self.buffer).map_err(Error::io(&self.directory))?;
                if length != 0 {
                    return Ok(length);
                }
            }
            self.current = self.next.pop();
        }
    }

    /// Whether the log goes on in other files, which are then in `next`.
    fn moved_on(&mut self) -> Result<bool> {
        let mut files = generations(&self.directory, self.names)?;
        if let Some(current) = &self.current {
            let inode = |file| inode(file).map_err(Error::io(&self.directory));
            let current = inode(current)?;
            let mut position = None;
            for (index, file) in files.iter().enumerate() {
                if inode(file)? == current {
                    position = Some(index);
                }
            }
            // If the current file is among them, those after it are new; if not, it was moved aside twice, and all of
            // them are.
            if let Some(position) = position {
                files.drain(..=position);
            }
        }
        files.reverse();
        self.next = files;
        Ok(!self.next.is_empty())
    }
}

/// The files of a sandbox that is not removed.
pub(crate) fn known(home: &Home, id: &Id) -> Result<VmPaths> {
    let paths = home.vm(id);
    match exists(paths.directory())? {
        true => Ok(paths),
        false => Err(Error::UnknownVm(id.to_string())),
    }
}

fn exists(directory: &Path) -> Result<bool> {
    directory.try_exists().map_err(Error::io(directory))
}

/// The files of a log, oldest first.
fn generations(directory: &Path, names: Names) -> Result<Vec<File>> {
    open_generations(directory, names).map_err(Error::io(directory))
}

fn open_generations(directory: &Path, [name, older]: Names) -> io::Result<Vec<File>> {
    loop {
        let log = open(&directory.join(name))?;
        let older = open(&directory.join(older))?;
        match (&log, &older) {
            // The log was moved aside between the two opens.
            (Some(log), Some(older)) if inode(log)? == inode(older)? => {}
            // Halfway through moving the log aside, only the older file exists.
            _ => return Ok(older.into_iter().chain(log).collect()),
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::records::console::Console;
    use crate::records::home::OwnedVm;

    fn sandbox() -> (tempfile::TempDir, Home, OwnedVm, Console) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let owned = OwnedVm::create(&home).unwrap();
        let console = Console::create(&owned.paths.logs()).unwrap();
        (directory, home, owned, console)
    }

    async fn until(follow: &mut Follow, length: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        while seen.len() < length {
            let more = timeout(Duration::from_secs(10), follow.next()).await.expect("nothing more").unwrap();
            seen.extend_from_slice(more.expect("removed"));
        }
        seen
    }

    #[test]
    fn the_whole_log_is_read_until_it_is_removed() {
        let (_directory, home, owned, console) = sandbox();
        assert_eq!(read(&home, &owned.id).unwrap(), b"");
        console.console(b"boot\n");
        console.log(b"hi\n");
        assert_eq!(read(&home, &owned.id).unwrap(), b"boot\nhi\n");
        owned.paths.remove().unwrap();
        assert!(matches!(read(&home, &owned.id), Err(Error::UnknownVm(_))));
        assert!(matches!(read(&home, &"vm-00000000".parse().unwrap()), Err(Error::UnknownVm(_))));
    }

    #[test]
    fn both_generations_are_read() {
        let (_directory, home, owned, console) = sandbox();
        console.log(&vec![b'a'; 8 << 20]);
        console.log(b"b");
        let log = read(&home, &owned.id).unwrap();
        assert_eq!((log.len(), log.last()), ((8 << 20) + 1, Some(&b'b')));
    }

    #[tokio::test]
    async fn what_is_added_is_followed_across_rotation() {
        let (_directory, home, owned, console) = sandbox();
        console.log(b"before");
        let mut follow = follow(&home, &owned.id).unwrap();
        assert_eq!(until(&mut follow, 6).await, b"before");
        assert!(timeout(Duration::from_millis(50), follow.next()).await.is_err(), "nothing was added");
        console.log(b"after");
        assert_eq!(until(&mut follow, 5).await, b"after");
        // The log is moved aside once while the follower is still in it.
        let block = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            console.log(&block);
        }
        console.log(b"end");
        let seen = until(&mut follow, (10 << 20) + 3).await;
        assert_eq!((seen.len(), &seen[seen.len() - 3..]), ((10 << 20) + 3, &b"end"[..]));
    }

    /// A follower that is too slow misses the bytes that were dropped meanwhile, and no others.
    #[tokio::test]
    async fn a_slow_follower_goes_on_with_what_there_is() {
        let (_directory, home, owned, console) = sandbox();
        let mut follow = follow(&home, &owned.id).unwrap();
        for byte in *b"abcde" {
            console.log(&vec![byte; 8 << 20]);
        }
        console.log(b"end");
        // The first file is still open, those of `b` and `c` are gone, `d` was overwritten by `e` when `end` came.
        let seen = until(&mut follow, (16 << 20) + 3).await;
        let mut letters = seen;
        letters.dedup();
        assert_eq!(letters, b"aend");
    }

    #[tokio::test]
    async fn it_ends_when_the_sandbox_is_removed() {
        let (_directory, home, owned, console) = sandbox();
        let mut follow = follow(&home, &owned.id).unwrap();
        console.log(b"last");
        owned.paths.remove().unwrap();
        assert_eq!(until(&mut follow, 4).await, b"last");
        let end = timeout(Duration::from_secs(10), follow.next()).await.expect("no end").unwrap();
        assert_eq!(end, None);
    }
}
