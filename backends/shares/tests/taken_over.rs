//! Changes of an overlay, taken over: the host's directory becomes what the guest saw, or stays as it is.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use changes::{Change, Error, Host, Kept, apply, below_with_directories, changes, judge};
use fuse::Coherence;
use overlay::Files;
use rustix::fs::{CWD, RenameFlags};
use shares::{HostFs, MountError, Mounted, Options};

/// A directory, an overlay of it, and what is kept of that.
struct Overlaid {
    shared: tempfile::TempDir,
    kept: tempfile::TempDir,
    place: tempfile::TempDir,
    files: Arc<Files>,
    mounted: Option<Mounted>,
}

impl Overlaid {
    /// An overlay of the directory that `fill` fills, unless nothing can be mounted here.
    fn new(fill: impl FnOnce(&Path)) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip::skip("root", "mounts need root");
            return None;
        }
        let [shared, kept, place] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        fill(shared.path());
        let options = Options { readonly: true, valid: Duration::ZERO, ..Options::default() };
        let below = Arc::new(HostFs::new(shared.path(), options).unwrap());
        let directory = File::open(kept.path()).unwrap().into();
        let files = Arc::new(Files::over_kept(below, 1 << 30, directory).unwrap());
        match Mounted::new(files.clone(), Coherence::Shared, place.path(), 1, || ()) {
            Ok(mounted) => Some(Self { shared, kept, place, files, mounted: Some(mounted) }),
            Err(MountError::Device(error)) => {
                skip::skip("fuse", format!("/dev/fuse: {error}"));
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn host(&self) -> &Path {
        self.shared.path()
    }

    fn guest(&self) -> &Path {
        self.place.path()
    }

    /// Ends the overlay; what was changed is kept.
    fn end(mut self) -> Ended {
        self.files.keep().unwrap();
        drop(self.mounted.take());
        Ended { host: Host::open(self.shared.path()).unwrap(), shared: self.shared, kept: self.kept }
    }
}

/// The rest of an overlay.
struct Ended {
    shared: tempfile::TempDir,
    kept: tempfile::TempDir,
    host: Host,
}

impl Ended {
    fn kept(&self) -> Kept {
        Kept::new(File::open(self.kept.path()).unwrap().into())
    }

    fn changes(&self) -> Vec<Change> {
        changes(&self.kept().list().unwrap().unwrap())
    }

    /// Each change in a line, and what is against it.
    fn told(&self) -> Vec<String> {
        let judged = judge(self.changes(), &self.host, &self.kept()).unwrap();
        let told = |change: Change| {
            let from = change.from.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
            let against =
                change.conflict.as_ref().map(|conflict| format!(": {conflict}")).unwrap_or_default();
            format!("{:?} {}{from}{against}", change.kind, change.place)
        };
        judged.into_iter().map(told).collect()
    }

    fn apply(&self) -> changes::Result<()> {
        self.apply_some(self.changes())
    }

    fn apply_some(&self, some: Vec<Change>) -> changes::Result<()> {
        apply(some.clone(), &self.host, &self.kept(), &mut |done, total| assert!(done <= total))?;
        self.kept().discard(self.kept().list()?.unwrap(), &some)
    }
}

/// Everything in a directory: type and permissions, and what is in it or where it leads.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let (mut all, mut directories) = (BTreeMap::new(), vec![directory.to_owned()]);
    while let Some(at) = directories.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let bytes = if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if metadata.is_dir() {
                directories.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            all.insert(path.strip_prefix(directory).unwrap().to_owned(), (metadata.mode() & !0o7000, bytes));
        }
    }
    all
}

fn fill(directory: &Path) {
    for path in ["a", "b/a", "b/b", "b/c/a", "c/a", "c/b", "d"] {
        fs::create_dir_all(directory.join(path).parent().unwrap()).unwrap();
        fs::write(directory.join(path), path.repeat(3)).unwrap();
    }
    fs::set_permissions(directory.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(directory.join("c/a"), directory.join("c/c")).unwrap();
    symlink("b/a", directory.join("e")).unwrap();
    let large = File::create(directory.join("b/d")).unwrap();
    large.write_all_at(&[7; 30_000], 1 << 20).unwrap();
}

/// Numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.roll(all.len())].clone()
    }
}

/// Something that a program does; errors are part of it.
fn act(guest: &Path, dice: &mut Dice) {
    act_of(guest, dice, 12);
}

/// The same, one of the first kinds.
fn act_of(guest: &Path, dice: &mut Dice, kinds: usize) {
    let all: Vec<PathBuf> = tree(guest).into_keys().map(|path| guest.join(path)).collect();
    let mut directories = vec![guest.to_owned()];
    directories.extend(all.iter().filter(|path| path.is_dir() && !path.is_symlink()).cloned());
    let some = if all.is_empty() { guest.join("a") } else { dice.pick(&all) };
    let new = dice.pick(&directories).join(dice.pick(&["a", "b", "c", "d", "e"]));
    let other = if all.is_empty() { guest.join("b") } else { dice.pick(&all) };
    let mode = dice.pick(&[0o644, 0o755, 0o600, 0o700]);
    let contents = vec![u8::try_from(dice.roll(250)).unwrap(); dice.pick(&[0, 1, 100, 20_000])];
    let _ = match dice.roll(kinds) {
        0 => fs::write(&new, contents),
        1 => OpenOptions::new().append(true).open(&some).and_then(|mut file| file.write_all(&contents)),
        2 => fs::create_dir(&new),
        3 | 4 => fs::rename(&some, &new),
        5 => fs::rename(&some, &other),
        6 => rustix::fs::renameat_with(CWD, &some, CWD, &other, RenameFlags::EXCHANGE).map_err(Into::into),
        7 => fs::remove_file(&some),
        8 => fs::remove_dir(&some).or_else(|_| fs::remove_dir_all(&some)),
        9 => symlink("where it leads", &new),
        10 if some.is_symlink() => Ok(()),
        10 => fs::set_permissions(&some, fs::Permissions::from_mode(mode)),
        _ => fs::hard_link(&some, &new),
    };
}

#[test]
fn the_host_gets_what_the_guest_saw() {
    for seed in 0..40 {
        let Some(overlaid) = Overlaid::new(fill) else { return };
        let mut dice = Dice(seed);
        let before = tree(overlaid.host());
        let acts = dice.roll(40);
        (0..acts).for_each(|_| act(overlaid.guest(), &mut dice));
        let seen = tree(overlaid.guest());
        assert_eq!(tree(overlaid.host()), before, "{seed}: nothing reaches the host before");
        let ended = overlaid.end();
        let told = ended.told();
        if let Err(error) = ended.apply() {
            panic!("{seed}: {error}\n{told:#?}");
        }
        assert_eq!(tree(ended.shared.path()), seen, "{seed}: {told:#?}");
        assert_eq!(ended.told(), [""; 0], "{seed}: what is taken over is no change any more {told:#?}");
    }
}

#[test]
fn changes_are_taken_over_bit_by_bit() {
    for seed in 2000..2025 {
        let Some(overlaid) = Overlaid::new(fill) else { return };
        fs::remove_file(overlaid.host().join("c/c")).unwrap();
        let mut dice = Dice(seed);
        // A further name changes its file on the host, so that a later part would find it changed.
        (0..25).for_each(|_| act_of(overlaid.guest(), &mut dice, 11));
        let seen = tree(overlaid.guest());
        let ended = overlaid.end();
        let mut rounds = 0;
        loop {
            let all = ended.changes();
            let Some(one) = all.get(dice.roll(all.len().max(1))).map(|change| change.place.clone()) else {
                break;
            };
            let told = ended.told();
            let before = tree(ended.shared.path());
            match ended.apply_some(below_with_directories(all, &one)) {
                Ok(()) => {}
                // It needs others first.
                Err(Error::Conflict { .. }) => assert_eq!(tree(ended.shared.path()), before, "{seed}"),
                Err(error) => panic!("{seed}: {one}: {error}\n{told:#?}"),
            }
            rounds += 1;
            if rounds > 200 {
                ended.apply().unwrap_or_else(|error| panic!("{seed}: {error}\n{told:#?}"));
            }
        }
        assert_eq!(tree(ended.shared.path()), seen, "{seed}");
        let list = fs::read_dir(ended.kept.path()).unwrap().count();
        assert_eq!(list, 1, "{seed}: contents that nothing has");
    }
}

#[test]
fn what_the_host_changed_meanwhile_keeps_everything_from_being_taken_over() {
    for seed in 1000..1040 {
        let Some(overlaid) = Overlaid::new(fill) else { return };
        let mut dice = Dice(seed);
        (0..20).for_each(|_| act(overlaid.guest(), &mut dice));
        (0..3).for_each(|_| act(overlaid.host(), &mut dice));
        let ended = overlaid.end();
        let before = tree(ended.shared.path());
        match ended.apply() {
            Ok(_) => assert_eq!(ended.told(), [""; 0], "{seed}"),
            Err(Error::Conflict { .. }) => assert_eq!(tree(ended.shared.path()), before, "{seed}"),
            Err(error) => panic!("{seed}: {error}"),
        }
    }
}
