//! Questions that come by TCP: one after the other, each with its length before it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::message::MAX_QUESTION;
use super::{Dns, Via};

/// Most connections at a time.
pub(super) const MAX_CONNECTIONS: usize = 32;

/// How long a guest may be silent, or take for one question, or to take one reply.
const IDLE: Duration = Duration::from_secs(10);

/// Most questions of one connection.
const MAX_QUESTIONS: usize = 1024;

impl Dns {
    /// Answers the questions of a connection until the guest ends it, is silent, or does not speak DNS.
    pub async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Ok(_permit) = self.connections.try_acquire() else { return };
        let mut question = Vec::new();
        for _ in 0..MAX_QUESTIONS {
            let Ok(Some(())) = timeout(IDLE, next(&mut stream, &mut question)).await else { return };
            let Some(reply) = self.reply(&question, Via::Tcp).await else { return };
            let Ok(len) = u16::try_from(reply.len()) else { return };
            let framed = [&len.to_be_bytes(), reply.as_slice()].concat();
            let Ok(Ok(())) = timeout(IDLE, stream.write_all(&framed)).await else { return };
        }
    }
}

/// Reads a question; `None` if there is none, or one that is too long.
async fn next(stream: &mut (impl AsyncRead + Unpin), question: &mut Vec<u8>) -> Option<()> {
    let len = usize::from(stream.read_u16().await.ok()?);
    if len > MAX_QUESTION {
        return None;
    }
    question.clear();
    question.resize(len, 0);
    stream.read_exact(question).await.ok()?;
    Some(())
}
