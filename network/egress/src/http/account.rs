//! The account of one request: kept while it is under way, told to the audit at its end, whatever that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use egress_policy::Reason;
use hyper::StatusCode;

use super::head::Heard;
use super::site::{Site, UnderWay};
use crate::audit::{self, Event, RequestOutcome};

/// Most bytes of a method, a path, or words that are told.
const MAX_TOLD: usize = 1_024;

/// An account that tells the audit when it is dropped.
pub(crate) struct Account {
    site: Arc<Site>,
    start: Instant,
    sent: Arc<AtomicU64>,
    told: audit::Request,
    _under_way: Option<UnderWay>,
}

impl Account {
    /// The account of a request that was just read.
    pub(crate) fn new(site: Arc<Site>, head: &hyper::http::request::Parts) -> Self {
        let told = audit::Request {
            flow: site.flow,
            tls: site.is_tls(),
            http2: head.version == hyper::Version::HTTP_2,
            method: beginning(head.method.as_str()),
            host: String::new(),
            path: beginning(head.uri.path()),
            outcome: RequestOutcome::BrokenOff,
            status: None,
            reason: Reason::NotAHost,
            fault: None,
            sent: 0,
            received: 0,
            duration: std::time::Duration::ZERO,
        };
        Self { site, start: Instant::now(), sent: Arc::default(), told, _under_way: None }
    }

    /// The request means this host.
    pub(crate) fn heard(&mut self, heard: &Heard) {
        self.told.host = heard.authority.clone();
    }

    /// The policy has judged the request.
    pub(crate) fn judged(&mut self, reason: Reason) {
        self.told.reason = reason;
    }

    /// The request is under way from now on.
    pub(crate) fn under_way(&mut self, under_way: UnderWay) {
        self._under_way = Some(under_way);
    }

    /// The count of bytes that the server gets.
    pub(crate) fn sent(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }

    /// The guest gets more bytes.
    pub(crate) fn received(&mut self, len: u64) {
        self.told.received += len;
    }

    /// The guest gets this status, with this outcome unless it changes yet.
    pub(crate) fn status(&mut self, status: StatusCode, outcome: RequestOutcome) {
        self.told.status = Some(status.as_u16());
        self.told.outcome = outcome;
    }

    /// Words for what went wrong.
    pub(crate) fn fault(&mut self, words: &str) {
        self.told.fault = Some(beginning(words));
    }

    /// The server's response is there to its end.
    pub(crate) fn answered(&mut self) {
        self.told.outcome = RequestOutcome::Answered;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.told.sent = self.sent.load(Ordering::Relaxed);
        self.told.duration = self.start.elapsed();
        self.site.proxy.shared.audit.put(Event::Request(self.told.clone()));
    }
}

fn beginning(text: &str) -> String {
    let end =
        (0..=MAX_TOLD.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text[..end].to_owned()
}
