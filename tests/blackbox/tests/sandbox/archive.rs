//! Archives for tests: layers from files, and the archive of `docker save` from layers.

use sha2::Digest;

/// A tar of these files, all of them executable.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, name, *contents).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An image of these layers, lowest first.
pub(crate) fn docker_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    configured(layers, &serde_json::json!({}))
}

/// An image of these layers with a configuration.
pub(crate) fn configured(layers: &[Vec<u8>], config: &serde_json::Value) -> Vec<u8> {
    let digest = |layer: &Vec<u8>| {
        let hash = sha2::Sha256::digest(layer);
        hash.iter().fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
    };
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(digest).collect::<Vec<_>>() },
    });
    let names: Vec<String> = (0..layers.len()).map(|index| format!("{index}.tar")).collect();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["other:1"], "Layers": names }]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let mut files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(layers.iter().map(Vec::as_slice)).collect();
    files.extend([("config.json", config.as_bytes()), ("manifest.json", manifest.as_bytes())]);
    tar(&files)
}
