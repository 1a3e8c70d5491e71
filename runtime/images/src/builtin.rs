//! The image that needs no registry: `busybox:latest`, made on first use from Debian's `busybox-static`.
//!
//! The program is not run on the host to learn its applets: `applets.txt` lists them, and a test compares that list
//! with an installed program. Not here: fetching and verifying the package (`debian`).

use std::io::Read;

use debian::{Archive, EntryKind};

use crate::manifest::{PlannedImage, PlannedLayer, host_architecture};
use crate::{Digest, Error, Image, ImageConfig, Progress, Result, Store};

const NAME: &str = "busybox:latest";
const PACKAGE: &str = "busybox-static";

/// Paths of the applets, from `busybox --list-full` of Debian 12.
const APPLETS: &str = include_str!("applets.txt");

/// Directories with their modes, parents first.
const DIRECTORIES: [(&str, u32); 22] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
";

const GROUP: &str = "root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
users:x:100:
nogroup:x:65534:
";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a normalised reference names a built-in image.
pub(crate) fn is_one(reference: &str) -> bool {
    reference == NAME
}

/// Fetches the package and stores the image.
pub(crate) fn make(store: &Store, progress: &dyn Progress) -> Result<Image> {
    // One process fetches, the others wait for it.
    let lock = waiting::lock(store.lock_file("builtin.lock")?, &store.given_up);
    let _lock = lock.map_err(Error::io("builtin.lock"))?;
    match store.get(NAME) {
        Ok(Some(image)) => return Ok(image),
        Ok(None) | Err(Error::LayerLost { .. }) => {}
        Err(error) => return Err(error),
    }
    let _writing = store.lock_shared()?;
    let package_error = |source| Error::Package { reference: NAME.to_owned(), source };
    let scratch = tempfile::tempdir_in(store.tmp()).map_err(Error::io(store.tmp()))?;
    progress.step("reading the host's package sources", None);
    let archive = Archive::update(&store.package_lists(), &store.given_up).map_err(package_error)?;
    progress.step(&format!("fetching {PACKAGE}"), None);
    let package = archive.fetch(PACKAGE, scratch.path()).map_err(package_error)?;
    let mut program = Vec::new();
    debian::unpack(&package, &store.given_up, |entry| match (entry.path.to_str(), entry.kind) {
        (Some("bin/busybox" | "usr/bin/busybox"), EntryKind::File) => {
            entry.data.take(debian::MAX_FILE_BYTES).read_to_end(&mut program).map(drop)
        }
        _ => Ok(()),
    })
    .map_err(package_error)?;
    if program.is_empty() {
        return Err(package_error(debian::Error::Format("no busybox in it")));
    }
    let tar = tar_of(&program, &package.version).map_err(Error::io(store.tmp()))?;
    let plan = plan(&tar);
    let mut room = store.room();
    let layers = plan.layers.iter().map(|layer| {
        progress.step("unpacking busybox", Some(tar.len() as u64));
        Ok((layer.diff_id.clone(), store.layer(NAME, layer, tar.as_slice(), &mut room, progress)?))
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    store.save(plan, "builtin".to_owned(), &layers, &mut room).map(|imported| imported.image)
}

/// The image's one layer.
fn tar_of(program: &[u8], version: &str) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    for (path, mode) in DIRECTORIES {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), path, std::io::empty())?;
    }
    // Debian version: [epoch:]upstream[-revision]
    let upstream = version.rsplit(':').next().unwrap_or(version).split('-').next().unwrap_or(version);
    let os_release = format!(
        "PRETTY_NAME=\"BusyBox {upstream}\"\nNAME=\"BusyBox\"\nID=busybox\nVERSION_ID=\"{upstream}\"\nBUILD_ID=\"{version}\"\n"
    );
    let files: [(&str, u32, &[u8]); 5] = [
        ("bin/busybox", 0o755, program),
        ("etc/group", 0o644, GROUP.as_bytes()),
        ("etc/os-release", 0o644, os_release.as_bytes()),
        ("etc/passwd", 0o644, PASSWD.as_bytes()),
        ("etc/shadow", 0o600, b"root:*:::::::\n"),
    ];
    for (path, mode, data) in files {
        tar.append_data(&mut header(tar::EntryType::Regular, mode, data.len() as u64), path, data)?;
    }
    for applet in APPLETS.lines().filter(|applet| *applet != "bin/busybox") {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), applet, "/bin/busybox")?;
    }
    tar.into_inner()
}

fn plan(tar: &[u8]) -> PlannedImage {
    let sha256 = |bytes: &[u8]| Digest::of_content(bytes);
    let diff_id = sha256(tar);
    let config = serde_json::json!({
        "architecture": host_architecture(),
        "os": "linux",
        "config": { "Env": [PATH], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id.as_str()] },
    });
    PlannedImage {
        names: vec![NAME.to_owned()],
        digest: sha256(config.to_string().as_bytes()),
        config: ImageConfig {
            env: vec![PATH.to_owned()],
            cmd: vec!["sh".to_owned()],
            ..ImageConfig::default()
        },
        layers: vec![PlannedLayer { diff_id, member: String::new(), blob: None }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Limits, convert};

    #[test]
    fn the_layer_has_what_a_shell_needs() {
        let tar = tar_of(b"program", "1:1.35.0-4+b3").unwrap();
        let (image, _) = convert(&mut tar.as_slice(), Vec::new(), [0; 16], Limits::default()).unwrap();
        let files = erofs::reader::read(&image);
        assert_eq!(files[&b"bin/busybox"[..]].data, b"program");
        assert_eq!(files[&b"bin/busybox"[..]].attributes.mode, 0o755);
        assert_eq!(files[&b"bin/sh"[..]].data, b"/bin/busybox");
        assert_eq!(files[&b"tmp"[..]].attributes.mode, 0o1777);
        assert_eq!(files[&b"root"[..]].attributes.mode, 0o700);
        let os_release = String::from_utf8(files[&b"etc/os-release"[..]].data.clone()).unwrap();
        assert!(os_release.contains("VERSION_ID=\"1.35.0\"\n"), "{os_release}");
        assert!(files.contains_key(&b"etc/passwd"[..]));
    }

    #[test]
    fn every_applet_is_one() {
        let Ok(output) = std::process::Command::new("busybox").arg("--list").output() else {
            skip::skip("busybox-static", "busybox is not installed");
            return;
        };
        let known = String::from_utf8(output.stdout).unwrap();
        let known: Vec<&str> = known.lines().collect();
        if known.len() < 200 {
            skip::skip("busybox-static", "the installed busybox is not Debian's busybox-static");
            return;
        }
        for applet in APPLETS.lines() {
            let name = applet.rsplit('/').next().unwrap();
            assert!(known.contains(&name), "{name}");
        }
    }
}
