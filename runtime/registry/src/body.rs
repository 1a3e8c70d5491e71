//! A blob's bytes. After a broken connection the next one goes on from there.

use std::io::{self, Read};
use std::sync::Arc;

use web::{Answer, Download};

use crate::Error;
use crate::client::Repository;

/// A blob that is being read.
pub(crate) struct Body {
    repository: Arc<Repository>,
    digest: String,
    answer: Option<Answer>,
    download: Download,
    chunk: Vec<u8>,
    at: usize,
}

impl Body {
    /// Opens a blob.
    pub(crate) fn open(repository: Arc<Repository>, digest: String) -> Result<Self, Error> {
        let download = Download::default();
        let answer = Some(repository.open(&digest, &download)?);
        Ok(Self { repository, digest, answer, download, chunk: Vec::new(), at: 0 })
    }

    /// Gets more bytes; returns whether there are any.
    fn more(&mut self) -> Result<bool, Error> {
        loop {
            let mut answer = match self.answer.take() {
                Some(answer) => answer,
                None => self.go_on()?,
            };
            let repository = &self.repository;
            let chunk = async { answer.chunk().await.map_err(|error| repository.connection(&error)) };
            match repository.wait_for(chunk) {
                Ok(None) => return Ok(false),
                Ok(Some(chunk)) => {
                    self.answer = Some(answer);
                    let new = self.download.take(&chunk);
                    if new.is_empty() {
                        continue;
                    }
                    self.chunk.clear();
                    self.chunk.extend_from_slice(new);
                    self.at = 0;
                    return Ok(true);
                }
                Err(Error::GivenUp) => return Err(Error::GivenUp),
                Err(error) if self.download.goes_on() => {
                    tracing::info!("{error}; going on from byte {}", self.download.offset());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn go_on(&mut self) -> Result<Answer, Error> {
        let answer = self.repository.open(&self.digest, &self.download)?;
        self.download.begin(&answer);
        Ok(answer)
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.at == self.chunk.len() && !self.more().map_err(io::Error::other)? {
            return Ok(0);
        }
        let len = Read::read(&mut self.chunk.get(self.at..).unwrap_or_default(), buffer)?;
        self.at += len;
        Ok(len)
    }
}
