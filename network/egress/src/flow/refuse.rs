//! Refusals that a guest's programs understand.

use std::time::Duration;

use egress_policy::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::first::{First, Kind, Speaks};

/// A fatal alert, `access_denied` (RFC 8446 §6), in a record of its own.
pub(super) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// How long a guest may take to read a refusal.
const LIMIT: Duration = Duration::from_secs(2);

/// Most bytes that are still taken from the guest, so that it reads the refusal before the connection ends.
const MAX_DRAINED: usize = 64 << 10;

/// Resets a connection.
pub(super) fn reset(stream: TcpStream) {
    // Where this fails, the connection is gone already.
    let _ = stream.set_zero_linger();
}

/// Answers the first bytes of a connection, in their protocol, and ends it.
pub(super) async fn answer(stream: TcpStream, first: &First, reason: &Reason) {
    let refusal = match first.kind {
        Kind::Tls(_) | Kind::NoHost(Speaks::Tls) => ACCESS_DENIED.to_vec(),
        Kind::Http(_) => page("403 Forbidden", first, reason),
        Kind::NoHost(Speaks::Http) => page("400 Bad Request", first, reason),
        Kind::TooLarge => page("431 Request Header Fields Too Large", first, reason),
        Kind::Other => return reset(stream),
    };
    // A guest that does not read it is reset.
    let _ = timeout(LIMIT, last(stream, &refusal)).await;
}

fn page(status: &str, first: &First, reason: &Reason) -> Vec<u8> {
    let body = format!("Blocked by policy: {reason}\n");
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let is_head = first.bytes.starts_with(b"HEAD ");
    if is_head { head.into_bytes() } else { [head, body].concat().into_bytes() }
}

/// Sends the last bytes of a connection, and takes what the guest still sends: if it were left unread, the guest would see
/// a reset instead.
async fn last(mut stream: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let (mut buffer, mut drained) = ([0; 4096], 0);
    while drained < MAX_DRAINED {
        match stream.read(&mut buffer).await? {
            0 => break,
            len => drained += len,
        }
    }
    Ok(())
}
