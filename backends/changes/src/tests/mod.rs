//! Tests of lists, of what they mean, and of taking over, on real directories.

mod meanwhile;
mod modes;

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::{
    Base, Change, Conflict, Contents, Error, Gone, Host, Kept, Kind, List, Place, Record, Stored, There,
    Time, What, apply, changes, judge, kind,
};

type AtSync = Box<dyn FnOnce() -> rustix::io::Result<()>>;

thread_local! {
    /// The act that happens when the thread next writes a file system to its disk.
    static AT_SYNC: RefCell<Option<AtSync>> = const { RefCell::new(None) };
}

pub(crate) fn at_sync() -> rustix::io::Result<()> {
    AT_SYNC.take().map_or(Ok(()), |happens| happens())
}

/// A directory, and what is kept of an overlay of it.
struct Scene {
    host: tempfile::TempDir,
    kept: tempfile::TempDir,
    records: Vec<Record>,
}

fn place(path: &str) -> Place {
    Place::new(path.as_bytes()).unwrap()
}

fn inline(bytes: &[u8]) -> What {
    let len = u64::try_from(bytes.len()).unwrap();
    What::File(Contents { len, stored: Stored::Inline(bytes.to_vec()) })
}

const BELOW: What = What::File(Contents { len: 0, stored: Stored::Below });

impl Scene {
    fn new() -> Self {
        let scene =
            Self { host: tempfile::tempdir().unwrap(), kept: tempfile::tempdir().unwrap(), records: vec![] };
        fs::create_dir(scene.path("directory")).unwrap();
        fs::write(scene.path("directory/one"), "1").unwrap();
        fs::write(scene.path("two"), "2").unwrap();
        scene
    }

    fn path(&self, path: impl AsRef<Path>) -> std::path::PathBuf {
        self.host.path().join(path)
    }

    /// A file of the directory as it is now.
    fn base(&self, path: impl AsRef<Path>) -> Base {
        let found = fs::symlink_metadata(self.path(path)).unwrap();
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
        Base {
            mode: found.mode(),
            ino: found.ino(),
            size: found.size(),
            mtime: time(found.mtime(), found.mtime_nsec()),
            ctime: time(found.ctime(), found.ctime_nsec()),
        }
    }

    /// The guest has a file there, which came from a path of the directory or is new.
    fn there(&mut self, path: &str, origin: Option<&str>, what: What) -> &mut Self {
        let was = origin.map(|origin| self.base(origin));
        let file = u64::try_from(self.records.len()).unwrap();
        let mtime = Time { seconds: 1000, nanoseconds: 5 };
        let origin = origin.map(place);
        let there = There { place: place(path), origin, was, file, mode: 0o4755, mtime, what };
        self.records.push(Record::There(there));
        self
    }

    /// The guest removed or moved a file.
    fn gone(&mut self, path: &str) -> &mut Self {
        self.records.push(Record::Gone(Gone { place: place(path), was: self.base(path) }));
        self
    }

    fn directory(&self) -> OwnedFd {
        File::open(self.kept.path()).unwrap().into()
    }

    fn kept(&self) -> Kept {
        Kept::new(self.directory())
    }

    fn changes(&self) -> Vec<Change> {
        let directory = self.directory();
        let mut list = crate::Writer::new(&directory).unwrap();
        self.records.iter().for_each(|record| list.add(record).unwrap());
        list.end().unwrap();
        changes(&self.kept().list().unwrap().unwrap())
    }

    fn host(&self) -> Host {
        Host::open(self.host.path()).unwrap()
    }

    fn judged(&self) -> Vec<(Kind, String, Option<Conflict>)> {
        let judged = judge(self.changes(), &self.host(), &self.kept()).unwrap();
        judged.into_iter().map(|change| (change.kind, change.place.to_string(), change.conflict)).collect()
    }

    fn apply(&self) -> crate::Result<usize> {
        apply(self.changes(), &self.host(), &self.kept(), &mut |_, _| ())
    }
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_come_with_contents_permissions_and_times() {
    let mut scene = Scene::new();
    scene.there("new", None, inline(b"contents"));
    let holes = File::create(scene.kept.path().join("7")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"end", 1 << 20).unwrap();
    let stored = Contents { len: (1 << 20) + 2, stored: Stored::File(7) };
    scene.there("two", Some("two"), What::File(stored));
    scene.there("link", None, What::Link(b"../outside".to_vec()));
    scene.there("pipe", None, What::Special);
    assert_eq!(scene.apply().unwrap(), 3, "a FIFO is not made");
    assert_eq!(names(scene.host.path()), ["directory", "link", "new", "two"]);
    let new = scene.path("new");
    assert_eq!(fs::read(&new).unwrap(), b"contents");
    let found = new.metadata().unwrap();
    assert_eq!(
        (found.mode() & 0o7777, found.mtime(), found.mtime_nsec()),
        (0o755, 1000, 5),
        "no special bit"
    );
    let two = fs::read(scene.path("two")).unwrap();
    assert_eq!((two.len(), &two[1 << 20..]), ((1 << 20) + 2, &b"en"[..]));
    assert!(scene.path("two").metadata().unwrap().blocks() < 100, "holes stay holes");
    assert_eq!(fs::read_link(scene.path("link")).unwrap(), Path::new("../outside"));
}

#[test]
fn each_change_of_the_hosts_is_noticed() {
    for (host_does, conflict) in [
        (Box::new(|scene: &Scene| fs::write(scene.path("two"), "host").unwrap()) as Box<dyn Fn(&Scene)>, 1),
        (
            Box::new(|scene| {
                fs::set_permissions(scene.path("two"), fs::Permissions::from_mode(0o600)).unwrap()
            }),
            1,
        ),
        (Box::new(|scene| fs::remove_file(scene.path("two")).unwrap()), 2),
        (Box::new(|scene| fs::rename(scene.path("directory/one"), scene.path("two")).unwrap()), 1),
        (Box::new(|scene| fs::write(scene.path("new"), "host").unwrap()), 3),
        (Box::new(|scene| symlink("two", scene.path("new")).unwrap()), 3),
        (Box::new(|_| ()), 0),
    ] {
        let mut scene = Scene::new();
        scene.there("two", Some("two"), inline(b"guest")).there("new", None, inline(b"guest"));
        let changes = scene.changes();
        host_does(&scene);
        let judged = judge(changes.clone(), &scene.host(), &scene.kept()).unwrap();
        let against: Vec<_> = judged.into_iter().filter_map(|change| change.conflict).collect();
        let expected = [None, Some(Conflict::Changed), Some(Conflict::Removed), Some(Conflict::Appeared)]
            [conflict]
            .clone();
        assert_eq!(against, Vec::from_iter(expected.clone()));
        let before = names(scene.host.path());
        let done = apply(changes, &scene.host(), &scene.kept(), &mut |_, _| ());
        match (done, expected) {
            (Ok(count), None) => assert_eq!(count, 2),
            (Err(Error::Conflict { conflict, others: 0, .. }), Some(expected)) => {
                assert_eq!((conflict, names(scene.host.path())), (expected, before));
            }
            (done, expected) => panic!("{done:?}, not {expected:?}"),
        }
    }
}

#[test]
fn nothing_is_removed_that_the_guest_did_not_see() {
    let mut scene = Scene::new();
    scene.gone("directory").gone("directory/one");
    let changes = scene.changes();
    fs::write(scene.path("directory/precious"), "the host's").unwrap();
    let error = apply(changes, &scene.host(), &scene.kept(), &mut |_, _| ()).unwrap_err().to_string();
    assert_eq!(error, "directory: precious is in it on the host; nothing was taken over (1 such)");
    assert_eq!(names(&scene.path("directory")), ["one", "precious"]);
    fs::remove_file(scene.path("directory/precious")).unwrap();
    assert_eq!(scene.apply().unwrap(), 2);
    assert_eq!(names(scene.host.path()), ["two"]);
}

#[test]
fn no_symbolic_link_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    let mut scene = Scene::new();
    scene.there("directory", Some("directory"), What::Directory);
    scene.there("directory/new", None, inline(b"guest")).gone("directory/one");
    let changes = scene.changes();
    fs::rename(scene.path("directory/one"), outside.path().join("one")).unwrap();
    fs::remove_dir(scene.path("directory")).unwrap();
    symlink(outside.path(), scene.path("directory")).unwrap();
    let done = apply(changes, &scene.host(), &scene.kept(), &mut |_, _| ());
    assert!(matches!(done, Err(Error::Conflict { .. })), "{done:?}");
    assert_eq!(names(outside.path()), ["one"]);
    assert_eq!(names(scene.host.path()), ["directory", "two"]);
}

#[test]
fn a_step_that_fails_undoes_those_before() {
    let mut scene = Scene::new();
    scene.gone("two").gone("directory/one").gone("directory").there("directory2", None, What::Directory);
    scene.there("moved", Some("directory"), What::Directory).there("moved/new", None, inline(b"x"));
    let mut before = names(scene.host.path());
    before.extend(names(&scene.path("directory")));
    let changes = scene.changes();
    let mut steps = 0;
    let (host, kept) = (scene.host(), scene.kept());
    let made = scene.path("moved");
    let done = apply(changes, &host, &kept, &mut |_, _| {
        steps += 1;
        // Something has a path just when it is wanted.
        if steps == 4 {
            fs::create_dir(&made).unwrap();
        }
    });
    assert!(matches!(&done, Err(Error::File { place, .. }) if place == "moved"), "{done:?}");
    fs::remove_dir(scene.path("moved")).unwrap();
    let mut after = names(scene.host.path());
    after.extend(names(&scene.path("directory")));
    assert_eq!(after, before);
    assert_eq!(
        (fs::read(scene.path("two")).unwrap(), scene.path("directory/one").exists()),
        (b"2".into(), true)
    );
}

#[test]
fn what_the_host_has_already_is_no_change() {
    let mut scene = Scene::new();
    scene.there("two", Some("two"), inline(b"same")).there("new", None, inline(b"same"));
    scene.there("link", None, What::Link(b"x".to_vec())).gone("directory/one");
    scene.changes();
    let list = scene.kept().list().unwrap().unwrap();
    for path in ["two", "new"] {
        fs::write(scene.path(path), "same").unwrap();
        fs::set_permissions(scene.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("x", scene.path("link")).unwrap();
    fs::remove_file(scene.path("directory/one")).unwrap();
    assert_eq!(judge(changes(&list), &scene.host(), &scene.kept()).unwrap().len(), 0);
    fs::write(scene.path("new"), "sane").unwrap();
    let judged = judge(changes(&list), &scene.host(), &scene.kept()).unwrap();
    assert_eq!((judged.len(), judged[0].conflict.clone()), (1, Some(Conflict::Appeared)));
}

#[test]
fn kinds_are_told_apart() {
    let mut scene = Scene::new();
    fs::set_permissions(scene.path("two"), fs::Permissions::from_mode(0o644)).unwrap();
    scene.there("two", Some("two"), BELOW);
    scene.there("other", Some("directory"), What::Directory).gone("directory");
    scene.there("other/1", Some("directory/one"), inline(b"x")).gone("directory/one");
    scene.there("further", Some("two"), BELOW);
    let expected = [
        (Kind::Added, "further"),
        (Kind::Renamed, "other"),
        (Kind::Renamed, "other/1"),
        (Kind::Attributes, "two"),
    ];
    assert_eq!(scene.judged(), expected.map(|(kind, path)| (kind, path.to_owned(), None)));
    assert_eq!(scene.apply().unwrap(), 4);
    assert_eq!(scene.path("two").metadata().unwrap().ino(), scene.path("further").metadata().unwrap().ino());
    assert_eq!(fs::read(scene.path("other/1")).unwrap(), b"x");
    assert_eq!(names(scene.host.path()), ["further", "other", "two"]);
}

#[test]
fn damaged_lists_are_refused() {
    let mut scene = Scene::new();
    scene.there("new", None, inline(b"contents")).gone("two");
    scene.changes();
    let path = scene.kept.path().join("list");
    let whole = fs::read(&path).unwrap();
    assert_eq!(List::read(&whole[..]).unwrap().there.len(), 1);
    for len in 0..whole.len() {
        assert!(matches!(List::read(&whole[..len]), Err(Error::List(_))), "{len}");
    }
    let twice: Vec<u8> = [&whole[..8], &whole[8..whole.len() - 12], &whole[8..]].concat();
    let error = List::read(&twice[..]).unwrap_err().to_string();
    assert_eq!(error, "the list of changes is damaged: a path comes twice");
    let long = [&whole[..8], &u32::MAX.to_le_bytes(), &[0; 100]].concat();
    assert!(matches!(List::read(&long[..]), Err(Error::List("a record is too long"))));
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    assert!(scene.kept().list().is_err());
    fs::remove_file(&path).unwrap();
    assert!(scene.kept().list().unwrap().is_none());
}

#[test]
fn hostile_lists() {
    let mut scene = Scene::new();
    scene.there("new", None, inline(b"contents")).gone("two").gone("directory").gone("directory/one");
    scene.there("moved", Some("directory"), What::Directory);
    scene.there("moved/one", Some("directory/one"), BELOW).there("link", None, What::Link(b"x".to_vec()));
    scene.records.push(Record::LeftOut(3));
    scene.changes();
    let whole = fs::read(scene.kept.path().join("list")).unwrap();
    fuzzed::run("changes_list", 2000, &[whole], &["directory", "/", "../", "new"], crate::fuzz::list);
    assert_eq!(scene.base("directory").mode & kind::MASK, kind::DIRECTORY);
}
