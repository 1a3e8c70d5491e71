//! The directories of the host that a guest sees, and their places in the guest.
//!
//! ```text
//! HOST:GUEST:OPTIONS       OPTIONS = host_fs or ro, then uid=N, gid=N, owner=UID:GID
//! ```
//!
//! A guest path has no colon and an option no slash, so a path of the host may have any. Not here: the directories
//! themselves, and mounts of other kinds (`mounts`), which are not built yet.

use std::fmt;

use crate::disks::{self, Disk, Owner};

/// Most shares of a sandbox.
pub const MAX_SHARES: usize = 32;

/// A directory of the host and its place in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The directory's path on the host; not empty.
    pub host_path: String,
    /// The directory that it is mounted on: absolute, without `.`, `..` and needless slashes.
    pub guest_path: String,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// The owner that the guest sees of files to which it gave no other; `None` is the host's.
    pub owner: Owner,
}

/// A share that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid volume mount {share:?}: {why}")]
pub struct ShareError {
    /// The share, as it was given.
    pub share: String,
    /// The fault.
    pub why: Wrong,
}

/// The fault of a share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The text is not `HOST:GUEST:OPTIONS`.
    #[error("expected HOST:GUEST:OPTIONS, GUEST an absolute path")]
    Shape,
    /// The directory is missing.
    #[error("no directory of the host is named")]
    NoSource,
    /// Nothing can be mounted at the path.
    #[error(transparent)]
    Place(disks::Wrong),
    /// Overlays, which are what no option stands for.
    #[error("overlay is not built yet; :host_fs and :ro are")]
    Overlay,
    /// The option is unknown.
    #[error("unknown option {0:?}; there are host_fs, ro, readonly, uid=N, gid=N, owner=UID:GID")]
    UnknownOption(String),
    /// The text is no user or group id.
    #[error("{0:?} is no id: a number from 0 to 4294967294")]
    Id(String),
    /// The option was given before, or one that says the same.
    #[error("option {0:?} comes twice")]
    Twice(String),
    /// Another mount is at, above or below the path.
    #[error("{0} is mounted at, above or below it")]
    Taken(String),
    /// There are as many as there can be.
    #[error("it is one too many: a sandbox has at most {MAX_SHARES} shares")]
    TooMany,
}

/// The form that [`spec`] reads.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.readonly { "ro" } else { "host_fs" };
        write!(f, "{}:{}:{kind}", self.host_path, self.guest_path)?;
        let ids = [("uid", self.owner.uid), ("gid", self.owner.gid)];
        ids.into_iter()
            .filter_map(|(name, id)| Some((name, id?)))
            .try_for_each(|(name, id)| write!(f, ",{name}={id}"))
    }
}

/// Parses `HOST:GUEST:OPTIONS`.
pub fn spec(text: &str) -> Result<Share, ShareError> {
    parse(text).map_err(|why| ShareError { share: text.to_owned(), why })
}

/// Parses several shares, and checks that they go together.
pub fn specs<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Share>, ShareError> {
    let shares = texts.iter().map(|text| spec(text.as_ref())).collect::<Result<Vec<_>, _>>()?;
    check(&shares, &[])?;
    Ok(shares)
}

/// Checks that shares and disks go together in one guest. A share may be in a disk, but nothing in a share: its place
/// would be made on the host.
pub fn check(shares: &[Share], disks: &[Disk]) -> Result<(), ShareError> {
    let wrong = |share: &Share, why| Err(ShareError { share: share.to_string(), why });
    if let Some(share) = shares.get(MAX_SHARES) {
        return wrong(share, Wrong::TooMany);
    }
    for (index, share) in shares.iter().enumerate() {
        let others = shares.iter().take(index).map(|other| &other.guest_path);
        let overlaps =
            |other: &&String| is_within(other, &share.guest_path) || is_within(&share.guest_path, other);
        let mut inside = disks.iter().map(|disk| &disk.guest_path);
        let taken = others.clone().find(overlaps).or(inside.find(|disk| is_within(disk, &share.guest_path)));
        if let Some(path) = taken {
            return wrong(share, Wrong::Taken(path.clone()));
        }
    }
    Ok(())
}

/// Whether `path` is `directory` or below it.
fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn parse(text: &str) -> Result<Share, Wrong> {
    let (host_path, rest) = text.rsplit_once(":/").ok_or(Wrong::Shape)?;
    if host_path.is_empty() {
        return Err(Wrong::NoSource);
    }
    let (guest_path, options) = rest.split_once(':').ok_or(Wrong::Overlay)?;
    let guest_path = disks::place(&format!("/{guest_path}")).map_err(Wrong::Place)?;
    let (readonly, owner) = self::options(options)?;
    Ok(Share { host_path: host_path.to_owned(), guest_path, readonly, owner })
}

/// Parses the options: whether the share is read-only, and its owner.
fn options(text: &str) -> Result<(bool, Owner), Wrong> {
    let (mut kind, mut owner) = (None, Owner::default());
    for option in text.split(',') {
        let id = |digits: &str| disks::id(digits).map_err(|_| Wrong::Id(digits.to_owned()));
        let twice = match option.split_once('=') {
            None if option == "overlay" => return Err(Wrong::Overlay),
            None if option == "host_fs" => kind.replace(false).is_some(),
            None if ["ro", "readonly"].contains(&option) => kind.replace(true).is_some(),
            Some(("uid", digits)) => owner.uid.replace(id(digits)?).is_some(),
            Some(("gid", digits)) => owner.gid.replace(id(digits)?).is_some(),
            Some(("owner", both)) => {
                let (uid, gid) = both.split_once(':').ok_or_else(|| Wrong::Id(both.to_owned()))?;
                let (uid, gid) = (owner.uid.replace(id(uid)?), owner.gid.replace(id(gid)?));
                uid.or(gid).is_some()
            }
            _ => return Err(Wrong::UnknownOption(option.to_owned())),
        };
        if twice {
            return Err(Wrong::Twice(option.to_owned()));
        }
    }
    Ok((kind.ok_or(Wrong::Overlay)?, owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(host_path: &str, guest_path: &str, readonly: bool, uid: Option<u32>, gid: Option<u32>) -> Share {
        let owner = Owner { uid, gid };
        Share { host_path: host_path.into(), guest_path: guest_path.into(), readonly, owner }
    }

    #[test]
    fn specs_in_every_form() {
        for (text, expected) in [
            (".:/work:host_fs", share(".", "/work", false, None, None)),
            ("/a:/b:ro", share("/a", "/b", true, None, None)),
            ("/a:/b//c/:readonly,uid=7", share("/a", "/b/c", true, Some(7), None)),
            ("/a:/b:host_fs,gid=0,uid=4294967294", share("/a", "/b", false, Some(u32::MAX - 1), Some(0))),
            ("/a:/b:owner=1:2,host_fs", share("/a", "/b", false, Some(1), Some(2))),
            ("/od:d:/c:/b:ro", share("/od:d:/c", "/b", true, None, None)),
        ] {
            assert_eq!(spec(text).as_ref(), Ok(&expected), "{text}");
            assert_eq!(spec(&expected.to_string()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_ones_say_what_is_wrong() {
        for (text, why) in [
            ("", Wrong::Shape),
            ("/a:b:ro", Wrong::Shape),
            (":/b:ro", Wrong::NoSource),
            ("/a:/b", Wrong::Overlay),
            ("/a:/b:overlay", Wrong::Overlay),
            ("/a:/b:uid=1", Wrong::Overlay),
            ("/a:/:ro", Wrong::Place(disks::Wrong::GuestPath("/".into()))),
            ("/a:/b/../c:ro", Wrong::Place(disks::Wrong::GuestPath("/b/../c".into()))),
            ("/a:/proc/x:ro", Wrong::Place(disks::Wrong::Reserved("/proc".into()))),
            ("/a:/b:rw", Wrong::UnknownOption("rw".into())),
            ("/a:/b:ro,host_fs", Wrong::Twice("host_fs".into())),
            ("/a:/b:ro,uid=1,owner=1:1", Wrong::Twice("owner=1:1".into())),
            ("/a:/b:ro,uid=4294967295", Wrong::Id("4294967295".into())),
            ("/a:/b:ro,uid=-1", Wrong::Id("-1".into())),
            ("/a:/b:ro,owner=1", Wrong::Id("1".into())),
        ] {
            assert_eq!(spec(text), Err(ShareError { share: text.into(), why }), "{text}");
        }
    }

    #[test]
    fn nothing_is_within_a_share() {
        let disk = |path: &str| disks::spec(&format!("@d:{path}")).unwrap();
        let ok = specs(&["/x:/a:ro", "/x:/ab:host_fs", "/x:/b/c:ro"]).unwrap();
        assert_eq!(check(&ok, &[disk("/b"), disk("/abc")]), Ok(()));
        for other in ["/a", "/a/b"] {
            let error = specs(&[format!("/x:{other}:ro"), "/x:/a:ro".to_owned()]).unwrap_err();
            assert_eq!(error.why, Wrong::Taken(other.into()));
            assert_eq!(check(&ok, &[disk(other)]).unwrap_err().why, Wrong::Taken(other.into()));
        }
        assert_eq!(specs(&["/x:/a:ro", "/x:/a/b:ro"]).unwrap_err().why, Wrong::Taken("/a".into()));
        let many: Vec<_> = (0..=MAX_SHARES).map(|number| format!("/x:/{number}:ro")).collect();
        assert_eq!(specs(&many).unwrap_err().why, Wrong::TooMany);
    }
}
