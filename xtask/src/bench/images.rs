//! The cost of images and disks: the import beside `mkfs.erofs`, the upper disks of ten sandboxes, the warm start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Options, home, median};
use crate::{host, sh};

/// Bytes of the image.
const SIZE: u64 = 1 << 30;

/// Sandboxes that start from one image.
const SANDBOXES: usize = 10;

/// Size of a sandbox's disk, which no other disk on the host has.
const DISK_MIB: u64 = 5119;

/// A program that runs a command and prints, as JSON, the time that the command took and the most memory that it or a
/// child of it had.
const TIMED: &str = "
import json, resource, subprocess, sys, time
start = time.monotonic()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
seconds = time.monotonic() - start
kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({'status': status, 'seconds': seconds, 'kib': kib}))
";

pub(super) fn run(options: &Options, programs: &Path) -> Result<()> {
    host::provide(&[host::RUN, host::TEST], true)?;
    import(options, programs)?;
    let scratch = tempfile::tempdir()?;
    let home = home(scratch.path())?;
    warm(options, programs, &home)?;
    uppers(programs, &home)
}

/// Measures the import of a layer of a gigabyte, in the form in which it comes out of a registry or `docker save`,
/// against the program that makes the same file system of the unpacked tree. Both end when the file is on the disk.
fn import(options: &Options, programs: &Path) -> Result<()> {
    // The scratch directory is on the disk on which users have their store, not in memory.
    let scratch = tempfile::tempdir_in(sh::target())?;
    let (tree, layout) = (scratch.path().join("tree"), scratch.path().join("layout"));
    let files = plant(&tree)?;
    pack(&tree, &layout)?;
    let mut ratios = Vec::new();
    let mut peak = 0.0f64;
    for _ in 0..options.runs {
        let cache = tempfile::tempdir_in(scratch.path())?;
        let mut ours = Command::new("python3");
        ours.env("HOME", cache.path()).args(["-c", TIMED]).arg(programs.join("matchlock"));
        let (ours, kib) = timed(ours.args(["image", "import", "big:1"]).arg(&layout))?;
        let store = cache.path().join(".cache/matchlock/images");
        let stored = blocks(&store)?;
        let image = scratch.path().join("peer.erofs");
        let script = "mkfs.erofs \"$1\" \"$2\" 2>/dev/null && sync \"$1\"";
        let mut peer = Command::new("python3");
        peer.args(["-c", TIMED, "sh", "-c", script, "sh"]);
        let (peer, peer_kib) = timed(peer.arg(&image).arg(&tree))?;
        println!(
            "import of {} MiB, {files} files: {ours:.2} s and {:.0} MiB of memory, mkfs.erofs {peer:.2} s and {:.0}, ratio {:.2}; on disk {} MiB, {}",
            SIZE >> 20,
            kib / 1024.0,
            peer_kib / 1024.0,
            ours / peer,
            stored >> 20,
            blocks(&image)? >> 20,
        );
        ratios.push(ours / peer);
        peak = peak.max(kib);
        fs::remove_file(&image)?;
    }
    println!(
        "import: median ratio {:.2} (target 1.5), {:.0} MiB of memory at most (target 128)",
        median(&mut ratios),
        peak / 1024.0
    );
    Ok(())
}

/// Fills a tree with files of 1 to 127 KiB of noise, with as many files in a directory as distributions have. Returns
/// the number of files.
fn plant(tree: &Path) -> Result<u64> {
    let mut random = io::BufReader::with_capacity(1 << 20, File::open("/dev/urandom")?);
    let (mut written, mut files) = (0, 0);
    while written < SIZE {
        let directory = tree.join(format!("d{}", files / 64 % 16)).join(format!("e{}", files / 64));
        if files % 64 == 0 {
            fs::create_dir_all(&directory)?;
        }
        // The lengths take all values from 1 to 127, in a fixed order.
        let len = (1 + files * 37 % 127) << 10;
        let mut file = File::create(directory.join(format!("f{files}")))?;
        io::copy(&mut random.by_ref().take(len), &mut file)?;
        written += len;
        files += 1;
    }
    Ok(files)
}

/// Makes an OCI layout with one layer.
fn pack(tree: &Path, layout: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let tar = blobs.join("tar");
    sh::output(sh::command("tar").arg("-C").arg(tree).arg("-cf").arg(&tar).arg("."))?;
    let put = |bytes: &[u8], media_type: &str| -> Result<Value> {
        let path = blobs.join("new");
        File::create(&path)?.write_all(bytes)?;
        let hex = sha256(&path)?;
        fs::rename(&path, blobs.join(&hex))?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()}))
    };
    let layer = sha256(&tar)?;
    let size = fs::metadata(&tar)?.len();
    fs::rename(&tar, blobs.join(&layer))?;
    let layer = format!("sha256:{layer}");
    let rootfs = json!({"type": "layers", "diff_ids": [layer]});
    let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs});
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json")?;
    let layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json")?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let line = sh::output(sh::command("sha256sum").arg(path))?;
    line.split_whitespace().next().map(str::to_owned).context("sha256sum")
}

/// Seconds that a command took, and KiB of memory.
fn timed(command: &mut Command) -> Result<(f64, f64)> {
    let row: Value = serde_json::from_str(&sh::output(command)?)?;
    if row["status"] != 0 {
        bail!("{command:?}: status {}", row["status"]);
    }
    Ok((row["seconds"].as_f64().unwrap_or(f64::NAN), row["kib"].as_f64().unwrap_or(f64::NAN)))
}

/// Bytes that a file, or all files below a directory, take on the disk.
fn blocks(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += blocks(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Measures the time from the start of the process until all parts of a machine are at hand: image, kernel, initramfs,
/// disks.
fn warm(options: &Options, programs: &Path, home: &Path) -> Result<()> {
    let mut prepared = Vec::new();
    for _ in 0..=options.runs {
        let mut command = sh::command(programs.join("matchlock"));
        command.env("HOME", home).args(["run", "--machine", "software", "--timings"]);
        let output =
            command.args(["--image", "busybox", "true"]).stdin(std::process::Stdio::null()).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let row = stderr.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let row = row.with_context(|| format!("no timings: {stderr}"))?;
        prepared.push(row["prepared_us"].as_f64().unwrap_or(f64::NAN) / 1000.0);
    }
    // The first run may have had files to make.
    prepared.remove(0);
    println!(
        "warm start: {:.1} ms from the start of the process to image, kernel and disks at hand (target 5)",
        median(&mut prepared)
    );
    Ok(())
}

/// Measures the disks of several sandboxes that run from one image at the same time.
fn uppers(programs: &Path, home: &Path) -> Result<()> {
    let matchlock = |args: &[&str]| {
        let mut command = sh::command(programs.join("matchlock"));
        sh::output(command.env("HOME", home).args(args).stdin(std::process::Stdio::null()))
    };
    let disk = DISK_MIB.to_string();
    let run =
        ["run", "-d", "--machine", "software", "--memory", "128", "--disk-size", &disk, "--image", "busybox"];
    let mut ids = Vec::new();
    let started = (0..SANDBOXES).try_for_each(|_| {
        ids.push(matchlock(&run)?.trim().to_owned());
        anyhow::Ok(())
    });
    let sizes = unnamed(DISK_MIB << 20);
    for id in &ids {
        matchlock(&["kill", id])?;
    }
    matchlock(&["prune"])?;
    started?;
    let sizes = sizes?;
    if sizes.len() != SANDBOXES {
        bail!("{} disks of {} sandboxes were found", sizes.len(), SANDBOXES);
    }
    println!(
        "{} sandboxes of one image: their upper disks take {} to {} KiB (target 1024)",
        sizes.len(),
        sizes.iter().min().copied().unwrap_or_default() >> 10,
        sizes.iter().max().copied().unwrap_or_default() >> 10
    );
    Ok(())
}

/// Bytes on the disk taken by the unnamed files of this length that processes have open.
fn unnamed(len: u64) -> Result<Vec<u64>> {
    let mut disks = BTreeMap::new();
    for process in fs::read_dir("/proc")? {
        // Most entries of /proc have no such folder, and processes may end meanwhile.
        for file in fs::read_dir(process?.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(file) = fs::metadata(file.path()) else { continue };
            if file.is_file() && file.nlink() == 0 && file.len() == len {
                disks.insert((file.dev(), file.ino()), file.blocks() * 512);
            }
        }
    }
    Ok(disks.into_values().collect())
}
