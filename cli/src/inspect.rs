//! `matchlock get` and `matchlock inspect`: the record of one sandbox, as JSON.
//!
//! Not here: the records themselves (`sandbox`).

use std::collections::BTreeMap;

use sandbox::{Config, DiskConfig, Home, Id, MountConfig, Record, Records, RecordsError, Version};
use wire::state::{
    CleanupStep, Inspection, Lifecycle, LifecycleResources, StepStatus, VmConfig, VmDetails, VmDisk, VmHost,
    VmImageConfig, VmKernel, VmMount, VmNetwork, VmResources, VmVfs,
};

use crate::args::IdsArgs;
use crate::{say, state, table};

/// Replaces a value.
const MASK: &str = "***";

/// Prints a sandbox's record.
pub(crate) fn get(args: &IdsArgs, home: &Home) -> anyhow::Result<u8> {
    let records = state::open(home)?;
    state::each(&args.ids, "VM ID required", |id| say::json(&details(&record(&records, id)?)))
}

/// Prints a sandbox's record and its history.
pub(crate) fn inspect(args: &IdsArgs, home: &Home) -> anyhow::Result<u8> {
    let records = state::open(home)?;
    state::each(&args.ids, "VM ID required", |id| {
        let record = record(&records, id)?;
        let history = history(home, &record, records.history(&record.id)?);
        let lifecycle = history.last().cloned();
        say::json(&Inspection { vm: details(&record), lifecycle, history })
    })
}

fn record(records: &Records, id: &Id) -> anyhow::Result<Record> {
    Ok(records.get(id)?.ok_or_else(|| RecordsError::UnknownVm(id.to_string()))?)
}

fn details(record: &Record) -> VmDetails {
    VmDetails {
        id: record.id.to_string(),
        pid: record.pid,
        status: record.status.name().to_owned(),
        image: record.image.clone(),
        created_at: table::from_record(&record.created_at),
        config: config(&record.config),
    }
}

fn config(config: &Config) -> VmConfig {
    let hosts = config.add_hosts.iter();
    VmConfig {
        image: config.image.clone(),
        privileged: config.privileged,
        launch_entrypoint: config.launch_entrypoint,
        init: config.init,
        kernel: VmKernel { reference: config.kernel.clone() },
        resources: VmResources {
            cpus: config.cpus,
            memory_mb: config.memory_mb,
            disk_size_mb: config.disk_size_mb,
            timeout_seconds: config.timeout_seconds,
            time_limit_seconds: config.time_limit_seconds,
        },
        extra_disks: config.disks.iter().map(disk).collect(),
        network: VmNetwork {
            no_network: config.no_network,
            arrival: config.network.arrival.clone(),
            allowed_hosts: config.network.allowed.clone(),
            denied_hosts: config.network.denied.clone(),
            passthrough_hosts: config.network.passthrough.clone(),
            block_private_ips: !config.network.private_open,
            hostname: config.hostname.clone(),
            add_hosts: hosts.map(|(host, ip)| VmHost { host: host.clone(), ip: ip.to_string() }).collect(),
            dns_servers: config.nameservers.iter().map(ToString::to_string).collect(),
        },
        vfs: vfs(config),
        env: masked(&config.env),
        env_names: config.env.clone(),
        image_config: VmImageConfig {
            user: config.user.clone(),
            working_dir: config.working_dir.clone(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.image_env.as_deref().map(masked),
            env_names: config.image_env.clone(),
        },
    }
}

/// Each variable with a mask in place of its value, which is not recorded.
fn masked(names: &[String]) -> BTreeMap<String, &'static str> {
    names.iter().map(|name| (name.clone(), MASK)).collect()
}

fn disk(disk: &DiskConfig) -> VmDisk {
    VmDisk {
        host_path: disk.source.clone(),
        guest_mount: disk.guest_path.clone(),
        readonly: disk.readonly,
        owner_uid: disk.uid,
        owner_gid: disk.gid,
    }
}

/// A sandbox's directories beside its image's.
pub(crate) fn vfs(config: &Config) -> VmVfs {
    let mounts = config.mounts.iter().map(|config| (config.guest_path.clone(), mount(config)));
    VmVfs { workspace: config.workspace.clone(), mounts: mounts.collect() }
}

/// A mount.
pub(crate) fn mount(mount: &MountConfig) -> VmMount {
    VmMount {
        kind: mount.kind.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        owner_uid: mount.uid,
        owner_gid: mount.gid,
        cache: mount.cache.clone().filter(|cache| cache != "auto"),
        added: mount.added,
    }
}

/// The versions, each with the facts that earlier ones recorded.
fn history(home: &Home, record: &Record, versions: Vec<Version>) -> Vec<Lifecycle> {
    let mut last_error = None;
    let mut cleanup = BTreeMap::new();
    let resources = LifecycleResources {
        state_dir: home.vm_directory(&record.id).display().to_string(),
        workspace: record.config.workspace.clone(),
    };
    let version = |version: Version| {
        last_error = version.last_error.or(last_error.take());
        cleanup.extend(version.cleanup.into_iter().map(|step| {
            let status = if step.error.is_none() { StepStatus::Ok } else { StepStatus::Error };
            let updated_at = table::rfc3339_ms(step.at_ms);
            (step.name, CleanupStep { status, error: step.error, updated_at })
        }));
        Lifecycle {
            version: version.version,
            vm_id: record.id.to_string(),
            backend: record.backend.clone(),
            phase: version.phase.name().to_owned(),
            updated_at: table::rfc3339_ms(version.at_ms),
            last_error: last_error.clone(),
            resources: resources.clone(),
            cleanup: cleanup.clone(),
        }
    };
    versions.into_iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sandbox::lifecycle::Phase;
    use sandbox::{Status, Step};

    use super::*;

    fn a_record() -> Record {
        Record {
            id: "vm-00000001".parse().unwrap(),
            pid: 0,
            status: Status::Stopped,
            phase: Phase::Cleaned,
            backend: "kvm".into(),
            image: "busybox".into(),
            created_at: "2026-01-02 03:04:05".into(),
            config: Config {
                image: "busybox".into(),
                cpus: 0.5,
                env: vec!["API_KEY".into()],
                image_env: Some(vec!["LANG".into()]),
                timeout_seconds: Some(300.0),
                time_limit_seconds: Some(4.5),
                workspace: "/work".into(),
                mounts: vec![MountConfig {
                    guest_path: "/work/src".into(),
                    kind: "host_fs".into(),
                    host_path: Some("/src".into()),
                    uid: Some(0),
                    cache: Some("none".into()),
                    ..MountConfig::default()
                }],
                no_network: true,
                launch_entrypoint: true,
                ..Config::default()
            },
        }
    }

    #[test]
    fn versions_know_what_came_before() {
        let version = |version, phase, error: Option<&str>, cleanup| Version {
            version,
            phase,
            at_ms: 1_767_323_045_678,
            last_error: error.map(str::to_owned),
            cleanup,
        };
        let step = |name: &str, error: Option<&str>| Step {
            name: name.into(),
            error: error.map(str::to_owned),
            at_ms: 0,
        };
        let versions = vec![
            version(1, Phase::Creating, None, vec![]),
            version(2, Phase::StartFailed, Some("no luck"), vec![step("machine", None)]),
            version(3, Phase::CleanupFailed, None, vec![step("files", Some("stuck"))]),
            version(4, Phase::Cleaned, None, vec![step("files", None)]),
        ];
        let history = history(&Home::at(Path::new("/home/me")), &a_record(), versions);
        assert_eq!(history[0].last_error, None);
        assert_eq!(history[3].last_error.as_deref(), Some("no luck"));
        assert_eq!(history[2].cleanup["files"].error.as_deref(), Some("stuck"));
        assert_eq!(history[3].cleanup["files"].status, StepStatus::Ok);
        let expected = r#"{"version":1,"vm_id":"vm-00000001","backend":"kvm","phase":"creating","updated_at":"2026-01-02T03:04:05.678Z","resources":{"state_dir":"/home/me/.matchlock/vms/vm-00000001","workspace":"/work"},"cleanup":{}}"#;
        assert_eq!(serde_json::to_string(&history[0]).unwrap(), expected);
    }

    #[test]
    fn the_record_as_json() {
        let expected = r#"{"id":"vm-00000001","pid":0,"status":"stopped","image":"busybox","created_at":"2026-01-02T03:04:05Z","config":{"image":"busybox","privileged":false,"launch_entrypoint":true,"init":false,"kernel":{"ref":""},"resources":{"cpus":0.5,"memory_mb":0,"disk_size_mb":0,"timeout_seconds":300.0,"time_limit_seconds":4.5},"extra_disks":[],"network":{"no_network":true,"block_private_ips":true,"add_hosts":[],"dns_servers":[]},"vfs":{"workspace":"/work","mounts":{"/work/src":{"type":"host_fs","host_path":"/src","readonly":false,"owner_uid":0,"cache":"none"}}},"env":{"API_KEY":"***"},"env_names":["API_KEY"],"image_config":{"env":{"LANG":"***"},"env_names":["LANG"]}}}"#;
        assert_eq!(serde_json::to_string(&details(&a_record())).unwrap(), expected);
    }
}
