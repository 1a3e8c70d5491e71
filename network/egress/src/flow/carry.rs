//! Bytes between a guest and a server, both ways, until both have ended.
//!
//! An idle connection holds no buffer: bytes are taken when they are there, into one buffer of the thread's, and what the
//! other side does not take at once is kept for it, and nothing more is taken meanwhile.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::task::coop;
use tokio::time::{Instant, sleep_until};

use super::table::Seat;
use crate::audit::End;

/// Most bytes that are taken at a time.
const PIECE: usize = 64 << 10;

/// How long a connection may be silent: as long as an address translator has to wait (RFC 5382 §5, 2 hours and 4 minutes).
const IDLE: Duration = Duration::from_secs(124 * 60);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// Bytes of a connection so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    /// Bytes of the guest's that the server got.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of the server's that the guest got.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Carries a connection, of which the guest's first bytes were taken already.
pub(super) async fn both(
    guest: &mut TcpStream,
    server: &mut TcpStream,
    first: Vec<u8>,
    counts: &Counts,
    seat: &Seat<'_>,
) -> End {
    let (from_guest, to_guest) = guest.split();
    let (from_server, to_server) = server.split();
    let up = async {
        send(&to_server, &first, &counts.sent, seat).await?;
        drop(first);
        one_way(from_guest, to_server, &counts.sent, seat).await
    };
    let down = one_way(from_server, to_guest, &counts.received, seat);
    tokio::select! {
        carried = async { tokio::try_join!(up, down) } => if carried.is_ok() { End::Closed } else { End::Reset },
        () = silence(seat) => End::Idle,
    }
}

/// Ends once nothing was carried for a while.
pub(super) async fn silence(seat: &Seat<'_>) {
    loop {
        let end = seat.last() + IDLE;
        if end <= Instant::now() {
            return;
        }
        sleep_until(end).await;
    }
}

async fn one_way(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    count: &AtomicU64,
    seat: &Seat<'_>,
) -> io::Result<()> {
    loop {
        from.readable().await?;
        match BUFFER.with_borrow_mut(|buffer| take(&from, &to, buffer))? {
            Taken::Nothing => {}
            Taken::End => return to.shutdown().await,
            Taken::Some { sent, left } => {
                count.fetch_add(sent, Ordering::Relaxed);
                seat.touch();
                send(&to, &left, count, seat).await?;
            }
        }
        // A fast connection does not keep the others from their turn.
        coop::consume_budget().await;
    }
}

enum Taken {
    Nothing,
    End,
    /// Some bytes, of which these were not sent yet.
    Some {
        sent: u64,
        left: Vec<u8>,
    },
}

fn take(from: &ReadHalf<'_>, to: &WriteHalf<'_>, buffer: &mut [u8]) -> io::Result<Taken> {
    let len = match from.try_read(buffer) {
        Ok(0) => return Ok(Taken::End),
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Taken::Nothing),
        Err(error) => return Err(error),
    };
    let sent = match to.try_write(&buffer[..len]) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    Ok(Taken::Some { sent: sent as u64, left: buffer[sent..len].to_vec() })
}

async fn send(to: &WriteHalf<'_>, mut bytes: &[u8], count: &AtomicU64, seat: &Seat<'_>) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(sent) => {
                count.fetch_add(sent as u64, Ordering::Relaxed);
                seat.touch();
                bytes = &bytes[sent..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
