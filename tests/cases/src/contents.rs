//! Cases of contents: files that are removed, replaced or changed while they are open, and many of them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Acts, Case, Shared, USER, as_user, listed};

pub(crate) const CASES: &[Case] = &[
    (1, "files that their maker may only read", Acts::Guest(files_that_their_maker_may_only_read)),
    (2, "files that nobody may touch", Acts::Guest(files_that_nobody_may_touch)),
    (3, "a removed file is as good as others", Acts::Guest(a_removed_file_is_as_good_as_others)),
    (4, "a replaced file is as good as others", Acts::Guest(a_replaced_file_is_as_good_as_others)),
    (6, "many files", Acts::Guest(many_files)),
    (8, "the host writes", Acts::Both(the_host_writes)),
    (12, "files that are replaced all the time", Acts::Guest(files_that_are_replaced_all_the_time)),
    (14, "appending after a truncation", Acts::Guest(appending_after_a_truncation)),
    (22, "hard links have one content", Acts::Guest(hard_links_have_one_content)),
    (8, "a file that was empty", Acts::Both(a_file_that_was_empty)),
];

fn make(path: &Path, mode: u32) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path).unwrap()
}

/// As git makes its objects.
fn files_that_their_maker_may_only_read(directory: &Path) {
    fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
    let objects = || {
        let directory = directory.join(rustix::process::geteuid().as_raw().to_string());
        fs::create_dir(&directory).unwrap();
        for number in 0..40 {
            let (spare, object) = (directory.join("spare"), directory.join(number.to_string()));
            let mut file = make(&spare, 0o444);
            file.write_all(b"object").unwrap();
            drop(file);
            if number % 2 == 0 {
                fs::rename(&spare, &object).unwrap();
            } else {
                fs::hard_link(&spare, &object).unwrap();
                fs::remove_file(&spare).unwrap();
            }
            assert_eq!(fs::read(&object).unwrap(), b"object");
            assert_eq!(fs::metadata(&object).unwrap().mode() & 0o777, 0o444);
        }
    };
    objects();
    as_user(USER, &[], objects);
}

fn files_that_nobody_may_touch(directory: &Path) {
    fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
    as_user(USER, &[], || {
        let lock = directory.join("lock");
        let mut file = make(&lock, 0);
        file.write_all(b"7").unwrap();
        assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o777, 0);
        assert_eq!(File::open(&lock).unwrap_err().raw_os_error(), Some(13));
        fs::remove_file(&lock).unwrap();
        assert!(!lock.exists());
    });
}

fn a_removed_file_is_as_good_as_others(directory: &Path) {
    let mut file = make(&directory.join("file"), 0o644);
    fs::remove_file(directory.join("file")).unwrap();
    file.set_len(10).unwrap();
    file.write_all(b"text").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"text\0\0\0\0\0\0");
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.nlink(), found.len(), found.mode() & 0o777), (0, 10, 0o600));
    file.sync_all().unwrap();
}

fn a_replaced_file_is_as_good_as_others(directory: &Path) {
    let at = |name: &str| directory.join(name);
    let mut file = make(&at("a"), 0o644);
    file.write_all(b"old").unwrap();
    fs::write(at("b"), "new").unwrap();
    fs::rename(at("b"), at("a")).unwrap();
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    assert_eq!(std::io::read_to_string(&file).unwrap(), "old");
    assert_eq!(fs::metadata(at("a")).unwrap().mode() & 0o777, 0o644);
    // As dpkg writes what is installed.
    fs::write(at("status"), "0").unwrap();
    for number in 1..50 {
        let mut new = make(&at("status-new"), 0o644);
        write!(new, "{number}").unwrap();
        new.sync_all().unwrap();
        if at("status-old").exists() {
            fs::remove_file(at("status-old")).unwrap();
        }
        fs::hard_link(at("status"), at("status-old")).unwrap();
        fs::rename(at("status-new"), at("status")).unwrap();
        assert_eq!(fs::read_to_string(at("status")).unwrap(), number.to_string());
        assert_eq!(fs::read_to_string(at("status-old")).unwrap(), (number - 1).to_string());
    }
}

fn many_files(directory: &Path) {
    let at = |number: usize| directory.join(format!("file-{number}"));
    for number in 0..1_500 {
        fs::write(at(number), number.to_string()).unwrap();
    }
    let open: Vec<File> = (0..400).map(|number| File::open(at(number)).unwrap()).collect();
    assert_eq!(listed(directory).len(), 1_500);
    for number in (0..1_500).step_by(7) {
        assert_eq!(fs::read_to_string(at(number)).unwrap(), number.to_string());
    }
    for (number, file) in open.iter().enumerate() {
        assert_eq!(std::io::read_to_string(file).unwrap(), number.to_string());
    }
}

fn the_host_writes(shared: &mut Shared<'_>) {
    shared.host("write", "file", "one;");
    let text = |shared: &Shared<'_>| fs::read_to_string(shared.at("file")).unwrap();
    assert_eq!(text(shared), "one;");
    let mut expected = "one;".to_owned();
    for number in 0..5 {
        let line = format!("line {number};");
        shared.host("append", "file", &line);
        expected.push_str(&line);
        shared.seen(|| {
            let found = fs::metadata(shared.at("file")).unwrap();
            found.len() == expected.len() as u64 && text(shared) == expected
        });
    }
    // Shorter, longer, and as long as before.
    for new in ["x", "much longer than that", "much longer then this"] {
        shared.host("write", "file", new);
        shared.seen(|| text(shared) == new);
    }
}

fn a_file_that_was_empty(shared: &mut Shared<'_>) {
    shared.host("write", "file", "");
    assert_eq!(fs::metadata(shared.at("file")).unwrap().len(), 0);
    shared.host("append", "file", "text");
    shared.seen(|| fs::read(shared.at("file")).unwrap() == b"text");
}

fn files_that_are_replaced_all_the_time(directory: &Path) {
    const NAMES: usize = 4;
    let at = |number: usize| directory.join(format!("file-{number}"));
    (0..NAMES).for_each(|number| fs::write(at(number), [b'x'; 3000]).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let done = &done;
                scope.spawn(move || {
                    let mut number = reader;
                    while !done.load(Ordering::Relaxed) {
                        number += 1;
                        let text = fs::read(at(number % NAMES)).unwrap();
                        assert_eq!(text.len(), 3000);
                        assert!(text.iter().all(|byte| *byte == text[0]), "two writers' bytes");
                    }
                })
            })
            .collect();
        let writers: Vec<_> = (0..16_u8)
            .map(|writer| {
                scope.spawn(move || {
                    for number in 0..10 {
                        let spare = directory.join(format!("spare-{writer}"));
                        fs::write(&spare, [writer; 3000]).unwrap();
                        fs::rename(&spare, at((usize::from(writer) + number) % NAMES)).unwrap();
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        let ended = ended.into_iter().chain(readers.into_iter().map(std::thread::ScopedJoinHandle::join));
        let panic = ended.filter_map(Result::err).next();
        if let Some(panic) = panic {
            std::panic::resume_unwind(panic);
        }
    });
}

fn appending_after_a_truncation(directory: &Path) {
    let path = directory.join("file");
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).unwrap();
    file.set_len(1024).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1024);
    file.write_all(b"end").unwrap();
    let mut other = OpenOptions::new().append(true).open(&path).unwrap();
    other.write_all(b"other").unwrap();
    file.write_all(b"again").unwrap();
    let text = fs::read(&path).unwrap();
    assert_eq!((text.len(), &text[1024..]), (1037, &b"endotheragain"[..]));
}

fn hard_links_have_one_content(directory: &Path) {
    let (a, b) = (directory.join("a"), directory.join("b"));
    fs::write(&a, "a").unwrap();
    fs::hard_link(&a, &b).unwrap();
    for (one, other) in [(&a, &b), (&b, &a)] {
        let mut file = OpenOptions::new().append(true).open(one).unwrap();
        file.write_all(b"more").unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(other).unwrap());
        for mode in [0o600, 0o755] {
            fs::set_permissions(one, Permissions::from_mode(mode)).unwrap();
            assert_eq!(fs::metadata(other).unwrap().mode() & 0o777, mode);
        }
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        file.set_modified(time).unwrap();
        assert_eq!(fs::metadata(other).unwrap().modified().unwrap(), time);
    }
    assert_eq!(fs::read(&a).unwrap(), b"amoremore");
}
