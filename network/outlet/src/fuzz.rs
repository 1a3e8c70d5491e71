//! The fuzz body of what a process that its guest has taken over tells the supervisor.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here: the
//! packets that messages come in (`process`).

use process::Channel;
use rustix::net::{SendFlags, shutdown};

use crate::channel::{self, Report};

/// Pieces of messages, each behind a byte for its length: what makes a report can be said again.
pub fn reports(data: &[u8]) {
    let Ok((ours, theirs)) = Channel::pair() else { return };
    let mut rest = data;
    while let Some((len, after)) = rest.split_first() {
        let (piece, after) = after.split_at(after.len().min(usize::from(*len)));
        rest = after;
        if rustix::net::send(&theirs, &[&[0; 4], piece].concat(), SendFlags::DONTWAIT).is_err() {
            break;
        }
    }
    if shutdown(&theirs, rustix::net::Shutdown::Write).is_err() {
        return;
    }
    while let Ok(Some((report, _))) = channel::receive::<Report>(&ours) {
        let Ok((ours, theirs)) = Channel::pair() else { return };
        let again = channel::send(&ours, &report, &[]).and_then(|()| channel::receive::<Report>(&theirs));
        assert!(matches!(again, Ok(Some((again, _))) if again == report), "{report:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(report: &Report, size: usize) -> Vec<u8> {
        let bytes = postcard::to_stdvec(report).unwrap();
        let count = bytes.len().div_ceil(size);
        let piece = |(number, piece): (usize, &[u8])| {
            let piece = postcard::to_stdvec(&(number + 1 == count, piece.to_vec())).unwrap();
            [vec![u8::try_from(piece.len()).unwrap()], piece].concat()
        };
        bytes.chunks(size).enumerate().flat_map(piece).collect()
    }

    #[test]
    fn reports() {
        let list = ["ok.test", "*.example.test:80"].map(str::to_owned).to_vec();
        let examples = [
            [pieces(&Report::Serving, 9), pieces(&Report::Changed(Ok(list.clone())), 9)].concat(),
            pieces(&Report::Changed(Ok(list)), 200),
            pieces(&Report::Changed(Err("allow list: no".into())), 4),
            pieces(&Report::Failed("network: bad descriptor".into()), 7),
        ];
        let words = ["\0", "\x01", "\x02", "\x03", "\u{7f}", "\x03\0\x01\0", "\x02\x01\0"];
        fuzzed::run("outlet_reports", 4000, &examples, &words, super::reports);
    }
}
