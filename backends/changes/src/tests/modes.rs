//! Tests of permissions, for a user who is bound by them.

use super::*;
use crate::sys;

impl Scene {
    /// The guest gave the last file a mode.
    fn mode(&mut self, mode: u32) -> &mut Self {
        if let Some(Record::There(there)) = self.records.last_mut() {
            there.mode = mode;
        }
        self
    }

    fn set(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn modes<const N: usize>(&self, paths: [&str; N]) -> [u32; N] {
        paths.map(|path| self.base(path).mode & 0o7777)
    }
}

/// Does something without the superuser's rights to files.
fn as_ordinary_user<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let act = || {
        sys::give_up_rights_of_root();
        act()
    };
    std::thread::scope(|scope| scope.spawn(act).join().unwrap())
}

/// Directories that nobody may write to: a new one, and ones of the host's that were opened, closed and renamed.
fn scene_of_closed_directories() -> Scene {
    let mut scene = Scene::new();
    for path in ["closed", "opened"] {
        fs::create_dir(scene.path(path)).unwrap();
        fs::write(scene.path(path).join("file"), path).unwrap();
        scene.set(path, 0o555);
    }
    fs::create_dir(scene.path("elsewhere")).unwrap();
    scene.set("two", 0o000);
    scene
        .there("new", None, What::Directory)
        .mode(0o555)
        .there("new/below", None, What::Directory)
        .mode(0o500);
    scene.there("new/below/file", None, inline(b"guest"));
    scene.there("directory", Some("directory"), What::Directory).mode(0o555);
    scene.there("directory/new", None, inline(b"guest")).gone("directory/one");
    scene.there("opened", Some("opened"), What::Directory).mode(0o755).gone("opened/file");
    scene.gone("closed").there("elsewhere/moved", Some("closed"), What::Directory).mode(0o555);
    scene.there("elsewhere/moved/new", None, inline(b"guest"));
    scene.there("two", Some("two"), BELOW).mode(0o400);
    scene
}

#[test]
fn directories_that_nobody_may_write_to() {
    let scene = scene_of_closed_directories();
    as_ordinary_user(|| scene.apply()).unwrap();
    let of = ["new", "new/below", "directory", "opened", "elsewhere/moved", "two"];
    assert_eq!(scene.modes(of), [0o555, 0o500, 0o555, 0o755, 0o555, 0o400]);
    assert_eq!(names(scene.host.path()), ["directory", "elsewhere", "new", "opened", "two"]);
    assert_eq!(names(&scene.path("new/below")), ["file"]);
    assert_eq!(names(&scene.path("directory")), ["new"]);
    assert_eq!(names(&scene.path("opened")), [""; 0]);
    assert_eq!(names(&scene.path("elsewhere/moved")), ["file", "new"]);
}

#[test]
fn permissions_are_undone() {
    let scene = scene_of_closed_directories();
    let done = as_ordinary_user(|| {
        AT_SYNC.set(Some(Box::new(|| Err(rustix::io::Errno::IO))));
        scene.apply()
    });
    assert!(matches!(&done, Err(Error::File { place, .. }) if place == "."), "{done:?}");
    assert_eq!(names(scene.host.path()), ["closed", "directory", "elsewhere", "opened", "two"]);
    assert_eq!(scene.modes(["closed", "opened", "two"]), [0o555, 0o555, 0o000]);
    assert_eq!(names(&scene.path("closed")), ["file"]);
    assert_eq!(names(&scene.path("opened")), ["file"]);
    assert_eq!(names(&scene.path("directory")), ["one"]);
}

#[test]
fn no_mode_comes_from_what_a_list_says_was_there() {
    let mut scene = Scene::new();
    scene.set("directory", 0o500);
    scene.there("moved", Some("directory"), What::Directory).mode(0o077).gone("directory");
    for record in &mut scene.records {
        let (Record::There(There { was: Some(was), .. }) | Record::Gone(Gone { was, .. })) = record else {
            panic!("the directory was there");
        };
        was.mode = kind::DIRECTORY | 0o077;
    }
    assert_eq!(as_ordinary_user(|| scene.apply()).unwrap(), 1);
    assert_eq!(scene.modes(["moved"]), [0o500]);
}

#[test]
fn special_bits_of_directories_are_the_hosts() {
    for outcome in [Ok(()), Err(rustix::io::Errno::IO)] {
        let mut scene = Scene::new();
        fs::create_dir(scene.path("gone")).unwrap();
        for (path, mode) in [("gone", 0o3751), ("directory", 0o3755), ("two", 0o6755)] {
            scene.set(path, mode);
        }
        scene.there("directory", Some("directory"), What::Directory).mode(0o4700).gone("gone");
        scene.there("directory/new", None, What::Directory).mode(0o5711);
        scene.there("two", Some("two"), BELOW).mode(0o6777);
        AT_SYNC.set(Some(Box::new(move || outcome)));
        let done = scene.apply();
        let modes = scene.modes(["directory", "two"]);
        match outcome {
            // Linux has directories inherit the bit for groups, and a program that others may run is the guest's doing.
            Ok(()) => assert_eq!(
                (done.unwrap(), modes, scene.modes(["directory/new"])),
                (4, [0o3700, 0o777], [0o2711])
            ),
            Err(_) => {
                assert_eq!((done.is_ok(), modes, scene.modes(["gone"])), (false, [0o3755, 0o6755], [0o3751]))
            }
        }
    }
}
