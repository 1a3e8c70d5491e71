//! Every kind of mount in one guest: memory, overlay, single files, mounts within mounts, and what the host does to them
//! meanwhile.

use std::fs;

use blackbox::{Home, end, read_until};

use crate::Test;
use crate::shares::ends_with_its_process;

pub(crate) const TESTS: &[Test] = &[
    ("mounts::every_kind_in_one_guest", every_kind_in_one_guest),
    ("mounts::with_as_many_disks_as_there_can_be", with_as_many_disks_as_there_can_be),
    ("mounts::the_end_of_their_process_is_an_error_in_the_guest", the_end_of_their_process),
];

/// Where each of them is in the guest, and what it is allowed there.
const MOUNTS: &str = "/etc/app.conf nosuid,nodev ro
/over nodev rw
/over/cache nodev rw
/vanishing nosuid,nodev rw
/workspace nodev rw
/workspace/src nosuid,nodev rw
/workspace/src/deep/conf nodev rw
";

/// In memory, with everything a file can be.
const MEMORY: &str =
    "cd /workspace && stat -c %a . && echo made > made && chmod 4755 made && stat -c %a made &&
ln -s made link && cat link && ln made hard && stat -c %h made && mkfifo fifo && mkdir -p d/e && mv d f &&
rmdir src 2>&1; ls; dd if=/dev/zero of=big bs=1M count=3 2>/dev/null && stat -c %s big && rm big;
grep -l 1024 /sys/class/bdi/*/read_ahead_kb | wc -l";

/// The host's files, and those that only look like it.
const OTHERS: &str = "cat src/hello; echo guest > src/new; mv made src/moved; cat src/moved; touch src/deep/x 2>&1;
cat src/deep/conf; echo over >> src/deep/conf; cat src/deep/conf;
cd /over && cat below && echo changed > below && cat below && rm gone && ls && mkdir sub/new && mv sub moved &&
cat moved/kept; echo cached > cache/file; cat cache/file;
cat /etc/app.conf; echo x 2>&1 > /etc/app.conf; rm /etc/app.conf 2>&1";

/// The host's acts, seen from the guest. A file that was looked at may have its former size for a second.
const LATER: &str =
    "cat /etc/app.conf; until [ \"$(cat /over/listed)\" = 'listed, later' ]; do sleep 0.1; done
cat /over/below; ls /vanishing; touch /vanishing/x 2>&1; echo $?";

fn every_kind_in_one_guest() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    for name in ["src/hidden", "over/sub", "vanishing", "conf"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    for (name, text) in [
        ("src/hello", "of the host"),
        ("over/below", "below"),
        ("over/gone", "gone"),
        ("over/listed", "listed"),
        ("over/sub/kept", "kept"),
        ("conf/app.conf", "setting = 1"),
        ("conf/other", "other"),
    ] {
        fs::write(at(name), format!("{text}\n")).unwrap();
    }
    let volume = |name: &str, rest: &str| format!("{}:{rest}", at(name).display());
    let volumes = [
        // The inner ones first: their order says nothing.
        volume("conf/app.conf", "/workspace/src/deep/conf:overlay"),
        volume("src", "/workspace/src:host_fs"),
        ":/workspace:memory".to_owned(),
        ":/over/cache:memory".to_owned(),
        volume("over", "/over"),
        volume("conf/app.conf", "/etc/app.conf:ro"),
        volume("vanishing", "/vanishing:host_fs"),
    ];
    let list = "grep virtiofs /proc/mounts | sort -k 2 | while read -r _ place _ options _; do
case $options in *nosuid*) set=nosuid, ;; *) set= ;; esac
case $options in *nodev*) set=${set}nodev ;; esac
echo $place $set ${options%%,*}; done";
    let wait = "echo up; until [ -e /workspace/src/go ]; do sleep 0.1; done";
    let script = [list, MEMORY, OTHERS, wait, LATER].join("\n");
    let mut run = home.run(volumes.iter().flat_map(|volume| ["-v", volume]));
    let mut child = blackbox::spawn(run.args(["--", "sh", "-c", &script]));
    let seen = read_until(&mut child, "up\n");
    let expected = [
        MOUNTS,
        "1777\n4755\nmade\n2\nrmdir: 'src': Device or resource busy\nf\nfifo\nhard\nlink\nmade\nsrc\n3145728\n2\n",
        "of the host\nmade\ntouch: src/deep/x: Read-only file system\n",
        "setting = 1\nsetting = 1\nover\n",
        "below\nchanged\nbelow\ncache\nlisted\nsub\nkept\ncached\nsetting = 1\n",
        "sh: can't create /etc/app.conf: Read-only file system\n",
        "rm: can't remove '/etc/app.conf': Device or resource busy\n",
        "up\n",
    ];
    assert_eq!(seen, expected.concat());

    assert_eq!(fs::read_to_string(at("src/new")).unwrap(), "guest\n");
    assert_eq!(fs::read_to_string(at("src/moved")).unwrap(), "made\n");
    // An editor's way, a change below, and a directory that goes while it is shared.
    fs::write(at("conf/new"), "setting = 2, longer\n").unwrap();
    fs::rename(at("conf/new"), at("conf/app.conf")).unwrap();
    fs::write(at("over/listed"), "listed, later\n").unwrap();
    fs::write(at("over/below"), "below, later\n").unwrap();
    fs::remove_dir(at("vanishing")).unwrap();
    fs::write(at("vanishing"), "a file where a directory was").unwrap();
    fs::write(at("src/go"), "").unwrap();
    let done = end(child);
    assert_eq!(done.status, 0, "{done:?}");
    let expected = "setting = 2, longer\nchanged\ntouch: /vanishing/x: No such file or directory\n1\n";
    assert_eq!(done.stdout, expected, "{done:?}");

    // Nothing of what stays with the guest has reached the host, nor has a place been made there.
    let names = |name: &str| blackbox::names(&at(name));
    assert_eq!(names("src"), ["go", "hello", "hidden", "moved", "new"]);
    assert_eq!(names("over"), ["below", "gone", "listed", "sub"]);
    assert_eq!(
        (names("over/sub"), names("conf")),
        (vec!["kept".into()], vec!["app.conf".into(), "other".into()])
    );
    assert_eq!(fs::read_to_string(at("over/below")).unwrap(), "below, later\n");
    home.assert_nothing_left();
}

fn with_as_many_disks_as_there_can_be() {
    let home = Home::with_own_volumes();
    let host = tempfile::tempdir().unwrap();
    let mut options = vec!["-v".to_owned(), format!("{}:/host:host_fs", host.path().display())];
    options.extend(["-v", ":/memory:memory"].map(str::to_owned));
    for number in 0..8 {
        let done = home.done(["volume", "create", &format!("v{number}"), "--size", "16"]);
        assert_eq!(done.status, 0, "{done:?}");
        options.extend(["--disk".to_owned(), format!("@v{number}:/disks/{number}")]);
    }
    let script = "for place in /host /memory /disks/*; do echo $place > $place/file && cat $place/file; done";
    let done = blackbox::done(home.run(options).args(["--", "sh", "-c", script]));
    let disks: String = (0..8).map(|number| format!("/disks/{number}\n")).collect();
    assert_eq!((done.status, done.stdout), (0, format!("/host\n/memory\n{disks}")));
    assert_eq!(fs::read_to_string(host.path().join("file")).unwrap(), "/host\n");
    home.assert_nothing_left();
}

fn the_end_of_their_process() {
    let host = tempfile::tempdir().unwrap();
    let over = format!("{}:/over", host.path().display());
    ends_with_its_process(&[":/memory:memory", &over], "echo x > /memory/x");
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
}
