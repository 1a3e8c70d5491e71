//! The guest's root: an image's files where the guest mounts, the files that the guest writes, and inode numbers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use blackbox::{Home, done, machine};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("root::links_where_the_guest_mounts", links_where_the_guest_mounts),
    ("root::no_directories_where_the_guest_mounts", no_directories_where_the_guest_mounts),
    ("root::what_users_of_containers_expect", what_users_of_containers_expect),
];

/// Makes an image of busybox and the files that `fill` adds, and runs a script in it.
fn of_image(fill: impl FnOnce(&Path), script: &str) -> String {
    let home = Home::with_own_images();
    let root = tempfile::tempdir().unwrap();
    let directory = root.path();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(directory.join("bin")).unwrap();
    fs::copy("/bin/busybox", directory.join("bin/busybox")).unwrap();
    symlink("busybox", directory.join("bin/sh")).unwrap();
    fill(directory);
    let imported = done(home.matchlock(["image", "import", "odd:1"]).arg(directory));
    assert_eq!(imported.status, 0, "{imported:?}");
    let mut run = home.matchlock([
        "run",
        "--no-network",
        "--machine",
        &machine(),
        "--memory",
        "256",
        "--image",
        "odd:1",
    ]);
    let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
    if !kernel.is_empty() {
        run.args(["--kernel", &kernel]);
    }
    let script = format!("busybox() {{ /bin/busybox \"$@\"; }}; {script}");
    let done = done(run.args(["--", "/bin/sh", "-c", &script]));
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    home.assert_nothing_left();
    done.stdout
}

/// Links to directories are followed, within the root, where programs keep their own files, and replaced elsewhere.
fn links_where_the_guest_mounts() {
    let fill = |root: &Path| {
        fs::create_dir_all(root.join("var/tmp")).unwrap();
        fs::create_dir_all(root.join("var/run")).unwrap();
        fs::create_dir_all(root.join("usr/etc")).unwrap();
        fs::create_dir_all(root.join("etc.real/hosts/below")).unwrap();
        symlink("/var/tmp", root.join("tmp")).unwrap();
        symlink("var/run", root.join("run")).unwrap();
        symlink("usr", root.join("proc")).unwrap();
        symlink("../../../../../..", root.join("sys")).unwrap();
        symlink("/usr", root.join("dev")).unwrap();
        symlink("etc.real", root.join("etc")).unwrap();
    };
    let script = "echo 1 >/tmp/one; echo 2 >/run/two; busybox cat /var/tmp/one /var/run/two
        busybox cat /proc/sys/kernel/ostype; busybox ls -d /sys/kernel /dev/null /usr/etc
        busybox grep -c localhost /etc/hosts; busybox ls /etc.real/hosts.of-the-image
        busybox ls -ld /tmp /run /proc /sys /dev | busybox cut -c1";
    let expected = "1\n2\nLinux\n/dev/null\n/sys/kernel\n/usr/etc\n2\nbelow\nd\nd\nl\nl\nd\n"
        .replace("d\nd\nl\nl\nd\n", "d\nd\nl\nd\nl\n");
    assert_eq!(of_image(fill, script), expected);
}

/// Any other file there is replaced.
fn no_directories_where_the_guest_mounts() {
    let fill = |root: &Path| {
        fs::write(root.join("tmp"), "a file").unwrap();
        symlink("run", root.join("run")).unwrap();
        symlink("nowhere", root.join("etc")).unwrap();
        symlink("nowhere", root.join("proc")).unwrap();
        fs::write(root.join("sys"), "").unwrap();
        fs::write(root.join("dev"), "").unwrap();
    };
    let script = "echo 1 >/tmp/one; echo 2 >/run/two; busybox cat /tmp/one /run/two /proc/sys/kernel/ostype
        busybox ls -d /sys/kernel /dev/null; busybox head -n 1 /etc/hosts | busybox cut -d' ' -f1-3; test -e /nowhere || echo nowhere";
    let expected =
        "1\n2\nLinux\n/dev/null\n/sys/kernel\n127.0.0.1 localhost localhost.localdomain\nnowhere\n";
    assert_eq!(of_image(fill, script), expected);
}

fn what_users_of_containers_expect() {
    let home = Home::new();
    let id = home.detached(&["--hostname", "box"]);
    let exec = |options: &[&str], script: &str| {
        let done = done(home.matchlock(["exec"]).args(options).args([&id, "--", "sh", "-c", script]));
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{script}: {done:?}");
        done.stdout
    };
    assert_eq!(exec(&[], "head -n 1 /etc/hosts"), "127.0.0.1 localhost localhost.localdomain box\n");
    // Memory, if the image has plain directories or none.
    assert_eq!(exec(&[], "grep -cE ' (/tmp|/run) tmpfs rw,nosuid,nodev' /proc/self/mounts"), "2\n");
    // As an ordinary user: sockets for ping (busybox knows raw ones only), and a port below 1024.
    let script = "tr '\\t' ' ' </proc/sys/net/ipv4/ping_group_range; echo answer >/tmp/answer
        nc -l -p 80 -e cat /tmp/answer & i=0
        while [ $i -lt 50 ] && ! nc 127.0.0.1 80 </dev/null 2>/dev/null; do i=$((i+1)); sleep 0.1; done";
    assert_eq!(exec(&["-u", "1000"], script), "0 2147483647\nanswer\n");
    // Every file of the root is of one device, whichever layer it is in, and keeps its inode number.
    let script = "mkdir -p /made && echo x >/made/file && echo y >>/etc/passwd
        find / -xdev -type f | while read -r file; do stat -c %d \"$file\"; done | sort -u | wc -l
        test $(stat -c %d /) = $(stat -c %d /bin/busybox) && echo one device";
    assert_eq!(exec(&[], script), "1\none device\n");
    assert_eq!(home.done(["kill", &id]).status, 0);
    assert_eq!(home.done(["rm", &id]).status, 0);
    let numbers = "stat -c '%i %n' /bin/busybox /bin/sh /etc/passwd /etc/group /made/file /bin /etc";
    let script = format!(
        "mkdir /made; echo x >/made/file; echo y >>/etc/passwd; {numbers} >/tmp/before
        sync; echo 3 >/proc/sys/vm/drop_caches; {numbers} | cmp - /tmp/before && echo same"
    );
    let same = done(home.run(["--privileged"]).args(["--", "sh", "-c", &script]));
    assert_eq!((same.stdout.as_str(), same.stderr.as_str()), ("same\n", ""), "{same:?}");
    home.assert_nothing_left();
}
