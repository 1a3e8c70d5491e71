//! Tests of what happens between the judgement and the end.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use super::*;

impl Scene {
    /// Takes the changes over; at one step of the way the host does something.
    fn apply_while(&self, step: usize, host_does: impl FnOnce(&Self)) -> crate::Result<usize> {
        let (mut told, mut host_does) = (0, Some(host_does));
        apply(self.changes(), &self.host(), &self.kept(), &mut |_, _| {
            told += 1;
            if told == step
                && let Some(host_does) = host_does.take()
            {
                host_does(self);
            }
        })
    }
}

#[track_caller]
fn assert_changed(done: &crate::Result<usize>, path: &str) {
    let is_so =
        |place: &Place, conflict: &Conflict| *place == super::place(path) && *conflict == Conflict::Changed;
    assert!(
        matches!(done, Err(Error::Conflict { place, conflict, .. }) if is_so(place, conflict)),
        "{done:?}"
    );
}

#[test]
fn what_the_host_changes_after_the_judgement_stays() {
    let acts: [fn(&Scene); 3] = [
        |scene| fs::write(scene.path("two"), "the host's").unwrap(),
        |scene| {
            let file = File::options().write(true).open(scene.path("two")).unwrap();
            (&file).write_all(b"h").unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        },
        |scene| {
            fs::write(scene.path("two.new"), "t").unwrap();
            fs::rename(scene.path("two.new"), scene.path("two")).unwrap();
        },
    ];
    let guests: [fn(&mut Scene); 4] = [
        |scene| {
            scene.there("two", Some("two"), inline(b"guest"));
        },
        |scene| {
            scene.gone("two");
        },
        |scene| {
            scene.gone("two").there("moved", Some("two"), BELOW);
        },
        |scene| {
            scene.gone("two").there("moved", Some("two"), inline(b"guest"));
        },
    ];
    for (host_does, guest_does) in acts.iter().flat_map(|act| guests.map(|guest| (act, guest))) {
        let mut scene = Scene::new();
        guest_does(scene.there("new", None, inline(b"guest")));
        let mut expected = Vec::new();
        let done = scene.apply_while(1, |scene| {
            host_does(scene);
            expected = fs::read(scene.path("two")).unwrap();
        });
        assert_changed(&done, "two");
        assert_eq!(fs::read(scene.path("two")).unwrap(), expected);
        assert_eq!(names(scene.host.path()), ["directory", "two"]);
    }
}

#[test]
fn what_the_host_writes_into_a_file_that_it_has_open_stays() {
    let mut scene = Scene::new();
    scene.gone("two").there("new", None, inline(b"guest"));
    let mut open = File::options().append(true).open(scene.path("two")).unwrap();
    let done = scene.apply_while(3, |scene| {
        assert!(!scene.path("two").exists(), "it is taken away by then");
        open.write_all(b" and more").unwrap();
    });
    assert_changed(&done, "two");
    assert_eq!(fs::read(scene.path("two")).unwrap(), b"2 and more");
    assert_eq!(names(scene.host.path()), ["directory", "two"]);
}

#[test]
fn no_other_file_gets_the_permissions() {
    let mut scene = Scene::new();
    scene.there("two", Some("two"), BELOW);
    let done = scene.apply_while(1, |scene| {
        fs::write(scene.path("other"), "the host's").unwrap();
        fs::set_permissions(scene.path("other"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(scene.path("other"), scene.path("two")).unwrap();
    });
    assert_changed(&done, "two");
    assert_eq!(scene.base("two").mode & 0o7777, 0o600);
}

#[test]
fn no_other_directory_is_removed() {
    let mut scene = Scene::new();
    scene.gone("directory").gone("directory/one");
    let done = scene.apply_while(1, |scene| {
        fs::create_dir(scene.path("other")).unwrap();
        fs::rename(scene.path("directory/one"), scene.path("other/one")).unwrap();
        fs::remove_dir(scene.path("directory")).unwrap();
        fs::rename(scene.path("other"), scene.path("directory")).unwrap();
    });
    assert_changed(&done, "directory");
    assert_eq!(names(&scene.path("directory")), ["one"]);
}

#[test]
fn a_step_that_cannot_be_undone_keeps_no_other_from_it() {
    let mut scene = Scene::new();
    scene.there("new", None, inline(b"guest")).gone("two").gone("directory/one");
    // Everything new has been made, and all has been taken away, when the first path gets its file.
    let done = scene.apply_while(4, |scene| {
        assert_eq!(names(&scene.path("directory")), [""; 0]);
        fs::write(scene.path("directory/one"), "the host's").unwrap();
        fs::write(scene.path("new"), "the host's").unwrap();
    });
    let exists = std::io::Error::from(rustix::io::Errno::EXIST);
    let expected = format!(
        "new: {exists}; not all could be undone: directory/one is in .matchlock-0/2 (directory/one: {exists})"
    );
    assert_eq!(done.unwrap_err().to_string(), expected);
    assert_eq!(names(&scene.path(".matchlock-0")), ["2", "undo"], "the file that nobody took over is gone");
    let read = |path: &str| fs::read_to_string(scene.path(path)).unwrap();
    assert_eq!((read("two"), read(".matchlock-0/2")), ("2".into(), "1".into()));
    assert_eq!((read("new"), read("directory/one")), ("the host's".into(), "the host's".into()));
}

#[test]
fn all_is_on_the_disk_before_another_copy_goes() {
    for outcome in [Ok(()), Err(rustix::io::Errno::IO)] {
        let mut scene = Scene::new();
        scene.there("new", None, inline(b"guest")).there("two", Some("two"), inline(b"guest"));
        let (new, old) = (["new", "two"].map(|path| scene.path(path)), scene.path(".matchlock-0/3"));
        AT_SYNC.set(Some(Box::new(move || {
            assert!(new.iter().all(|new| fs::read(new).unwrap() == b"guest"));
            assert_eq!(fs::read(old).unwrap(), b"2");
            outcome
        })));
        let done = scene.apply();
        assert!(AT_SYNC.take().is_none(), "it was written to the disk");
        match outcome {
            Ok(()) => {
                assert_eq!(done.unwrap(), 2);
                AT_SYNC.set(Some(Box::new(|| Err(rustix::io::Errno::IO))));
                scene.apply().expect_err("what has been taken over already is written, too");
            }
            Err(errno) => {
                assert_eq!(done.unwrap_err().to_string(), format!(".: {}", std::io::Error::from(errno)));
                assert_eq!(names(scene.host.path()), ["directory", "two"]);
                assert_eq!(fs::read(scene.path("two")).unwrap(), b"2");
            }
        }
    }
}

#[test]
fn what_the_host_writes_last_stays() {
    let mut scene = Scene::new();
    scene.gone("two");
    let mut open = File::options().append(true).open(scene.path("two")).unwrap();
    AT_SYNC.set(Some(Box::new(move || {
        open.write_all(b" and more").unwrap();
        Ok(())
    })));
    assert_changed(&scene.apply(), "two");
    assert_eq!(fs::read(scene.path("two")).unwrap(), b"2 and more");
}

#[test]
fn a_list_tells_what_was_where() {
    let mut scene = Scene::new();
    let odd = ["line\nbreak", "ä \"b\""];
    odd.iter().for_each(|path| fs::write(scene.path(path), path).unwrap());
    fs::create_dir(scene.path("old")).unwrap();
    scene.gone("directory").gone("directory/one").gone("old").there("renamed", Some("old"), What::Directory);
    scene.gone(odd[0]).gone(odd[1]).there("two", Some("two"), inline(b"guest"));
    let no_text = OsStr::from_bytes(b"\xff\\");
    fs::write(scene.path(no_text), "no text").unwrap();
    let (place, was) = (Place::new(no_text.as_bytes()).unwrap(), scene.base(no_text));
    scene.records.push(Record::Gone(Gone { place, was }));
    let expected = r#"mkdir "directory"
2 "directory/one"
3 "line\nbreak"
4 "old"
5 "two"
6 "ä \"b\""
7 b"\xff\\"
"#;
    // All has been taken away, and nothing been put elsewhere.
    let done = scene.apply_while(8, |scene| {
        let read = |name: &str| fs::read_to_string(scene.path(".matchlock-0").join(name)).unwrap();
        assert_eq!(read("undo"), expected);
        let files = ["2", "3", "5", "6", "7"].map(read);
        assert_eq!(files, ["1", odd[0], "2", odd[1], "no text"]);
        assert!(scene.path(".matchlock-0/4").is_dir());
    });
    assert_eq!((done.unwrap(), names(scene.host.path())), (7, vec!["renamed".into(), "two".into()]));
}
