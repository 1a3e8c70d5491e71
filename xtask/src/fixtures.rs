//! The images that black-box tests pull and import: a Debian with python3 and a busybox, made of the distribution's
//! packages, in the forms in which people have images.
//!
//! ```text
//! data/              a registry's data: python:latest, python:zstd, busybox:latest
//! python.docker.tar  docker-archive
//! python.oci.tar     OCI archive
//! rootfs.tar         the root file system of the python image
//! ```
//!
//! The images are made once, with other projects' programs for making images, and with no code of this project. Not
//! here: the tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use served::Registry;

use crate::sh;

/// The version of the images, raised when this file makes different ones.
const VERSION: u32 = 1;

/// The packages of the Debian image, besides those on which they depend.
const PACKAGES: &str = "python3-minimal,dash,coreutils";

/// Makes the images unless they exist, and returns their directory.
pub(crate) fn provide() -> Result<PathBuf> {
    let done = sh::target().join(format!("images-{VERSION}"));
    if done.is_dir() {
        return Ok(done);
    }
    eprintln!("making the images for the tests");
    let work = tempfile::Builder::new().prefix("images-").tempdir_in(sh::target())?;
    let work = work.path();
    let root = rustix::process::geteuid().is_root();
    debian(work)?;
    let layout = Layout { path: work.join("layout"), rootless: !root };
    layout.umoci(&["init", "--layout", &layout.name("")])?;
    python(&layout, work)?;
    busybox(&layout, work)?;
    let out = work.join("out");
    fs::create_dir(&out)?;
    fs::rename(work.join("rootfs.tar"), out.join("rootfs.tar"))?;
    let python = format!("oci:{}", layout.name("python"));
    let file = |name: &str| format!("{}:python:latest", out.join(name).display());
    skopeo(&[&python, &format!("docker-archive:{}", file("python.docker.tar"))])?;
    skopeo(&[&python, &format!("oci-archive:{}", file("python.oci.tar"))])?;
    push(&layout, &out)?;
    match fs::rename(&out, &done) {
        Err(_) if done.is_dir() => {}
        result => result?,
    }
    Ok(done)
}

/// Makes the root file system, as a tar: unpacked packages are all that python needs.
fn debian(work: &Path) -> Result<()> {
    let mut sources: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "sources" || kind == "list"))
        .collect();
    sources.push(PathBuf::from("/etc/apt/sources.list"));
    sources.retain(|path| fs::metadata(path).is_ok_and(|file| file.len() > 0));
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let mut command = sh::command("mmdebstrap");
    command.args(["--quiet", "--variant=extract", &format!("--include={PACKAGES}")]);
    for directory in ["doc", "man", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{directory}/*"));
    }
    command.arg(suite.unwrap_or("stable")).arg(work.join("rootfs.tar")).args(sources);
    sh::output(&mut command).map(drop)
}

/// An OCI layout in the making.
struct Layout {
    path: PathBuf,
    rootless: bool,
}

impl Layout {
    /// The name of an image in the layout, as umoci takes it.
    fn name(&self, tag: &str) -> String {
        let separator = if tag.is_empty() { "" } else { ":" };
        format!("{}{separator}{tag}", self.path.display())
    }

    fn umoci(&self, args: &[&str]) -> Result<()> {
        let mut command = sh::command("umoci");
        command.args(args);
        if self.rootless && ["unpack", "insert"].iter().any(|verb| args.first() == Some(verb)) {
            command.arg("--rootless");
        }
        sh::output(&mut command).map(drop)
    }

    /// Makes an image without layers.
    fn new_image(&self, tag: &str) -> Result<()> {
        self.umoci(&["new", "--image", &self.name(tag)])
    }
}

/// Makes an image of two layers: the packages, and a layer that changes, adds and removes files.
fn python(layout: &Layout, work: &Path) -> Result<()> {
    let image = layout.name("python");
    let bundle = work.join("bundle");
    let bundle_name = bundle.display().to_string();
    layout.new_image("python")?;
    layout.umoci(&["unpack", "--image", &image, &bundle_name])?;
    let root = bundle.join("rootfs");
    sh::output(sh::command("tar").arg("-C").arg(&root).arg("-xf").arg(work.join("rootfs.tar")))?;
    layout.umoci(&["repack", "--image", &image, "--refresh-bundle", &bundle_name])?;
    fs::create_dir_all(root.join("srv"))?;
    fs::write(root.join("srv/hello.py"), "print('hello from a file')\n")?;
    fs::write(root.join("etc/debian_version"), "ours\n")?;
    fs::remove_file(root.join("usr/bin/yes"))?;
    layout.umoci(&["repack", "--image", &image, &bundle_name])?;
    let config = ["--config.cmd", "python3", "--config.env", "GREETING=hi", "--config.workingdir", "/srv"];
    layout.umoci(&[&["config", "--image", &image][..], &config].concat())
}

/// Makes an image of the program, its links, and a file that takes a moment to fetch.
fn busybox(layout: &Layout, work: &Path) -> Result<()> {
    let image = layout.name("busybox");
    let program = sh::find("busybox").context("busybox")?.display().to_string();
    layout.new_image("busybox")?;
    layout.umoci(&["insert", "--image", &image, &program, "/bin/busybox"])?;
    let links = work.join("links");
    fs::create_dir(&links)?;
    for name in ["sh", "cat", "echo"] {
        std::os::unix::fs::symlink("busybox", links.join(name))?;
    }
    // The image's directory is bin, which the layer below has too.
    layout.umoci(&["insert", "--image", &image, &links.display().to_string(), "/usr/bin"])?;
    let noise = work.join("noise");
    let mut random = fs::File::open("/dev/urandom").map(|file| std::io::Read::take(file, 8 << 20))?;
    std::io::copy(&mut random, &mut fs::File::create(&noise)?)?;
    layout.umoci(&["insert", "--image", &image, &noise.display().to_string(), "/srv/noise"])?;
    layout.umoci(&["config", "--image", &image, "--config.cmd", "/bin/busybox"])
}

/// Fills the data directory that the tests' registry serves.
fn push(layout: &Layout, out: &Path) -> Result<()> {
    let registry = Registry::start(&out.join("data"), "").context("docker-registry")?;
    for (from, to, options) in [
        ("python", "python:latest", &[][..]),
        ("python", "python:zstd", &["--dest-compress-format", "zstd"]),
        ("busybox", "busybox:latest", &[]),
    ] {
        let from = format!("oci:{}", layout.name(from));
        let to = format!("docker://{}/{to}", registry.address());
        skopeo(&[&["--dest-tls-verify=false"], options, &[&*from, &*to]].concat())?;
    }
    Ok(())
}

fn skopeo(args: &[&str]) -> Result<()> {
    sh::output(sh::command("skopeo").args(["--insecure-policy", "copy", "--quiet"]).args(args)).map(drop)
}
