//! The parameters of `create`, checked and turned into the sandbox's own terms.
//!
//! Checks come in the order image, id, network, vfs; valid parameters for parts that are not built yet are refused by
//! name after that. Pure. Not here: facts about the host, such as its number of CPUs.

use std::collections::BTreeMap;
use std::time::Duration;

use policy::disks::{Disk, Owner};
use policy::files::{WantedMasks, WantedRule};
use policy::machine::WantedMachine;
use policy::mounts::{self, WantedMount};
use policy::names;
use policy::network::{Member, Network as Checked, WantedNetwork, Wrong};
use policy::resources::WantedResources;
use sandbox::{DEFAULT_GRACE, FileWatch, ImageOverrides, Spec, TimeLimit};
use wire::rpc::{
    CreateParams, DirectMount, ExtraDisk, FileRule, HostMapping, Mount, Network, Vfs, VfsInterception,
};

use super::Result;
use crate::failure::Failure;

/// Default of `resources.cpus`.
const CPUS: f64 = 1.0;

/// Default of `resources.memory_mb`.
const MEMORY_MB: u64 = 512;

/// Default of `resources.disk_size_mb`.
const DISK_SIZE_MB: u64 = 5120;

/// Checks the parameters, and turns them into a specification.
pub(crate) fn plan(mut params: CreateParams, machine: WantedMachine) -> Result<Spec> {
    let image = params.image.filter(|image| !image.is_empty());
    let image = image.ok_or_else(|| Failure::params("image is required (e.g., alpine:latest)"))?;
    if params.id.is_some_and(|id| !id.is_empty()) {
        return Err(Failure::params("id is internal-only and cannot be set"));
    }
    let network = params.network.unwrap_or_else(default_network);
    let checked = check_network(&network)?;
    let (workspace, mounts) = check_vfs(params.vfs.as_ref())?;
    let interception = params.vfs.as_mut().and_then(|vfs| vfs.interception.take());
    let watch = check_interception(interception)?;
    let env = variables(params.env)?;
    let image_config = params.image_config.unwrap_or_default();
    let overrides = ImageOverrides {
        user: image_config.user.unwrap_or_default(),
        working_dir: image_config.working_dir.unwrap_or_default(),
        workspace: workspace.unwrap_or_default(),
        cmd: image_config.cmd,
        env: image_config
            .env
            .map(|env| variables(Some(env)))
            .transpose()?
            .map(|env| env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
    };
    not_built_yet(&network)?;
    let disks = disks(params.extra_disks.unwrap_or_default())?;

    let resources = params.resources.unwrap_or_default();
    let positive =
        |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
    // A limit that no clock can hold is none.
    let time_limit = resources.time_limit_seconds.filter(|seconds| *seconds > 0.0);
    let time_limit = time_limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(Spec {
        image,
        pull: images::Pull::Missing,
        kernel: params.kernel.and_then(|kernel| kernel.reference).unwrap_or_default(),
        machine,
        resources: WantedResources {
            cpus: resources.cpus.filter(|cpus| *cpus > 0.0).unwrap_or(CPUS),
            memory_mb: positive(resources.memory_mb).unwrap_or(MEMORY_MB),
            disk_size_mb: positive(resources.disk_size_mb).unwrap_or(DISK_SIZE_MB),
        },
        disks,
        mounts,
        masks: WantedMasks::default(),
        watch,
        network: checked,
        env,
        entrypoint: image_config.entrypoint,
        image_config: overrides,
        privileged: params.privileged.unwrap_or_default(),
        launch_entrypoint: params.launch_entrypoint.unwrap_or_default(),
        init: params.init.unwrap_or_default(),
        unenforced_timeout_seconds: resources.timeout_seconds.filter(|seconds| *seconds > 0.0),
        time_limit: time_limit.map(TimeLimit::FromReady),
        keep: true,
        grace: DEFAULT_GRACE,
    })
}

fn default_network() -> Network {
    Network { block_private_ips: Some(true), ..Network::default() }
}

fn invalid(what: impl std::fmt::Display) -> Failure {
    Failure::params(format!("invalid configuration: {what}"))
}

fn check_network(network: &Network) -> Result<Checked> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let secrets = network.secrets.iter().flatten();
    let placeholder = |secret: &Option<wire::rpc::Secret>| {
        secret.as_ref().and_then(|secret| secret.placeholder.clone()).unwrap_or_default()
    };
    // A host with a colon could shift the border between the two.
    let mapping = |mapping: &HostMapping| format!("{}:{}", text(&mapping.host), text(&mapping.ip));
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let arrival = network.arrival.as_deref().filter(|arrival| !arrival.is_empty());
    let arrival = arrival.map(str::parse).transpose();
    let request = WantedNetwork {
        arrival: arrival.map_err(|wrong| invalid(format!("network.arrival: {wrong}")))?.unwrap_or_default(),
        no_network: network.no_network == Some(true),
        allowed_hosts: list(&network.allowed_hosts),
        denied_hosts: list(&network.denied_hosts),
        passthrough: list(&network.passthrough_hosts),
        private_open: network.block_private_ips != Some(true),
        placeholders: secrets.map(|(name, secret)| (name.clone(), placeholder(secret))).collect(),
        intercept: network.intercept == Some(true),
        rules: network.interception.is_some(),
        add_hosts: network.add_hosts.iter().flatten().map(mapping).collect(),
        dns_servers: list(&network.dns_servers),
        hostname: network.hostname.clone().filter(|name| !name.is_empty()),
        mtu: network.mtu.filter(|mtu| *mtu != 0),
    };
    policy::network::check(&request).map_err(|error| {
        let member = member(error.member);
        match error.wrong {
            Wrong::NoNetwork => invalid(format!("network.no_network cannot be combined with {member}")),
            Wrong::Size => invalid(format!("{member} {}", error.wrong)),
            Wrong::NotBuilt(_) => Failure::vm(format!("{member} = {}", error.wrong)),
            wrong => invalid(format!("{member}: {wrong}")),
        }
    })
}

/// The wire's name of a network's member.
fn member(member: Member) -> &'static str {
    match member {
        Member::Arrival => "network.arrival",
        Member::AllowedHosts => "network.allowed_hosts",
        Member::DeniedHosts => "network.denied_hosts",
        Member::Passthrough => "network.passthrough_hosts",
        Member::Secrets => "network.secrets",
        Member::Intercept => "network.intercept",
        Member::Rules => "network.interception",
        Member::AddHosts => "network.add_hosts",
        Member::DnsServers => "network.dns_servers",
        Member::Hostname => "network.hostname",
        Member::Mtu => "network.mtu",
    }
}

/// The workspace, if there is to be one, and the mounts.
fn check_vfs(vfs: Option<&Vfs>) -> Result<(Option<String>, Vec<mounts::Mount>)> {
    let Some(vfs) = vfs else { return Ok((None, Vec::new())) };
    let mounts = vfs.mounts.iter().flatten().filter_map(|(path, mount)| Some((path, mount.clone()?)));
    let direct = vfs.direct_mounts.iter().flatten();
    let direct = direct.filter_map(|(path, mount)| Some((path, of_the_host(mount.as_ref()?))));
    let wanted: Vec<(&String, Mount)> = mounts.chain(direct).collect();
    let has_mounts = !wanted.is_empty();
    if vfs.interception.is_some() && !has_mounts {
        return Err(invalid("vfs.interception requires at least one vfs.mounts entry"));
    }
    let workspace = mounts::workspace(vfs.workspace.as_deref().unwrap_or_default(), has_mounts)
        .map_err(|error| invalid(format!("vfs.workspace: {error}")))?;
    let mounts = wanted.iter().map(|(path, mount)| check_mount(path, mount)).collect::<Result<Vec<_>>>()?;
    mounts::check(&mounts, &[]).map_err(invalid)?;
    Ok((workspace, mounts))
}

/// A direct mount, in the words of all others.
fn of_the_host(direct: &DirectMount) -> Mount {
    let DirectMount { host_path, readonly } = direct.clone();
    Mount { kind: Some("host_fs".to_owned()), host_path, readonly, ..Mount::default() }
}

/// Rules for files, and whether operations are told: with any rules they are, as in the 0.2 releases.
fn check_interception(interception: Option<VfsInterception>) -> Result<FileWatch> {
    let Some(interception) = interception else { return Ok(FileWatch::default()) };
    let rule = |rule: FileRule| WantedRule {
        name: rule.name.unwrap_or_default(),
        phase: rule.phase.unwrap_or_default(),
        ops: rule.ops.unwrap_or_default(),
        path: rule.path.unwrap_or_default(),
        action: rule.action.unwrap_or_default(),
    };
    let rules: Vec<_> = interception.rules.into_iter().flatten().map(rule).collect();
    let events = interception.emit_events == Some(true) || !rules.is_empty();
    policy::files::Rules::new(&rules).map_err(|error| invalid(format!("vfs.interception.{error}")))?;
    Ok(FileWatch { rules, events })
}

/// A mount. A host path that is not as the mount's kind needs it counts as a fault of the sandbox, as in the 0.2 releases.
pub(crate) fn check_mount(guest_path: &str, mount: &Mount) -> Result<mounts::Mount> {
    let wanted = WantedMount {
        guest_path,
        kind: mount.kind.as_deref().unwrap_or_default(),
        host_path: mount.host_path.as_deref().unwrap_or_default(),
        readonly: mount.readonly.unwrap_or_default(),
        owner: Owner { uid: mount.owner_uid, gid: mount.owner_gid },
        caching: mount.cache.as_deref().unwrap_or_default(),
    };
    if wanted.kind == "overlay" && (mount.upper.is_some() || mount.lower.is_some()) {
        return Err(Failure::vm(format!(
            "{guest_path}: overlay mounts have no upper and lower of their own"
        )));
    }
    let masks = WantedMasks {
        hidden: mount.mask.clone().unwrap_or_default(),
        readonly: mount.mask_readonly.clone().unwrap_or_default(),
        protect: mount.protect.unwrap_or_default(),
    };
    let checked = mounts::Mount::new(&wanted).and_then(|mount| Ok(mount.masked(&masks)?));
    checked.map_err(|wrong| match wrong {
        mounts::Wrong::Path(error) => invalid(error),
        mounts::Wrong::NoSource => {
            Failure::vm(format!("{guest_path}: host_path is required for {} mounts", wanted.kind))
        }
        wrong => invalid(format!("{guest_path}: {wrong}")),
    })
}

/// Disks of the host. A fault of theirs counts as one of the sandbox, not of the parameters.
fn disks(extra: Vec<ExtraDisk>) -> Result<Vec<Disk>> {
    let disk = |disk: ExtraDisk| {
        let (source, path) = (disk.host_path.unwrap_or_default(), disk.guest_mount.unwrap_or_default());
        Disk::new(&source, &path, disk.readonly.unwrap_or_default(), disk.owner_uid, disk.owner_gid)
    };
    let disks = extra.into_iter().map(disk).collect::<std::result::Result<Vec<_>, _>>();
    disks
        .and_then(|disks| policy::disks::check(&disks).map(|()| disks))
        .map_err(|error| Failure::vm(error.to_string()))
}

/// Refuses parameters for parts that are not built yet, by name.
fn not_built_yet(network: &Network) -> Result<()> {
    let parts = [
        ("network.secrets", network.secrets.as_ref().is_some_and(|secrets| !secrets.is_empty())),
        ("network.intercept", network.intercept == Some(true)),
        ("network.interception", network.interception.is_some()),
    ];
    match parts.iter().find(|(_, given)| *given) {
        Some((part, _)) => Err(Failure::vm(format!("{part}: not built yet"))),
        None => Ok(()),
    }
}

/// Variables for programs; those that are null are left out.
pub(super) fn variables(env: Option<BTreeMap<String, Option<String>>>) -> Result<Vec<(String, String)>> {
    let given = env.into_iter().flatten().filter_map(|(name, value)| Some((name, value?)));
    given
        .map(|(name, value)| match names::env(&name, &value) {
            Ok(()) => Ok((name, value)),
            Err(error) => Err(invalid(error)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use policy::network::Arrival;
    use serde_json::{Value, json};
    use wire::rpc::ErrorCode;

    use super::*;

    fn plan_of(params: Value) -> Result<Spec> {
        plan(serde_json::from_value(params).unwrap(), WantedMachine::Auto)
    }

    fn with(member: &str, value: Value) -> Result<Spec> {
        let mut params = json!({"image": "alpine"});
        params[member] = value;
        plan_of(params)
    }

    #[test]
    fn defaults() {
        for params in [
            json!({"image": "a"}),
            json!({"image": "a", "network": null, "resources": {"cpus": 0, "memory_mb": -1}}),
        ] {
            let spec = plan_of(params).unwrap();
            let resources = WantedResources { cpus: 1.0, memory_mb: 512, disk_size_mb: 5120 };
            assert_eq!((spec.resources, spec.time_limit, spec.mounts), (resources, None, vec![]));
            assert_eq!(spec.image_config.workspace, "");
            assert!(spec.keep && !spec.privileged);
            assert!(!spec.launch_entrypoint && !spec.init);
            assert_eq!((spec.entrypoint, spec.network.hostname), (None, None));
        }
    }

    #[test]
    fn everything_that_is_there_arrives() {
        let spec = plan_of(json!({
            "image": "alpine", "id": "", "privileged": true, "kernel": {"ref": "file:///k"}, "launch_entrypoint": true,
            "init": true, "resources": {"cpus": 0.5, "memory_mb": 256, "disk_size_mb": 100, "timeout_seconds": 300, "time_limit_seconds": 1.5},
            "network": {"allowed_hosts": [], "block_private_ips": true, "hostname": "box",
                        "add_hosts": [{"host": "db", "ip": "10.0.0.1"}, {"host": "six", "ip": "fe80::1"}]},
            "vfs": {"workspace": "/work"}, "env": {"A": "1", "B": null},
            "image_config": {"user": "1000", "working_dir": "", "entrypoint": ["sleep"], "cmd": [], "env": {"X": "y"}},
        }))
        .unwrap();
        assert_eq!(spec.resources, WantedResources { cpus: 0.5, memory_mb: 256, disk_size_mb: 100 });
        let limit = Some(TimeLimit::FromReady(Duration::from_millis(1500)));
        assert_eq!((spec.time_limit, spec.unenforced_timeout_seconds), (limit, Some(300.0)));
        assert_eq!(spec.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(
            spec.network.add_hosts,
            [("db".to_owned(), "10.0.0.1".parse().unwrap()), ("six".to_owned(), "fe80::1".parse().unwrap())]
        );
        assert_eq!((spec.kernel.as_str(), spec.network.hostname.as_deref()), ("file:///k", Some("box")));
        assert_eq!(spec.entrypoint, Some(vec!["sleep".to_owned()]));
        assert_eq!(
            spec.image_config,
            ImageOverrides {
                user: "1000".into(),
                working_dir: String::new(),
                workspace: "/work".into(),
                cmd: Some(vec![]),
                env: Some(vec!["X=y".into()]),
            }
        );
        assert!(spec.launch_entrypoint && spec.init && spec.privileged);
    }

    #[test]
    fn extra_disks() {
        let disks = json!([
            {"host_path": "@data", "guest_mount": "/data/", "owner_uid": 0, "owner_gid": null},
            {"host_path": "/a.ext4", "guest_mount": "/a", "readonly": true},
        ]);
        let expected = policy::disks::specs(&["@data:/data:uid=0", "/a.ext4:/a:ro"]).unwrap();
        assert_eq!(with("extra_disks", disks).unwrap().disks, expected);
        for (disk, why) in [
            (json!({}), "\":\": no image is named"),
            (json!({"host_path": "a"}), "\"a:\": \"\" is no place for a disk"),
            (json!({"host_path": "a", "guest_mount": "/proc/a"}), "\"a:/proc/a\": /proc is the kernel's own"),
            (
                json!({"host_path": "a", "guest_mount": "/a", "readonly": true, "owner_gid": 1}),
                "\"a:/a\": uid and gid need a writable disk",
            ),
        ] {
            let failure = with("extra_disks", json!([disk])).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Vm, "{failure:?}");
            let why = format!("invalid disk mount {why}");
            assert!(failure.message.starts_with(&why), "{failure:?} instead of {why}");
        }
        let same = json!([{"host_path": "a", "guest_mount": "/a"}, {"host_path": "b", "guest_mount": "/a"}]);
        assert!(with("extra_disks", same).unwrap_err().message.ends_with("/a has another disk already"));
    }

    #[test]
    fn mounts_of_every_type() {
        let texts = |vfs: Value| {
            let spec = with("vfs", vfs).unwrap();
            let mounts: Vec<String> = spec.mounts.iter().map(ToString::to_string).collect();
            (spec.image_config.workspace, mounts)
        };
        let vfs = json!({"mounts": {
            "/workspace": null, "/workspace/a": {"type": "host_fs", "host_path": "/a", "owner_uid": 0, "owner_gid": null},
            "/workspace/a/b/": {"type": "memory", "upper": {}}, "/c": {"type": "real_fs", "host_path": "c", "readonly": true},
            "/d": {"type": "overlay", "host_path": "/d"}, "/e": {"type": "", "readonly": false, "host_path": ""},
        }});
        let expected = [
            "c:/c:ro",
            "/d:/d:overlay",
            ":/e:memory",
            "/a:/workspace/a:host_fs,uid=0",
            ":/workspace/a/b:memory",
        ];
        assert_eq!(texts(vfs), ("/workspace".to_owned(), expected.map(str::to_owned).to_vec()));
        // The largest id is one that the documents name.
        let largest = json!({"type": "host_fs", "host_path": "/a", "owner_uid": u32::MAX});
        let spec = with("vfs", json!({"workspace": "/w/", "mounts": {"/a": largest}})).unwrap();
        assert_eq!(
            (spec.image_config.workspace.as_str(), spec.mounts[0].owner().uid),
            ("/w", Some(u32::MAX))
        );
        assert_eq!(texts(json!({"mounts": {"/a": null}, "workspace": ""})), (String::new(), vec![]));
        let cached = json!({"type": "host_fs", "host_path": "/a", "cache": "always"});
        let vfs = json!({"mounts": {"/a": cached}, "direct_mounts": {
            "/b": {"host_path": "/b", "readonly": true}, "/c/": {"host_path": "c"}, "/d": null,
        }});
        let expected = ["/a:/a:host_fs,cache=always", "/b:/b:ro", "c:/c:host_fs"];
        assert_eq!(texts(vfs), ("/workspace".to_owned(), expected.map(str::to_owned).to_vec()));
    }

    #[test]
    fn interception_and_masks() {
        let watch = |interception: Value| {
            with("vfs", json!({"mounts": {"/a": {}}, "interception": interception})).map(|spec| spec.watch)
        };
        assert_eq!(watch(json!({})).unwrap(), FileWatch::default());
        assert!(watch(json!({"emit_events": true})).unwrap().events);
        let rules = json!([
            {"name": null, "action": "block", "ops": ["write", "read_dir"], "path": "/a/*", "timeout_ms": 5},
            {"action": "allow", "phase": "after", "ops": null},
        ]);
        let told = watch(json!({ "rules": rules })).unwrap();
        assert!(told.events && told.rules.len() == 2);
        assert_eq!((told.rules[0].path.as_str(), told.rules[0].ops.len()), ("/a/*", 2));
        for (rule, why) in [
            (json!({"action": "blok"}), "rules[0]: unknown action \"blok\"; there are allow, block"),
            (
                json!({"action": "mutate_write", "name": "n"}),
                "rules[0] (\"n\"): unknown action \"mutate_write\"",
            ),
            (json!({"action": "block", "ops": ["wriet"]}), "rules[0]: unknown operation \"wriet\""),
            (json!({"action": "block", "path": "/a/["}), "rules[0]: path \"/a/[\": its [...] is empty"),
            (json!({"action": "block", "phase": "after"}), "rules[0]: phase \"after\" cannot block"),
        ] {
            let failure = watch(json!({"rules": [rule]})).unwrap_err();
            assert_eq!(failure.code, ErrorCode::InvalidParams);
            let expected = format!("invalid configuration: vfs.interception.{why}");
            assert!(failure.message.starts_with(&expected), "{}", failure.message);
        }
        let masked = json!({"mask": [".env*"], "mask_readonly": ["/x"], "protect": true});
        let spec = with("vfs", json!({"mounts": {"/a": masked}})).unwrap();
        assert_eq!(spec.mounts[0].to_string(), ":/a:memory,mask=.env*,mask-ro=/x,protect");
        let failure = with("vfs", json!({"mounts": {"/a": {"mask": ["a/../b"]}}})).unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidParams);
        assert!(failure.message.starts_with("invalid configuration: /a: mask \"a/../b\" matches nothing"));
    }

    #[test]
    fn a_path_of_the_host_that_does_not_fit_is_no_fault_of_the_parameters() {
        for (mount, message) in [
            (json!({"type": "overlay"}), "/a: host_path is required for overlay mounts"),
            (json!({"type": "host_fs", "host_path": ""}), "/a: host_path is required for host_fs mounts"),
            (
                json!({"type": "overlay", "host_path": "/x", "upper": {}}),
                "/a: overlay mounts have no upper and lower of their own",
            ),
            (
                json!({"type": "overlay", "host_path": "/x", "lower": "/y"}),
                "/a: overlay mounts have no upper and lower of their own",
            ),
        ] {
            let failure = with("vfs", json!({"mounts": {"/a": mount}})).unwrap_err();
            assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::Vm, message));
        }
    }

    #[test]
    fn wrong_parameters_in_their_order() {
        let wrong_network = json!({"no_network": true, "intercept": true});
        let wrong_vfs = json!({"interception": {}});
        for (params, message) in [
            (json!({"id": "x", "network": wrong_network}), "image is required (e.g., alpine:latest)"),
            (json!({"image": "", "id": "x"}), "image is required (e.g., alpine:latest)"),
            (
                json!({"image": "a", "id": "x", "network": wrong_network}),
                "id is internal-only and cannot be set",
            ),
            (
                json!({"image": "a", "network": wrong_network, "vfs": wrong_vfs}),
                "invalid configuration: network.no_network cannot be combined with network.intercept",
            ),
            (
                json!({"image": "a", "vfs": wrong_vfs, "env": {"": ""}}),
                "invalid configuration: vfs.interception requires at least one vfs.mounts entry",
            ),
            (
                json!({"image": "a", "env": {"A=B": ""}}),
                "invalid configuration: invalid environment variable \"A=B\"",
            ),
        ] {
            let failure = plan_of(params).unwrap_err();
            assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::InvalidParams, message));
        }
    }

    #[test]
    fn wrong_networks_and_mounts() {
        let no_network = |member: &str, value: Value| {
            let mut network = json!({"no_network": true});
            network[member] = value;
            ("network", network)
        };
        let mount = |path: &str, mount: Value| ("vfs", json!({"mounts": {path: mount}}));
        for ((member, value), message) in [
            (no_network("allowed_hosts", json!(["a"])), "combined with network.allowed_hosts"),
            (no_network("secrets", json!({"A": {}})), "combined with network.secrets"),
            (no_network("interception", json!({})), "combined with network.interception"),
            (no_network("denied_hosts", json!(["a"])), "combined with network.denied_hosts"),
            (no_network("arrival", json!("tap")), "combined with network.arrival"),
            (
                ("network", json!({"arrival": "slirp"})),
                "network.arrival: \"slirp\" is none of auto, tap, nat, none",
            ),
            (
                ("network", json!({"passthrough_hosts": ["GET a"]})),
                "network.passthrough_hosts: invalid host pattern \"GET a\"",
            ),
            (
                ("network", json!({"add_hosts": [{"host": "a b", "ip": "1.2.3.4"}]})),
                "invalid add-host mapping",
            ),
            (("network", json!({"add_hosts": [{"host": "a"}]})), "invalid add-host mapping"),
            (
                ("network", json!({"allowed_hosts": ["a", "http://b"]})),
                "network.allowed_hosts: invalid host pattern \"http://b\": is a URL",
            ),
            (("network", json!({"add_hosts": [{"host": "a:1", "ip": "::1"}]})), "invalid add-host mapping"),
            (("network", json!({"hostname": "-"})), "network.hostname: invalid hostname"),
            (("network", json!({"dns_servers": ["dns.example"]})), "no IP address"),
            (("network", json!({"mtu": 65_536})), "network.mtu"),
            (
                ("network", json!({"secrets": {"A": {"placeholder": "xx"}, "B": {"placeholder": "x"}}})),
                "the placeholders of A and B overlap",
            ),
            (("vfs", json!({"workspace": "work"})), "vfs.workspace: guest path must be absolute"),
            (("vfs", json!({"workspace": "/"})), "vfs.workspace: invalid guest mount path"),
            (("vfs", json!({"workspace": "/a b"})), "vfs.workspace: invalid guest mount path"),
            (("vfs", json!({"workspace": "/a/../b"})), "vfs.workspace: invalid guest mount path"),
            (("vfs", json!({"workspace": "/sys/a"})), "vfs.workspace: /sys is the kernel's own"),
            (mount("a", json!({})), "guest path must be absolute: \"a\""),
            (mount("/a/../b", json!({})), "invalid guest mount path \"/a/../b\""),
            (mount("/proc/a", json!({})), "/proc is the kernel's own"),
            (mount("/a", json!({"type": "nfs"})), "/a: unknown mount type \"nfs\""),
            (mount("/a", json!({"host_path": "/x"})), "/a: a memory mount has no path of the host"),
            (mount("/a", json!({"readonly": true})), "/a: a memory mount cannot be read-only"),
            (
                mount("/a", json!({"type": "overlay", "host_path": "/x", "owner_gid": 7})),
                "/a: owner_uid/owner_gid are only supported for host_fs mounts",
            ),
            (("vfs", json!({"mounts": {"/a": {}, "/a/": {}}})), "something else is mounted at /a"),
            (
                ("vfs", json!({"mounts": {"/a": {}}, "direct_mounts": {"/a": {"host_path": "/x"}}})),
                "something else is mounted at /a",
            ),
            (mount("/a", json!({"cache": "auto"})), "/a: cache= is only supported for host_fs mounts"),
            (
                mount("/a", json!({"type": "host_fs", "host_path": "/x", "cache": "never"})),
                "/a: unknown cache mode \"never\"; there are none, auto, always",
            ),
            (
                mount("/a", json!({"owner_uid": 0})),
                "/a: owner_uid/owner_gid are only supported for host_fs mounts",
            ),
        ] {
            let failure = with(member, value.clone()).unwrap_err();
            assert_eq!(failure.code, ErrorCode::InvalidParams, "{value}");
            assert!(failure.message.starts_with("invalid configuration: "), "{}", failure.message);
            assert!(failure.message.contains(message), "{}", failure.message);
        }
    }

    #[test]
    fn what_is_not_built_is_named() {
        for (member, value, part) in [
            (
                "network",
                json!({"secrets": {"A": {"value": "x"}}, "block_private_ips": true}),
                "network.secrets",
            ),
            ("network", json!({"intercept": true}), "network.intercept"),
            ("network", json!({"interception": {}}), "network.interception"),
            ("network", json!({"arrival": "nat"}), "network.arrival = nat"),
        ] {
            let failure = with(member, value).unwrap_err();
            assert_eq!((failure.code, failure.message), (ErrorCode::Vm, format!("{part}: not built yet")));
        }
    }

    #[test]
    fn networks_arrive() {
        let network = |value| with("network", value).unwrap().network;
        let all = network(
            json!({"arrival": "tap", "allowed_hosts": ["*.a.test", "GET b.test/x"], "denied_hosts": ["c.a.test"],
            "passthrough_hosts": ["d.a.test"], "block_private_ips": true, "dns_servers": ["1.1.1.1"], "mtu": 1400}),
        );
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(all.access.allowed, texts(&["*.a.test", "GET b.test/x"]));
        assert_eq!((all.access.denied, all.access.passthrough), (texts(&["c.a.test"]), texts(&["d.a.test"])));
        assert_eq!((all.arrival, all.mtu, all.nameservers.len()), (Arrival::Tap, 1400, 1));
        assert!(!all.access.private_open && !all.access.intercept);
        let absent = plan_of(json!({"image": "a"})).unwrap().network;
        assert_eq!((absent.arrival, absent.access.private_open, absent.mtu), (Arrival::Auto, false, 1500));
        for value in
            [json!({}), json!({"block_private_ips": false, "mtu": 0, "arrival": "", "allowed_hosts": null})]
        {
            let network = network(value);
            assert!(network.access.private_open && !network.is_needed());
        }
        let none = json!({"no_network": true, "dns_servers": ["1.1.1.1"], "hostname": "h"});
        assert_eq!(network(none).arrival, Arrival::None);
        assert_eq!(network(json!({"arrival": "none"})).arrival, Arrival::None);
    }
}
