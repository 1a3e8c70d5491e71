//! The progress of a download over several connections: after a break, the next connection goes on from there.
//!
//! Not here: the requests, and the use of the bytes.

use crate::header::RANGE;
use crate::{Answer, LEAST_BYTES, RequestBuilder, StatusCode};

/// How many connections in a row may bring next to nothing.
const MAX_BREAKS: u32 = 3;

/// How many connections one download may take.
const MAX_CONNECTIONS: u32 = 100;

/// A download of one body, over one connection after another.
#[derive(Debug, Default)]
pub struct Download {
    /// Bytes that have come.
    offset: u64,
    /// Bytes to skip of an answer that starts from the beginning again.
    repeated: u64,
    /// Bytes that came over this connection.
    came: u64,
    breaks: u32,
    connections: u32,
}

impl Download {
    /// The number of bytes so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds a header to a request that asks for the rest.
    pub fn rest(&self, request: RequestBuilder) -> RequestBuilder {
        match self.offset {
            0 => request,
            // RFC 9110 §14.1.2: "bytes=9500-" asks for every byte from there on.
            offset => request.header(RANGE, format!("bytes={offset}-")),
        }
    }

    /// Begins with the successful answer to such a request.
    pub fn begin(&mut self, answer: &Answer) {
        // RFC 9110 §14.2: "A server MAY ignore the Range header field."
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        self.repeated = if partial { 0 } else { self.offset };
    }

    /// The new part of a chunk.
    pub fn take<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        let passed = usize::try_from(self.repeated).unwrap_or(usize::MAX).min(chunk.len());
        self.repeated -= passed as u64;
        let new = chunk.get(passed..).unwrap_or_default();
        self.offset += new.len() as u64;
        self.came += new.len() as u64;
        new
    }

    /// The connection broke, or there was none; returns whether another one is worth trying.
    #[must_use]
    pub fn goes_on(&mut self) -> bool {
        let enough = self.came >= LEAST_BYTES;
        self.breaks = if enough { 0 } else { self.breaks + 1 };
        self.came = 0;
        self.connections += 1;
        self.breaks < MAX_BREAKS && self.connections < MAX_CONNECTIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_bring_too_little_end_it() {
        let least = vec![0; usize::try_from(LEAST_BYTES).unwrap()];
        let mut download = Download::default();
        for bytes in [&least[..], &[0; 9], &[], &least, &[0; 9], &[0; 9]] {
            assert_eq!(download.take(bytes).len(), bytes.len());
            assert!(download.goes_on());
        }
        assert_eq!(download.take(&[0; 9]).len(), 9);
        assert!(!download.goes_on());
        assert_eq!(download.offset(), 2 * LEAST_BYTES + 36);
    }

    #[test]
    fn connections_without_end_end_it() {
        let least = vec![0; usize::try_from(LEAST_BYTES).unwrap()];
        let mut download = Download::default();
        let went_on = std::iter::from_fn(|| {
            download.take(&least);
            download.goes_on().then_some(())
        });
        assert_eq!(went_on.count(), 99);
    }
}
