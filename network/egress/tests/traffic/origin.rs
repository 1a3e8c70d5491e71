//! Servers that requests are sent on to, and a guest's end that reads responses.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A message, split behind its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The values of a header.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }
}

/// Reads one message: its head, and a body that is as long as the head says or in chunks.
pub(crate) async fn message(stream: &mut (impl AsyncRead + Unpin)) -> Option<Message> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let mut message = Message { head: String::from_utf8(head).unwrap(), body: String::new() };
    let mut body = Vec::new();
    if message.header("transfer-encoding") == ["chunked"] {
        while !(body.starts_with(b"0\r\n") || body.windows(5).any(|end| end == b"\r\n0\r\n"))
            || !body.ends_with(b"\r\n\r\n")
        {
            body.push(stream.read_u8().await.ok()?);
        }
    } else if let Some(len) = message.header("content-length").first() {
        body.resize(len.parse().unwrap(), 0);
        stream.read_exact(&mut body).await.ok()?;
    }
    message.body = String::from_utf8(body).unwrap();
    Some(message)
}

/// Sends bytes, and reads one message.
pub(crate) async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &str) -> Message {
    stream.write_all(bytes.as_bytes()).await.unwrap();
    message(stream).await.expect("a message")
}

/// A server that reads requests and sends these responses, each on the connection of its request, and ends the connection
/// where a response is empty. The requests come back at the end.
pub(crate) async fn scripted(
    address: &str,
    responses: &'static [&'static str],
) -> (SocketAddr, JoinHandle<Vec<Message>>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = tokio::spawn(async move {
        let (mut requests, mut responses) = (Vec::new(), responses.iter());
        while responses.len() > 0 {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Some(request) = message(&mut stream).await {
                requests.push(request);
                let Some(response) = responses.next().filter(|response| !response.is_empty()) else { break };
                stream.write_all(response.as_bytes()).await.unwrap();
                if responses.len() == 0 {
                    break;
                }
            }
        }
        requests
    });
    (address, serve)
}
