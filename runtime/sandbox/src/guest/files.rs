//! Files of a guest: read, written, listed, changed and watched, each over a stream of its own.
//!
//! Every act happens as root in the guest's own root directory; the guest resolves all paths, and none ever means a
//! file of the host. The guest's answers are hostile: an answer out of order is an error, and nothing here grows with
//! an answer but a listing, which has a limit. Not here: the requests' meaning (`guest_protocol`).

use std::mem::size_of;

use guest_protocol::frame::{DATA_CHUNK, Kind};
use guest_protocol::{Change, FileEntry, FileFailure, FileReply, FileRequest, Request, WatchEvent, WriteAt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::agent;
use crate::agent::frames::{Frames, write_frame, write_message};
use crate::agent::program::{answer, answered, tame};
use crate::guest::Guest;
use crate::guest::error::{Error, Result};

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

/// A file that is being read. Dropping it ends the reading.
#[derive(Debug)]
pub struct FileReader {
    answers: Answers,
    /// Bytes that may still come.
    left: u64,
    done: bool,
}

/// A file that is being written. Dropping it before [`FileWriter::finish`] leaves what has been written.
#[derive(Debug)]
pub struct FileWriter {
    answers: Answers,
}

/// Changes as they happen. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    answers: Answers,
    /// The watched path, without a slash at its end.
    root: String,
}

/// A stream with one request on it.
#[derive(Debug)]
struct Answers {
    frames: Frames<OwnedReadHalf>,
    /// Kept open, as its end would cancel the request.
    stream: OwnedWriteHalf,
}

impl Files {
    pub(crate) fn new(guest: Guest) -> Self {
        Self { guest }
    }

    /// Reads a regular file from byte `offset` on, at most `length` bytes; symbolic links are followed. A file that
    /// is longer than `size_limit` is [`FileFailure::TooLarge`]. A path that cannot be read is an error of
    /// [`FileReader::next`].
    pub async fn read(
        &self,
        path: &str,
        offset: u64,
        length: u64,
        size_limit: Option<u64>,
    ) -> Result<FileReader> {
        let request = FileRequest::Read { path: checked(path)?, offset, length, size_limit };
        Ok(FileReader { answers: self.ask(request).await?, left: length, done: false })
    }

    /// Writes a file, which is made with these permission bits if it does not exist, as are the directories above it.
    pub async fn write(&self, path: &str, mode: u32, at: WriteAt) -> Result<FileWriter> {
        let request = FileRequest::Write { path: checked(path)?, mode, at };
        Ok(FileWriter { answers: self.ask(request).await? })
    }

    /// A directory's entries by name, without `.` and `..`; at most [`MAX_LISTING`] of them.
    pub async fn list(&self, path: &str) -> Result<Vec<FileEntry>> {
        self.list_within(path, |_| true).await
    }

    /// Lists a directory as [`Files::list`] does, as long as there is `room` for this many more bytes.
    pub async fn list_within(
        &self,
        path: &str,
        mut room: impl FnMut(usize) -> bool + Send,
    ) -> Result<Vec<FileEntry>> {
        let mut answers = self.ask(FileRequest::List { path: checked(path)? }).await?;
        let mut entries = Vec::new();
        let mut size = 0;
        loop {
            let more: Vec<FileEntry> = answers.next().await?;
            if more.is_empty() {
                return Ok(entries);
            }
            for entry in more {
                let more = size_of::<FileEntry>() + entry.name.len() + entry.target.len();
                size += more;
                if size > MAX_LISTING || !room(more) {
                    return Err(Error::protocol("a directory's listing is over the limit"));
                }
                if !is_name(&entry.name) {
                    return Err(Error::protocol("a directory's entry has no proper name"));
                }
                entries.push(plausible(entry)?);
            }
        }
    }

    /// A file's metadata, as by stat(2), or lstat(2) unless `follow`; its name is the path's last part.
    pub async fn stat(&self, path: &str, follow: bool) -> Result<FileEntry> {
        let mut answers = self.ask(FileRequest::Stat { path: checked(path)?, follow }).await?;
        // The entry's name is this side's own word, not the guest's.
        plausible(FileEntry { name: last_part(path).into(), ..answers.next().await? })
    }

    /// Makes a directory. With `parents`, the directories above it are made as well, and the directory may exist
    /// already.
    pub async fn make_directory(&self, path: &str, mode: u32, parents: bool) -> Result<()> {
        self.act(FileRequest::MakeDirectory { path: checked(path)?, mode, parents }).await
    }

    /// Removes a file, a link or a directory; a directory that is not empty only with `recursive`.
    pub async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        self.act(FileRequest::Remove { path: checked(path)?, recursive }).await
    }

    /// Renames, replacing as rename(2) does.
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.act(FileRequest::Rename { from: checked(from)?, to: checked(to)? }).await
    }

    /// Watches a file, or the entries of a directory, with `recursive` at any depth. Changes are told from now on.
    pub async fn watch(&self, path: &str, recursive: bool) -> Result<Watch> {
        let mut answers = self.ask(FileRequest::Watch { path: checked(path)?, recursive }).await?;
        match answers.next().await? {
            WatchEvent::Watching => {
                let path = path.trim_end_matches('/');
                let root = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
                Ok(Watch { answers, root: format!("{root}{path}") })
            }
            WatchEvent::Change(_) => Err(Error::protocol("a change before the watch began")),
        }
    }

    async fn act(&self, request: FileRequest) -> Result<()> {
        self.ask(request).await?.next().await
    }

    async fn ask(&self, request: FileRequest) -> Result<Answers> {
        let (read, mut stream) = self.guest.stream().await?.into_split();
        write_message(&mut stream, &Request::File(request)).await?;
        Ok(Answers { frames: Frames::new(read), stream })
    }
}

impl FileReader {
    /// The next piece; `None` after the last one. The call may be dropped at any time and made again: nothing is
    /// lost.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        while !self.done {
            match self.answers.frames.next().await? {
                Some(Kind::Stdout) => {
                    let piece = self.answers.frames.payload().len();
                    let left = u64::try_from(piece).ok().and_then(|piece| self.left.checked_sub(piece));
                    self.left = left.ok_or(Error::protocol("more of a file than was asked for"))?;
                    if piece > 0 {
                        return Ok(Some(self.answers.frames.payload()));
                    }
                }
                Some(Kind::Message) => {
                    done(self.answers.frames.payload())?;
                    self.done = true;
                }
                Some(Kind::Stdin | Kind::Stderr) => return Err(Error::protocol("input came from the guest")),
                None => return Err(agent::Error::HangUp.into()),
            }
        }
        Ok(None)
    }
}

impl FileWriter {
    /// Sends the next piece, at the guest's pace. After an error, or a call that is dropped half-way, the writer is
    /// good for nothing but dropping.
    pub async fn data(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(DATA_CHUNK) {
            if let Err(error) = write_frame(&mut self.answers.stream, Kind::Stdin, chunk).await {
                return Err(self.why(error).await);
            }
        }
        Ok(())
    }

    /// Ends the file, and waits until the guest has written everything.
    pub async fn finish(mut self) -> Result<()> {
        if let Err(error) = write_frame(&mut self.answers.stream, Kind::Stdin, &[]).await {
            return Err(self.why(error).await);
        }
        self.answers.next().await
    }

    /// The reason why the guest stopped writing: it sends one before it hangs up.
    async fn why(&mut self, error: agent::Error) -> Error {
        match (error, self.answers.next().await) {
            (agent::Error::HangUp, Err(said)) => said,
            (agent::Error::HangUp, Ok(())) => Error::protocol("a file was written before all of it was sent"),
            (error, _) => error.into(),
        }
    }
}

impl Watch {
    /// The next change. The call may be dropped at any time and made again: nothing is lost.
    pub async fn next(&mut self) -> Result<Change> {
        match self.answers.next().await? {
            WatchEvent::Change(change) if self.is_below(&change.path) => Ok(change),
            WatchEvent::Change(_) => Err(Error::protocol("a change of a file that is not watched")),
            WatchEvent::Watching => Err(Error::protocol("a watch began twice")),
        }
    }

    /// Whether a path is the watched one, or leads to something below it and nowhere else.
    fn is_below(&self, path: &[u8]) -> bool {
        match path.strip_prefix(self.root.as_bytes()) {
            Some(b"/") if self.root.is_empty() => true,
            Some([]) => !self.root.is_empty(),
            Some([b'/', below @ ..]) => below.split(|byte| *byte == b'/').all(is_name),
            _ => false,
        }
    }
}

impl Answers {
    /// The next answer; a failure is an error.
    async fn next<T: Serialize + DeserializeOwned>(&mut self) -> Result<T> {
        succeeded(answer::<FileReply<T>>(&mut self.frames).await?)
    }
}

/// Decodes the end of an act that returns nothing.
fn done(payload: &[u8]) -> Result<()> {
    succeeded(answered::<FileReply<()>>(payload)?)
}

fn succeeded<T>(reply: FileReply<T>) -> Result<T> {
    reply.map_err(|failure| Error::File(tame_file_failure(failure)))
}

/// Checks that a request can carry a path; its meaning is the guest's.
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

/// The last part of a path; empty for the root.
fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Whether a name can be a directory's entry. A client may make a path of it, so it must not lead out of the
/// directory.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn plausible(entry: FileEntry) -> Result<FileEntry> {
    match entry.mtime_ns < 1_000_000_000 {
        true => Ok(entry),
        false => Err(Error::protocol("a file's time has more than a second of nanoseconds")),
    }
}

fn tame_file_failure(failure: FileFailure) -> FileFailure {
    match failure {
        FileFailure::System { errno, text } => FileFailure::System { errno, text: tame(&text) },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::{ChangeKind, ProgramEvent, Refusal, Reply, frame};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::agent::frames::read_frame;
    use crate::fake::{cases, data, entry, guest_with, request, run, say};

    /// Files of a guest that sends these bytes to any request, then hangs up.
    fn saying(bytes: Vec<u8>) -> Files {
        guest_with(move |mut stream| {
            let bytes = bytes.clone();
            async move {
                if request(&mut stream).await.is_some() {
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
        })
        .files()
    }

    fn reply<T: Serialize + DeserializeOwned>(answer: T) -> Vec<u8> {
        frame::encode_reply(&FileReply::Ok(answer)).unwrap()
    }

    fn failed(failure: FileFailure) -> Vec<u8> {
        frame::encode_reply(&FileReply::<()>::Err(failure)).unwrap()
    }

    fn done() -> Vec<u8> {
        reply(())
    }

    fn entries(names: &[&str]) -> Vec<u8> {
        reply(names.iter().map(|name| entry(name)).collect::<Vec<_>>())
    }

    fn no_such_file() -> Vec<u8> {
        let text = "open /x: No such file\x1b[2J or directory".into();
        failed(FileFailure::System { errno: 2, text })
    }

    async fn read_all(files: &Files, length: u64) -> Result<Vec<u8>> {
        let mut reader = files.read("/x", 0, length, None).await?;
        let mut content = Vec::new();
        while let Some(piece) = reader.next().await? {
            assert!(!piece.is_empty());
            content.extend_from_slice(piece);
        }
        assert_eq!(reader.next().await?, None);
        Ok(content)
    }

    #[test]
    fn files_are_read_piece_by_piece() {
        run(async {
            let pieces =
                [data(Kind::Stdout, b"hello "), data(Kind::Stdout, b""), data(Kind::Stdout, b"world")];
            let files = saying([pieces.concat(), done()].concat());
            assert_eq!(read_all(&files, 11).await.unwrap(), b"hello world");
            assert!(
                matches!(read_all(&files, 10).await, Err(Error::Agent(agent::Error::Guest(_)))),
                "more than asked for"
            );
            assert!(matches!(
                read_all(&saying(pieces.concat()), 99).await,
                Err(Error::Agent(agent::Error::HangUp))
            ));
            assert_eq!(read_all(&saying(done()), 5).await.unwrap(), b"");
            for failure in [FileFailure::TooLarge, FileFailure::NotRegular] {
                let files = saying(failed(failure.clone()));
                assert!(matches!(read_all(&files, 9).await, Err(Error::File(said)) if said == failure));
            }
        });
    }

    #[test]
    fn changes_are_of_what_is_watched() {
        run(async {
            let told = async |asked: &str, path: &[u8]| {
                let change = WatchEvent::Change(Change { kind: ChangeKind::Created, path: path.into() });
                let files = saying([reply(WatchEvent::Watching), reply(change)].concat());
                files.watch(asked, true).await.unwrap().next().await.is_ok()
            };
            let good: [(&str, &[u8]); 7] = [
                ("/a", b"/a"),
                ("/a//", b"/a/b/c\xff"),
                ("a", b"/a/b"),
                ("/a/../b", b"/a/../b/c"),
                ("/", b"/"),
                ("/", b"/a/b"),
                ("a/b", b"/a/b"),
            ];
            for (asked, path) in good {
                assert!(told(asked, path).await, "{asked}");
            }
            let bad: [(&str, &[u8]); 9] = [
                ("/a", b""),
                ("/a", b"/ab"),
                ("/a", b"/b"),
                ("/a", b"a/b"),
                ("/a", b"/a/../b"),
                ("/a", b"/a//b"),
                ("/a", b"/a/b\0"),
                ("/", b"/.."),
                ("/", b""),
            ];
            for (asked, path) in bad {
                assert!(!told(asked, path).await, "{asked} {path:?}");
            }
        });
    }

    #[test]
    fn a_listing_ends_where_there_is_no_more_room() {
        run(async {
            let files = saying([entries(&["a", "b"]), entries(&["c"]), entries(&[])].concat());
            for (room, fits) in [(3, true), (2, false)] {
                let mut left = room * (size_of::<FileEntry>() + 1);
                let listed = files.list_within("/x", |more| match left.checked_sub(more) {
                    Some(rest) => {
                        left = rest;
                        true
                    }
                    None => false,
                });
                assert_eq!(listed.await.is_ok(), fits);
            }
        });
    }

    #[test]
    fn what_was_asked_is_what_arrives() {
        run(async {
            let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
            let guest = guest_with(move |mut stream: UnixStream| {
                let sender = sender.clone();
                async move {
                    let Some(request) = request(&mut stream).await else { return };
                    sender.send(request).unwrap();
                    say(&mut stream, &FileReply::Ok(())).await;
                }
            });
            let files = guest.files();
            assert_eq!(files.read("a", 1, 2, Some(3)).await.unwrap().next().await.unwrap(), None);
            files.make_directory("d", 0o755, true).await.unwrap();
            files.remove("r", true).await.unwrap();
            files.rename("from", "to").await.unwrap();
            let expected = [
                FileRequest::Read { path: "a".into(), offset: 1, length: 2, size_limit: Some(3) },
                FileRequest::MakeDirectory { path: "d".into(), mode: 0o755, parents: true },
                FileRequest::Remove { path: "r".into(), recursive: true },
                FileRequest::Rename { from: "from".into(), to: "to".into() },
            ];
            for expected in expected {
                assert_eq!(asked.recv().await.unwrap(), Request::File(expected));
            }
        });
    }

    /// Takes a file's content; fails at `limit` bytes if there is a limit. Returns the content, and whether its end
    /// came.
    async fn take(mut stream: UnixStream, limit: usize) -> Option<(Vec<u8>, bool)> {
        let Request::File(FileRequest::Write { .. }) = request(&mut stream).await? else { return None };
        let (mut content, mut payload) = (Vec::new(), Vec::new());
        loop {
            match read_frame(&mut stream, &mut payload).await.unwrap() {
                Some((Kind::Stdin, [])) => {
                    say(&mut stream, &FileReply::Ok(())).await;
                    return Some((content, true));
                }
                Some((Kind::Stdin, bytes)) => content.extend_from_slice(bytes),
                Some(other) => panic!("{other:?}"),
                None => return Some((content, false)),
            }
            if content.len() >= limit {
                stream.write_all(&no_such_file()).await.unwrap();
                return Some((content, false));
            }
        }
    }

    fn taking(limit: usize) -> (Files, tokio::sync::mpsc::UnboundedReceiver<(Vec<u8>, bool)>) {
        let (sender, taken) = tokio::sync::mpsc::unbounded_channel();
        let guest = guest_with(move |stream| {
            let sender = sender.clone();
            async move {
                if let Some(result) = take(stream, limit).await {
                    sender.send(result).unwrap();
                }
            }
        });
        (guest.files(), taken)
    }

    #[test]
    fn files_are_written_and_their_end_is_waited_for() {
        run(async {
            let (files, mut taken) = taking(usize::MAX);
            let mut writer = files.write("/x", 0o644, WriteAt::Truncate).await.unwrap();
            writer.data(b"").await.unwrap();
            writer.data(&[7; 3 * DATA_CHUNK + 1]).await.unwrap();
            writer.data(b"end").await.unwrap();
            writer.finish().await.unwrap();
            let content = [&[7; 3 * DATA_CHUNK + 1][..], b"end"].concat();
            assert_eq!(taken.recv().await.unwrap(), (content, true));

            let mut writer = files.write("/x", 0o644, WriteAt::Append).await.unwrap();
            writer.data(b"half").await.unwrap();
            drop(writer);
            assert_eq!(taken.recv().await.unwrap(), (b"half".to_vec(), false), "no end was claimed");
        });
    }

    #[test]
    fn a_guest_that_cannot_write_on_is_heard() {
        run(async {
            let (files, _taken) = taking(1);
            let mut writer = files.write("/x", 0o644, WriteAt::Truncate).await.unwrap();
            let mut pieces = 0;
            let error = loop {
                if let Err(error) = writer.data(&[7; DATA_CHUNK]).await {
                    break error;
                }
                pieces += 1;
                assert!(pieces < 1000, "nobody takes it");
            };
            assert_eq!(error.to_string(), "open /x: No such file[2J or directory");
            let mut writer = files.write("/x", 0o644, WriteAt::Truncate).await.unwrap();
            writer.data(b"short").await.unwrap();
            assert!(matches!(writer.finish().await, Err(Error::File(FileFailure::System { errno: 2, .. }))));
        });
    }

    #[test]
    fn directories_are_listed_within_limits() {
        run(async {
            let files = saying([entries(&["a", "b"]), entries(&["c"]), entries(&[])].concat());
            let names: Vec<_> = files.list("/").await.unwrap().into_iter().map(|entry| entry.name).collect();
            assert_eq!(names, [b"a", b"b", b"c"]);
            assert!(saying(entries(&[])).list("/").await.unwrap().is_empty());
            for bad in ["", ".", "..", "../x", "a/b", "nul\0"] {
                let files = saying([entries(&["a", bad]), entries(&[])].concat());
                assert!(
                    matches!(files.list("/").await, Err(Error::Agent(agent::Error::Guest(_)))),
                    "{bad:?}"
                );
            }
            let odd = FileEntry { mtime_ns: 1_000_000_000, ..entry("a") };
            let files = saying([reply(vec![odd]), entries(&[])].concat());
            assert!(matches!(files.list("/").await, Err(Error::Agent(agent::Error::Guest(_)))));
        });
    }

    #[test]
    fn an_endless_directory_is_refused() {
        run(async {
            let files = guest_with(|mut stream: UnixStream| async move {
                if request(&mut stream).await.is_some() {
                    let many = entries(&["x"; 50_000]);
                    while stream.write_all(&many).await.is_ok() {}
                }
            })
            .files();
            let error = files.list("/").await.unwrap_err();
            assert_eq!(error.to_string(), "guest protocol: a directory's listing is over the limit");
        });
    }

    #[test]
    fn stat_is_one_entry() {
        run(async {
            assert_eq!(saying(reply(entry("x"))).stat("/x", true).await.unwrap(), entry("x"));
            for bad in [entries(&[]), entries(&["x", "y"]), done(), data(Kind::Stdout, b"x"), vec![]] {
                assert!(saying(bad).stat("/x", false).await.is_err());
            }
            let refused = frame::encode(&Reply::<()>::Err(Refusal("512 requests".into()))).unwrap();
            assert!(matches!(
                saying(refused).stat("/x", true).await,
                Err(Error::Agent(agent::Error::Refused(_)))
            ));
        });
    }

    #[test]
    fn changes_are_told_once_they_are_watched_for() {
        run(async {
            let change = Change { kind: ChangeKind::Created, path: b"/d/x".to_vec() };
            let told = [WatchEvent::Watching, WatchEvent::Change(change.clone())];
            let mut watch =
                saying(told.iter().cloned().flat_map(reply).collect()).watch("/d", true).await.unwrap();
            assert_eq!(watch.next().await.unwrap(), change);
            assert!(matches!(watch.next().await, Err(Error::Agent(agent::Error::HangUp))));
            assert!(
                saying(reply(told[1].clone())).watch("/d", true).await.is_err(),
                "a change before the answer"
            );
            assert!(matches!(saying(no_such_file()).watch("/d", true).await, Err(Error::File(_))));
        });
    }

    #[test]
    fn paths_that_no_system_call_takes_are_not_asked_for() {
        run(async {
            let files = guest_with(|_| async { panic!("something was asked") }).files();
            let long = "x".repeat(MAX_PATH);
            for (path, number) in [("a\0b", EINVAL), (&long, ENAMETOOLONG)] {
                let error = files.make_directory(path, 0o755, false).await.unwrap_err();
                let Error::File(FileFailure::System { errno, text }) = error else { panic!("{error}") };
                assert_eq!(errno, number, "{text}");
                assert!(files.rename("ok", path).await.is_err());
            }
        });
    }

    fn said() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => prop::sample::select(vec![
                done(),
                entries(&["a"]),
                entries(&["..", "b"]),
                data(Kind::Stdout, b"data"),
                data(Kind::Stderr, b"data"),
                data(Kind::Stdin, b""),
                no_such_file(),
                reply(WatchEvent::Watching),
                reply(entry("a")),
                frame::encode_reply(&ProgramEvent::Started).unwrap(),
            ]),
            1 => prop::collection::vec(any::<u8>(), 0..20),
            1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| data(Kind::Message, &bytes)),
        ]
    }

    proptest! {
        #![proptest_config(cases(300))]

        #[test]
        fn every_answer_comes_to_an_end(said in prop::collection::vec(said(), 0..5)) {
            run(async {
                let files = saying(said.concat());
                let sensible = said.concat().starts_with(&done());
                assert_eq!(files.remove("/x", false).await.is_ok(), sensible);
                let read = read_all(&files, 7).await;
                assert!(read.is_err() || read.unwrap().len() <= 7);
                let listed = files.list("/x").await;
                assert!(listed.is_err() || listed.unwrap().iter().all(|entry| entry.name == b"a"));
                let _ = files.stat("/x", true).await;
                if let Ok(mut watch) = files.watch("/x", true).await {
                    while watch.next().await.is_ok() {}
                }
                if let Ok(mut writer) = files.write("/x", 0, WriteAt::Append).await
                    && writer.data(b"x").await.is_ok()
                {
                    let _ = writer.finish().await;
                }
                let _ = files.guest.connect(80).await;
            });
        }
    }
}
