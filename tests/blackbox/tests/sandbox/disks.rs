//! Disks and volumes: data that outlives a sandbox, locks, and mount points.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use blackbox::rpc::Server;
use blackbox::{Done, Home, end, kill_and_wait, read_until, refused, signal, spawn};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] = &[
    ("disks::what_cannot_be_attached_is_refused_at_once", what_cannot_be_attached_is_refused_at_once),
    ("disks::an_image_in_use_is_left_alone", an_image_in_use_is_left_alone),
];

pub(crate) const TESTS: &[Test] = &[
    ("disks::they_outlive_sandboxes", they_outlive_sandboxes),
    ("disks::a_running_sandbox_has_them_to_itself", a_running_sandbox_has_them_to_itself),
    ("disks::a_link_leads_nowhere", a_link_leads_nowhere),
    ("disks::a_new_volume_is_empty", a_new_volume_is_empty),
    ("disks::of_every_feature", of_every_feature),
    ("disks::what_the_kernel_keeps_open_is_written_back", what_the_kernel_keeps_open_is_written_back),
    ("disks::programs_attach_them_too", programs_attach_them_too),
    ("disks::what_may_be_lost_is_told", what_may_be_lost_is_told),
    ("disks::an_interrupted_start_leaves_them_in_order", an_interrupted_start_leaves_them_in_order),
];

/// Most disks of a sandbox.
const MOST: usize = 8;

fn volume(home: &Home, name: &str) -> PathBuf {
    let done = home.done(["volume", "create", name, "--size", "16"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    home.cache().join(format!("volumes/{name}.ext4"))
}

/// Whether an ext4 looks unmounted: its journal has nothing to be replayed (EXT4_FEATURE_INCOMPAT_RECOVER), and its
/// state is valid (EXT4_VALID_FS).
fn is_clean(image: &Path) -> bool {
    let mut superblock = [0; 256];
    File::open(image).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    superblock[0x60] & 4 == 0 && superblock[0x3a] & 1 != 0
}

fn run_without_guest(home: &Home, disk: &str) -> Done {
    home.run_without_image(["--disk", disk])
}

fn what_cannot_be_attached_is_refused_at_once() {
    let home = Home::with_own_volumes();
    let data = volume(&home, "data");
    let text = home.cache().join("text");
    fs::write(&text, "no file system ".repeat(512)).unwrap();
    let text = text.display();
    let cut = home.cache().join("cut");
    fs::copy(&data, &cut).unwrap();
    File::options().write(true).open(&cut).unwrap().set_len(8 << 20).unwrap();
    let cut = cut.display();
    for (disk, why) in [
        ("@missing:/d".to_owned(), "named volume not found: missing"),
        ("@../data:/d".to_owned(), "\"../data\" is not a volume name"),
        ("/no/such:/d".to_owned(), "no such file or directory"),
        ("/dev/null:/d".to_owned(), "not a regular file"),
        (format!("{text}:/d"), "it has no ext4 file system"),
        (format!("{cut}:/d:ro"), "it is cut short"),
        ("@data:d".to_owned(), "expected SRC:GUEST or SRC:GUEST:OPTIONS"),
        ("@data:/d/../..".to_owned(), "\"/d/../..\" is no place for a disk"),
        ("@data:/proc/d".to_owned(), "/proc is the kernel's own"),
        ("@data:/d:rw".to_owned(), "unknown option \"rw\""),
        ("@data:/d:ro,uid=1".to_owned(), "uid and gid need a writable disk"),
    ] {
        refused(&run_without_guest(&home, &disk), &format!("invalid disk mount \"{disk}\": {why}"));
    }
    let many = home.run_without_image((0..=MOST).map(|number| format!("--disk=@data:/{number}:ro")));
    refused(&many, &format!("invalid disk mount \"@data:/{MOST}:ro\": it is one too many"));
    home.assert_nothing_left();
}

fn an_image_in_use_is_left_alone() {
    let home = Home::with_own_volumes();
    let data = File::open(volume(&home, "data")).unwrap();
    data.lock().unwrap();
    for disk in ["@data:/d", "@data:/d:ro"] {
        let in_use = "in use: end the sandbox it is attached to first, or attach it read-only to both";
        refused(&run_without_guest(&home, disk), &format!("invalid disk mount \"{disk}\": {in_use}"));
    }
    for args in [&["volume", "rm", "data"][..], &["volume", "cp", "data", "copy"]] {
        let in_use = "volume data is in use: end the sandbox it is attached to first";
        refused(&home.done(args), in_use);
    }
    data.unlock().unwrap();
    data.lock_shared().unwrap();
    assert_eq!(home.done(["volume", "cp", "data", "copy"]).status, 0, "readers do no harm");
    refused(&home.done(["volume", "rm", "data"]), "volume data is in use");
    drop(data);
    assert_eq!(home.done(["volume", "rm", "data"]).stdout, "Removed volume data\n");
    home.assert_nothing_left();
}

/// As many disks as possible, in one order and then in another. The programs themselves never sync.
fn they_outlive_sandboxes() {
    let home = Home::with_own_volumes();
    let images: Vec<_> = (0..MOST).map(|number| volume(&home, &format!("v{number}"))).collect();
    let mut first = home.run(["--privileged"]);
    for number in 0..MOST {
        let options = if number == 3 { ":uid=1000,gid=7" } else { "" };
        first.args(["--disk", &format!("@v{number}:/d/{number}{options}")]);
    }
    let script = "cd /d; for n in *; do echo $n > $n/name; seq 100000 > $n/numbers; done; stat -c %u:%g 3 4";
    let done = blackbox::done(first.args(["--", "sh", "-c", script]));
    assert_eq!((done.status, done.stdout.as_str()), (0, "1000:7\n0:0\n"), "{done:?}");
    assert!(images.iter().all(|image| is_clean(image)), "left as after an unmount");

    let mut second = home.run(["-u", "1000"]);
    for number in (1..MOST).rev() {
        let options = if number == 3 { "" } else { ":ro" };
        second.args(["--disk", &format!("@v{number}:/e/f/{number}{options}")]);
    }
    // One disk by path, and one below another.
    second.args(["--disk", &format!("{}:/e:ro", images[0].display())]);
    let script = "cat /e/name /e/f/*/name; cat /e/numbers /e/f/*/numbers | wc -l; echo mine > /e/f/3/mine; \
                  echo x > /e/f/5/x || grep -c ' /e/f/. ext4 ro' /proc/mounts";
    let done = blackbox::done(second.args(["--", "sh", "-c", script]));
    // The inner disks need a directory that the outer one lacks, and the outer one is read-only.
    refused(&done, "the guest cannot start: mount a disk at /e/f/1: /e/f: read-only file system");

    let mut second = home.run(["-u", "1000"]);
    for number in (1..MOST).rev() {
        let options = if number == 3 { "" } else { ":ro" };
        second.args(["--disk", &format!("@v{number}:/e/f/{number}{options}")]);
    }
    second.args(["--disk", &format!("{}:/e", images[0].display())]);
    let done = blackbox::done(second.args(["--", "sh", "-c", script]));
    assert_eq!(done.status, 0, "{done:?}");
    let names: String = (0..MOST).map(|number| format!("{number}\n")).collect();
    assert_eq!(done.stdout, format!("{names}{}\n{}\n", 100_000 * MOST, MOST - 2), "{done:?}");
    assert!(done.stderr.contains("can't create /e/f/5/x: Read-only file system"), "{done:?}");
    assert!(images.iter().all(|image| is_clean(image)));
    home.assert_nothing_left();
}

fn a_running_sandbox_has_them_to_itself() {
    let home = Home::with_own_volumes();
    let image = volume(&home, "data");
    let id = home.detached(&["--disk", "@data:/data:gid=5"]);
    let put = home.done(["exec", &id, "--", "sh", "-c", "echo kept > /data/file"]);
    assert_eq!(put.status, 0, "{put:?}");
    for disk in ["@data:/d", "@data:/d:ro", &format!("{}:/d", image.display())] {
        let start = format!("invalid disk mount \"{disk}\": in use: end the sandbox it is attached to first");
        refused(&run_without_guest(&home, disk), &start);
    }
    refused(&home.done(["volume", "rm", "data"]), "volume data is in use");
    refused(&home.done(["volume", "cp", "data", "copy"]), "volume data is in use");
    let inspected: Value = serde_json::from_str(&home.done(["inspect", &id]).stdout).unwrap();
    let disk = json!({"host_path": "@data", "guest_mount": "/data", "readonly": false, "owner_gid": 5});
    assert_eq!(inspected["vm"]["config"]["extra_disks"], json!([disk]));
    assert_eq!(home.done(["kill", &id]).status, 0);
    home.assert_no_process();
    assert!(is_clean(&image));

    // A killed sandbox releases the disk all the same; synced data is there, as after a power cut.
    let script = "cat /data/file; echo synced > /data/file; sync; echo up; sleep 1000";
    let mut child = spawn(&mut home.run(["--disk", "@data:/data", "--", "sh", "-c", script]));
    assert_eq!(read_until(&mut child, "up\n"), "kept\nup\n");
    kill_and_wait(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap());
    assert_eq!(end(child).status, 137);
    home.assert_no_process();
    assert_let_go(&image);
    assert!(!is_clean(&image), "nobody has unmounted it");
    let unclean = "invalid disk mount \"@data:/d:ro\": it was not unmounted in order";
    refused(&run_without_guest(&home, "@data:/d:ro"), unclean);
    let done = blackbox::done(&mut home.run(["--disk", "@data:/data", "--", "cat", "/data/file"]));
    assert_eq!((done.status, done.stdout.as_str()), (0, "synced\n"), "{done:?}");
    assert!(is_clean(&image));
    assert_eq!(home.done(["volume", "rm", "data"]).status, 0);
    assert_eq!(home.done(["prune"]).status, 0);
    home.assert_nothing_left();
}

/// Waits until nobody has a lock on the image: a process that was killed loses its environment, by which the test finds
/// it, before its open files.
fn assert_let_go(image: &Path) {
    let file = File::open(image).unwrap();
    let start = Instant::now();
    while file.try_lock().is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "somebody still has {}", image.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Links of the image, and links of another disk.
fn a_link_leads_nowhere() {
    let home = Home::with_own_volumes();
    let (first, _) = (volume(&home, "first"), volume(&home, "second"));
    let script = "ln -s /proc/1/root /a/out; ln -s /etc /a/etc; mkdir /a/directory";
    let done = blackbox::done(&mut home.run(["--disk", "@first:/a", "--", "sh", "-c", script]));
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    for (path, link) in [("/a/out/x", "/a/out"), ("/a/etc", "/a/etc"), ("/bin/sh", "/bin/sh")] {
        let disk = format!("@second:{path}");
        let done = blackbox::done(&mut home.run(["--disk", "@first:/a", "--disk", &disk, "--", "true"]));
        let why = format!("the guest cannot start: mount a disk at {path}: {link} is a symbolic link");
        refused(&done, &why);
        assert!(is_clean(&first), "what was mounted before is left in order");
    }
    home.assert_nothing_left();
}

/// No process has a swap file open, so no process's end closes it, and its file system cannot become read-only.
fn what_the_kernel_keeps_open_is_written_back() {
    let home = Home::with_own_volumes();
    volume(&home, "data");
    let script = "cd /data; dd if=/dev/zero of=swap bs=1M count=4 2>/dev/null; chmod 600 swap; mkswap swap >/dev/null; \
                  swapon swap && grep -c /data/swap /proc/swaps; seq 100000 > numbers";
    let run = ["--privileged", "--disk", "@data:/data", "--", "sh", "-c", script];
    let done = blackbox::done(&mut home.run(run));
    assert_eq!((done.status, done.stdout.as_str()), (0, "1\n"), "{done:?}");
    let done = blackbox::done(&mut home.run(["--disk", "@data:/data:ro", "--", "wc", "-l", "/data/numbers"]));
    assert_eq!((done.status, done.stdout.as_str()), (0, "100000 /data/numbers\n"), "{done:?}");
    home.assert_nothing_left();
}

/// Databases refuse a directory that is not empty. Files that e2fsck may have put there stay.
fn a_new_volume_is_empty() {
    let home = Home::with_own_volumes();
    let image = volume(&home, "data");
    for (script, says) in [
        ("ls -A /data; mkdir /data/lost+found; touch /data/lost+found/x", ""),
        ("ls -A /data", "lost+found\n"),
    ] {
        let done = blackbox::done(&mut home.run(["--disk", "@data:/data", "--", "sh", "-c", script]));
        assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (0, says, ""), "{done:?}");
    }
    let checked = Command::new("/sbin/e2fsck").arg("-fn").arg(&image).output();
    if let Ok(checked) = checked {
        assert!(checked.status.success(), "{checked:?}");
    }
    home.assert_nothing_left();
}

/// The guest can mount every file system that the host accepts, and write to it where it may.
fn of_every_feature() {
    let home = Home::with_own_volumes();
    let images = [
        ("bigalloc,ea_inode,large_dir", "4096", ""),
        ("encrypt,inline_data,metadata_csum_seed", "4096", ""),
        ("casefold", "4096", ""),
        ("verity", "4096", ""),
        ("^extents,^64bit,^has_journal", "1024", ""),
        ("quota", "4096", ":ro"),
    ];
    let mut run = home.run::<&str>([]);
    for (number, (features, block, options)) in images.iter().enumerate() {
        let image = home.cache().join(format!("{number}.img"));
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let mut mke2fs = Command::new("/usr/sbin/mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-O", features, "-b", block]).arg(&image);
        assert!(mke2fs.status().unwrap().success(), "{features}");
        run.args(["--disk", &format!("{}:/d/{number}{options}", image.display())]);
    }
    let script = "cd /d; for n in *; do echo $n > $n/x || ls $n; done 2>/dev/null; cat */x";
    let done = blackbox::done(run.args(["--", "sh", "-c", script]));
    assert_eq!((done.status, done.stdout.as_str()), (0, "lost+found\n0\n1\n2\n3\n4\n"), "{done:?}");
    let image = home.cache().join("5.img");
    let disk = format!("{}:/d", image.display());
    let why = "no guest can write an ext4 with the feature quota: attach it read-only";
    refused(&run_without_guest(&home, &disk), &format!("invalid disk mount \"{disk}\": {why}"));
    home.assert_nothing_left();
}

fn programs_attach_them_too() {
    let home = Home::with_own_volumes();
    let image = volume(&home, "data");
    let mut server = Server::start(&home);
    let disk = json!({"host_path": "@data", "guest_mount": "/data", "owner_uid": 1000});
    server.create(json!({"extra_disks": [disk]}));
    assert_eq!(server.exec("stat -c %u /data; seq 100000 > /data/numbers").1, "1000\n");
    let mut other = Server::start(&home);
    let id = other.send_create(json!({"extra_disks": [disk]}));
    let (code, why) = other.answer(id).unwrap_err();
    assert_eq!(code, -32000);
    assert!(why.starts_with("invalid disk mount \"@data:/data:uid=1000\": in use"), "{why}");
    server.call("close", json!({})).unwrap();
    assert!(is_clean(&image), "closed in order");

    let disk = json!({"host_path": image, "guest_mount": "/data", "readonly": true});
    let id = other.send_create(json!({"extra_disks": [disk]}));
    other.answer(id).unwrap();
    assert_eq!(other.exec("wc -l < /data/numbers").1, "100000\n");
    assert_ne!(other.exec("touch /data/x").0, 0);
    other.call("close", json!({})).unwrap();
    assert!(server.end().0.success() && other.end().0.success());
    assert_eq!(home.done(["prune"]).status, 0);
    home.assert_nothing_left();
}

/// A machine that is stopped cannot write anything back, and `close` reports that in time.
fn what_may_be_lost_is_told() {
    let home = Home::with_own_volumes();
    volume(&home, "data");
    let mut server = Server::start(&home);
    server.create(json!({"extra_disks": [{"host_path": "@data", "guest_mount": "/data"}]}));
    let machine = home.processes();
    let machine = machine
        .iter()
        .find(|process| process.contains(" qemu-system-") || process.contains(" matchlock-vmm"));
    let pid: i32 = machine.unwrap().split_whitespace().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let (code, why) = server.call("close", json!({"timeout_seconds": 2})).unwrap_err();
    let lost = "close: the guest has not written back to its disks in 1.5 s: what was not synced may be lost";
    assert_eq!((code, why.as_str()), (-32000, lost));
    // The file system is as after a power cut, and the lock is free.
    server.create(json!({"extra_disks": [{"host_path": "@data", "guest_mount": "/data"}]}));
    server.call("close", json!({"timeout_seconds": 30})).unwrap();
    assert!(server.end().0.success());
    assert_eq!(home.done(["prune"]).status, 0);
    home.assert_nothing_left();
}

/// The guest may or may not have mounted them by the interruption.
fn an_interrupted_start_leaves_them_in_order() {
    let home = Home::with_own_volumes();
    let image = volume(&home, "data");
    for moment in [0, 100, 500, 1000, 1500, 2000, 2500, 3000] {
        let child = spawn(&mut home.run(["--disk", "@data:/data", "--", "sleep", "1000"]));
        std::thread::sleep(Duration::from_millis(moment));
        signal(&child, Signal::INT);
        let done = end(child);
        assert_eq!((done.status, done.stderr.as_str()), (130, ""), "{moment} ms");
        home.assert_no_process();
        assert!(is_clean(&image), "{moment} ms");
        File::open(&image).unwrap().try_lock().unwrap();
    }
    home.assert_nothing_left();
}
