//! Files of one web server: bounded, and resumed after a broken connection.
//!
//! The caller verifies every byte. Not here: the files' meaning.

use std::time::Duration;

use waiting::CancellationToken;
use web::{Client, Connections, Download, StatusCode, Url};

use crate::{Error, Result};

/// A server of files.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    connections: Connections,
    base: Url,
    host: String,
}

/// The result of one try.
enum Try {
    Whole,
    /// Another try may succeed.
    Broken(Error),
}

impl Server {
    /// The server of the files below this URL. Nothing is requested yet.
    pub(crate) fn new(url: &str, silence: Duration) -> Result<Self> {
        let wrong = || Error::Url(url.to_owned());
        // Without the slash, joining would replace the URL's last part.
        let base = Url::parse(&format!("{}/", url.trim_end_matches('/'))).map_err(|_| wrong())?;
        let host = base.host_str().filter(|_| matches!(base.scheme(), "http" | "https")).ok_or_else(wrong)?;
        let host = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let failed = |why: String| Error::Mirror { host: host.clone(), why };
        let client = Client::new(&base, silence, Vec::new()).map_err(|error| failed(error.to_string()))?;
        let connections = Connections::new().map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, connections, base, host })
    }

    /// The server's name, with its port unless it is the usual one.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Downloads a file of at most this many bytes.
    pub(crate) fn bytes(&self, path: &str, max_bytes: u64, given_up: &CancellationToken) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(path, max_bytes, given_up, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Downloads a file of at most this many bytes, and gives each byte to `take` once.
    pub(crate) fn read(
        &self,
        path: &str,
        max_bytes: u64,
        given_up: &CancellationToken,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let url = self.base.join(path).map_err(|_| self.failed(format!("{path} is no path")))?;
        let mut download = Download::default();
        loop {
            let once = self.once(&url, &mut download, max_bytes, take);
            match self.connections.wait_for(given_up, once)?? {
                Try::Whole => return Ok(()),
                Try::Broken(error) if download.goes_on() => {
                    tracing::info!("{error}; going on from byte {}", download.offset());
                }
                Try::Broken(error) => return Err(error),
            }
        }
    }

    async fn once(
        &self,
        url: &Url,
        download: &mut Download,
        max_bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Try> {
        let request = download.rest(self.client.get(url.clone()));
        let mut answer = match self.client.send(request).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Try::Broken(self.broken(&error))),
        };
        let status = answer.status();
        if !status.is_success() {
            let error = self.failed(format!("{} answered with status {}", url.path(), status.as_u16()));
            let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return if again { Ok(Try::Broken(error)) } else { Err(error) };
        }
        download.begin(&answer);
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Try::Whole),
                Err(error) => return Ok(Try::Broken(self.broken(&error))),
            };
            let new = download.take(&chunk);
            if download.offset() > max_bytes {
                return Err(self.failed(format!("{} has more than {max_bytes} bytes", url.path())));
            }
            take(new)?;
        }
    }

    fn failed(&self, why: String) -> Error {
        Error::Mirror { host: self.host.clone(), why }
    }

    fn broken(&self, error: &web::Error) -> Error {
        self.failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(1);

    #[test]
    fn only_web_servers_are_mirrors() {
        for (url, host) in [
            ("https://deb.debian.org/debian", "deb.debian.org"),
            ("http://user:secret@127.0.0.1:8080/x/", "127.0.0.1:8080"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(Server::new(url, SILENCE).unwrap().host(), host);
        }
        for url in ["", "deb.debian.org", "ftp://x/y", "file:///x", "/x", "http://"] {
            assert!(matches!(Server::new(url, SILENCE), Err(Error::Url(_))), "{url}");
        }
    }
}
