//! A sandbox's log: the guest's console and the command's output in `logs/vm.log`, and the console's tail in memory.
//!
//! The guest makes every byte here: the file has a limit, the tail has a limit, and [`Console::last_words`] returns
//! nothing that could move a terminal's cursor. Not here: reading the console's pipe, and reading the log
//! ([`crate::records::log`]).

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::records::error::{Error, Result};

/// Size at which the log's file becomes the older file, in place of that: 16 MiB in all.
const MAX_LOG: u64 = 8 << 20;

/// The log's file.
pub(crate) const LOG: &str = "vm.log";

/// The older file.
pub(crate) const OLDER_LOG: &str = "vm.log.1";

/// Bytes of the console's end that are kept for messages.
const TAIL: usize = 4 << 10;

/// Beginnings of kernel lines that explain nothing: one on a machine without PCI, one at each end.
const NOISE: [&str; 2] = ["PCI: Fatal: No config space access function found", "reboot: "];

/// Longest line in a message.
const MAX_LINE: usize = 200;

/// The log of one sandbox.
#[derive(Debug)]
pub(crate) struct Console {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    written: u64,
    tail: VecDeque<u8>,
    /// The console's unfinished line, for the debug log.
    line: Vec<u8>,
}

impl Console {
    /// Makes `directory` and an empty log in it.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let path = directory.join(LOG);
        DirBuilder::new().mode(0o700).create(directory).map_err(Error::io(directory))?;
        let file = open(&path).map_err(Error::io(&path))?;
        let (tail, line) = (VecDeque::new(), Vec::new());
        let inner = Inner { path, file, written: 0, tail, line };
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Adds output of a command, to the file only.
    pub(crate) fn log(&self, bytes: &[u8]) {
        self.lock().write(bytes);
    }

    /// Adds console output.
    pub(crate) fn console(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.write(bytes);
        if tracing::enabled!(tracing::Level::DEBUG) {
            inner.tell(bytes);
        }
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let surplus = (inner.tail.len() + bytes.len()).saturating_sub(TAIL);
        inner.tail.drain(..surplus);
        inner.tail.extend(bytes);
    }

    /// The line that best explains the guest's end.
    pub(crate) fn last_words(&self) -> Option<String> {
        let tail: Vec<u8> = self.lock().tail.iter().copied().collect();
        last_words(&tail)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A log is still a log after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Shows whole lines in the debug log.
    fn tell(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                tracing::debug!("console: {}", printable(&self.line));
                self.line.clear();
            }
        }
    }

    /// A log that cannot be written is not worth ending a sandbox for.
    fn write(&mut self, bytes: &[u8]) {
        if self.written >= MAX_LOG {
            let rotated = fs::rename(&self.path, self.path.with_file_name(OLDER_LOG));
            match rotated.and_then(|()| open(&self.path)) {
                Ok(file) => (self.file, self.written) = (file, 0),
                Err(_) => return,
            }
        }
        if self.file.write_all(bytes).is_ok() {
            self.written += bytes.len() as u64;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
}

/// The line that best explains the guest's end: a panic's, else the agent's last, else the last line that does not
/// appear at every start or end.
pub(crate) fn last_words(tail: &[u8]) -> Option<String> {
    let lines = || tail.split(|b| *b == b'\n').map(printable).filter(|line| !line.is_empty());
    let noise = |line: &String| NOISE.iter().any(|start| line.starts_with(start));
    lines()
        .find(|line| line.contains("Kernel panic"))
        .or_else(|| lines().rfind(|line| line.starts_with("matchlock: ")))
        .or_else(|| lines().rfind(|line| !noise(line)))
}

/// A line for a message: printable ASCII only, the kernel's time stamp cut off, bounded.
pub(crate) fn printable(line: &[u8]) -> String {
    let text: String =
        line.iter().map(|b| char::from(*b)).filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    let text = text.trim();
    let stamp = text.strip_prefix('[').and_then(|rest| rest.split_once("] ")).filter(|(stamp, _)| {
        let stamp = stamp.trim();
        !stamp.is_empty() && stamp.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    });
    let text = stamp.map_or(text, |(_, rest)| rest);
    text.chars().take(MAX_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (tempfile::TempDir, Console) {
        let directory = tempfile::tempdir().unwrap();
        let console = Console::create(&directory.path().join("logs")).unwrap();
        (directory, console)
    }

    #[test]
    fn a_panic_is_found_even_if_lines_follow() {
        let (_directory, console) = console();
        assert_eq!(console.last_words(), None);
        console.console(b"[    0.100000] booting\r\n");
        assert_eq!(console.last_words().unwrap(), "booting");
        console.console(
            b"[    1.234567] Kernel panic - not syncing: No working init found.\r\n[ 1.3] CPU: 0\r\n",
        );
        assert_eq!(console.last_words().unwrap(), "Kernel panic - not syncing: No working init found.");
    }

    #[test]
    fn the_agents_words_come_before_what_the_kernel_always_says() {
        let (_directory, console) = console();
        console.console(b"PCI: Fatal: No config space access function found\r\n");
        assert_eq!(console.last_words(), None);
        console.console(b"matchlock: connect to the host: no driver\r\n[    1.0] hid: other\r\n");
        console.console(b"[    1.2] reboot: Power down\r\n");
        assert_eq!(console.last_words().unwrap(), "matchlock: connect to the host: no driver");
    }

    #[test]
    fn hostile_lines_are_tamed() {
        let (_directory, console) = console();
        console.console(b"ok\n\x1b[2J\x1b]0;title\x07\xff\xfe\n");
        assert_eq!(console.last_words().unwrap(), "[2J]0;title");
        console.console(&vec![b'x'; 100_000]);
        assert_eq!(console.last_words().unwrap().len(), MAX_LINE);
        assert_eq!(console.lock().tail.len(), TAIL);
    }

    #[test]
    fn the_log_rotates() {
        let (directory, console) = console();
        let block = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            console.log(&block);
        }
        let length = |name| fs::metadata(directory.path().join("logs").join(name)).unwrap().len();
        assert_eq!(length("vm.log.1"), MAX_LOG);
        assert_eq!(length("vm.log"), 4 << 20);
        assert_eq!(fs::read_dir(directory.path().join("logs")).unwrap().count(), 2);
    }
}
