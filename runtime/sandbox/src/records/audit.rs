//! A sandbox's audit as other processes read it: what its guest sent outside and what was denied, an event a line, as JSON.
//!
//! The audit is a file of the sandbox's directory, is only added to, and stays until the sandbox is removed. Not here:
//! writing (`egress`).

use crate::Id;
use crate::records::error::Result;
use crate::records::home::{AUDIT, Home};
use crate::records::log::{self, Follow, Names};

/// An audit has a largest size, and is never moved aside.
const NAMES: Names = [AUDIT, "audit.jsonl.1"];

/// The whole audit of a sandbox that is not removed; empty if the sandbox has no network.
pub fn read(home: &Home, id: &Id) -> Result<Vec<u8>> {
    let paths = log::known(home, id)?;
    log::read_in(paths.directory(), NAMES)
}

/// The audit from its beginning, and every event that is added later. Needs a tokio runtime with I/O around it.
pub fn follow(home: &Home, id: &Id) -> Result<Follow> {
    let paths = log::known(home, id)?;
    log::follow_in(paths.directory().to_path_buf(), &home.vms(), NAMES)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::records::error::Error;
    use crate::records::home::OwnedVm;

    #[tokio::test]
    async fn an_audit_is_read_and_followed_until_its_sandbox_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let owned = OwnedVm::create(&home).unwrap();
        assert_eq!(read(&home, &owned.id).unwrap(), b"", "no network");
        let mut follow = follow(&home, &owned.id).unwrap();
        let mut file = OpenOptions::new().append(true).create(true).open(owned.paths.audit()).unwrap();
        for line in [&b"{}\n"[..], b"{\"a\":1}\n"] {
            file.write_all(line).unwrap();
            let more = timeout(Duration::from_secs(10), follow.next()).await.expect("nothing more").unwrap();
            assert_eq!(more, Some(line));
        }
        assert_eq!(read(&home, &owned.id).unwrap(), b"{}\n{\"a\":1}\n");
        owned.paths.remove_own().unwrap();
        assert_eq!(read(&home, &owned.id).unwrap().len(), 11, "it stays");
        owned.paths.remove().unwrap();
        let end = timeout(Duration::from_secs(10), follow.next()).await.expect("no end").unwrap();
        assert_eq!(end, None);
        assert!(matches!(read(&home, &owned.id), Err(Error::UnknownVm(_))));
    }
}
