//! Changes of an overlay: shown while it runs and once it has ended, taken over, and thrown away.

use std::fs;
use std::path::Path;

use blackbox::{Home, names};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("changes::of_an_overlay", of_an_overlay)];

/// The guest's acts on its overlay.
const SCRIPT: &str =
    "cd /work && printf 'one\\ntwo, changed\\nthree\\n' > text && chmod 755 script && rm gone &&
mv directory moved && echo more >> moved/inner && mkdir new && echo new > new/file && ln -s text new/link &&
dd if=/dev/urandom of=new/large bs=1000 count=300 2>/dev/null && sha256sum new/large";

fn fill(directory: &Path) {
    fs::create_dir(directory.join("directory")).unwrap();
    for (name, text) in [
        ("text", "one\ntwo\nthree\n"),
        ("script", "#!/bin/sh\n"),
        ("gone", "gone\n"),
        ("directory/inner", "inner\n"),
        ("directory/other", "other\n"),
    ] {
        fs::write(directory.join(name), text).unwrap();
    }
}

fn of_an_overlay() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    fill(host.path());
    let id = home.detached(&["-v", &format!("{}:/work", host.path().display()), "--", "sleep", "600"]);
    let answer = |args: &[&str]| {
        let done = home.done(args);
        assert_eq!(done.status, 0, "{args:?}: {done:?}");
        done.stdout
    };
    assert_eq!(answer(&["diff", &id]), "");
    let sum = answer(&["exec", &id, "--", "sh", "-c", SCRIPT]);
    let told = "added /work/new\nadded /work/new/file\nadded /work/new/large\nadded /work/new/link\n\
                deleted /work/gone\nmodified /work/text\npermissions /work/script\n\
                renamed /work/directory -> /work/moved\nmodified /work/moved/inner\n";
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // While it runs: shown, and not to be taken.
    assert_eq!(sorted(&answer(&["diff", "--names", &id])), sorted(told));
    let text = answer(&["diff", &id, "/work/text"]);
    let expected =
        "modified /work/text\n--- a/text\n+++ b/text\n@@ -1,3 +1,3 @@\n one\n-two\n+two, changed\n three\n";
    assert_eq!(text, expected);
    let refused = home.done(["apply", &id]);
    assert!(refused.status == 1 && refused.stderr.contains("is running"), "{refused:?}");
    assert_eq!(names(host.path()), ["directory", "gone", "script", "text"], "nothing reaches the host");

    // Once it has ended: the same, until the host changes something.
    answer(&["kill", &id]);
    assert_eq!(sorted(&answer(&["diff", "--names", &id])), sorted(told));
    assert_eq!(answer(&["diff", &id, "/work/text"]), expected);
    fs::write(host.path().join("text"), "the host's\n").unwrap();
    let refused = home.done(["apply", &id]);
    let why = "text: changed on the host meanwhile; nothing was taken over";
    assert!(refused.status == 1 && refused.stderr.contains(why), "{refused:?}");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    assert_eq!(names(host.path()), ["directory", "gone", "script", "text"]);
    let json: serde_json::Value = serde_json::from_str(&answer(&["diff", "--json", &id])).unwrap();
    let changes = json[0]["changes"].as_array().unwrap();
    assert_eq!((changes.len(), &json[0]["guest_path"]), (9, &"/work".into()));
    let conflicts = changes.iter().filter(|change| change["conflict"].is_string());
    assert_eq!(conflicts.map(|change| change["path"].clone()).collect::<Vec<_>>(), ["text"]);

    // A part is taken over, a part thrown away, and then the rest.
    assert_eq!(answer(&["apply", &id, "/work/new/large"]), "2 changes applied\n");
    assert_eq!(names(&host.path().join("new")), ["large"]);
    assert_eq!(answer(&["discard", &id, "/work/text"]), "1 changes discarded\n");
    assert_eq!(answer(&["apply", "--json", &id]), "{\n  \"applied\": 6\n}\n");
    assert_eq!(answer(&["diff", &id]), "");
    assert_eq!(names(host.path()), ["moved", "new", "script", "text"]);
    assert_eq!(fs::read_to_string(host.path().join("text")).unwrap(), "the host's\n");
    assert_eq!(fs::read_to_string(host.path().join("moved/inner")).unwrap(), "inner\nmore\n");
    assert_eq!(fs::read_to_string(host.path().join("moved/other")).unwrap(), "other\n");
    assert_eq!(fs::read_link(host.path().join("new/link")).unwrap(), Path::new("text"));
    let large = std::process::Command::new("sha256sum").arg(host.path().join("new/large")).output().unwrap();
    assert_eq!(String::from_utf8(large.stdout).unwrap().split(' ').next(), sum.split(' ').next());

    let elsewhere = home.done(["diff", &id, "/etc"]);
    assert!(elsewhere.stderr.contains("is in no overlay of"), "{elsewhere:?}");
    answer(&["rm", &id]);
    home.assert_nothing_left();
}
