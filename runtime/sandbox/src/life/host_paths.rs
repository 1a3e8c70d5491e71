//! Where a path of the host leads, link by link, past folders in which a guest may have made the links.
//!
//! Not here: what may be shared (`life::shares`).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;

/// Most links on the way, as Linux has it.
const MAX_LINKS: usize = 40;

/// The place that `path` leads to, without links, dots or double dots; `None` if a link in one of the folders `written`,
/// which are such places, leads out of that folder: the guest that writes there would choose what is shared.
pub(crate) fn resolve(path: &Path, written: &[PathBuf]) -> io::Result<Option<PathBuf>> {
    let mut rest: VecDeque<OsString> = names(&std::path::absolute(path)?);
    let (mut place, mut links) = (PathBuf::from("/"), 0);
    let mut bounds = Vec::new();
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            place.pop();
            continue;
        }
        let next = place.join(&name);
        if !fs::symlink_metadata(&next)?.is_symlink() {
            place = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        bounds.extend(written.iter().filter(|folder| place.starts_with(folder)));
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            place = PathBuf::from("/");
        }
        let mut target = names(&target);
        target.append(&mut rest);
        rest = target;
    }
    Ok(bounds.iter().all(|folder| place.starts_with(folder)).then_some(place))
}

/// The parts of a path that lead on or back.
fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_on_but_not_out_of_what_a_guest_writes() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        let at = |name: &str| top.join(name);
        for name in ["mine/in/deep", "other"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        symlink("../other", at("mine/out")).unwrap();
        symlink("in", at("mine/on")).unwrap();
        symlink(at("mine/out"), at("by-way")).unwrap();
        symlink(at("other"), at("link")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let written = [at("mine")];
        for (path, place) in [
            ("mine/in/deep", Some("mine/in/deep")),
            ("mine/on/deep", Some("mine/in/deep")),
            ("mine/../other", Some("other")),
            ("link", Some("other")),
            ("mine/on/../../other", None),
            ("mine/out", None),
            ("mine/in/../out", None),
            ("by-way", None),
        ] {
            let found = resolve(&at(path), &written).unwrap();
            assert_eq!(found, place.map(at), "{path}");
            assert_eq!(resolve(&at(path), &[]).unwrap(), Some(fs::canonicalize(at(path)).unwrap()), "{path}");
        }
        assert_eq!(resolve(&at("loop"), &[]).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        let none = resolve(&at("no/such"), &written).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
