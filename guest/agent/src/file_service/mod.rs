//! Acts on files for the host: as root, in the agent's own mount namespace, one act a stream.
//!
//! * Memory is constant: long content (of a file, a directory, a watch) is sent in pieces, and the next piece waits until
//!   the host has taken the one before.
//! * The host's hang-up ends an act within one piece; changes until then stay.
//! * The guest's kernel resolves a path: symbolic links and `..` lead where they lead, inside the guest.
//!
//! Not here: files that the agent itself needs (`files`), and the host's side.

mod list;
mod transfer;
mod tree;
mod watch;

use std::ffi::{CStr, CString};
use std::fmt::Display;

use guest_protocol::frame::Splitter;
use guest_protocol::{FileFailure, FileReply, FileRequest};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::service::Agent;
use crate::stream::{HungUp, Stream};
use crate::words;

/// Longest path the kernel takes, its NUL included (PATH_MAX).
const PATH_LIMIT: usize = 4096;

/// Permissions of directories made on the way to a file.
const PARENT_MODE: u32 = 0o755;

/// How many files are handled between two checks of the stream.
const CHECK_EVERY: usize = 256;

/// The reason why an act ended early.
#[derive(Debug)]
enum Stop {
    /// The host hung up, so there is nobody to tell.
    HungUp,
    Failed(FileFailure),
}

impl From<HungUp> for Stop {
    fn from(_: HungUp) -> Self {
        Self::HungUp
    }
}

/// The result of an act.
type Act = Result<(), Stop>;

/// Carries out a request to its end. `input` holds the bytes that came after it.
pub(crate) fn serve(stream: Stream<'_>, input: Splitter, request: &FileRequest, agent: &Agent) {
    let _act = agent.file_acts.enter();
    // Only the content of a written file follows a request; other bytes break the protocol.
    if !matches!(request, FileRequest::Write { .. }) && !input.at_boundary() {
        return;
    }
    let done = |act: Act| act.and_then(|()| Ok(stream.reply(&FileReply::Ok(()))?));
    let served = match request {
        FileRequest::Read { path, offset, length, size_limit } => {
            done(transfer::read(stream, path, *offset, *length, *size_limit))
        }
        FileRequest::Write { path, mode, at } => done(transfer::write(stream, input, path, *mode, *at)),
        FileRequest::List { path } => list::list(stream, path),
        FileRequest::Stat { path, follow } => list::stat(stream, path, *follow),
        FileRequest::MakeDirectory { path, mode, parents } => {
            done(tree::make_directory(path, *mode, *parents))
        }
        FileRequest::Remove { path, recursive } => done(tree::remove(stream, path, *recursive)),
        FileRequest::Rename { from, to } => done(tree::rename(from, to)),
        FileRequest::Watch { path, recursive } => watch::watch(stream, path, *recursive),
    };
    // A host that is gone has nothing to learn.
    if let Err(Stop::Failed(failure)) = served {
        let _ = stream.reply(&FileReply::<()>::Err(failure));
    }
}

/// The failure of an act that the system refused.
fn refused(what: impl Display, errno: Errno) -> Stop {
    let text = format!("{what}: {}", words(errno));
    Stop::Failed(FileFailure::System { errno: errno.raw_os_error(), text })
}

/// Adds a verb and a path to an error of the system.
trait Trying<T> {
    fn trying(self, verb: &str, path: &CStr) -> Result<T, Stop>;
}

impl<T> Trying<T> for Result<T, Errno> {
    fn trying(self, verb: &str, path: &CStr) -> Result<T, Stop> {
        self.map_err(|errno| refused(format_args!("{verb} {}", path.to_string_lossy()), errno))
    }
}

/// A path for the kernel. Relative ones start at `/`.
fn guest_path(path: &str) -> Result<CString, Stop> {
    if path.is_empty() {
        return Err(refused("empty path", Errno::NOENT));
    }
    let absolute = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if absolute.len() >= PATH_LIMIT {
        return Err(refused(format_args!("path of {} bytes", path.len()), Errno::NAMETOOLONG));
    }
    CString::new(absolute).map_err(|_| refused(format_args!("path {path:?} with a NUL byte"), Errno::INVAL))
}

/// Splits a path, without the slashes at its end, into its parent and its last part. The root has neither.
fn split(path: &CStr) -> (&[u8], &[u8]) {
    let path = path.to_bytes();
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = path.get(..end).unwrap_or_default();
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    path.split_at_checked(start).unwrap_or_default()
}

/// Makes the missing directories above a path.
fn make_parents(path: &CStr) -> Act {
    let (above, _) = split(path);
    let ends = above.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends {
        let parent = CString::new(above.get(..end).unwrap_or_default()).unwrap_or_default();
        match rustix::fs::mkdir(parent.as_c_str(), Mode::from_raw_mode(PARENT_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).trying("make directory", &parent),
        }
    }
    Ok(())
}

/// Permission bits out of a request.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn paths_are_absolute_and_short() {
        let path = |text: &str| guest_path(text).map(|path| path.into_string().unwrap());
        assert_eq!(path("a/../b").unwrap(), "/a/../b");
        assert_eq!(path("/a").unwrap(), "/a");
        assert_eq!(path(&"x".repeat(4094)).unwrap().len(), 4095);
        for (bad, expected) in [
            ("", Errno::NOENT),
            ("a\0b", Errno::INVAL),
            (&"x".repeat(4095), Errno::NAMETOOLONG),
            (&"/".repeat(1 << 20), Errno::NAMETOOLONG),
        ] {
            let Err(Stop::Failed(FileFailure::System { errno, text })) = path(bad) else { panic!() };
            assert_eq!(errno, expected.raw_os_error());
            assert!(text.len() < 100, "{text}");
        }
    }

    #[test]
    fn last_parts() {
        let parts = |path: &CStr| {
            let (above, name) = split(path);
            (String::from_utf8_lossy(above).into_owned(), String::from_utf8_lossy(name).into_owned())
        };
        let pair = |above: &str, name: &str| (above.to_owned(), name.to_owned());
        assert_eq!(parts(c"/a/b"), pair("/a/", "b"));
        assert_eq!(parts(c"/a//b///"), pair("/a//", "b"));
        assert_eq!(parts(c"/a"), pair("/", "a"));
        assert_eq!(parts(c"/"), pair("", ""));
        assert_eq!(parts(c"///"), pair("", ""));
        assert_eq!(parts(c"/a/.."), pair("/a/", ".."));
    }
}
