//! Files of one web server: bounded, and where a connection breaks, the next one goes on from there.
//!
//! Nothing that comes is believed here; it is given to whoever checks it. Not here: what the files are.

use std::time::Duration;

use reqwest::header::RANGE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Redirects on the way to one file.
const MAX_REDIRECTS: usize = 5;

/// How often in a row a try may bring nothing.
const MAX_BREAKS: u32 = 3;

/// How often altogether a file is asked for.
const MAX_TRIES: u32 = 100;

/// Where files are.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    runtime: Runtime,
    base: Url,
    host: String,
    silence: Duration,
}

/// How one try ended.
enum Try {
    Whole,
    /// It may go better the next time.
    Broken(Error),
}

impl Server {
    /// What is below this URL. Nothing is asked yet.
    pub(crate) fn new(url: &str, silence: Duration) -> Result<Self> {
        let wrong = || Error::Url(url.to_owned());
        // Without the slash its last part would be replaced.
        let base = Url::parse(&format!("{}/", url.trim_end_matches('/'))).map_err(|_| wrong())?;
        let host = base.host_str().filter(|_| matches!(base.scheme(), "http" | "https")).ok_or_else(wrong)?;
        let host = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        // The one implementation there is: an error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = base.scheme() == "https";
        let policy = || {
            Policy::custom(move |attempt| {
                if attempt.previous().len() > MAX_REDIRECTS {
                    return attempt.error("too many redirects");
                }
                match attempt.url().scheme() {
                    "https" => attempt.follow(),
                    "http" if !tls => attempt.follow(),
                    _ => attempt.error("a redirect to somewhere without TLS"),
                }
            })
        };
        let client = || {
            Client::builder()
                .user_agent(concat!("matchlock/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_LIMIT)
                .read_timeout(silence)
                .redirect(policy())
        };
        // A host without authorities makes no client, even where none is needed.
        let client = match client().build() {
            Err(_) if !tls => client().tls_certs_only([]).build(),
            client => client,
        };
        let failed = |why: String| Error::Mirror { host: host.clone(), why };
        let client = client.map_err(|error| failed(cause(&error)))?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, runtime, base, host, silence })
    }

    /// The server's name, and its port where that is its own.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// A whole file of at most this many bytes.
    pub(crate) fn bytes(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(path, max_bytes, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Gives a file of at most this many bytes to `take`, each byte once.
    pub(crate) fn read(
        &self,
        path: &str,
        max_bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let url = self.base.join(path).map_err(|_| self.failed(format!("{path} is no path")))?;
        let (mut offset, mut breaks) = (0, 0);
        for _ in 0..MAX_TRIES {
            let before = offset;
            match self.runtime.block_on(self.once(&url, &mut offset, max_bytes, take))? {
                Try::Whole => return Ok(()),
                Try::Broken(error) => {
                    breaks = if offset > before { 0 } else { breaks + 1 };
                    if breaks == MAX_BREAKS {
                        return Err(error);
                    }
                    tracing::info!("{error}; going on from byte {offset}");
                }
            }
        }
        Err(self.failed("the connection broke too often".to_owned()))
    }

    async fn once(
        &self,
        url: &Url,
        offset: &mut u64,
        max_bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Try> {
        let mut request = self.client.get(url.clone());
        if *offset > 0 {
            // RFC 9110 §14.1.2: "bytes=9500-" is what follows from there on.
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(Try::Broken(self.broken(&error))),
        };
        let status = response.status();
        if !status.is_success() {
            let error = self.failed(format!("{} answered with status {}", url.path(), status.as_u16()));
            let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return if again { Ok(Try::Broken(error)) } else { Err(error) };
        }
        // RFC 9110 §14.2: "A server MAY ignore the Range header field."
        let mut known = if status == StatusCode::PARTIAL_CONTENT { 0 } else { *offset };
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Try::Whole),
                Err(error) => return Ok(Try::Broken(self.broken(&error))),
            };
            let passed = usize::try_from(known).unwrap_or(usize::MAX).min(chunk.len());
            known -= passed as u64;
            let new = chunk.get(passed..).unwrap_or_default();
            *offset += new.len() as u64;
            if *offset > max_bytes {
                return Err(self.failed(format!("{} has more than {max_bytes} bytes", url.path())));
            }
            take(new)?;
        }
    }

    fn failed(&self, why: String) -> Error {
        Error::Mirror { host: self.host.clone(), why }
    }

    /// What went wrong on the way, without the URL: that may hold a password.
    fn broken(&self, error: &reqwest::Error) -> Error {
        self.failed(match error.is_timeout() {
            true if error.is_connect() => format!("no connection within {} s", CONNECT_LIMIT.as_secs()),
            true => format!("nothing came for {} s", self.silence.as_secs()),
            false => cause(error),
        })
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
    fn only_web_servers_are_mirrors() {
        for (url, host) in [
            ("https://deb.debian.org/debian", "deb.debian.org"),
            ("http://user:secret@127.0.0.1:8080/x/", "127.0.0.1:8080"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(Server::new(url, CONNECT_LIMIT).unwrap().host(), host);
        }
        for url in ["", "deb.debian.org", "ftp://x/y", "file:///x", "/x", "http://"] {
            assert!(matches!(Server::new(url, CONNECT_LIMIT), Err(Error::Url(_))), "{url}");
        }
    }
}
