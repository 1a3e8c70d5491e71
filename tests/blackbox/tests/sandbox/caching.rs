//! The promises of each cache mode: when a guest sees what the host changes in a folder of both.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use blackbox::{Home, end, read_until};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("caching::each_mode_keeps_its_promise", each_mode_keeps_its_promise)];

/// Has the guest's kernel know all that there is to know, and wait for the host.
const BEFORE: &str = "for mode in none auto always; do
cd /$mode; cat text; stat -c %s text; ls; [ -e later ]; echo $?
done
exec 3</none/half; dd bs=4 count=1 <&3 2>/dev/null; echo
echo up; until [ -e /none/go ]; do :; done";

/// With `none` everything shows at once, and in the file that has been open since; with `auto` a name that was not there does.
const AT_ONCE: &str = "dd bs=4 count=1 <&3 2>/dev/null; echo
cd /none; cat text; stat -c %s text; ls; [ -e gone ]; echo $?
[ -e /auto/later ]; echo $?";

/// With `auto` the rest shows within a second; `always` believes for an hour what it knows. The guest's own acts in either are
/// the host's at once.
const LATER: &str = "sleep 1.1; cd /auto; cat text; stat -c %s text; ls; [ -e gone ]; echo $?
cd /always; cat text; stat -c %s text; [ -e gone ]; echo $?
for mode in none auto always; do echo $mode > /$mode/by-$mode; done";

fn each_mode_keeps_its_promise() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    for (name, text) in [("text", "one\n"), ("half", "aaaabbbb"), ("gone", "")] {
        fs::write(at(name), text).unwrap();
    }
    let volume = |mode: &str| format!("{}:/{mode}:host_fs,cache={mode}", host.path().display());
    let mut run =
        home.run(["none", "auto", "always"].iter().flat_map(|mode| ["-v".to_owned(), volume(mode)]));
    let script = [BEFORE, AT_ONCE, LATER].join("\n");
    let mut child = blackbox::spawn(run.args(["--", "sh", "-c", &script]));
    let known = "one\n4\ngone\nhalf\ntext\n1\n";
    assert_eq!(read_until(&mut child, "up\n"), format!("{known}{known}{known}aaaa\nup\n"));

    fs::write(at("text"), "second\n").unwrap();
    let mut half = fs::OpenOptions::new().write(true).open(at("half")).unwrap();
    half.seek(SeekFrom::Start(4)).unwrap();
    half.write_all(b"cccc").unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::write(at("later"), "").unwrap();
    fs::write(at("go"), "").unwrap();
    let done = end(child);
    let now = "second\n7\ngo\nhalf\nlater\ntext\n1\n";
    assert_eq!(done.stdout, format!("cccc\n{now}0\n{now}one\n4\n0\n"), "{done:?}");
    for mode in ["none", "auto", "always"] {
        assert_eq!(fs::read_to_string(at(&format!("by-{mode}"))).unwrap(), format!("{mode}\n"));
    }
    home.assert_nothing_left();
}
