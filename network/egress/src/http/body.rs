//! Bodies on their way, in pieces as they come: a guest's to a server, a server's to a guest.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Sleep, sleep};

use super::account::Account;
use super::upstream::Line;

/// How long a body waits for a server that was asked whether it wants it (RFC 9110 §10.1.1): a server need not answer that.
const CONTINUE_LIMIT: Duration = Duration::from_secs(1);

/// A guest's body.
pub(crate) struct Upload {
    inner: Option<Incoming>,
    sent: Arc<AtomicU64>,
    is_unread: Arc<AtomicBool>,
    gate: Option<Gate>,
}

/// A body's wait until the server wants it.
struct Gate {
    wanted: oneshot::Receiver<()>,
    limit: Option<Pin<Box<Sleep>>>,
    is_refused: bool,
}

impl Upload {
    /// A body whose bytes are counted, whose end is noted, and that waits for a signal if there is one.
    pub(crate) fn new(
        inner: Incoming,
        sent: Arc<AtomicU64>,
        is_unread: Arc<AtomicBool>,
        wanted: Option<oneshot::Receiver<()>>,
    ) -> Self {
        let gate = wanted.map(|wanted| Gate { wanted, limit: None, is_refused: false });
        Self { inner: Some(inner), sent, is_unread, gate }
    }

    /// No body.
    pub(crate) fn nothing() -> Self {
        Self { inner: None, sent: Arc::default(), is_unread: Arc::default(), gate: None }
    }
}

impl Gate {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_refused {
            return Poll::Pending;
        }
        let limit = self.limit.get_or_insert_with(|| Box::pin(sleep(CONTINUE_LIMIT)));
        match Pin::new(&mut self.wanted).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            // The response is there, and the body was not asked for.
            Poll::Ready(Err(_)) => {
                self.is_refused = true;
                Poll::Pending
            }
            Poll::Pending => limit.as_mut().poll(cx),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll(cx));
            this.gate = None;
        }
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.sent.fetch_add(len(frame), Ordering::Relaxed);
        }
        if frame.is_none() || inner.is_end_stream() {
            this.is_unread.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of an answer to a guest.
pub(crate) enum Answer {
    /// None.
    Nothing,
    /// A page of our own.
    Page(Option<Bytes>),
    /// A server's.
    Carried(Box<Download>),
}

/// A server's body.
pub(crate) struct Download {
    inner: Incoming,
    account: Account,
    /// The connection that it comes on, to be used again.
    line: Option<Line>,
    _place: OwnedSemaphorePermit,
}

impl Download {
    pub(crate) fn new(inner: Incoming, account: Account, line: Line, place: OwnedSemaphorePermit) -> Self {
        Self { inner, account, line: Some(line), _place: place }
    }

    fn end(&mut self) {
        if let Some(line) = self.line.take() {
            self.account.answered();
            line.give_back();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            // Nothing comes after trailers, and nothing is asked for.
            Some(Ok(frame)) if frame.is_trailers() => self.end(),
            Some(Ok(frame)) => self.account.received(len(frame)),
            Some(Err(error)) => self.account.fault(&error.to_string()),
            None => self.end(),
        }
        Poll::Ready(frame)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A body of known length is not asked again once it is there.
        if self.inner.is_end_stream() {
            self.end();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Page(page) => Poll::Ready(page.take().map(|page| Ok(Frame::data(page)))),
            Self::Carried(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Page(page) => page.is_none(),
            Self::Carried(download) => download.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Page(page) => SizeHint::with_exact(page.as_ref().map_or(0, |page| page.len() as u64)),
            Self::Carried(download) => download.inner.size_hint(),
        }
    }
}

fn len(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}
