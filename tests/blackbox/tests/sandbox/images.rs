//! Images from all sources: a registry, and each form of archive and directory. Other tools make the images (see
//! `xtask/src/fixtures.rs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blackbox::{Done, Home, done, done_with_input, machine, names};
use served::Registry;

use crate::Test;
use crate::archive::{configured, docker_archive, tar};

pub(crate) const TESTS: &[Test] =
    &[("images::from_a_registry", from_a_registry), ("images::from_every_source", from_every_source)];

/// Tests that need no images but their own.
pub(crate) const TESTS_OF_OWN: &[Test] = &[
    ("images::of_many_layers", of_many_layers),
    ("images::layers_leave_what_they_do_not_name", layers_leave_what_they_do_not_name),
];

/// Tests that do not depend on the machine.
pub(crate) const TESTS_WITHOUT_GUEST: &[Test] = &[
    ("images::pull_tag_and_prune", pull_tag_and_prune),
    ("images::gc_returns_the_disk", gc_returns_the_disk),
    ("images::killed_at_any_moment", killed_at_any_moment),
    ("images::a_full_disk", a_full_disk),
];

/// Tests that need a builder of images.
pub(crate) const TESTS_OF_BUILDS: &[Test] =
    &[("images::built", built), ("images::a_build_ends_with_its_command", a_build_ends_with_its_command)];

/// The number of pulls and imports that are killed.
const KILLS: u32 = 100;

/// The directory of the images, or the reason why these tests cannot run.
pub(crate) fn fixtures() -> Result<PathBuf, String> {
    let directory = std::env::var_os("MATCHLOCK_TEST_IMAGES").map(PathBuf::from);
    let directory = directory.ok_or("MATCHLOCK_TEST_IMAGES names no images")?;
    let registry = Command::new("docker-registry").arg("--version").output();
    registry.map_err(|error| format!("docker-registry: {error}"))?;
    Ok(directory)
}

/// The reason why this host cannot build images, if it cannot.
pub(crate) fn no_builder() -> Option<String> {
    let buildah = Command::new("buildah").arg("--version").output();
    buildah.err().map(|error| format!("buildah: {error}"))
}

fn registry() -> Registry {
    // The registry is public.
    Registry::start(&fixtures().unwrap().join("data"), "").unwrap()
}

/// Runs a command in a sandbox of an image.
pub(crate) fn run(home: &Home, options: &[&str], image: &str, command: &[&str]) -> Done {
    let machine = machine();
    let mut args = vec!["run", "--machine", &machine, "--memory", "256", "--no-network"];
    let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
    if !kernel.is_empty() {
        args.extend(["--kernel", &kernel]);
    }
    args.extend(options);
    args.extend(["--image", image, "--"]);
    args.extend(command);
    done(&mut home.matchlock(args))
}

pub(crate) fn printed(text: &str) -> Done {
    Done { status: 0, stdout: text.to_owned(), stderr: String::new() }
}

/// Prints facts that only the whole image gives: every layer in its order, removed files, and the configuration.
const PROGRAM: &str = "
import os
print(6 * 7, os.environ['GREETING'], os.getcwd(), open('/etc/debian_version').read().strip())
print(os.path.exists('/usr/bin/yes'), os.path.exists('/bin/true'))
import hello
";
const SAYS: &str = "42 hi /srv ours\nFalse True\nhello from a file\n";

fn from_a_registry() {
    let home = Home::with_own_images();
    let registry = registry();
    let image = format!("{}/python", registry.address());
    let python = |options: &[&str]| run(&home, options, &image, &["python3", "-c", PROGRAM]);
    let never = python(&["--pull=never"]);
    assert_eq!(never.status, 1, "{never:?}");
    assert!(never.stderr.starts_with(&format!("matchlock: image {image}")), "{never:?}");
    assert_eq!(python(&[]), printed(SAYS));
    let list = home.done(["image", "ls", "--json"]).stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list[0]["tag"], &list[0]["source"]), (&image.as_str().into(), &"registry".into()), "{list}");
    drop(registry);
    // The image is stored now, so only `--pull always` fails.
    assert_eq!(python(&[]), printed(SAYS));
    let always = python(&["--pull=always"]);
    assert_eq!(always.status, 1, "{always:?}");
    assert!(always.stderr.starts_with(&format!("matchlock: image {image}: ")), "{always:?}");
    home.assert_nothing_left();
}

fn from_every_source() {
    let home = Home::with_own_images();
    let fixtures = fixtures().unwrap();
    let work = tempfile::tempdir().unwrap();
    let unpacked = |archive: &str| {
        let to = work.path().join(archive);
        fs::create_dir(&to).unwrap();
        let tar = Command::new("tar").arg("-xf").arg(fixtures.join(archive)).arg("-C").arg(&to).status();
        assert!(tar.unwrap().success());
        to
    };
    for (tag, source) in [
        ("docker-archive", fixtures.join("python.docker.tar")),
        ("oci-archive", fixtures.join("python.oci.tar")),
        ("oci-layout", unpacked("python.oci.tar")),
    ] {
        import(&home, tag, &source);
        assert_eq!(run(&home, &[], tag, &["python3", "-c", PROGRAM]), printed(SAYS), "{tag}");
    }
    for (tag, source) in
        [("rootfs-tar", fixtures.join("rootfs.tar")), ("rootfs-directory", unpacked("rootfs.tar"))]
    {
        import(&home, tag, &source);
        assert_eq!(run(&home, &[], tag, &["python3", "-c", "print(6 * 7)"]), printed("42\n"), "{tag}");
    }
    home.assert_nothing_left();
}

/// As many layers as possible; each adds a file and replaces one.
fn of_many_layers() {
    const LAYERS: usize = 255;
    let home = Home::with_own_images();
    let busybox = fs::read("/bin/busybox").unwrap();
    let mut layers = vec![tar(&[("bin/busybox", &busybox)])];
    for number in 1..LAYERS {
        let name = format!("files/{number}");
        layers.push(tar(&[(&name, b""), ("number", format!("{number}\n").as_bytes())]));
    }
    let imported =
        done_with_input(&mut home.matchlock(["image", "import", "many"]), &docker_archive(&layers));
    assert_eq!(imported.stdout.lines().nth(1), Some("Layers: 255"), "{imported:?}");
    let script = "/bin/busybox cat /number; /bin/busybox ls /files | /bin/busybox wc -l";
    assert_eq!(run(&home, &[], "many", &["/bin/busybox", "sh", "-c", script]), printed("254\n254\n"));
    layers.push(tar(&[("more", b"")]));
    let refused = done_with_input(&mut home.matchlock(["image", "import", "more"]), &docker_archive(&layers));
    assert!(refused.status == 1 && refused.stderr.contains("(at most 255)"), "{refused:?}");
    home.assert_nothing_left();
}

/// Layers must combine as if they were applied one after the other to one tree.
fn layers_leave_what_they_do_not_name() {
    use tar::EntryType::{Directory, Link};
    let home = Home::with_own_images();
    let mut below = tar::Builder::new(Vec::new());
    let mut above = tar::Builder::new(Vec::new());
    let header = |kind, mode, owner| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(0);
        header
    };
    for (path, mode, owner) in [("./", 0o1777, 1000), ("home", 0o755, 0), ("home/app", 0o2700, 1000)] {
        below.append_data(&mut header(Directory, mode, owner), path, &[][..]).unwrap();
    }
    let busybox = fs::read("/bin/busybox").unwrap();
    let mut program = header(tar::EntryType::Regular, 0o755, 0);
    program.set_size(busybox.len() as u64);
    below.append_data(&mut program, "bin/busybox", busybox.as_slice()).unwrap();
    let mut file = header(tar::EntryType::Regular, 0o644, 1000);
    above.append_data(&mut file, "home/app/.cfg", &[][..]).unwrap();
    above.append_link(&mut header(Link, 0o755, 0), "busybox-linked", "bin/busybox").unwrap();
    let layers = [below, above].map(|layer| layer.into_inner().unwrap());
    let config = serde_json::json!({"Volumes": {"/data/deep": {}, "/bin/busybox/no": {}, "/home/app": {}}});
    let mut import = home.matchlock(["image", "import", "stacked"]);
    let imported = done_with_input(&mut import, &configured(&layers, &config));
    assert_eq!((imported.status, imported.stderr.as_str()), (0, ""), "{imported:?}");
    let script = "/busybox-linked stat -c '%n %a %u:%g' / /home /home/app /data /data/deep; /busybox-linked cmp /busybox-linked /bin/busybox; \
                  /busybox-linked ls -A /home/app";
    let says = "/ 1777 1000:1000\n/home 755 0:0\n/home/app 2700 1000:1000\n/data 755 0:0\n/data/deep 755 0:0\n.cfg\n";
    let stacked = run(&home, &[], "stacked", &["/busybox-linked", "sh", "-c", script]);
    assert_eq!((stacked.stdout.as_str(), stacked.stderr.as_str()), (says, ""), "{stacked:?}");
    home.assert_nothing_left();
}

pub(crate) fn import(home: &Home, tag: &str, source: &Path) {
    let source = source.display().to_string();
    let done = home.done(["image", "import", "--json", tag, &source]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    let stored: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(stored[0]["tag"], tag, "{stored}");
}

/// The same image, compressed in another way, has the same layers.
fn pull_tag_and_prune() {
    let home = Home::with_own_images();
    let registry = registry();
    let reference = |name: &str| format!("{}/{name}", registry.address());
    let pulled = home.done(["pull", &reference("python:latest")]);
    assert_eq!(pulled.status, 0, "{pulled:?}");
    assert!(pulled.stdout.starts_with(&format!("Tagged: {}\nDigest: sha256:", reference("python:latest"))));
    let before = blobs(&home);
    // For a registry without TLS no authorities are needed, so the host need not have any.
    let mut zstd = home.matchlock(["pull", "--json", &reference("python:zstd")]);
    let zstd = done(zstd.env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", "/nowhere"));
    let zstd: serde_json::Value = serde_json::from_str(&zstd.stdout).unwrap();
    assert_eq!(zstd["tag"], reference("python:zstd"));
    assert_eq!(blobs(&home), before);
    let missing = home.done(["pull", &reference("python:none")]);
    let wanted =
        format!("image {}: {} does not have it (404)\n", reference("python:none"), registry.address());
    assert!(missing.status == 1 && missing.stderr.ends_with(&wanted), "{missing:?}");

    assert_eq!(home.done(["image", "tag", &reference("python:latest"), "mine"]), printed("Tagged: mine\n"));
    let pruned = home.done(["image", "prune", "--json"]);
    let pruned: serde_json::Value = serde_json::from_str(&pruned.stdout).unwrap();
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 2, "{pruned}");
    assert_eq!(blobs(&home), before, "one's own stay");
    let pruned = home.done(["image", "prune", "--all"]);
    assert!(pruned.stdout.starts_with("Removed mine\nFreed "), "{pruned:?}");
    assert_eq!(blobs(&home), Vec::<String>::new());
}

/// The layers in the store.
fn blobs(home: &Home) -> Vec<String> {
    names(&home.cache().join("images/blobs"))
}

/// Bytes on disk of the store's files.
fn disk(home: &Home) -> u64 {
    let du = Command::new("du").arg("-sk").arg(home.cache().join("images")).output().unwrap();
    String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn gc_returns_the_disk() {
    let home = Home::with_own_images();
    let registry = registry();
    assert_eq!(home.done(["image", "gc"]), printed("Removed 0 unreferenced blobs\n"));
    let before = disk(&home);
    let image = format!("{}/python", registry.address());
    assert_eq!(home.done(["pull", &image]).status, 0);
    import(&home, "root", &fixtures().unwrap().join("rootfs.tar"));
    assert!(disk(&home) > before + 60_000, "{} after {before}", disk(&home));
    for tag in [&*image, "root"] {
        assert_eq!(home.done(["image", "rm", tag]).status, 0);
    }
    assert_eq!(home.done(["image", "gc"]).status, 0);
    // The records' own pages are used again.
    assert!(disk(&home) <= before + 64, "{} after {before}", disk(&home));
}

/// After kills the store is consistent: every layer in it is as in a store of undisturbed imports.
fn killed_at_any_moment() {
    let registry = registry();
    let image = format!("{}/busybox", registry.address());
    let archive = fixtures().unwrap().join("rootfs.tar").display().to_string();
    let good = Home::with_own_images();
    let commands = [vec!["pull", &image], vec!["image", "import", "root", &archive]];
    let took = commands.each_ref().map(|command| {
        let start = std::time::Instant::now();
        assert_eq!(good.done(command).status, 0);
        start.elapsed()
    });
    let contents = |home: &Home| -> Vec<(String, Vec<u8>)> {
        let blob =
            |name: String| (name.clone(), fs::read(home.cache().join("images/blobs").join(name)).unwrap());
        blobs(home).into_iter().map(blob).collect()
    };
    let all = contents(&good);
    let home = Home::with_own_images();
    let mut whole = 0;
    for number in 0..KILLS {
        let which = number as usize % commands.len();
        let mut child = blackbox::spawn(&mut home.matchlock(&commands[which]));
        // The kills are spread over the whole operation, and a little beyond its end.
        std::thread::sleep(took[which] * (number * 37 % KILLS) / (KILLS * 9 / 10));
        let _ = child.kill();
        child.wait().unwrap();
        home.assert_no_process();
        let list = home.done(["image", "ls", "--json"]);
        assert_eq!((list.status, list.stderr.as_str()), (0, ""), "kill {number}: {list:?}");
        let list: Vec<serde_json::Value> = serde_json::from_str(&list.stdout).unwrap();
        assert_eq!(names(&home.cache().join("images/tmp")), Vec::<String>::new(), "kill {number}");
        let there = contents(&home);
        assert!(there.iter().all(|blob| all.contains(blob)), "kill {number}: a layer is not whole");
        for image in &list {
            whole += 1;
            let tag = image["tag"].as_str().unwrap();
            let details = home.done(["image", "inspect", tag]).stdout;
            let details: serde_json::Value = serde_json::from_str(&details).unwrap();
            for layer in details["layers"].as_array().unwrap() {
                let name = layer["digest"].as_str().unwrap().replace(':', "_");
                assert!(
                    there.iter().any(|(blob, _)| blob.starts_with(&name)),
                    "kill {number}: {tag}: {layer}"
                );
            }
            assert_eq!(home.done(["image", "rm", tag]).status, 0);
        }
        assert_eq!(home.done(["image", "gc"]).status, 0);
        assert_eq!(blobs(&home), Vec::<String>::new(), "kill {number}");
    }
    assert!(whole < KILLS, "every one of them was done before it was killed");
    for command in &commands {
        assert_eq!(home.done(command).status, 0);
    }
    assert_eq!(contents(&home), all);
}

/// On a file system of a few megabytes, a pull or import ends wherever the room does: one line gives the reason,
/// existing images stay whole, and with more room the next try succeeds.
fn a_full_disk() {
    const SCRIPT: &str = "
        set -e
        store=$1 size=$2; shift 2
        mount -t tmpfs -o size=${size}k tmpfs $store
        status=0; \"$@\" 2>$store.told || status=$?
        [ $status = 1 ]
        \"$1\" image ls --json
        [ -z \"$(ls $store/tmp 2>/dev/null)\" ]
        mount -o remount,size=200m $store
        \"$@\" >&2
        \"$1\" image gc >&2
        ls $store/blobs >&2
        [ $(ls $store/blobs | wc -l) = $BLOBS ]
    ";
    let registry = registry();
    let image = format!("{}/python", registry.address());
    let archive = fixtures().unwrap().join("python.docker.tar").display().to_string();
    let program = blackbox::program().unwrap().display().to_string();
    for command in [vec!["pull", &image], vec!["image", "import", "python", &archive]] {
        for size in (0..12).map(|step| 100 + step * 3_300) {
            let home = Home::with_own_images();
            let store = home.cache().join("images");
            fs::create_dir(&store).unwrap();
            let mut script = Command::new("unshare");
            script.args(["--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"]).arg(&store);
            script.arg(size.to_string()).arg(&program).args(&command);
            for (name, value) in home.matchlock([""; 0]).get_envs() {
                value.map(|value| script.env(name, value));
            }
            let done = done(script.env("BLOBS", "2"));
            let told = fs::read_to_string(home.cache().join("images.told")).unwrap_or_default();
            assert_eq!((done.status, done.stdout.trim()), (0, "[]"), "{size} KiB: {told} {done:?}");
            let line = told.lines().find(|line| line.starts_with("matchlock: ")).unwrap();
            let why = ["No space left on device", " bytes are needed, ", "database or disk is full"];
            assert!(why.iter().any(|why| line.contains(why)), "{size} KiB: {told}");
        }
    }
}

/// `matchlock build` with a builder that has a store of its own.
fn build(home: &Home, context: &Path, dockerfile: &str, options: &[&str]) -> Command {
    let program = fs::read("/bin/busybox").unwrap();
    fs::write(context.join("busybox"), program).unwrap();
    fs::set_permissions(context.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let storage = context.join("storage.conf");
    let root = context.parent().unwrap().join("storage").display().to_string();
    fs::write(
        &storage,
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}/graph\"\nrunroot = \"{root}/run\"\n"),
    )
    .unwrap();
    let mut command = home.matchlock(["build"]);
    if !options.iter().any(|option| option.starts_with("--tag")) {
        command.args(["-t", "built:1"]);
    }
    command.args(options).arg(context);
    command.env("CONTAINERS_STORAGE_CONF", storage).env("BUILDAH_ISOLATION", "chroot");
    command
}

const STEPS: &str = "FROM scratch\nCOPY busybox /bin/busybox\n";

fn built() {
    let home = Home::with_own_images();
    let work = tempfile::tempdir().unwrap();
    let context = work.path().join("context");
    fs::create_dir(&context).unwrap();
    let dockerfile =
        format!("{STEPS}RUN [\"/bin/busybox\", \"touch\", \"/made\"]\nENV A=b\nCMD [\"/bin/busybox\"]\n");
    let refused = done(&mut build(&home, &context, &dockerfile, &[]));
    assert_eq!(refused.status, 1);
    let told = "matchlock: the steps of a Dockerfile would run on this host, outside any sandbox\nhint: ";
    assert!(refused.stderr.starts_with(told), "{refused:?}");
    let wrong = done(&mut build(&home, &context, &dockerfile, &["--unconfined-build", "--tag=-x"]));
    assert_eq!((wrong.status, wrong.stderr.as_str()), (1, "matchlock: \"-x\" is not an image reference\n"));
    assert!(!work.path().join("storage").exists(), "nothing was run");

    let built = done(&mut build(&home, &context, &dockerfile, &["--unconfined-build", "--json"]));
    assert_eq!(built.status, 0, "{built:?}");
    let summary: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    assert_eq!(summary["tag"], "built:1", "{summary}");
    let details = home.done(["image", "inspect", "built:1"]).stdout;
    let details: serde_json::Value = serde_json::from_str(&details).unwrap();
    assert_eq!(details["config"]["cmd"], serde_json::json!(["/bin/busybox"]), "{details}");
    assert_eq!(home.done(["image", "rm", "built:1"]).status, 0);

    let failing = format!("{STEPS}RUN [\"/bin/busybox\", \"false\"]\n");
    let failed = done(&mut build(&home, &context, &failing, &["--unconfined-build"]));
    let dockerfile = context.join("Dockerfile");
    let wanted = format!("matchlock: buildah did not build {}: exit status: 1\n", dockerfile.display());
    assert!(failed.status == 1 && failed.stderr.ends_with(&wanted), "{failed:?}");
    assert_eq!(blobs(&home), Vec::<String>::new());
    home.assert_nothing_left();
}

fn a_build_ends_with_its_command() {
    let home = Home::with_own_images();
    let work = tempfile::tempdir().unwrap();
    let context = work.path().join("context");
    fs::create_dir(&context).unwrap();
    let dockerfile =
        format!("{STEPS}RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo run''ning; exec sleep 1000\"]\n");
    let mut command = build(&home, &context, &dockerfile, &["--unconfined-build"]);
    let (mut output, to) = std::io::pipe().unwrap();
    let mut child = command.stderr(to.try_clone().unwrap()).stdout(to).spawn().unwrap();
    drop(command);
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains("running") {
        assert_eq!(std::io::Read::read(&mut output, &mut byte).unwrap(), 1, "{seen}");
        seen.push(char::from(byte[0]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Any process that is left holds the pipe open.
    std::io::Read::read_to_string(&mut output, &mut seen).unwrap();
    home.assert_no_process();
}
