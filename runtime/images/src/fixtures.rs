//! Image archives for tests: layers from a list of files, docker-archives and OCI layouts from layers.
//!
//! A failure panics. Not here: wrong images, unless a caller puts the fault in.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::manifest::host_architecture;

/// A layer's tar while it is made.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
    owner: (u64, u64),
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), owner: (0, 0) }
    }
}

impl LayerBuilder {
    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, data: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, mode, data, None)
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, path, mode, &[], None)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, 0o777, &[], Some(target))
    }

    /// Adds a hard link to a file that is already there.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, 0o644, &[], Some(target))
    }

    /// Gives every entry that is added from here on to this user and group.
    #[must_use]
    pub fn owned(self, uid: u64, gid: u64) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    /// Adds an entry with PAX records before it.
    #[must_use]
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.tar.append_pax_extensions(records.iter().copied()).expect("records in memory");
        self
    }

    /// Adds an entry under exactly this name.
    #[must_use]
    pub fn entry(
        mut self,
        kind: tar::EntryType,
        path: &str,
        mode: u32,
        data: &[u8],
        link: Option<&str>,
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(link) = link {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.tar.append(&header, data).expect("an entry in memory");
        self
    }

    /// The finished tar.
    pub fn build(self) -> Vec<u8> {
        self.tar.into_inner().expect("a tar in memory")
    }
}

/// An image to be archived.
#[derive(Debug, Clone, Default)]
pub struct ImageFixture {
    /// Layers as tars, lowest first. An OCI layout stores them as they are, so they may be compressed.
    pub layers: Vec<Vec<u8>>,
    /// The uncompressed form of layers that are compressed; by index.
    pub uncompressed: Vec<(usize, Vec<u8>)>,
    /// `config` of the image configuration.
    pub config: serde_json::Value,
}

impl ImageFixture {
    /// An image of these layers.
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        Self { layers, uncompressed: Vec::new(), config: serde_json::json!({ "Cmd": ["sh"] }) }
    }

    /// The image configuration document.
    pub fn config_json(&self) -> Vec<u8> {
        let diff_id = |(index, layer): (usize, &Vec<u8>)| {
            let plain =
                self.uncompressed.iter().find(|(at, _)| *at == index).map_or(layer, |(_, plain)| plain);
            format!("sha256:{}", sha256(plain))
        };
        let diff_ids: Vec<String> = self.layers.iter().enumerate().map(diff_id).collect();
        let config = serde_json::json!({
            "architecture": host_architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        config.to_string().into_bytes()
    }

    /// A docker-archive, as `docker save` writes it.
    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config = self.config_json();
        let config_name = format!("{}.json", sha256(&config));
        let names: Vec<String> =
            self.layers.iter().map(|layer| format!("{}/layer.tar", sha256(layer))).collect();
        let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
        let mut members: Vec<(String, Vec<u8>)> =
            names.into_iter().zip(self.layers.iter().cloned()).collect();
        members.push((config_name, config));
        members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
        archive(&members)
    }

    /// The members of an OCI layout whose image has this name.
    pub fn oci_members(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut members = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        let mut add = |bytes: &[u8], media_type: &str| {
            let member = (format!("blobs/sha256/{}", sha256(bytes)), bytes.to_vec());
            members.push(member);
            serde_json::json!({
                "mediaType": media_type,
                "digest": format!("sha256:{}", sha256(bytes)),
                "size": bytes.len(),
            })
        };
        let layer_type = |layer: &[u8]| match layer {
            [31, 139, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
            [0x28, 0xb5, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => "application/vnd.oci.image.layer.v1.tar",
        };
        let config = add(&self.config_json(), "application/vnd.oci.image.config.v1+json");
        let layers: Vec<_> = self.layers.iter().map(|layer| add(layer, layer_type(layer))).collect();
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut descriptor =
            add(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        descriptor["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
        descriptor["platform"] = serde_json::json!({ "architecture": host_architecture(), "os": "linux" });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] });
        members.push(("index.json".to_owned(), index.to_string().into_bytes()));
        members
    }

    /// Writes an OCI layout to an empty directory.
    pub fn write_oci_layout(&self, name: &str, dir: &Path) {
        for (path, bytes) in self.oci_members(name) {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, bytes).expect("a file");
        }
    }
}

/// A tar of these members.
pub fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes.as_slice()).expect("a member in memory");
    }
    tar.into_inner().expect("a tar in memory")
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
