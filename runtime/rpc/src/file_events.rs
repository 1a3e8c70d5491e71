//! Events of files: what was done to them, as notifications.
//!
//! A client that reads slowly makes this wait, and nobody else: what is done meanwhile is lost and counted. Not here: the
//! order of these lines and of answers (`session`).

use std::time::{SystemTime, UNIX_EPOCH};

use sandbox::{FileEvents, FileNews};
use wire::rpc::{EventParams, FileEvent};

use crate::encode;
use crate::methods::file_info::{S_IFMT, go_mode};
use crate::outbox::Outbox;

/// The type of a regular file in `st_mode` (linux/stat.h).
const S_IFREG: u32 = 0o100_000;

/// Tells a client of everything that is done, until the sandbox is gone.
pub(crate) async fn tell(mut files: FileNews, outbox: Outbox) {
    while let Some(FileEvents { events, lost }) = files.next().await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        for event in events {
            if let Some(file) = file(event) {
                outbox.notify(notification("file", timestamp, Some(file), None)).await;
            }
        }
        if lost > 0 {
            tracing::warn!("{lost} file events are lost");
            outbox.notify(notification("lost", timestamp, None, Some(lost))).await;
        }
    }
}

fn notification(kind: &str, timestamp: i64, file: Option<FileEvent>, lost: Option<u64>) -> Vec<u8> {
    let params = EventParams { kind: kind.to_owned(), timestamp, network: None, file, exec: None, lost };
    encode::notification("event", &params)
}

/// An event as clients get it. Names that are no text are made lossy.
fn file(event: sandbox::FileEvent) -> Option<FileEvent> {
    let sandbox::FileEvent { op, path, size, mode, uid, gid } = event;
    let mode = match mode {
        // Permissions that were asked for are those of a file.
        mode if mode & S_IFMT == 0 => go_mode(mode | S_IFREG),
        mode => go_mode(mode),
    };
    let path = String::from_utf8_lossy(&path).into_owned();
    Some(FileEvent { op: op.name()?.to_owned(), path, size, mode, uid, gid })
}

#[cfg(test)]
mod tests {
    use policy::files::Op;

    use super::*;

    #[test]
    fn modes_are_those_of_go() {
        for (mode, expected) in
            [(0, 0), (0o640, 0o640), (0o4755, 0x0080_01ed), (0o100_644, 420), (0o041_777, 0x8010_01ff)]
        {
            let event = sandbox::FileEvent {
                op: Op::Write,
                path: b"/w/a\xff".to_vec(),
                size: 7,
                mode,
                uid: 1,
                gid: 2,
            };
            let told = file(event).unwrap();
            assert_eq!(
                (told.op.as_str(), told.path.as_str(), told.mode),
                ("write", "/w/a\u{fffd}", expected)
            );
        }
    }
}
