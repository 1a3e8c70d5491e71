//! How web servers are asked: with TLS that no redirect leaves, with a limit on every wait, and with downloads that go on
//! where their connection broke.
//!
//! Nothing that comes is believed here; it is given to whoever checks it. No error names a URL: that may hold a password or a
//! token. Not here: what is asked for, and how one logs in.

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

/// What must come in as long as a server may say nothing; less counts as nothing. In 20 seconds it is 800 bytes a second, which
/// any line has that an image was ever fetched over.
pub const LEAST_BYTES: u64 = 16 << 10;

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be reached in time.
    #[error("no connection within {} s", CONNECT_LIMIT.as_secs())]
    NoConnection,
    /// The server says nothing.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server says next to nothing.
    #[error("no more than {bytes} bytes came in {} s", .time.as_secs())]
    Slow {
        /// How much it was.
        bytes: u64,
        /// In which time.
        time: Duration,
    },
    /// Anything else, by its innermost cause.
    #[error("{0}")]
    Other(String),
}

/// Asks one server, and those that it names instead.
#[derive(Debug, Clone)]
pub struct Client {
    inner: reqwest::Client,
    /// For requests with a body, which may hold a secret: a redirect to another server is refused.
    posting: reqwest::Client,
    silence: Duration,
}

impl Client {
    /// For the server of this URL. Only where that says `http` may anything go without TLS. Servers show certificates of the
    /// host's authorities or of these, and each may say nothing for as long as `silence`. Nothing is asked yet.
    pub fn new(server: &Url, silence: Duration, authorities: Vec<Certificate>) -> Result<Self, Error> {
        // The one implementation there is: an error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = server.scheme() == "http";
        let client = |policy| {
            let client = reqwest::Client::builder()
                .user_agent(concat!("matchlock/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_LIMIT)
                .redirect(policy)
                .https_only(!plain);
            // What is on this host is not reached by way of another.
            if is_loopback(server) { client.no_proxy() } else { client }
        };
        // A host without authorities of its own makes no client, even where none is needed, or others are given.
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

    /// A request for what is there.
    pub fn get(&self, url: Url) -> RequestBuilder {
        self.inner.get(url)
    }

    /// A request with a body. Another server is not given it, whatever redirect says so.
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.posting.post(url)
    }

    /// The answer to a request of this client's, whatever its status.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, Error> {
        let silence = self.silence;
        let Ok(response) = timeout(silence, request.send()).await else { return Err(Error::Silent(silence)) };
        let response = response.map_err(|error| broken(&error, silence))?;
        Ok(Answer { response, silence, waited: Duration::ZERO, bytes: 0 })
    }
}

/// An answer, of which the beginning is here.
#[derive(Debug)]
pub struct Answer {
    response: reqwest::Response,
    silence: Duration,
    /// How long was waited for these bytes. What is done between two waits takes as long as it takes; reqwest's own limit
    /// would count that, too.
    waited: Duration,
    bytes: u64,
}

impl Answer {
    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Where it came from, which redirects may have made another server than was asked.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.response.url()
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// More of its body; `None` = that was all.
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

/// The same, to the server that was asked only.
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

/// The innermost cause, which is what happened.
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
