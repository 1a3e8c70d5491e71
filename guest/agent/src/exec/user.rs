//! The user that a program runs as: `user`, `user:group`, `user:` or `:group`, names or numbers, looked up in the
//! guest's own files.
//!
//! A pure function of the two files' bytes. There is no NSS: a static program has none, and the image's files decide.

use rustix::io::Errno;

use crate::files;

/// Largest /etc/passwd or /etc/group that is read.
const DATABASE_LIMIT: usize = 4 << 20;

/// Linux' limit on supplementary groups (NGROUPS_MAX).
const GROUPS_LIMIT: usize = 65536;

/// The user of a request that names only a group.
const ROOT: &str = "0";

/// The user and groups of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// User.
    pub(super) uid: u32,
    /// Primary group.
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    /// The home directory, if the user has an entry.
    pub(super) home: Option<Vec<u8>>,
}

/// Looks `spec` up in the guest's /etc/passwd and /etc/group. The error is a sentence for the user.
pub(super) fn look_up(spec: &str) -> Result<Identity, String> {
    let passwd = database("/etc/passwd")?;
    let group = database("/etc/group")?;
    resolve(spec, &passwd, &group)
}

/// A missing file is an empty one.
fn database(path: &str) -> Result<Vec<u8>, String> {
    match files::read_regular(path, DATABASE_LIMIT) {
        Ok(bytes) => Ok(bytes),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
        Err(errno) => Err(format!("{path}: {}", crate::words(errno))),
    }
}

/// Resolves a specification by these rules:
///
/// * a user or group is a name first and a number second;
/// * an empty user is root, an empty group names none;
/// * a number needs no entry, and its group is the same number;
/// * supplementary groups are those that list the user, unless a group was named: then only that one.
fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, String> {
    let (user, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { ROOT } else { user };
    let entry = accounts(passwd)
        .find(|account| account.name == user.as_bytes())
        .or_else(|| number(user.as_bytes()).and_then(|uid| accounts(passwd).find(|entry| entry.uid == uid)));
    let (uid, own_gid) = match (&entry, number(user.as_bytes())) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, uid),
        (None, None) => return Err(format!("no such user: {user}")),
    };
    let (gid, groups) = match wanted_group {
        "" => (own_gid, memberships(entry.as_ref(), own_gid, group)),
        name => {
            let gid = groups(group)
                .find(|entry| entry.name == name.as_bytes())
                .map(|entry| entry.gid)
                .or_else(|| number(name.as_bytes()))
                .ok_or_else(|| format!("no such group: {name}"))?;
            (gid, vec![gid])
        }
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home: entry.map(|entry| entry.home.to_vec()).filter(|home| !home.is_empty()),
    })
}

fn memberships(entry: Option<&Account<'_>>, gid: u32, group: &[u8]) -> Vec<u32> {
    let mut list = vec![gid];
    if let Some(account) = entry {
        let listed = groups(group)
            .filter(|entry| entry.members.split(|byte| *byte == b',').any(|name| name == account.name))
            .map(|entry| entry.gid);
        list.extend(listed);
        list.sort_unstable();
        list.dedup();
        list.truncate(GROUPS_LIMIT);
    }
    list
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// Lines `name:password:uid:gid:comment:home:shell`; other lines are skipped.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    passwd.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name, uid, gid, home })
    })
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Lines `name:password:gid:member,member`; other lines are skipped.
fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    group.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// A uid or gid. The all-ones value means "unchanged" to the kernel and is no id.
fn number(text: &[u8]) -> Option<u32> {
    let text =
        std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nbroken\nnouid:x::0::/:\napp:x:1000:1001:App,,,:/home/app:/bin/sh\n1234:x:77:78::/odd:/bin/sh\nlast:x:9:9::/var/last";
    const GROUP: &[u8] = b"root:x:0:root\napp:x:1001:\nwheel:x:10:root,app\ndocker:x:998:application,app\nbad:x:abc:app\nempty:x:5";

    fn identity(spec: &str) -> Result<(u32, u32, Vec<u32>), String> {
        resolve(spec, PASSWD, GROUP).map(|found| (found.uid, found.gid, found.groups))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(identity("app"), Ok((1000, 1001, vec![10, 998, 1001])));
        assert_eq!(identity("1000"), Ok((1000, 1001, vec![10, 998, 1001])));
        assert_eq!(identity("root"), Ok((0, 0, vec![0, 10])));
        assert_eq!(identity("4242"), Ok((4242, 4242, vec![4242])));
        assert_eq!(identity("1234"), Ok((77, 78, vec![78])), "a name that looks like a number is a name");
        assert_eq!(identity("last"), Ok((9, 9, vec![9])));
    }

    #[test]
    fn named_group_replaces_all_others() {
        assert_eq!(identity("app:wheel"), Ok((1000, 10, vec![10])));
        assert_eq!(identity("app:5"), Ok((1000, 5, vec![5])));
        assert_eq!(identity("4242:4343"), Ok((4242, 4343, vec![4343])));
    }

    #[test]
    fn half_of_a_pair_is_enough() {
        assert_eq!(identity("app:"), identity("app"));
        assert_eq!(identity(":wheel"), Ok((0, 10, vec![10])));
        assert_eq!(identity(":1000"), Ok((0, 1000, vec![1000])));
        assert_eq!(identity(":"), identity("root"));
        assert_eq!(resolve(":1000", b"", b"").map(|found| (found.uid, found.gid)), Ok((0, 1000)));
    }

    #[test]
    fn unknown_names() {
        for (spec, message) in [
            ("nobody", "no such user: nobody"),
            ("nouid", "no such user: nouid"),
            ("app:bad", "no such group: bad"),
            (":bad", "no such group: bad"),
            ("-1", "no such user: -1"),
            ("+5", "no such user: +5"),
            ("4294967295", "no such user: 4294967295"),
            ("99999999999", "no such user: 99999999999"),
            ("app:4294967295", "no such group: 4294967295"),
        ] {
            assert_eq!(identity(spec), Err(message.to_owned()), "{spec}");
        }
    }

    #[test]
    fn home_comes_with_the_entry() {
        assert_eq!(resolve("app", PASSWD, GROUP).map(|found| found.home), Ok(Some(b"/home/app".to_vec())));
        assert_eq!(resolve("4242", PASSWD, GROUP).map(|found| found.home), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(spec in ".{0,20}", passwd: Vec<u8>, group: Vec<u8>) {
            let _ = resolve(&spec, &passwd, &group);
        }
    }
}
