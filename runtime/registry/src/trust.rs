//! A host's knowledge of registries: authorities for their certificates, credentials, mirrors, and its policy.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use web::Certificate;

use crate::{Error, mirrors, signatures};

/// How long a registry may send nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Longest file of certificates, and longest configuration of Docker's.
const MAX_BYTES: u64 = 1 << 20;

/// The places of a host's configuration of registries.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Directories with `<host[:port]>/*.crt`: authorities for that registry beside the system's.
    pub certificates: Vec<PathBuf>,
    /// Docker's `config.json`, with credentials or their helpers.
    pub docker_config: Option<PathBuf>,
    /// The file of containers-registries.conf(5), if there is one.
    pub registries_conf: Option<PathBuf>,
    /// Directories with `*.conf`: files that add to it, later ones winning.
    pub registries_conf_d: Vec<PathBuf>,
    /// The file of containers-policy.json(5), if there is one.
    pub policy: Option<PathBuf>,
    /// How long a registry may send nothing.
    pub silence: Duration,
}

impl Trust {
    /// The places that dockerd and containers-certs.d(5) name, and Docker's configuration: in `DOCKER_CONFIG`, or in
    /// this home.
    #[must_use]
    pub fn of_user(home: &Path) -> Self {
        let certificates = vec![
            "/etc/docker/certs.d".into(),
            "/etc/containers/certs.d".into(),
            home.join(".config/containers/certs.d"),
        ];
        let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let docker_config = Some(docker.unwrap_or_else(|| home.join(".docker")).join("config.json"));
        let (registries_conf, registries_conf_d) = mirrors::files(home);
        Self {
            certificates,
            docker_config,
            registries_conf,
            registries_conf_d,
            policy: signatures::file(home),
            silence: SILENCE_LIMIT,
        }
    }

    /// The authorities for a registry beside the system's. Its name was checked, so no path hides in it.
    pub(crate) fn authorities(&self, registry: &str) -> Result<Vec<Certificate>, Error> {
        let mut all = Vec::new();
        for directory in &self.certificates {
            let directory = directory.join(registry);
            // Some dockerd made /etc/docker for root alone. Certificates closed to the user could only add
            // authorities.
            match fs::read_dir(&directory) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    tracing::info!("{}: {error}", directory.display());
                }
                _ => all.extend(read(&directory)?),
            }
        }
        Ok(all)
    }

    /// The files of registries' configuration, later ones winning.
    pub(crate) fn registries(&self) -> Result<Vec<PathBuf>, Error> {
        let mut files = Vec::from_iter(self.registries_conf.clone());
        for directory in &self.registries_conf_d {
            files.extend(entries(directory, "conf")?);
        }
        Ok(files)
    }

    /// Docker's configuration, if there is one.
    pub(crate) fn docker_config(&self) -> Result<Option<Vec<u8>>, Error> {
        match &self.docker_config {
            Some(path) if is_there(path) => bounded(path).map(Some),
            _ => Ok(None),
        }
    }
}

fn read(directory: &Path) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    for path in entries(directory, "crt")? {
        let pem = bounded(&path)?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&path, &error))?;
        if found.is_empty() {
            return Err(wrong(&path, &"no certificate in it"));
        }
        certificates.extend(found);
    }
    Ok(certificates)
}

/// The entries of a directory with this extension, sorted by name. A missing directory is empty; an unreadable one is
/// an error.
pub(crate) fn entries(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| wrong(directory, &error))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>().map_err(|error| wrong(directory, &error))?;
    paths.retain(|path| path.extension().is_some_and(|kind| kind == extension));
    paths.sort();
    Ok(paths)
}

/// The content of a file of at most this length.
pub(crate) fn bounded(path: &Path) -> Result<Vec<u8>, Error> {
    // Opening a pipe would wait for its writer, and a device may have no end.
    if !fs::metadata(path).map_err(|error| wrong(path, &error))?.is_file() {
        return Err(wrong(path, &"not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| wrong(path, &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong(path, &format!("more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Whether `path` exists, readable or not: rules must not vanish because they cannot be read.
pub(crate) fn is_there(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Host(format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Places for a host's rules, each with an object that is no file.
    fn strange(directory: &Path) -> Vec<(PathBuf, &'static str)> {
        let at = |name: &str| directory.join(name);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), mode).unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        fs::write(at("long"), vec![b' '; 1 + (1 << 20)]).unwrap();
        vec![
            (at("pipe"), "not a regular file"),
            (at("directory"), "not a regular file"),
            (at("dangling"), "No such file or directory (os error 2)"),
            (at("loop"), "Too many levels of symbolic links (os error 40)"),
            (at("device"), "not a regular file"),
            (at("long"), "more than 1048576 bytes"),
        ]
    }

    #[test]
    fn what_cannot_be_read_is_there_all_the_same_and_nothing_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        for (path, why) in strange(directory.path()) {
            assert!(is_there(&path), "{}", path.display());
            let error = bounded(&path).unwrap_err().to_string();
            assert_eq!(error, format!("{}: {why}", path.display()));
        }
        let file = directory.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(bounded(&file).unwrap(), b"x");
        for nothing in ["nothing", "nothing/below", "file/below"] {
            assert!(!is_there(&directory.path().join(nothing)));
        }
    }

    /// The user's own files win over the system's even if they cannot be read: a dangling link must not let in an
    /// image that the host would refuse.
    #[test]
    fn rules_that_cannot_be_read_are_an_error() {
        let name = crate::Name::parse("x.example/y").unwrap();
        for index in 0..6 {
            let home = tempfile::tempdir().unwrap();
            let containers = home.path().join(".config/containers");
            fs::create_dir_all(&containers).unwrap();
            let (path, _) = strange(home.path()).swap_remove(index);
            let policy = containers.join("policy.json");
            fs::rename(&path, &policy).unwrap();
            let file = signatures::file(home.path());
            assert_eq!(file.as_deref(), Some(policy.as_path()));
            assert!(signatures::demands(file.as_deref(), &name).is_err());

            let conf = containers.join("registries.conf");
            fs::rename(&policy, &conf).unwrap();
            let (file, _) = mirrors::files(home.path());
            assert_eq!(file.as_ref(), Some(&conf));
            assert!(mirrors::places(&[conf], &name).is_err());
        }
    }

    /// An unreadable directory may hold rules that refuse an image; certificates closed to the user refuse nothing.
    #[test]
    fn directories_that_cannot_be_read_are_an_error() {
        let home = tempfile::tempdir().unwrap();
        let trust = |at: &Path| Trust {
            certificates: vec![at.join("certs.d")],
            docker_config: None,
            registries_conf: None,
            registries_conf_d: vec![at.join("registries.conf.d")],
            policy: None,
            silence: SILENCE_LIMIT,
        };
        let nothing = trust(home.path());
        assert!(
            nothing.registries().unwrap().is_empty() && nothing.authorities("x.example").unwrap().is_empty()
        );
        let refused = |at: &Path, why: &str| {
            let trust = trust(at);
            let error = trust.registries().unwrap_err().to_string();
            assert_eq!(error, format!("{}: {why}", at.join("registries.conf.d").display()));
            let error = trust.authorities("x.example").unwrap_err().to_string();
            assert_eq!(error, format!("{}: {why}", at.join("certs.d/x.example").display()));
        };
        let file = home.path().join("file");
        fs::create_dir_all(file.join("certs.d")).unwrap();
        for path in ["registries.conf.d", "certs.d/x.example"] {
            fs::write(file.join(path), "x").unwrap();
        }
        refused(&file, "Not a directory (os error 20)");
        let looped = home.path().join("looped");
        fs::create_dir_all(looped.join("certs.d")).unwrap();
        for path in ["registries.conf.d", "certs.d/x.example"] {
            symlink(looped.join(path), looped.join(path)).unwrap();
        }
        refused(&looped, "Too many levels of symbolic links (os error 40)");
        let closed = home.path().join("closed");
        for path in ["registries.conf.d", "certs.d/x.example"] {
            fs::create_dir_all(closed.join(path)).unwrap();
            fs::set_permissions(closed.join(path), fs::Permissions::from_mode(0o000)).unwrap();
        }
        // Root can read everything.
        if fs::read_dir(closed.join("registries.conf.d")).is_err() {
            let error = trust(&closed).registries().unwrap_err().to_string();
            assert!(error.ends_with("registries.conf.d: Permission denied (os error 13)"), "{error}");
            assert!(trust(&closed).authorities("x.example").unwrap().is_empty());
        } else {
            skip::skip("user", "root reads everything");
        }
    }

    #[test]
    fn a_file_for_certificates_has_one() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("x.example");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("notes.txt"), "junk").unwrap();
        assert!(read(&host).unwrap().is_empty());
        fs::write(host.join("ca.crt"), "junk").unwrap();
        assert!(read(&host).unwrap_err().to_string().ends_with("ca.crt: no certificate in it"));
    }
}
