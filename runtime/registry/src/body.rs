//! A blob's bytes as they come. Where a connection breaks, the next one goes on from there.

use std::io::{self, Read};
use std::sync::Arc;

use reqwest::{Response, StatusCode};

use crate::Error;
use crate::client::Repository;

/// How often a blob's connection may break without a byte in between.
const MAX_BREAKS: u32 = 3;

/// How often altogether.
const MAX_ALL_BREAKS: u32 = 100;

/// A blob that is being read.
pub(crate) struct Body {
    repository: Arc<Repository>,
    digest: String,
    response: Option<Response>,
    chunk: Vec<u8>,
    at: usize,
    /// Bytes that have come.
    offset: u64,
    /// Bytes to pass over, of an answer that starts from the beginning again.
    repeated: u64,
    breaks: u32,
    all_breaks: u32,
}

impl Body {
    /// Opens a blob.
    pub(crate) fn open(repository: Arc<Repository>, digest: String) -> Result<Self, Error> {
        let response = Some(repository.open(&digest, 0)?);
        Ok(Self {
            repository,
            digest,
            response,
            chunk: Vec::new(),
            at: 0,
            offset: 0,
            repeated: 0,
            breaks: 0,
            all_breaks: 0,
        })
    }

    /// Gets more bytes. Returns whether there are any.
    fn more(&mut self) -> Result<bool, Error> {
        loop {
            let mut response = match self.response.take() {
                Some(response) => response,
                None => self.go_on()?,
            };
            let repository = &self.repository;
            let chunk = async { response.chunk().await.map_err(|error| repository.connection(&error)) };
            match repository.wait_for(chunk) {
                Ok(None) => return Ok(false),
                Ok(Some(chunk)) => {
                    self.response = Some(response);
                    let passed = usize::try_from(self.repeated).unwrap_or(usize::MAX).min(chunk.len());
                    self.repeated -= passed as u64;
                    let new = chunk.get(passed..).unwrap_or_default();
                    if new.is_empty() {
                        continue;
                    }
                    self.breaks = 0;
                    self.offset += new.len() as u64;
                    self.chunk.clear();
                    self.chunk.extend_from_slice(new);
                    self.at = 0;
                    return Ok(true);
                }
                Err(Error::GivenUp) => return Err(Error::GivenUp),
                Err(error) => {
                    self.breaks += 1;
                    self.all_breaks += 1;
                    if self.breaks > MAX_BREAKS || self.all_breaks > MAX_ALL_BREAKS {
                        return Err(error);
                    }
                    tracing::info!("{error}; going on from byte {}", self.offset);
                }
            }
        }
    }

    fn go_on(&mut self) -> Result<Response, Error> {
        let response = self.repository.open(&self.digest, self.offset)?;
        // RFC 9110 §14.2: "A server MAY ignore the Range header field."
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        self.repeated = if partial { 0 } else { self.offset };
        Ok(response)
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
