//! The images that black-box tests pull and import: a Debian with python3 and a busybox, made of the distribution's
//! packages and put into the forms that people have images in.
//!
//! ```text
//! data/              what a registry keeps: python:latest, python:zstd, busybox:latest
//! python.docker.tar  docker-archive
//! python.oci.tar     OCI archive
//! rootfs.tar         its root file system
//! ```
//!
//! Made once, with the programs that others make images with; nothing of ours has a hand in it. Not here: the tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use served::Registry;

use crate::sh;

/// Raised when they come out differently.
const VERSION: u32 = 1;

/// What the Debian one has, besides what that needs.
const PACKAGES: &str = "python3-minimal,dash,coreutils";

/// Makes them where they are not there yet, and gives their directory.
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

/// The root file system, as a tar: unpacked packages, which is all that python needs.
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

/// An OCI layout that is being made.
struct Layout {
    path: PathBuf,
    rootless: bool,
}

impl Layout {
    /// An image in it.
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

    /// An image of no layers.
    fn new_image(&self, tag: &str) -> Result<()> {
        self.umoci(&["new", "--image", &self.name(tag)])
    }
}

/// Two layers: the packages, and one that changes, adds and takes away.
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

/// The program, its links, and something that takes a moment to fetch.
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
    // In the image the directory is bin, which the layer below has too.
    layout.umoci(&["insert", "--image", &image, &links.display().to_string(), "/usr/bin"])?;
    let noise = work.join("noise");
    let mut random = fs::File::open("/dev/urandom").map(|file| std::io::Read::take(file, 8 << 20))?;
    std::io::copy(&mut random, &mut fs::File::create(&noise)?)?;
    layout.umoci(&["insert", "--image", &image, &noise.display().to_string(), "/srv/noise"])?;
    layout.umoci(&["config", "--image", &image, "--config.cmd", "/bin/busybox"])
}

/// Fills what the tests' registry serves.
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
