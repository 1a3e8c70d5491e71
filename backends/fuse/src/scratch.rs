//! A thread's own memory for requests: each is copied here once, since the guest may change its own copy meanwhile.

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode;
use vm_memory::VolatileSlice;
use zerocopy::FromBytes;

use crate::{Errno, MAX_DATA_LEN, MAX_REQUEST_LEN, MAX_XATTR_LEN, Result, Source};

/// Most bytes of a request that carries no data.
pub(crate) const HEAD_LEN: usize = 8 << 10;

/// Bytes of the header of a request.
const HEADER_LEN: usize = size_of::<abi::fuse_in_header>();

/// Bytes of a WRITE before its data.
pub(crate) const WRITE_HEAD_LEN: usize = HEADER_LEN + size_of::<abi::fuse_write_in>();

/// Memory of a thread that serves requests, one at a time.
#[derive(Debug)]
pub struct Scratch {
    request: Vec<u8>,
    /// A directory's list.
    pub(crate) list: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { request: vec![0; HEAD_LEN], list: Vec::new() }
    }
}

/// A request's header, and its arguments if its length is valid for such a request.
pub(crate) struct Received<'s> {
    pub(crate) header: abi::fuse_in_header,
    pub(crate) args: Result<&'s [u8]>,
    pub(crate) list: &'s mut Vec<u8>,
}

impl Scratch {
    /// Copies a request, except for the data of a WRITE. Returns `None` if there is no header.
    pub(crate) fn receive(&mut self, slices: &[VolatileSlice<'_>]) -> Option<Received<'_>> {
        let all = Source::new(slices, 0, usize::MAX).len();
        self.request.truncate(HEAD_LEN);
        let copied = Source::new(slices, 0, HEAD_LEN).copy_to(&mut self.request);
        let (header, _) = abi::fuse_in_header::read_from_prefix(&self.request[..copied]).ok()?;
        let end = self.rest(slices, &header, all);
        let Self { request, list } = self;
        let args = end.and_then(|end| request.get(HEADER_LEN..end).ok_or(Errno::EINVAL));
        Some(Received { header, args, list })
    }

    /// Copies the rest of the request; returns the end of its arguments.
    fn rest(
        &mut self,
        slices: &[VolatileSlice<'_>],
        header: &abi::fuse_in_header,
        all: usize,
    ) -> Result<usize> {
        let opcode = fuse_opcode::try_from(header.opcode);
        let most = match opcode {
            Ok(fuse_opcode::FUSE_WRITE) => WRITE_HEAD_LEN + MAX_DATA_LEN,
            Ok(fuse_opcode::FUSE_BATCH_FORGET) => MAX_REQUEST_LEN,
            Ok(fuse_opcode::FUSE_SETXATTR) => HEAD_LEN + MAX_XATTR_LEN,
            _ => HEAD_LEN,
        };
        if usize::try_from(header.len) != Ok(all) {
            return Err(Errno::EINVAL);
        }
        if all > most {
            return Err(Errno::E2BIG);
        }
        if opcode == Ok(fuse_opcode::FUSE_WRITE) {
            return Ok(all.min(WRITE_HEAD_LEN));
        }
        if let Some(more) = all.checked_sub(HEAD_LEN).filter(|more| *more > 0) {
            self.request.resize(all, 0);
            if Source::new(slices, HEAD_LEN, more).copy_to(&mut self.request[HEAD_LEN..]) != more {
                return Err(Errno::EIO);
            }
        }
        Ok(all)
    }
}
