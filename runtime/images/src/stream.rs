//! A layer's bytes on their way: read, hashed, decompressed and hashed again on one thread, consumed on another.
//!
//! Not here: the bytes' meaning.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest as _, Sha256};

use crate::error::LayerError;
use crate::tar_stream::{Source, read_error};
use crate::{Digest, Progress};

const CHUNK_SIZE: usize = 256 << 10;
const CHUNKS: usize = 8;

/// Largest window that a zstd frame may ask for: 128 MiB, the limit of the format's own tools.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Most memory for unpacking an .xz; the highest level of its own tool takes 65 MiB.
const MAX_XZ_BYTES: u64 = 128 << 20;

/// Length of the first bytes by which a compression is recognized.
pub(crate) const MAGIC_LEN: usize = 10;

/// The digests of a layer that was read to its end.
pub(crate) struct Digests {
    /// The digest of the bytes as they came.
    pub(crate) blob: Digest,
    /// The digest of the tar.
    pub(crate) diff_id: Digest,
}

/// The failure to read a layer.
pub(crate) struct Broken {
    pub(crate) error: LayerError,
    /// The digests of all bytes, if the end was reached.
    pub(crate) digests: Option<Digests>,
}

/// Runs `consume` on the uncompressed bytes of `blob`, at most `max_bytes` of them, and returns their digests as
/// well. The bytes that `consume` leaves are read to the end even if they are no tar, so that the digests tell wrong
/// bytes from a wrong layer.
pub(crate) fn run<T>(
    blob: impl Read + Send,
    max_bytes: u64,
    progress: &dyn Progress,
    consume: impl FnOnce(&mut dyn Source) -> Result<T, LayerError>,
) -> Result<(T, Digests), Broken> {
    let (full_sender, full) = sync_channel(CHUNKS);
    let (empty, empty_receiver) = sync_channel(CHUNKS);
    for _ in 0..CHUNKS {
        let _ = empty.send(Vec::new());
    }
    thread::scope(|scope| {
        let producer = scope.spawn(move || {
            let result = produce(blob, max_bytes, progress, &full_sender, &empty_receiver);
            // After an error the consumer sees the stream end; only the error is reported.
            drop(full_sender);
            result
        });
        let mut chunks = Chunks { full, empty, chunk: Vec::new(), at: 0 };
        let consumed = consume(&mut chunks);
        if matches!(consumed, Ok(_) | Err(LayerError::Truncated | LayerError::Tar(_))) {
            chunks.drain();
        }
        drop(chunks);
        let produced = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (consumed, produced) {
            (_, Err(error)) => Err(Broken { error, digests: None }),
            (Err(error), digests) => Err(Broken { error, digests: digests.unwrap_or_default() }),
            (Ok(value), Ok(Some(digests))) => Ok((value, digests)),
            // The consumer hung up without an error of its own, which `drain` rules out.
            (Ok(_), Ok(None)) => Err(Broken { error: LayerError::Truncated, digests: None }),
        }
    })
}

/// Reads, hashes and unpacks; `None` if the consumer hung up.
fn produce(
    mut blob: impl Read,
    max_bytes: u64,
    progress: &dyn Progress,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Option<Digests>, LayerError> {
    let mut magic = [0; MAGIC_LEN];
    let len = fill(&mut blob, &mut magic).map_err(read_error)?;
    let start = magic.get(..len).unwrap_or_default();
    // Bytes that are not compressed are the tar itself, so both digests are the same.
    let hash = is_compressed(start).then(Sha256::new);
    let mut blob = Hashed { inner: start.chain(blob), hash, progress };
    let mut diff = Sha256::new();
    let mut total = 0u64;
    let mut tar = decompressed(&mut blob).map_err(read_error)?;
    while let Ok(mut chunk) = empty.recv() {
        chunk.resize(CHUNK_SIZE, 0);
        let len = fill(&mut tar, &mut chunk).map_err(read_error)?;
        chunk.truncate(len);
        if len == 0 {
            drop(tar);
            // A decompressor may stop before its input ends.
            io::copy(&mut blob, &mut io::sink()).map_err(read_error)?;
            let diff_id = Digest::of(&diff.finalize().into());
            let blob = blob.hash.map_or_else(|| diff_id.clone(), |hash| Digest::of(&hash.finalize().into()));
            return Ok(Some(Digests { blob, diff_id }));
        }
        total += len as u64;
        if total > max_bytes {
            return Err(LayerError::Limit { what: "bytes in a layer", limit: max_bytes });
        }
        diff.update(&chunk);
        if full.send(chunk).is_err() {
            break;
        }
    }
    Ok(None)
}

/// Undoes the compression that the first bytes announce.
pub(crate) fn decompressed<'a>(mut blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; MAGIC_LEN];
    let len = fill(&mut blob, &mut magic)?;
    let start = io::Cursor::new(magic).take(len as u64);
    let whole = start.chain(blob);
    Ok(match compression(magic.get(..len).unwrap_or_default()) {
        None => Box::new(whole),
        Some(Compression::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Some(Compression::Zstd) => {
            let mut decoder = zstd::Decoder::new(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Some(Compression::Xz) => {
            let stream = Stream::new_stream_decoder(MAX_XZ_BYTES, CONCATENATED)?;
            Box::new(XzDecoder::new_stream(whole, stream))
        }
        Some(Compression::Other(name)) => {
            let why = format!("it is compressed with {name}, which is not read here; gzip, zstd and xz are");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
    Xz,
    /// A compression that is recognized but not supported.
    Other(&'static str),
}

/// The compression that these first bytes announce; no tar begins like any of them.
fn compression(start: &[u8]) -> Option<Compression> {
    Some(match start {
        // RFC 1952 §2.3.1: "ID1 = 31, ID2 = 139"
        [31, 139, ..] => Compression::Gzip,
        // RFC 8878 §3.1.1: "Magic_Number … 0xFD2FB528"
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // The .xz file format §2.1.1.1: "0xFD, '7', 'z', 'X', 'Z', 0x00"
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        // The digit is the number of blocks of 100 kB, and pi follows: `BZh` alone could begin a file's name in a
        // tar.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
            Compression::Other("bzip2")
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => Compression::Other("lz4"),
        _ => return None,
    })
}

/// Whether these first bytes are those of a compressed stream.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    compression(start).is_some()
}

/// Reads until the buffer is full or the input ends.
pub(crate) fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct Hashed<'a, R> {
    inner: R,
    hash: Option<Sha256>,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(buffer.get(..len).unwrap_or_default());
        }
        self.progress.advance(len as u64);
        Ok(len)
    }
}

struct Chunks {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Chunks {
    /// The rest of the chunk, or of the next one. Empty at the end.
    fn rest(&mut self) -> &[u8] {
        if self.at == self.chunk.len() {
            let next = self.full.recv().unwrap_or_default();
            let used = std::mem::replace(&mut self.chunk, next);
            self.at = 0;
            let _ = self.empty.try_send(used);
        }
        self.chunk.get(self.at..).unwrap_or_default()
    }

    fn drain(&mut self) {
        loop {
            self.at = self.chunk.len();
            if self.rest().is_empty() {
                return;
            }
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = Read::read(&mut self.rest(), buffer)?;
        self.at += len;
        Ok(len)
    }
}

impl Source for Chunks {
    fn skip(&mut self, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let rest = self.rest().len();
            if rest == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = rest.min(usize::try_from(len).unwrap_or(usize::MAX));
            self.at += step;
            len -= step as u64;
        }
        Ok(())
    }
}
