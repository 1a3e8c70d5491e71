//! Sends bytes on a socket, in smaller pieces where the kernel has no memory for larger ones.
//!
//! Linux copies what is sent over vsock into packets of up to 64 KiB, each in one piece of its memory. A guest that has
//! used most of its memory for files has free memory in small pieces only: a send then fails with ENOMEM, though a
//! smaller one does not.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

/// Bytes of which the kernel has memory unless it has none at all: less than a page.
const LEAST: usize = 2048;

/// Sends `bytes`, or as many of them as the kernel takes; returns how many.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
    let mut piece = bytes;
    loop {
        match rustix::net::send(&socket, piece, flags | SendFlags::NOSIGNAL) {
            Err(Errno::NOMEM | Errno::NOBUFS) if piece.len() > LEAST => {
                piece = piece.get(..piece.len() / 2).unwrap_or_default();
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::net::UnixStream;

    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };

    use super::*;

    /// Has the kernel refuse this thread any send of more than `most` bytes, as one without large pieces of memory does.
    fn refuse_sends_of_more_than(most: u64) {
        let larger = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Gt, most).unwrap();
        let rules = [(libc::SYS_sendto, vec![SeccompRule::new(vec![larger]).unwrap()])].into();
        let no_memory = SeccompAction::Errno(u32::try_from(libc::ENOMEM).unwrap());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, no_memory, arch).unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }

    #[test]
    fn smaller_pieces_where_there_is_no_memory_for_larger_ones() {
        let sent = |most: u64| {
            let outcome = std::thread::spawn(move || {
                let (socket, _other) = UnixStream::pair().unwrap();
                refuse_sends_of_more_than(most);
                send(&socket, &[7; 64 << 10], SendFlags::DONTWAIT)
            });
            outcome.join().unwrap()
        };
        assert_eq!(sent(1 << 20), Ok(64 << 10));
        assert_eq!(sent(5000), Ok(4096));
        assert_eq!(sent(LEAST as u64), Ok(LEAST));
        assert_eq!(sent(LEAST as u64 - 1), Err(Errno::NOMEM));
    }
}
