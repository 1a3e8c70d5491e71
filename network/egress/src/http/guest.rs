//! The guest's end of a connection: its first bytes once more, then the stream, with all bytes counted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::flow::Clock;

/// The guest's end.
#[derive(Debug)]
pub(crate) struct Guest {
    stream: TcpStream,
    /// First bytes that were taken already, the last one first.
    first: Vec<u8>,
    watch: Arc<Watch>,
    clock: Clock,
}

/// The news of an end that is somebody else's by now.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    sent: AtomicU64,
    received: AtomicU64,
    is_reset: AtomicBool,
}

impl Watch {
    /// Bytes that came from the guest.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that went to the guest.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The connection is to end with a reset.
    pub(crate) fn reset(&self) {
        self.is_reset.store(true, Ordering::Relaxed);
    }
}

impl Guest {
    pub(crate) fn new(stream: TcpStream, mut first: Vec<u8>, clock: Clock) -> Self {
        first.reverse();
        Self { stream, first, watch: Arc::default(), clock }
    }

    /// The news of this end.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }

    fn carried(&self, count: &AtomicU64, len: usize) {
        count.fetch_add(len as u64, Ordering::Relaxed);
        self.clock.touch();
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.first.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        } else {
            let rest = this.first.len().saturating_sub(buffer.remaining());
            let mut piece = this.first.split_off(rest);
            piece.reverse();
            buffer.put_slice(&piece);
            if this.first.is_empty() {
                this.first = Vec::new();
            }
        }
        let len = buffer.filled().len() - before;
        this.carried(&this.watch.sent, len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let len = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.carried(&this.watch.received, len);
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let len = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bytes))?;
        this.carried(&this.watch.received, len);
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.watch.is_reset.load(Ordering::Relaxed) {
            // Where this fails, the connection is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}
