//! What this host knows of registries: authorities for their certificates, and credentials.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Certificate;

use crate::{Error, mirrors, signatures};

/// How long a registry may say nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Longest file of certificates, and longest configuration of Docker's.
const MAX_BYTES: u64 = 1 << 20;

/// Where a host keeps what it knows of registries.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Directories that have `<host[:port]>/*.crt`: authorities for that registry besides the system's.
    pub certificates: Vec<PathBuf>,
    /// Docker's `config.json`, with credentials or their helpers.
    pub docker_config: Option<PathBuf>,
    /// Files of containers-registries.conf(5), later ones winning.
    pub registries_conf: Vec<PathBuf>,
    /// The file of containers-policy.json(5), if there is one.
    pub policy: Option<PathBuf>,
    /// How long a registry may say nothing.
    pub silence: Duration,
}

impl Trust {
    /// The places that dockerd and containers-certs.d(5) name, and Docker's configuration: `DOCKER_CONFIG`, or else
    /// that of the user whose home this is.
    #[must_use]
    pub fn of_user(home: &Path) -> Self {
        let certificates = vec![
            "/etc/docker/certs.d".into(),
            "/etc/containers/certs.d".into(),
            home.join(".config/containers/certs.d"),
        ];
        let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let docker_config = Some(docker.unwrap_or_else(|| home.join(".docker")).join("config.json"));
        let registries_conf = mirrors::files(home);
        Self {
            certificates,
            docker_config,
            registries_conf,
            policy: signatures::file(home),
            silence: SILENCE_LIMIT,
        }
    }

    /// The authorities for a registry besides the system's. Its name was checked: no path hides in it.
    pub(crate) fn authorities(&self, registry: &str) -> Result<Vec<Certificate>, Error> {
        let mut all = Vec::new();
        for directory in &self.certificates {
            all.extend(read(&directory.join(registry))?);
        }
        Ok(all)
    }

    /// Docker's configuration, if there is one.
    pub(crate) fn docker_config(&self) -> Result<Option<Vec<u8>>, Error> {
        match &self.docker_config {
            Some(path) if path.exists() => bounded(path).map(Some),
            _ => Ok(None),
        }
    }
}

fn read(directory: &Path) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(certificates) };
    for entry in entries {
        let path = entry.map_err(|error| wrong(directory, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            let pem = bounded(&path)?;
            certificates.extend(Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&path, &error))?);
        }
    }
    Ok(certificates)
}

pub(crate) fn bounded(path: &Path) -> Result<Vec<u8>, Error> {
    if fs::metadata(path).is_ok_and(|file| file.len() > MAX_BYTES) {
        return Err(wrong(path, &format!("more than {MAX_BYTES} bytes")));
    }
    fs::read(path).map_err(|error| wrong(path, &error))
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Host(format!("{}: {why}", path.display()))
}
