//! Pulls from real registries (Debian's `docker-registry`) and from servers that misbehave on purpose.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod given_up;
mod hostile;
mod real;

use std::path::Path;
use std::time::Duration;

use images::fixtures::{ImageFixture, LayerBuilder};
use images::{Imported, Quiet, Store};
use registry::{Registries, Trust};

/// Trust in the files below this directory, and little patience.
fn trust(directory: &Path) -> Trust {
    Trust {
        certificates: vec![directory.join("certs.d")],
        docker_config: Some(directory.join("docker.json")),
        registries_conf: Some(directory.join("registries.conf")).filter(|path| path.exists()),
        registries_conf_d: vec![directory.join("registries.conf.d")],
        policy: Some(directory.join("policy.json")).filter(|path| path.exists()),
        silence: Duration::from_secs(2),
    }
}

fn pull(store: &Store, directory: &Path, reference: &str) -> images::Result<Imported> {
    Registries::new(trust(directory)).pull_as(store, reference, reference, &Quiet)
}

/// An image of three layers, the last of which is large enough to arrive in pieces.
fn image() -> ImageFixture {
    let large: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layers = [("one", &b"1"[..]), ("two", b"2"), ("large", &large)]
        .map(|(name, data)| LayerBuilder::default().file(name, 0o644, data).build());
    ImageFixture::new(layers.into())
}

/// The number of files in one of a store's directories.
fn files(cache: &Path, directory: &str) -> usize {
    std::fs::read_dir(cache.join("images").join(directory)).unwrap().count()
}
