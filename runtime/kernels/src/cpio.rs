//! The initramfs archive format: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

/// Name of the entry after the last.
const TRAILER: &str = "TRAILER!!!";

/// Length of that name with its NUL and padding.
pub(crate) const TRAILER_BYTES: u64 = 14;

/// Whether an archive that ends with these [`TRAILER_BYTES`] is whole.
pub(crate) fn ends(bytes: &[u8]) -> bool {
    bytes.starts_with(TRAILER.as_bytes()) && bytes.len() as u64 == TRAILER_BYTES
}

/// Writes an archive. Entries appear in the order of the calls, so a directory must precede its entries.
pub(crate) struct Writer<W> {
    out: W,
    inode: u32,
    at: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0, at: 0 }
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o40755, 2, (0, 0), &[])
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_000 | mode, 1, (0, 0), data)
    }

    /// A character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, 0o20600, 1, (major, minor), &[])
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header(TRAILER, 0, 1, (0, 0), 0)?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::other("file of 4 GiB or more in an initramfs"))?;
        self.inode += 1;
        self.header(name, mode, links, device, size)?;
        self.put(data)?;
        self.pad()
    }

    fn header(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), size: u32) -> io::Result<()> {
        let length = name.len() + 1;
        // "newc": magic, then 13 fields of 8 hex digits: ino mode uid gid nlink mtime filesize dev rdev namesize check
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}{:08x}",
            self.inode, 0, 0, 0, 0, 0, device.0, device.1, 0
        );
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// "padded to a multiple of 4 bytes"
    fn pad(&mut self) -> io::Result<()> {
        let over = usize::try_from(self.at % 4).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.put(&[0; 4][over..]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// GNU cpio reads the archive back.
    #[test]
    fn cpio_reads_it() {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev").unwrap();
        writer.file("init", 0o755, b"#!/bin/true\n").unwrap();
        writer.file("odd", 0o644, b"abcde").unwrap();
        let archive = writer.finish().unwrap();
        let child = Command::new("cpio").arg("-tv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            skip::skip("cpio", "cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("drwxr-xr-x") && text.contains("init") && text.contains("odd"), "{text}");
    }

    #[test]
    fn entries_are_aligned() {
        for length in 0..9 {
            let mut writer = Writer::new(Vec::new());
            writer.file("n", 0o644, &vec![1; length]).unwrap();
            let archive = writer.finish().unwrap();
            assert_eq!(archive.len() % 4, 0);
            let start = archive.len() - usize::try_from(TRAILER_BYTES).unwrap();
            assert!(ends(&archive[start..]));
            assert!(!ends(&archive[start - 1..archive.len() - 1]));
        }
    }
}
