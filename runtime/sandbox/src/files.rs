//! Files of a guest: read, written, listed, changed and watched, each over a stream of its own.
//!
//! All of it happens as root in the guest's own root directory; paths are the guest's to resolve, none ever means a file
//! of the host. What the guest answers is hostile: answers come in the one order that makes sense or are an error, and
//! nothing here grows with what the guest says but a listing, which has a limit. Not here: what a request means
//! (`guest_protocol`).

use std::mem::size_of;

use guest_protocol::frame::{self, DATA_CHUNK, Kind};
use guest_protocol::{
    Change, FileEntry, FileFailure, FileRequest, Request, ServiceFromGuest, ServiceFromHost, WriteAt,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::frames::{Frames, write_frame, write_message};
use crate::guest::Guest;
use crate::service::{tame, tame_failure};
use crate::{Error, Result};

/// Most memory that a directory's listing may take.
pub const MAX_LISTING: usize = 64 << 20;

/// Longest path a request may have: Linux's PATH_MAX, its NUL included.
pub const MAX_PATH: usize = 4096;

/// Linux's `EINVAL` and `ENAMETOOLONG`, whatever the host is.
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;

/// The files of a guest.
#[derive(Debug, Clone)]
pub struct Files {
    guest: Guest,
}

/// A file that is being read. Dropping it is the end of it.
#[derive(Debug)]
pub struct Reader {
    answers: Answers,
    /// What may still come.
    left: u64,
    done: bool,
}

/// A file that is being written. Dropping it before [`Writer::finish`] leaves what has been written.
#[derive(Debug)]
pub struct Writer {
    answers: Answers,
}

/// Changes as they happen. Dropping it is the end of it.
#[derive(Debug)]
pub struct Watch {
    answers: Answers,
}

/// A stream with one request on it.
#[derive(Debug)]
struct Answers {
    frames: Frames<OwnedReadHalf>,
    /// Kept open: its end would cancel.
    stream: OwnedWriteHalf,
}

/// What the guest may say while a request is served.
enum Answer {
    Data,
    Message(ServiceFromGuest),
}

impl Files {
    pub(crate) fn new(guest: Guest) -> Self {
        Self { guest }
    }

    /// Reads a regular file from byte `offset` on, at most `length` bytes; symbolic links are followed. A file that is
    /// longer than `size_limit` is [`FileFailure::TooLarge`]. What is wrong with a path shows at [`Reader::next`].
    pub async fn read(
        &self,
        path: &str,
        offset: u64,
        length: u64,
        size_limit: Option<u64>,
    ) -> Result<Reader> {
        let request = FileRequest::Read { path: checked(path)?, offset, length, size_limit };
        Ok(Reader { answers: self.ask(request).await?, left: length, done: false })
    }

    /// Writes a file. It is made, with these permission bits, if it is not there, and so are the directories above it.
    pub async fn write(&self, path: &str, mode: u32, at: WriteAt) -> Result<Writer> {
        let request = FileRequest::Write { path: checked(path)?, mode, at };
        Ok(Writer { answers: self.ask(request).await? })
    }

    /// A directory's entries by name, without `.` and `..`; at most [`MAX_LISTING`] of them.
    pub async fn list(&self, path: &str) -> Result<Vec<FileEntry>> {
        let mut answers = self.ask(FileRequest::List { path: checked(path)? }).await?;
        let mut entries = Vec::new();
        let mut size = 0;
        loop {
            match answers.message().await? {
                ServiceFromGuest::Entries(more) => {
                    for entry in more {
                        size += size_of::<FileEntry>() + entry.name.len() + entry.target.len();
                        if size > MAX_LISTING {
                            return Err(Error::Guest("a directory's listing is over the limit"));
                        }
                        if !is_name(&entry.name) {
                            return Err(Error::Guest("a directory's entry has no proper name"));
                        }
                        entries.push(plausible(entry)?);
                    }
                }
                ServiceFromGuest::Done => return Ok(entries),
                _ => return Err(UNASKED),
            }
        }
    }

    /// What stat(2) tells of a file, or with `follow` unset lstat(2).
    pub async fn stat(&self, path: &str, follow: bool) -> Result<FileEntry> {
        let mut answers = self.ask(FileRequest::Stat { path: checked(path)?, follow }).await?;
        match answers.message().await? {
            ServiceFromGuest::Entries(mut entries) => match (entries.pop(), entries.is_empty()) {
                (Some(entry), true) => plausible(entry),
                _ => Err(UNASKED),
            },
            _ => Err(UNASKED),
        }
    }

    /// Makes a directory; with `parents` those above it as well, and then it may be there already.
    pub async fn make_directory(&self, path: &str, mode: u32, parents: bool) -> Result<()> {
        self.act(FileRequest::MakeDirectory { path: checked(path)?, mode, parents }).await
    }

    /// Removes a file, a link or a directory; one that is not empty only with `recursive`.
    pub async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        self.act(FileRequest::Remove { path: checked(path)?, recursive }).await
    }

    /// Renames, replacing as rename(2) does.
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.act(FileRequest::Rename { from: checked(from)?, to: checked(to)? }).await
    }

    /// Watches a file, or what is in a directory, with `recursive` at any depth. Changes from now on are told.
    pub async fn watch(&self, path: &str, recursive: bool) -> Result<Watch> {
        let mut answers = self.ask(FileRequest::Watch { path: checked(path)?, recursive }).await?;
        match answers.message().await? {
            ServiceFromGuest::Watching => Ok(Watch { answers }),
            _ => Err(UNASKED),
        }
    }

    async fn act(&self, request: FileRequest) -> Result<()> {
        match self.ask(request).await?.message().await? {
            ServiceFromGuest::Done => Ok(()),
            _ => Err(UNASKED),
        }
    }

    async fn ask(&self, request: FileRequest) -> Result<Answers> {
        let (read, mut stream) = self.guest.stream().await?.into_split();
        write_message(&mut stream, &ServiceFromHost::Request(Request::File(request))).await?;
        Ok(Answers { frames: Frames::new(read), stream })
    }
}

impl Reader {
    /// The next piece; `None` after the last one. May be dropped at any time and called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        while !self.done {
            match self.answers.next().await? {
                Answer::Data => {
                    let piece = self.answers.frames.payload().len();
                    let left = u64::try_from(piece).ok().and_then(|piece| self.left.checked_sub(piece));
                    self.left = left.ok_or(Error::Guest("more of a file than was asked for"))?;
                    if piece > 0 {
                        return Ok(Some(self.answers.frames.payload()));
                    }
                }
                Answer::Message(ServiceFromGuest::Done) => self.done = true,
                Answer::Message(_) => return Err(UNASKED),
            }
        }
        Ok(None)
    }
}

impl Writer {
    /// The next piece. Waits while the guest is slow. After an error, or dropped half-way, all that is left to do is to
    /// drop the writer.
    pub async fn data(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(DATA_CHUNK) {
            if let Err(error) = write_frame(&mut self.answers.stream, Kind::Stdin, chunk).await {
                return Err(self.why(error).await);
            }
        }
        Ok(())
    }

    /// Returns when the guest has written everything.
    pub async fn finish(mut self) -> Result<()> {
        if let Err(error) = write_frame(&mut self.answers.stream, Kind::Stdin, &[]).await {
            return Err(self.why(error).await);
        }
        match self.answers.message().await? {
            ServiceFromGuest::Done => Ok(()),
            _ => Err(UNASKED),
        }
    }

    /// A guest that cannot write on says why, then hangs up.
    async fn why(&mut self, error: Error) -> Error {
        match (error, self.answers.message().await) {
            (Error::HangUp, Err(said)) => said,
            (Error::HangUp, Ok(_)) => UNASKED,
            (error, _) => error,
        }
    }
}

impl Watch {
    /// The next change. May be dropped at any time and called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Change> {
        match self.answers.message().await? {
            ServiceFromGuest::Change(change) => Ok(change),
            _ => Err(UNASKED),
        }
    }
}

const UNASKED: Error = Error::Guest("an answer to something that was not asked");

impl Answers {
    /// The next answer; a failure is an error.
    async fn next(&mut self) -> Result<Answer> {
        match self.frames.next().await? {
            Some(Kind::Stdout) => Ok(Answer::Data),
            Some(Kind::Stdin | Kind::Stderr) => Err(Error::Guest("input came from the guest")),
            Some(Kind::Message) => match frame::decode(self.frames.payload())? {
                ServiceFromGuest::FileFailed(failure) => Err(Error::File(tame_file_failure(failure))),
                ServiceFromGuest::Failed(failure) => Err(Error::NotStarted(tame_failure(failure))),
                message => Ok(Answer::Message(message)),
            },
            None => Err(Error::HangUp),
        }
    }

    async fn message(&mut self) -> Result<ServiceFromGuest> {
        match self.next().await? {
            Answer::Message(message) => Ok(message),
            Answer::Data => Err(Error::Guest("data instead of an answer")),
        }
    }
}

/// A path that a request can carry; what it means is the guest's to say.
fn checked(path: &str) -> Result<String> {
    let refused = |errno, what: &str| {
        let text = format!("{}: {what}", tame(path));
        Err(Error::File(FileFailure::System { errno, text }))
    };
    match path {
        _ if path.contains('\0') => refused(EINVAL, "a path cannot hold a NUL byte"),
        _ if path.len() >= MAX_PATH => refused(ENAMETOOLONG, "File name too long"),
        _ => Ok(path.to_owned()),
    }
}

/// Whether it can be a directory's entry. A client may make a path of it, so nothing may lead out of the directory.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn plausible(entry: FileEntry) -> Result<FileEntry> {
    match entry.mtime_ns < 1_000_000_000 {
        true => Ok(entry),
        false => Err(Error::Guest("a file's time has more than a second of nanoseconds")),
    }
}

fn tame_file_failure(failure: FileFailure) -> FileFailure {
    match failure {
        FileFailure::System { errno, text } => FileFailure::System { errno, text: tame(&text) },
        other => other,
    }
}
