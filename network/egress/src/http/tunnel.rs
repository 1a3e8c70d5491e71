//! A connection that was upgraded: bytes both ways, of which nothing is looked into.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

use super::account::Account;
use super::upstream::Line;
use crate::audit::End;

/// Room for bytes of each direction.
const PIECE: usize = 16 << 10;

/// The two ends of an upgraded connection.
pub(crate) struct Tunnel {
    pub(crate) guest: OnUpgrade,
    pub(crate) server: OnUpgrade,
    pub(crate) account: Account,
    /// The server's connection, which ends with its sender.
    pub(crate) line: Line,
}

impl Tunnel {
    /// Carries until both ends have ended.
    pub(crate) async fn run(self) -> End {
        let Self { guest, server, mut account, line } = self;
        let ends: Result<(Upgraded, Upgraded), _> = tokio::try_join!(guest, server);
        drop(line);
        let Ok((guest, server)) = ends else { return End::Reset };
        let (mut guest, mut server) = (TokioIo::new(guest), TokioIo::new(server));
        match copy_bidirectional_with_sizes(&mut guest, &mut server, PIECE, PIECE).await {
            Ok((sent, received)) => {
                account.sent().fetch_add(sent, std::sync::atomic::Ordering::Relaxed);
                account.received(received);
                account.answered();
                End::Closed
            }
            Err(error) => {
                account.fault(&error.to_string());
                End::Reset
            }
        }
    }
}
