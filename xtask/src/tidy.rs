//! What no compiler checks: which crate may use which, where `target_os` may stand, that every file says what it is,
//! that none grows past its limit, and that every fuzz body has its target.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh;

/// Lines a source file may have. Past it, the design is telling something.
const MAX_FILE_LINES: usize = 800;

/// Who may depend on whom: crate, its folder, and the crates of this workspace it may name in `[dependencies]`. Arrows
/// point down only: a crate names crates of rows above its own.
const LAYERS: &[(&str, &str, &[&str])] = &[
    // 0: leaves
    ("guest_memory", "hypervisor/memory", &[]),
    ("policy", "policy", &[]),
    ("guest_protocol", "guest/protocol", &[]),
    ("wire", "sdk/wire", &[]),
    ("served", "tests/served", &[]),
    ("skip", "tests/skip", &[]),
    ("fuzzed", "tests/fuzzed", &[]),
    ("confinement", "vmm/confinement", &[]),
    ("process", "vmm/process", &["confinement"]),
    ("waiting", "runtime/waiting", &["process"]),
    ("web", "runtime/web", &["waiting"]),
    ("debian", "runtime/debian", &["waiting", "web"]),
    ("erofs", "backends/erofs", &[]),
    // 1: devices see guest memory, never a hypervisor or a policy
    ("virtio", "devices/virtio", &["guest_memory"]),
    ("chipset", "devices/chipset", &[]),
    ("vhost_user", "devices/vhost_user", &["guest_memory", "virtio"]),
    ("hypervisor", "hypervisor/core", &["guest_memory"]),
    // 2: back ends of one seam each
    ("hypervisor_kvm", "hypervisor/kvm", &["guest_memory", "hypervisor"]),
    ("disk", "backends/disk", &["guest_memory", "virtio"]),
    ("vhost_backend", "backends/vhost", &["guest_memory", "virtio"]),
    // 3: the only place where hypervisor and devices meet
    ("machine", "vmm/machine", &["disk", "policy", "process"]),
    (
        "vmm",
        "vmm/native",
        &[
            "chipset",
            "confinement",
            "disk",
            "guest_memory",
            "hypervisor",
            "hypervisor_kvm",
            "machine",
            "process",
            "vhost_user",
            "virtio",
        ],
    ),
    (
        "software",
        "vmm/software",
        &["confinement", "disk", "guest_memory", "machine", "process", "vhost_backend", "virtio"],
    ),
    // inside the guest: nothing of the host
    ("guest_agent", "guest/agent", &["guest_protocol"]),
    // 4: one sandbox's life
    ("images", "runtime/images", &["debian", "disk", "erofs", "waiting"]),
    ("registry", "runtime/registry", &["images", "waiting", "web"]),
    ("kernels", "runtime/kernels", &["debian", "images", "machine", "registry", "waiting"]),
    (
        "sandbox",
        "runtime/sandbox",
        &[
            "disk",
            "guest_protocol",
            "images",
            "kernels",
            "machine",
            "policy",
            "process",
            "registry",
            "virtio",
            "waiting",
        ],
    ),
    // 5: what programs drive
    ("rpc", "runtime/rpc", &["guest_protocol", "images", "policy", "sandbox", "wire"]),
    // 6: what people run
    (
        "matchlock",
        "cli",
        &[
            "guest_protocol",
            "images",
            "kernels",
            "machine",
            "policy",
            "process",
            "registry",
            "rpc",
            "sandbox",
            "wire",
        ],
    ),
    ("hypervisor_conformance", "tests/hypervisor", &["guest_memory", "hypervisor", "hypervisor_kvm"]),
    ("blackbox", "tests/blackbox", &["served"]),
    ("measure", "tests/bench", &["guest_protocol", "machine", "process", "sandbox"]),
    ("stock_kernel", "tests/stock_kernel", &["kernels"]),
    ("xtask", "xtask", &["served", "skip"]),
];

/// Where `target_os` may stand, besides `sys/` folders and the first lines of a back-end crate.
const TARGET_OS: &[&str] = &["vmm/native/src/backend.rs", "vmm/machine/src/lib.rs"];

/// Checks everything; prints every finding, then fails if there was one.
pub(crate) fn run() -> Result<()> {
    let mut findings = Vec::new();
    layers(&mut findings)?;
    let (mut bodies, mut targets) = (Vec::new(), Vec::new());
    for path in sources()? {
        let text = fs::read_to_string(sh::root().join(&path)).with_context(|| path.display().to_string())?;
        file(&path, &text, &mut findings);
        bodies.extend(fuzz_bodies(&path, &text));
        targets.extend(fuzz_target(&path, &text));
    }
    let bins = dependencies(&sh::root().join("fuzz/Cargo.toml"), fuzz_bins)?;
    fuzz(&bodies, &targets, &bins, &mut findings);
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings", findings.len());
    }
    println!("tidy: layers, target_os, module docs, file lengths and fuzz targets are in order");
    Ok(())
}

/// Every Rust source file that git knows or would add.
fn sources() -> Result<Vec<PathBuf>> {
    let list = sh::output(sh::command("git").args(["ls-files", "-co", "--exclude-standard", "--", "*.rs"]))?;
    let exists = |path: &PathBuf| sh::root().join(path).is_file();
    Ok(list.lines().map(PathBuf::from).filter(exists).collect())
}

fn layers(findings: &mut Vec<String>) -> Result<()> {
    let members = dependencies(&sh::root().join("Cargo.toml"), |manifest| {
        let members = manifest.get("workspace")?.get("members")?.as_array()?;
        Some(members.iter().filter_map(|member| member.as_str().map(str::to_owned)).collect())
    })?;
    for member in &members {
        if !LAYERS.iter().any(|(_, folder, _)| folder == member) {
            findings.push(format!("{member}: not in the layer table of xtask/src/tidy.rs"));
        }
    }
    for (index, (name, folder, allowed)) in LAYERS.iter().enumerate() {
        if !members.iter().any(|member| member == folder) {
            findings.push(format!("{folder}: in the layer table, but no member of the workspace"));
            continue;
        }
        let below: Vec<&str> = LAYERS[..index].iter().map(|(name, ..)| *name).collect();
        for upward in allowed.iter().filter(|allowed| !below.contains(allowed)) {
            findings.push(format!("layer table: {name} may not point up to {upward}"));
        }
        for dependency in dependencies(&sh::root().join(folder).join("Cargo.toml"), crate_dependencies)? {
            let ours = LAYERS.iter().any(|(name, ..)| *name == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                findings.push(format!("{folder}/Cargo.toml: {name} may not depend on {dependency}"));
            }
        }
    }
    Ok(())
}

fn dependencies(path: &Path, pick: impl Fn(&toml::Table) -> Option<Vec<String>>) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let manifest: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    Ok(pick(&manifest).unwrap_or_default())
}

/// Names in `[dependencies]` and `[target.*.dependencies]`; what only tests use may reach further.
fn crate_dependencies(manifest: &toml::Table) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |table: Option<&toml::Value>| {
        names.extend(
            table.and_then(toml::Value::as_table).into_iter().flat_map(|table| table.keys().cloned()),
        );
    };
    add(manifest.get("dependencies"));
    for target in
        manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(|table| table.values())
    {
        add(target.get("dependencies"));
    }
    Some(names)
}

fn file(path: &Path, text: &str, findings: &mut Vec<String>) {
    let shown = path.display();
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        findings.push(format!("{shown}: {lines} lines, the limit is {MAX_FILE_LINES}"));
    }
    // A crate for one platform says so on its first line, before its documentation.
    let documented =
        text.lines().find(|line| !line.starts_with("#![cfg(")).is_some_and(|line| line.starts_with("//!"));
    if !documented {
        findings.push(format!("{shown}: opens without `//!`"));
    }
    let in_sys = path.components().any(|part| part.as_os_str() == "sys");
    let allowed =
        in_sys || TARGET_OS.iter().any(|allowed| path == Path::new(allowed)) || path.starts_with("xtask");
    for (number, line) in text.lines().enumerate() {
        if line.contains("target_os") && !allowed && !line.starts_with("#![cfg(") {
            findings.push(format!(
                "{shown}:{}: target_os outside sys/ and the file that picks the back end",
                number + 1
            ));
        }
    }
}

/// The bodies of fuzz targets in a file: crate and name of each `pub fn name(data: &[u8])` of a crate's `fuzz.rs`.
fn fuzz_bodies(path: &Path, text: &str) -> Vec<(&'static str, String)> {
    let of_file = |(_, folder, _): &&(_, &str, _)| path == Path::new(folder).join("src/fuzz.rs");
    let Some((name, ..)) = LAYERS.iter().find(of_file) else { return Vec::new() };
    let body = |line: &str| line.strip_prefix("pub fn ")?.strip_suffix("(data: &[u8]) {").map(str::to_owned);
    text.lines().filter_map(body).map(|body| (*name, body)).collect()
}

/// Name and text of a target of `fuzz/`.
fn fuzz_target(path: &Path, text: &str) -> Option<(String, String)> {
    let file = path.strip_prefix("fuzz/fuzz_targets").ok()?;
    Some((file.file_stem()?.to_string_lossy().into_owned(), text.to_owned()))
}

/// Names in `[[bin]]`.
fn fuzz_bins(manifest: &toml::Table) -> Option<Vec<String>> {
    let bins = manifest.get("bin")?.as_array()?;
    Some(bins.iter().filter_map(|bin| bin.get("name")?.as_str().map(str::to_owned)).collect())
}

/// Every body has a target that is named after it and calls it, and every target a body.
fn fuzz(
    bodies: &[(&str, String)],
    targets: &[(String, String)],
    bins: &[String],
    findings: &mut Vec<String>,
) {
    let name = |(name, body): &(&str, String)| format!("{name}_{body}");
    for body in bodies {
        let (target, call) = (name(body), format!("{}::fuzz::{}(data)", body.0, body.1));
        let calls = targets.iter().any(|(name, text)| *name == target && text.contains(&call));
        if !calls || !bins.contains(&target) {
            findings.push(format!("fuzz: no target {target} that calls {call}"));
        }
    }
    let names: Vec<String> = bodies.iter().map(name).collect();
    for stray in targets.iter().map(|(name, _)| name).chain(bins).filter(|name| !names.contains(name)) {
        findings.push(format!("fuzz: target {stray} has no body"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_bodies_have_targets_and_targets_bodies() {
        let path = Path::new("devices/virtio/src/fuzz.rs");
        let bodies = fuzz_bodies(path, "pub fn blk(data: &[u8]) {\nfn rng(data: &[u8]) {\n");
        assert_eq!(bodies, [("virtio", "blk".to_owned())]);
        let call = "fuzz_target!(|data: &[u8]| virtio::fuzz::blk(data));";
        let target = |name: &str, text| fuzz_target(&Path::new("fuzz/fuzz_targets").join(name), text);
        let count = |targets: &[_], bins: &[&str]| {
            let bins: Vec<_> = bins.iter().map(|bin| (*bin).to_owned()).collect();
            let mut findings = Vec::new();
            fuzz(&bodies, targets, &bins, &mut findings);
            findings.len()
        };
        let good: Vec<_> = target("virtio_blk.rs", call).into_iter().collect();
        assert_eq!(count(&good, &["virtio_blk"]), 0);
        assert_eq!(count(&good, &[]), 1);
        assert_eq!(count(&good, &["virtio_blk", "virtio_fs"]), 1);
        assert_eq!(count(&[], &["virtio_blk"]), 1);
        let other: Vec<_> = target("virtio_blk.rs", "virtio::fuzz::rng(data)").into_iter().collect();
        assert_eq!(count(&other, &["virtio_blk"]), 1);
    }

    fn findings(path: &str, text: &str) -> usize {
        let mut findings = Vec::new();
        file(Path::new(path), text, &mut findings);
        findings.len()
    }

    #[test]
    fn files_are_held_to_their_rules() {
        assert_eq!(findings("a/src/lib.rs", "//! A.\n"), 0);
        assert_eq!(findings("a/src/lib.rs", "#![cfg(target_os = \"linux\")]\n//! A.\n"), 0);
        assert_eq!(findings("a/src/lib.rs", "mod a;\n"), 1);
        assert_eq!(findings("a/src/lib.rs", &"//! A.\n".repeat(801)), 1);
        assert_eq!(findings("a/src/lib.rs", "//! A.\n#[cfg(target_os = \"linux\")]\n"), 1);
        assert_eq!(findings("a/src/sys/mod.rs", "//! A.\n#[cfg(target_os = \"linux\")]\n"), 0);
    }

    #[test]
    fn target_dependencies_count() {
        let manifest: toml::Table =
            "[target.'cfg(unix)'.dependencies]\na = \"1\"\n[dependencies]\nb = \"1\"\n"
                .parse()
                .expect("toml");
        assert_eq!(crate_dependencies(&manifest).expect("names"), ["b", "a"]);
    }
}
