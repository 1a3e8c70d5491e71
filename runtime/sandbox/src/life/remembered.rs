//! The part of a [`Spec`] that is recorded: everything that cannot be a secret.
//!
//! Of variables only the names are kept. No other place decides this, so any part of a [`Spec`] that is stored or
//! shown goes through here. Not here: the stored form ([`Config`]).

use policy::disks::{Disk, Owner, Source};
use policy::network::{Access, Arrival, Network};
use policy::resources::Grant;

use super::spec::Spec;
use crate::agent::mounts::absolute;
use crate::{Config, DiskConfig, MountConfig, NetworkConfig};

impl Config {
    pub(crate) fn new(spec: &Spec, grant: Grant) -> Self {
        let (image, network) = (&spec.image_config, &spec.network);
        Self {
            image: spec.image.clone(),
            kernel: spec.kernel.clone(),
            cpus: spec.resources.cpus,
            memory_mb: grant.memory_mib,
            disk_size_mb: grant.disk_size_mb,
            disks: spec.disks.iter().map(DiskConfig::new).collect(),
            mounts: spec.mounts.iter().map(MountConfig::new).collect(),
            timeout_seconds: spec.unenforced_timeout_seconds,
            time_limit_seconds: spec.time_limit.map(|limit| limit.duration().as_secs_f64()),
            hostname: network.hostname.clone(),
            add_hosts: network.add_hosts.clone(),
            nameservers: network.nameservers.clone(),
            env: spec.env.iter().map(|(name, _)| name.clone()).collect(),
            image_env: image.env.as_ref().map(|env| env.iter().map(|variable| name(variable)).collect()),
            entrypoint: spec.entrypoint.clone(),
            cmd: image.cmd.clone(),
            user: image.user.clone(),
            working_dir: image.working_dir.clone(),
            privileged: spec.privileged,
            workspace: image.workspace.clone(),
            no_network: network.arrival == Arrival::None,
            network: NetworkConfig::new(network),
            launch_entrypoint: spec.launch_entrypoint,
            init: spec.init,
            keep: spec.keep,
        }
    }
}

impl NetworkConfig {
    fn new(network: &Network) -> Self {
        let Access { allowed, denied, passthrough, intercept, private_open } = network.access.clone();
        let (arrival, mtu) = (network.arrival.name().to_owned(), network.mtu);
        Self { arrival, mtu, allowed, denied, passthrough, intercept, private_open }
    }
}

impl DiskConfig {
    fn new(disk: &Disk) -> Self {
        let source = match &disk.source {
            Source::Path(path) => absolute(path),
            volume @ Source::Volume(_) => volume.to_string(),
        };
        let Owner { uid, gid } = disk.owner();
        Self { source, guest_path: disk.guest_path.clone(), readonly: !disk.is_writable(), uid, gid }
    }
}

/// The name in `NAME=VALUE`.
fn name(variable: &str) -> String {
    variable.split_once('=').map_or(variable, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::FileWatch;
    use crate::ImageOverrides;

    #[test]
    fn values_of_variables_are_not_kept() {
        let spec = Spec {
            image: "busybox".into(),
            pull: images::Pull::Missing,
            kernel: String::new(),
            machine: policy::machine::WantedMachine::Auto,
            resources: policy::resources::WantedResources { cpus: 0.5, memory_mb: 512, disk_size_mb: 5120 },
            network: Network {
                arrival: Arrival::None,
                access: Access { denied: vec!["evil.test".into()], ..Access::default() },
                add_hosts: vec![("db".into(), [10, 0, 0, 1].into())],
                nameservers: vec![[9, 9, 9, 9].into()],
                ..Network::default()
            },
            disks: policy::disks::specs(&["@data:/data:gid=8", "a.ext4:/a:ro"]).unwrap(),
            mounts: ["src:/work/src:ro,gid=8,cache=none", ":/work/tmp:memory"]
                .map(|text| policy::mounts::volume(text, "").unwrap())
                .to_vec(),
            masks: policy::files::WantedMasks::default(),
            watch: FileWatch::default(),
            env: vec![("API_KEY".into(), "s3cr3t".into())],
            entrypoint: None,
            image_config: ImageOverrides {
                env: Some(vec!["TOKEN=s3cr3t".into()]),
                workspace: "/work".into(),
                ..Default::default()
            },
            privileged: false,
            launch_entrypoint: true,
            init: true,
            unenforced_timeout_seconds: Some(300.0),
            time_limit: Some(crate::TimeLimit::FromReady(Duration::from_millis(4500))),
            keep: true,
            grace: Duration::ZERO,
        };
        let host = policy::resources::Host { cpus: 4, memory_mb: 8192, file_mb: None };
        let grant = policy::resources::grant(&spec.resources, &host).unwrap();
        let config = Config::new(&spec, grant);
        assert_eq!(config.env, ["API_KEY"]);
        assert_eq!((config.workspace.as_str(), config.time_limit_seconds), ("/work", Some(4.5)));
        assert_eq!(config.timeout_seconds, Some(300.0));
        assert!(config.no_network && config.launch_entrypoint && config.init && config.keep);
        let NetworkConfig { arrival, mtu, denied, .. } = &config.network;
        assert_eq!(
            (arrival.as_str(), *mtu, denied.as_slice()),
            ("none", 1500, &["evil.test".to_owned()][..])
        );
        let (source, guest_path) = ("@data".into(), "/data".into());
        assert_eq!(
            config.disks[0],
            DiskConfig { source, guest_path, readonly: false, uid: None, gid: Some(8) }
        );
        assert!(config.disks[1].source.starts_with('/') && config.disks[1].readonly);
        let MountConfig { guest_path, kind, host_path, readonly, uid, gid, cache, added } = &config.mounts[0];
        assert!(!added);
        assert_eq!((guest_path.as_str(), kind.as_str(), *readonly), ("/work/src", "host_fs", true));
        assert!(host_path.as_ref().is_some_and(|path| path.starts_with('/') && path.ends_with("/src")));
        assert_eq!((*uid, *gid, cache.as_deref()), (None, Some(8), Some("none")));
        assert_eq!(config.mounts[1].cache, None);
        assert_eq!((config.mounts[1].kind.as_str(), config.mounts[1].host_path.as_ref()), ("memory", None));
        assert_eq!(config.image_env.as_deref(), Some(&["TOKEN".to_owned()][..]));
        let stored = serde_json::to_string(&config).unwrap();
        assert!(!stored.contains("s3cr3t"), "{stored}");
        assert_eq!(serde_json::from_str::<Config>(&stored).unwrap(), config);
        // A row of an older release has fewer members.
        assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
        let old: Config = serde_json::from_str(r#"{"timeout_seconds":300}"#).unwrap();
        assert_eq!(old.timeout_seconds, Some(300.0));
    }
}
