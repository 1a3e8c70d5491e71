//! Random images, mounted as a guest mounts them, compared with a model of the OCI image specification.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use images::fixtures::{ImageFixture, LayerBuilder};
use images::{Image, ImportSource, Quiet, Store};

const ROUNDS: u64 = 24;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// The mode of a directory without an entry.
const IMPLIED: u32 = 0o755;

/// The object at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    File(String),
    /// A directory with its mode.
    Directory(u32),
}

use Thing::{Directory, File};

type State = BTreeMap<String, Thing>;

fn remove(state: &mut State, path: &str) {
    let below = format!("{path}/");
    state.retain(|name, _| name != path && !name.starts_with(&below));
}

/// A generator that is the same every time (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| NAMES[self.below(NAMES.len())]).collect::<Vec<_>>().join("/")
    }
}

/// Adds a random layer on top of `state`, which becomes the view with that layer.
fn layer(random: &mut Random, index: usize, state: &mut State) -> Vec<u8> {
    let mut builder = LayerBuilder::default();
    let (mut own, mut hidden): (State, Vec<String>) = (State::new(), Vec::new());
    // Directories with an entry of their own.
    let mut described = BTreeSet::new();
    for step in 0..12 {
        let path = random.path();
        let parents: Vec<String> = path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect();
        // A layer uses a name once; replacing within a layer has tests of its own.
        if parents.iter().any(|parent| matches!(own.get(parent), Some(File(_)))) {
            continue;
        }
        for parent in &parents {
            // Half of the parents are only implied.
            if !own.contains_key(parent) {
                let mut mode = IMPLIED;
                if random.below(2) == 0 {
                    mode = [IMPLIED, 0o700, 0o1777][random.below(3)];
                    described.insert(parent.clone());
                    builder = builder.dir(parent, mode);
                }
                own.insert(parent.clone(), Directory(mode));
            }
        }
        let (parent, name) =
            path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
        let slash = if parent.is_empty() { "" } else { "/" };
        match random.below(6) {
            0 | 1 => {
                builder = builder.file(&format!("{parent}{slash}.wh.{name}"), 0o644, b"");
                hidden.push(path);
            }
            2 => {
                builder = builder.file(&format!("{parent}{slash}.wh..wh..opq"), 0o644, b"");
                hidden.extend(NAMES.map(|name| format!("{parent}{slash}{name}")));
            }
            3 if !own.contains_key(&path) => {
                let mode = [IMPLIED, 0o711][random.below(2)];
                builder = builder.dir(&path, mode);
                described.insert(path.clone());
                own.insert(path, Directory(mode));
            }
            _ if !matches!(own.get(&path), Some(Directory(_))) => {
                let data = format!("{index}.{step}");
                builder = builder.file(&path, 0o644, data.as_bytes());
                own.insert(path, File(data));
            }
            _ => {}
        }
    }
    // OCI image specification, layer: "Whiteout files MUST only apply to resources in lower/parent layers."
    for path in hidden {
        remove(state, &path);
    }
    for (path, thing) in own {
        let was = state.get(&path).cloned();
        if matches!(thing, File(_)) || matches!(was, Some(File(_))) {
            remove(state, &path);
        }
        // A directory that the layer does not describe keeps its mode.
        let thing = match was {
            Some(Directory(mode)) if matches!(thing, Directory(_)) && !described.contains(&path) => {
                Directory(mode)
            }
            _ => thing,
        };
        state.insert(path, thing);
    }
    builder.build()
}

fn read(dir: &Path, prefix: &str, found: &mut State) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), &format!("{path}/"), found);
            found.insert(path, Directory(entry.metadata().unwrap().permissions().mode() & 0o7777));
        } else {
            found.insert(path, File(fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// The view of an image that is mounted in a mount namespace of its own.
fn mounted(image: &Image, dir: &Path) -> State {
    let script = r#"
        mount -t tmpfs none "$0" && mkdir "$0/empty" "$0/root" || exit 1
        lower="$0/empty"
        for layer; do
            i=$((i + 1)); mkdir "$0/$i"; mount -t erofs -o loop,ro "$layer" "$0/$i" || exit 1
            lower="$0/$i:$lower"
        done
        mount -t overlay -o "lowerdir=$lower" none "$0/root" && echo ok && read line"#;
    let mut holder = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(dir)
        .args(image.layers.iter().map(|layer| &layer.path))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ok\n", "mounted");
    let view = Path::new("/proc").join(holder.id().to_string()).join("root");
    let mut found = State::new();
    read(&view.join(dir.strip_prefix("/").unwrap()).join("root"), "", &mut found);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    found
}

#[test]
fn layers_join_as_specified() {
    let root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.contains("\terofs\n") && known.contains("\toverlay\n");
    if !root || !known {
        skip::skip(
            "erofs",
            format!("mounting needs root ({root}) and a kernel with erofs and overlay ({known})"),
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (mut hidden, mut kept) = (0, 0);
    for round in 0..ROUNDS {
        let mut random = Random(round);
        let mut state = State::new();
        let layers: Vec<_> = (0..4).map(|index| layer(&mut random, index, &mut state)).collect();
        let archive = ImageFixture::new(layers).docker_archive(&[]);
        let imported =
            store.import(ImportSource::Reader(&mut archive.as_slice()), Some("x"), &Quiet).unwrap();
        hidden += 4 - imported.image.layers.len();
        kept += state.values().filter(|thing| !matches!(thing, File(_) | Directory(IMPLIED))).count();
        assert_eq!(mounted(&imported.image, &mount), state, "round {round}");
    }
    assert!(hidden > 0, "no round had an opaque root");
    assert!(kept > 20, "{kept} directories were anything but usual");
}
