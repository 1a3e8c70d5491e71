//! Fuzz bodies for the messages of a machine's processes to their supervisor; the guest may have taken a process over.
//!
//! `cargo test` runs the bodies a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer. Not
//! here: the packets in which reports come (`process`).

use std::fmt::Debug;
use std::io::BufReader;

use process::Channel;
use rustix::net::SendFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::native::protocol::Report;
use crate::qmp::{self, MAX_ANSWERS, MAX_LINE, Shutdown};
use crate::shares::SharesReport;
use crate::software::protocol::{DevicesReport, LaunchReport};

/// Lines of QEMU's control protocol. The first byte is the length of the pieces in which the rest arrives.
pub fn qmp(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let (answer, answers) = std::sync::mpsc::sync_channel(MAX_ANSWERS);
    let whole = qmp::read(bytes, &answer);
    let lines = bytes.split(|byte| *byte == b'\n').count();
    let answered = answers.try_iter().count();
    assert!(answered <= lines.min(MAX_ANSWERS), "{answered} answers in {lines} lines");
    let pieces = qmp::read(BufReader::with_capacity(usize::from(piece).max(1), bytes), &answer);
    assert_eq!(whole, pieces, "pieces mean something else");
    assert_eq!(answers.try_iter().count(), answered);
    if let Some(Shutdown::Other(reason)) = whole {
        assert!(reason.len() as u64 <= 3 * MAX_LINE, "{} bytes", reason.len());
    }
}

/// A report of each kind of process. A report that is understood keeps its meaning when it is sent again.
pub fn reports(data: &[u8]) {
    report::<Report>(data);
    report::<DevicesReport>(data);
    report::<LaunchReport>(data);
    report::<SharesReport>(data);
}

fn report<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok((ours, theirs)) = Channel::pair() else { return };
    let packet = [&[0; 4], data].concat();
    if rustix::net::send(&theirs, &packet, SendFlags::DONTWAIT).is_err() {
        return;
    }
    let Ok(Some((report, _))) = ours.try_recv::<T>() else { return };
    let again = theirs.send(&report, &[]).and_then(|()| ours.try_recv::<T>());
    let Ok(Some((again, _))) = again else { panic!("{report:?} cannot be said again: {again:?}") };
    assert_eq!(report, again);
}

#[cfg(test)]
mod tests {
    #[test]
    fn qmp() {
        let talk = concat!(
            "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"return\": {}, \"id\": 1}\r\n",
            "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
            "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\r\n",
        );
        let words =
            ["{", "}", "\"event\":", "\"SHUTDOWN\"", "\"data\":", "\"reason\":", "\n", "\"id\":", "[[[["];
        fuzzed::run("machine_qmp", 4000, &[[b"\x07", talk.as_bytes()].concat()], &words, super::qmp);
    }

    #[test]
    fn reports() {
        let examples = [&[0, 1, 2, 3, 4, 5, 6][..], &[1, 3, b'a', b'b', b'c'], &[4, 2, 1, b'x'], &[2], &[3]];
        let examples = examples.map(<[u8]>::to_vec);
        fuzzed::run("machine_reports", 2000, &examples, &["\0", "\x01", "\x02"], super::reports);
    }
}
