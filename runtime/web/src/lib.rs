//! Requests to web servers: with TLS that no redirect leaves, with a limit on every wait, and with downloads that are
//! resumed.
//!
//! The caller verifies every byte. No error names a URL, which may hold a password or a token. Not here: the
//! documents, and logging in.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod download;
mod runtime;

use std::net::IpAddr;
use std::ops::Deref;
use std::time::{Duration, Instant};

pub use download::Download;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
pub use reqwest::{Certificate, RequestBuilder, StatusCode, Url, header};
pub use runtime::Connections;
use tokio::time::timeout;

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Redirects on the way to one answer.
const MAX_REDIRECTS: usize = 5;

/// Bytes that must arrive in the time for which a server may send nothing; fewer count as nothing. Over 20 seconds
/// that is 800 bytes a second, which any line that fetches images can carry.
pub const LEAST_BYTES: u64 = 16 << 10;

/// The reason why there is no answer, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server was not reached in time.
    #[error("no connection within {} s", CONNECT_LIMIT.as_secs())]
    NoConnection,
    /// The server sent nothing.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server sent next to nothing.
    #[error("no more than {bytes} bytes came in {} s", .time.as_secs())]
    Slow {
        /// The number of bytes.
        bytes: u64,
        /// The time in which they came.
        time: Duration,
    },
    /// Any other error, by its innermost cause.
    #[error("{0}")]
    Other(String),
}

/// A client for one server, and for those that it redirects to.
#[derive(Debug, Clone)]
pub struct Client {
    inner: reqwest::Client,
    /// For requests with a body, which may hold a secret: a redirect to another server is refused.
    posting: reqwest::Client,
    silence: Duration,
}

impl Client {
    /// A client for the server of this URL; without TLS only if the URL says `http`. Certificates must be of the
    /// host's authorities or of these, and each server may send nothing for as long as `silence`. Nothing is
    /// requested yet.
    pub fn new(server: &Url, silence: Duration, authorities: Vec<Certificate>) -> Result<Self, Error> {
        // The only implementation; an error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = server.scheme() == "http";
        let client = |policy| {
            let client = reqwest::Client::builder()
                .user_agent(concat!("matchlock/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_LIMIT)
                .redirect(policy)
                .https_only(!plain);
            // A server on this host is reached without a proxy.
            if is_loopback(server) { client.no_proxy() } else { client }
        };
        // A client with the host's authorities cannot be made on a host without any, even if it would not need them.
        let others = plain || !authorities.is_empty();
        let build = |policy: fn(bool) -> Policy| {
            let built = match client(policy(plain)).tls_certs_merge(authorities.clone()).build() {
                Err(_) if others => client(policy(plain)).tls_certs_only(authorities.clone()).build(),
                client => client,
            };
            built.map_err(|error| Error::Other(cause(&error)))
        };
        Ok(Self { inner: build(redirects)?, posting: build(redirects_within)?, silence })
    }

    /// A request to GET this URL.
    pub fn get(&self, url: Url) -> RequestBuilder {
        self.inner.get(url)
    }

    /// A request with a body, which no redirect takes to another server.
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.posting.post(url)
    }

    /// Sends a request of this client's; any status is an answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, Error> {
        let silence = self.silence;
        let Ok(response) = timeout(silence, request.send()).await else { return Err(Error::Silent(silence)) };
        let response = response.map_err(|error| broken(&error, silence))?;
        Ok(Answer { response, silence, waited: Duration::ZERO, bytes: 0 })
    }
}

/// An answer whose head has arrived.
#[derive(Debug)]
pub struct Answer {
    response: reqwest::Response,
    silence: Duration,
    /// How long was waited for these bytes. The caller's own work between two waits does not count, as it would for a
    /// limit of reqwest's.
    waited: Duration,
    bytes: u64,
}

impl Answer {
    /// The answer's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The answer's URL, whose server may differ from the request's after redirects.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.response.url()
    }

    /// The answer's headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next part of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<impl Deref<Target = [u8]> + use<>>, Error> {
        let begun = Instant::now();
        let left = self.silence.saturating_sub(self.waited);
        let Ok(chunk) = timeout(left, self.response.chunk()).await else {
            return Err(match self.bytes {
                0 => Error::Silent(self.silence),
                bytes => Error::Slow { bytes, time: self.silence },
            });
        };
        let chunk = chunk.map_err(|error| broken(&error, self.silence))?;
        self.waited += begun.elapsed();
        self.bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.bytes >= LEAST_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        Ok(chunk)
    }
}

fn redirects(plain: bool) -> Policy {
    Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("too many redirects");
        }
        match attempt.url().scheme() {
            "https" => attempt.follow(),
            "http" if plain => attempt.follow(),
            _ => attempt.error("a redirect to somewhere without TLS"),
        }
    })
}

/// Follows redirects as the client for GET does, but only within the same server.
fn redirects_within(plain: bool) -> Policy {
    let elsewhere = redirects(plain);
    Policy::custom(move |attempt| {
        let asked = attempt.previous().first().map(Url::origin);
        if asked.is_some_and(|asked| asked != attempt.url().origin()) {
            return attempt.error("a redirect of a request with a secret to another server");
        }
        elsewhere.redirect(attempt)
    })
}

fn is_loopback(server: &Url) -> bool {
    let host = server.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse();
    host == "localhost" || ip.is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn broken(error: &reqwest::Error, silence: Duration) -> Error {
    match error.is_timeout() {
        true if error.is_connect() => Error::NoConnection,
        true => Error::Silent(silence),
        false => Error::Other(cause(error)),
    }
}

/// The innermost cause, which says what happened.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_host() {
        let is_loopback = |url| is_loopback(&Url::parse(url).unwrap());
        for here in ["http://localhost:5000/x", "https://127.0.0.1", "http://127.1/", "http://[::1]:1/x"] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in ["http://localhost.example/", "https://128.0.0.1/", "http://[::2]/", "file:///x"] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn errors_are_words() {
        for (error, words) in [
            (Error::NoConnection, "no connection within 20 s"),
            (Error::Silent(Duration::from_secs(60)), "nothing came for 60 s"),
            (Error::Slow { bytes: 7, time: Duration::from_secs(20) }, "no more than 7 bytes came in 20 s"),
        ] {
            assert_eq!(error.to_string(), words);
        }
    }
}
