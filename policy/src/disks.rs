//! The disk images that a guest gets, and their places in the guest.
//!
//! ```text
//! SRC:GUEST[:OPTIONS]      SRC = path of the host, or @volume
//! ```
//!
//! A specification is read from its end, so that a path of the host may have colons: a guest path begins with a slash,
//! and no option does. Not here: opening and mounting images.

use std::fmt;

/// Most disks of a sandbox beside its own two. Both machines have 16 virtio devices; a sandbox's own are root, upper,
/// socket, entropy, console and balloon, and two are left for a network and for shared directories.
pub const MAX_DISKS: usize = 8;

/// Longest guest path.
pub const MAX_GUEST_PATH: usize = 1024;

/// Directories that are the kernel's own.
const RESERVED: [&str; 3] = ["dev", "proc", "sys"];

/// A disk image and its place in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image.
    pub source: Source,
    /// The directory that it is mounted on: absolute, without `.`, `..` and needless slashes.
    pub guest_path: String,
    /// The guest's access.
    pub access: Access,
}

/// The place of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path of the host; not empty.
    Path(String),
    /// A named volume; not empty.
    Volume(String),
}

/// A guest's access to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The guest may read.
    ReadOnly,
    /// The guest may read and write.
    ReadWrite(Owner),
}

/// The new owner of a file system's root directory; `None` leaves the old one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A disk that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid disk mount {disk:?}: {why}")]
pub struct DiskError {
    /// The disk, as it was given.
    pub disk: String,
    /// The fault.
    pub why: Wrong,
}

/// The fault of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The text is not `SRC:GUEST[:OPTIONS]`.
    #[error("expected SRC:GUEST or SRC:GUEST:OPTIONS, GUEST an absolute path")]
    Shape,
    /// The source is missing.
    #[error("no image is named")]
    NoSource,
    /// No disk can be mounted at the path.
    #[error(
        "{0:?} is no place for a disk: an absolute path of letters, digits and _ . -, without . and .. as names"
    )]
    GuestPath(String),
    /// The directory is the kernel's.
    #[error("{0} is the kernel's own")]
    Reserved(String),
    /// The option is unknown.
    #[error("unknown option {0:?}; there are ro, readonly, uid=N, gid=N")]
    UnknownOption(String),
    /// The text is no user or group id.
    #[error("{0:?} is no id: a number from 0 to 4294967294")]
    Id(String),
    /// The option was given before.
    #[error("option {0:?} comes twice")]
    Twice(String),
    /// A read-only disk cannot change its owner.
    #[error("uid and gid need a writable disk")]
    ReadOnlyOwner,
    /// Another disk has the path.
    #[error("{0} has another disk already")]
    Taken(String),
    /// Another disk has the image, and one of them can write.
    #[error("{0} is attached already, and two disks can share an image only if both are read-only")]
    Shared(Source),
    /// The machine has no devices for more disks.
    #[error("it is one too many: a sandbox has at most {MAX_DISKS} disks")]
    TooMany,
}

impl Disk {
    /// Checks the parts of a disk; `source` is a path or `@volume`.
    pub fn new(
        source: &str,
        guest_path: &str,
        readonly: bool,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Self, DiskError> {
        let owner = Owner { uid, gid };
        Self::checked(source, guest_path, readonly, owner)
            .map_err(|why| DiskError { disk: format!("{source}:{guest_path}"), why })
    }

    fn checked(source: &str, guest_path: &str, readonly: bool, owner: Owner) -> Result<Self, Wrong> {
        let source = match source.strip_prefix('@') {
            Some("") => return Err(Wrong::NoSource),
            Some(volume) => Source::Volume(volume.to_owned()),
            None if source.is_empty() => return Err(Wrong::NoSource),
            None => Source::Path(source.to_owned()),
        };
        let guest_path = place(guest_path)?;
        // chown(2) takes this id for "do not change".
        if owner.uid == Some(u32::MAX) || owner.gid == Some(u32::MAX) {
            return Err(Wrong::Id(u32::MAX.to_string()));
        }
        let access = match readonly {
            false => Access::ReadWrite(owner),
            true if owner == Owner::default() => Access::ReadOnly,
            true => return Err(Wrong::ReadOnlyOwner),
        };
        Ok(Self { source, guest_path, access })
    }

    /// Whether the guest may write to the disk.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        matches!(self.access, Access::ReadWrite(_))
    }

    /// The new owner of the disk's root directory.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match self.access {
            Access::ReadOnly => Owner::default(),
            Access::ReadWrite(owner) => owner,
        }
    }
}

/// The form that [`spec`] reads.
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.guest_path)?;
        let Owner { uid, gid } = self.owner();
        let options = [
            (!self.is_writable()).then(|| "ro".to_owned()),
            uid.map(|uid| format!("uid={uid}")),
            gid.map(|gid| format!("gid={gid}")),
        ];
        let options: Vec<String> = options.into_iter().flatten().collect();
        if options.is_empty() { Ok(()) } else { write!(f, ":{}", options.join(",")) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Volume(name) => write!(f, "@{name}"),
        }
    }
}

/// Parses `SRC:GUEST[:OPTIONS]`.
pub fn spec(text: &str) -> Result<Disk, DiskError> {
    parse(text).map_err(|why| DiskError { disk: text.to_owned(), why })
}

/// Parses several disks, and checks that they go together.
pub fn specs<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Disk>, DiskError> {
    let apart = texts.iter().flat_map(|text| apart(text.as_ref()));
    let disks = apart.map(|text| spec(&text)).collect::<Result<Vec<_>, _>>()?;
    check(&disks)?;
    Ok(disks)
}

/// Splits several disks at the commas between them. Options have commas too, but no character of a source (`/`, `@`)
/// or of its end (`:`); and a source with commas has no guest path yet.
fn apart(text: &str) -> Vec<String> {
    let mut specs: Vec<String> = Vec::new();
    for piece in text.split(',') {
        match specs.last_mut().filter(|spec| !spec.contains(":/") || !piece.contains(['/', '@', ':'])) {
            Some(spec) => {
                spec.push(',');
                spec.push_str(piece);
            }
            None => specs.push(piece.to_owned()),
        }
    }
    specs
}

/// Checks that disks go together in one guest.
pub fn check(disks: &[Disk]) -> Result<(), DiskError> {
    let wrong = |disk: &Disk, why| Err(DiskError { disk: disk.to_string(), why });
    if let Some(disk) = disks.get(MAX_DISKS) {
        return wrong(disk, Wrong::TooMany);
    }
    for (index, disk) in disks.iter().enumerate() {
        let mut others = disks.iter().take(index);
        if others.clone().any(|other| other.guest_path == disk.guest_path) {
            return wrong(disk, Wrong::Taken(disk.guest_path.clone()));
        }
        let writable = |other: &Disk| other.is_writable() || disk.is_writable();
        if others.any(|other| other.source == disk.source && writable(other)) {
            return wrong(disk, Wrong::Shared(disk.source.clone()));
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Disk, Wrong> {
    let (head, last) = text.rsplit_once(':').ok_or(Wrong::Shape)?;
    if last.starts_with('/') {
        return Disk::checked(head, last, false, Owner::default());
    }
    let (source, guest_path) = head.rsplit_once(':').ok_or(Wrong::Shape)?;
    let (readonly, owner) = options(last)?;
    Disk::checked(source, guest_path, readonly, owner)
}

/// Parses the options: whether the disk is read-only, and its new owner.
fn options(text: &str) -> Result<(bool, Owner), Wrong> {
    let (mut readonly, mut owner) = (false, Owner::default());
    for option in text.split(',') {
        let before = match option.split_once('=') {
            None if ["ro", "readonly"].contains(&option) => {
                std::mem::replace(&mut readonly, true).then_some(0)
            }
            Some(("uid", digits)) => owner.uid.replace(id(digits)?),
            Some(("gid", digits)) => owner.gid.replace(id(digits)?),
            _ => return Err(Wrong::UnknownOption(option.to_owned())),
        };
        if before.is_some() {
            return Err(Wrong::Twice(option.to_owned()));
        }
    }
    Ok((readonly, owner))
}

pub(crate) fn id(digits: &str) -> Result<u32, Wrong> {
    // `parse` alone would also take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|id| plain && *id != u32::MAX).ok_or_else(|| Wrong::Id(digits.to_owned()))
}

/// Checks a guest path: `^/[a-zA-Z0-9/_.-]+$`, without parts that lead elsewhere; needless parts are removed.
pub(crate) fn place(path: &str) -> Result<String, Wrong> {
    let bad = || Wrong::GuestPath(path.to_owned());
    let rest = path.strip_prefix('/').filter(|_| path.len() <= MAX_GUEST_PATH).ok_or_else(bad)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.-".contains(&byte);
    let names: Vec<&str> = rest.split('/').filter(|name| !name.is_empty()).collect();
    let first = names.first().ok_or_else(bad)?;
    if !rest.bytes().all(plain) || names.iter().any(|name| [".", ".."].contains(name)) {
        return Err(bad());
    }
    if RESERVED.contains(first) {
        return Err(Wrong::Reserved(format!("/{first}")));
    }
    Ok(format!("/{}", names.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disk(source: Source, guest_path: &str, access: Access) -> Disk {
        Disk { source, guest_path: guest_path.to_owned(), access }
    }

    fn owned(uid: Option<u32>, gid: Option<u32>) -> Access {
        Access::ReadWrite(Owner { uid, gid })
    }

    #[test]
    fn specs_in_every_form() {
        let path = |path: &str| Source::Path(path.into());
        let data = || Source::Volume("data".into());
        for (text, expected) in [
            ("/a.ext4:/data", disk(path("/a.ext4"), "/data", owned(None, None))),
            ("a.ext4:/data:ro", disk(path("a.ext4"), "/data", Access::ReadOnly)),
            ("@data:/data:readonly", disk(data(), "/data", Access::ReadOnly)),
            ("@data:/var/lib/x:uid=1000", disk(data(), "/var/lib/x", owned(Some(1000), None))),
            ("@data:/d:gid=0,uid=4294967294", disk(data(), "/d", owned(Some(u32::MAX - 1), Some(0)))),
            ("@data://d", disk(data(), "/d", owned(None, None))),
            ("@data:/d//e/", disk(data(), "/d/e", owned(None, None))),
            ("/od:d/a:b:/data", disk(path("/od:d/a:b"), "/data", owned(None, None))),
            ("/a:/b:/data:ro", disk(path("/a:/b"), "/data", Access::ReadOnly)),
            ("./@a:/d", disk(path("./@a"), "/d", owned(None, None))),
        ] {
            assert_eq!(spec(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_ones_say_what_is_wrong() {
        let place = |path: &str| Wrong::GuestPath(path.into());
        let long = format!("/{}", "a".repeat(MAX_GUEST_PATH));
        let too_long = format!("a:{long}");
        for (text, why) in [
            ("", Wrong::Shape),
            ("/a", Wrong::Shape),
            ("a:ro", Wrong::Shape),
            (":/d", Wrong::NoSource),
            ("@:/d", Wrong::NoSource),
            ("a:b:ro", place("b")),
            ("a::ro", place("")),
            ("a:/", place("/")),
            ("a://", place("//")),
            ("a:/..", place("/..")),
            ("a:/d/../e", place("/d/../e")),
            ("a:/./d", place("/./d")),
            ("a:/d e", place("/d e")),
            ("a:/d\n", place("/d\n")),
            ("a:/ä", place("/ä")),
            (too_long.as_str(), place(&long)),
            ("a:/proc", Wrong::Reserved("/proc".into())),
            ("a://sys/x", Wrong::Reserved("/sys".into())),
            ("a:/dev/shm", Wrong::Reserved("/dev".into())),
            ("a:/d:", Wrong::UnknownOption(String::new())),
            ("a:/d:rw", Wrong::UnknownOption("rw".into())),
            ("a:/d:ro,", Wrong::UnknownOption(String::new())),
            ("a:/d:ro=1", Wrong::UnknownOption("ro=1".into())),
            ("a:/d:owner=1", Wrong::UnknownOption("owner=1".into())),
            ("a:/d:uid=", Wrong::Id(String::new())),
            ("a:/d:uid=+1", Wrong::Id("+1".into())),
            ("a:/d:gid=4294967295", Wrong::Id("4294967295".into())),
            ("a:/d:ro,readonly", Wrong::Twice("readonly".into())),
            ("a:/d:uid=1,uid=1", Wrong::Twice("uid=1".into())),
            ("a:/d:uid=1,ro", Wrong::ReadOnlyOwner),
        ] {
            assert_eq!(spec(text), Err(DiskError { disk: text.into(), why }), "{text:?}");
        }
        let error = spec("a:/d:uid=1,ro").unwrap_err().to_string();
        assert_eq!(error, "invalid disk mount \"a:/d:uid=1,ro\": uid and gid need a writable disk");
    }

    #[test]
    fn parts_are_checked_like_specs() {
        assert_eq!(Disk::new("@data", "/d/", true, None, None), spec("@data:/d:ro"));
        assert_eq!(Disk::new("a", "/d", false, Some(1), None), spec("a:/d:uid=1"));
        for (source, path, readonly, uid, why) in [
            ("", "/d", false, None, Wrong::NoSource),
            ("a", "", false, None, Wrong::GuestPath(String::new())),
            ("a", "/d", true, Some(1), Wrong::ReadOnlyOwner),
            ("a", "/d", false, Some(u32::MAX), Wrong::Id(u32::MAX.to_string())),
        ] {
            let error = Disk::new(source, path, readonly, uid, None).unwrap_err();
            assert_eq!(error, DiskError { disk: format!("{source}:{path}"), why });
        }
    }

    #[test]
    fn several_in_one() {
        for (text, expected) in [
            ("a:/x,b:/y", &["a:/x", "b:/y"][..]),
            ("a:/x:ro,uid=1,@b:/y:ro", &["a:/x:ro,uid=1", "@b:/y:ro"]),
            ("/t/a,b.img:/x", &["/t/a,b.img:/x"]),
            ("a:/x,/t/b,c:/y:ro", &["a:/x", "/t/b,c:/y:ro"]),
            ("a:/x:ro,", &["a:/x:ro,"]),
            ("", &[""]),
        ] {
            assert_eq!(apart(text), expected, "{text}");
        }
        assert_eq!(specs(&["a:/x,b:/y", "c:/z"]), specs(&["a:/x", "b:/y", "c:/z"]));
    }

    #[test]
    fn disks_go_together_or_not() {
        assert_eq!(specs::<&str>(&[]), Ok(vec![]));
        assert_eq!(specs(&["a:/d", "b:/d/e"]).unwrap().len(), 2);
        let taken = specs(&["a:/d", "b:/d/:ro"]).unwrap_err();
        assert_eq!(taken, DiskError { disk: "b:/d:ro".into(), why: Wrong::Taken("/d".into()) });
        assert_eq!(specs(&["@a:/d:ro", "@a:/e:ro"]).unwrap().len(), 2);
        for both in [["@a:/d", "@a:/e:ro"], ["@a:/d:ro", "@a:/e"]] {
            assert_eq!(specs(&both).unwrap_err().why, Wrong::Shared(Source::Volume("a".into())));
        }
        let texts = |count: usize| (0..count).map(|n| format!("a{n}:/d{n}")).collect::<Vec<_>>();
        assert_eq!(specs(&texts(MAX_DISKS)).unwrap().len(), MAX_DISKS);
        assert_eq!(specs(&texts(MAX_DISKS + 1)).unwrap_err().why, Wrong::TooMany);
    }

    fn any_disk() -> impl Strategy<Value = Disk> {
        let source = prop_oneof![
            "[a-zA-Z/. :ä-][a-zA-Z/. :@ä-]{0,20}".prop_map(Source::Path),
            "[a-z0-9._-]{1,10}".prop_map(Source::Volume),
        ];
        let path = prop::collection::vec("[a-z_-][a-z0-9._-]{0,6}", 1..4);
        let path = path.prop_map(|names| format!("/m-{}", names.join("/")));
        let id = || prop::option::of(0..u32::MAX);
        let access = prop_oneof![
            Just(Access::ReadOnly),
            (id(), id()).prop_map(|(uid, gid)| Access::ReadWrite(Owner { uid, gid })),
        ];
        (source, path, access).prop_map(|(source, guest_path, access)| Disk { source, guest_path, access })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same(disk in any_disk()) {
            prop_assert_eq!(spec(&disk.to_string()), Ok(disk));
        }

        #[test]
        fn whatever_is_accepted_is_a_plain_path_and_a_fixed_point(text in "[@/a.:,=-]{0,12}(:/[a-z./]{0,8})?(:(ro|uid=[0-9]{1,11}|[a-z,=]{0,6}))?") {
            if let Ok(disk) = spec(&text) {
                prop_assert!(disk.guest_path.starts_with('/') && disk.guest_path.len() > 1);
                let names: Vec<&str> = disk.guest_path.split('/').skip(1).collect();
                prop_assert!(names.iter().all(|name| !["", ".", ".."].contains(name)), "{}", disk.guest_path);
                prop_assert!(!RESERVED.contains(&names[0]));
                prop_assert_eq!(spec(&disk.to_string()), Ok(disk));
            }
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>()) {
            let _ = spec(&text);
        }
    }
}
