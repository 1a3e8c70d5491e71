//! Checks that every fuzz body has a target that is named after the body and calls it, and that every target has a
//! body.

use super::{Source, layers};

/// Compares the crates' bodies, the files of `fuzz/`, and its manifest.
pub(super) fn check(sources: &[Source], manifest: &toml::Table) -> Vec<String> {
    let bodies: Vec<_> = sources.iter().flat_map(bodies).collect();
    let targets: Vec<_> = sources.iter().filter_map(target).collect();
    held(&bodies, &targets, &bins(manifest))
}

/// The bodies of fuzz targets in a file: crate and name of each `pub fn name(data: &[u8])` of a crate's `fuzz.rs`.
fn bodies(source: &Source) -> Vec<(&'static str, String)> {
    let folder = source.path.parent().and_then(|folder| folder.parent());
    let of_file = source.path.ends_with("src/fuzz.rs").then_some(folder).flatten();
    let Some(name) = of_file.and_then(layers::name) else { return Vec::new() };
    let body = |line: &str| line.strip_prefix("pub fn ")?.strip_suffix("(data: &[u8]) {").map(str::to_owned);
    source.text.lines().filter_map(body).map(|body| (name, body)).collect()
}

/// Name and text of a target of `fuzz/`.
fn target(source: &Source) -> Option<(String, &str)> {
    let file = source.path.strip_prefix("fuzz/fuzz_targets").ok()?;
    Some((file.file_stem()?.to_string_lossy().into_owned(), &source.text))
}

/// Names in `[[bin]]`.
fn bins(manifest: &toml::Table) -> Vec<String> {
    let bins = manifest.get("bin").and_then(toml::Value::as_array);
    bins.into_iter().flatten().filter_map(|bin| bin.get("name")?.as_str().map(str::to_owned)).collect()
}

fn held(bodies: &[(&str, String)], targets: &[(String, &str)], bins: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
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
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_bodies_have_targets_and_targets_bodies() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.to_owned() };
        let body = "pub fn blk(data: &[u8]) {\nfn rng(data: &[u8]) {\n";
        let bodies = bodies(&source("devices/virtio/src/fuzz.rs", body));
        assert_eq!(bodies, [("virtio", "blk".to_owned())]);
        let count = |call: Option<&str>, bins: &[&str]| {
            let file = call.map(|call| source("fuzz/fuzz_targets/virtio_blk.rs", call));
            let bins: Vec<_> = bins.iter().map(|bin| (*bin).to_owned()).collect();
            let targets: Vec<_> = file.iter().filter_map(target).collect();
            held(&bodies, &targets, &bins).len()
        };
        let call = Some("fuzz_target!(|data: &[u8]| virtio::fuzz::blk(data));");
        assert_eq!(count(call, &["virtio_blk"]), 0);
        assert_eq!(count(call, &[]), 1);
        assert_eq!(count(call, &["virtio_blk", "virtio_fs"]), 1);
        assert_eq!(count(None, &["virtio_blk"]), 1);
        assert_eq!(count(Some("virtio::fuzz::rng(data)"), &["virtio_blk"]), 1);
    }
}
