//! Which crate of the workspace may use which.

use super::{Member, manifests};

/// The layers: a crate, its folder, and the crates of this workspace that it may name in `[dependencies]`. Dependencies
/// point down only: a crate names crates of rows above its own.
const LAYERS: &[(&str, &str, &[&str])] = &[
    // 0: leaves
    ("guest_memory", "hypervisor/memory", &[]),
    ("egress_policy", "policy/egress", &[]),
    ("policy", "policy", &["egress_policy"]),
    ("guest_protocol", "guest/protocol", &[]),
    ("wire", "sdk/wire", &[]),
    ("served", "tests/served", &[]),
    ("skip", "tests/skip", &[]),
    ("fuzzed", "tests/fuzzed", &[]),
    ("share_cases", "tests/cases", &[]),
    ("confinement", "vmm/confinement", &[]),
    ("process", "vmm/process", &["confinement"]),
    ("broker", "vmm/broker", &["confinement", "process"]),
    ("waiting", "runtime/waiting", &["process"]),
    ("web", "runtime/web", &["waiting"]),
    ("debian", "runtime/debian", &["waiting", "web"]),
    ("erofs", "backends/erofs", &[]),
    ("fuse", "backends/fuse", &[]),
    ("changes", "backends/changes", &[]),
    ("modelled", "tests/modelled", &["fuse"]),
    ("overlay", "backends/overlay", &["changes", "fuse", "modelled"]),
    ("rules", "backends/rules", &["fuse", "policy"]),
    ("egress", "network/egress", &["egress_policy"]),
    // 1: devices see guest memory, never a hypervisor or a policy
    ("virtio", "devices/virtio", &["guest_memory"]),
    ("driven", "tests/driven", &["guest_memory"]),
    ("chipset", "devices/chipset", &[]),
    ("vhost_user", "devices/vhost_user", &["guest_memory", "virtio"]),
    ("hypervisor", "hypervisor/core", &["guest_memory"]),
    // 2: back ends of one seam each
    ("hypervisor_kvm", "hypervisor/kvm", &["guest_memory", "hypervisor"]),
    ("disk", "backends/disk", &["guest_memory", "virtio"]),
    ("tap", "network/tap", &["guest_memory", "virtio"]),
    ("arrival", "network/arrival", &["broker", "egress", "process", "tap"]),
    ("outlet", "network/outlet", &["arrival", "broker", "confinement", "egress", "egress_policy", "process"]),
    ("shares", "backends/shares", &["fuse", "guest_memory", "modelled"]),
    ("vhost_backend", "backends/vhost", &["guest_memory", "virtio"]),
    // 3: the only place where hypervisor and devices meet
    ("machine", "vmm/machine", &["broker", "disk", "process", "virtio"]),
    (
        "vmm",
        "vmm/native",
        &[
            "chipset",
            "confinement",
            "guest_memory",
            "hypervisor",
            "hypervisor_kvm",
            "machine",
            "process",
            "tap",
            "vhost_user",
            "virtio",
        ],
    ),
    ("software", "vmm/software", &["confinement", "machine", "process", "vhost_backend", "virtio"]),
    (
        "sharing",
        "vmm/sharing",
        &[
            "confinement",
            "fuse",
            "guest_memory",
            "guest_protocol",
            "machine",
            "overlay",
            "policy",
            "process",
            "rules",
            "shares",
            "vhost_backend",
            "virtio",
        ],
    ),
    // inside the guest: no crate of the host
    ("guest_agent", "guest/agent", &["guest_protocol"]),
    // 4: one sandbox's life
    ("images", "runtime/images", &["debian", "erofs", "waiting"]),
    ("registry", "runtime/registry", &["images", "waiting", "web"]),
    ("kernels", "runtime/kernels", &["debian", "erofs", "images", "machine", "registry", "waiting"]),
    (
        "sandbox",
        "runtime/sandbox",
        &[
            "arrival",
            "broker",
            "changes",
            "disk",
            "guest_memory",
            "guest_protocol",
            "images",
            "kernels",
            "machine",
            "outlet",
            "policy",
            "process",
            "registry",
            "virtio",
            "waiting",
        ],
    ),
    // 5: the crates that programs drive
    ("rpc", "runtime/rpc", &["guest_protocol", "images", "policy", "sandbox", "wire"]),
    // 6: the programs that people run
    (
        "matchlock",
        "cli",
        &[
            "egress_policy",
            "guest_protocol",
            "images",
            "kernels",
            "policy",
            "process",
            "rpc",
            "sandbox",
            "wire",
        ],
    ),
    ("hypervisor_conformance", "tests/hypervisor", &["guest_memory", "hypervisor"]),
    ("blackbox", "tests/blackbox", &[]),
    ("measure", "tests/bench", &["driven", "guest_protocol", "machine", "process", "sandbox"]),
    ("stock_kernel", "tests/stock_kernel", &["kernels"]),
    ("xtask", "xtask", &["served", "skip"]),
];

/// A row of the layer table: a crate, its folder, and the crates of this workspace it may name in `[dependencies]`.
type Layer<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Compares the members with the layer table, in both directions.
pub(super) fn check(members: &[Member]) -> Vec<String> {
    held(LAYERS, members)
}

/// The crate in this folder.
pub(super) fn name(folder: &std::path::Path) -> Option<&'static str> {
    LAYERS.iter().find(|(_, path, _)| folder == std::path::Path::new(path)).map(|(name, ..)| *name)
}

fn held(layers: &[Layer<'_>], members: &[Member]) -> Vec<String> {
    let mut findings = Vec::new();
    for member in
        members.iter().filter(|member| !layers.iter().any(|(_, folder, _)| *folder == member.folder))
    {
        findings.push(format!("{}: not in the layer table of xtask/src/tidy/layers.rs", member.folder));
    }
    for (index, (name, folder, allowed)) in layers.iter().enumerate() {
        let Some(member) = members.iter().find(|member| member.folder == *folder) else {
            findings.push(format!("{folder}: in the layer table, but no member of the workspace"));
            continue;
        };
        if member.name() != *name {
            findings.push(format!("layer table: {folder} is {}, not {name}", member.name()));
        }
        let is_below = |other: &str| layers[..index].iter().any(|(below, ..)| *below == other);
        for upward in allowed.iter().filter(|allowed| !is_below(allowed)) {
            findings.push(format!("layer table: {name} may not point up to {upward}"));
        }
        let used: Vec<&str> = manifests::dependencies(&member.manifest).collect();
        let is_ours = |dependency: &str| layers.iter().any(|(name, ..)| *name == dependency);
        for dependency in used.iter().filter(|used| is_ours(used) && !allowed.contains(used)) {
            findings.push(format!("{folder}/Cargo.toml: {name} may not depend on {dependency}"));
        }
        for unused in allowed.iter().filter(|allowed| !used.contains(allowed)) {
            findings.push(format!("layer table: {name} does not use {unused}: take it from the table"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(folder: &str, manifest: &str) -> Member {
        Member { folder: folder.to_owned(), manifest: manifest.parse().expect("toml") }
    }

    #[test]
    fn table_and_members_hold_each_other() {
        let a = || member("x/a", "[package]\nname = \"a\"\n");
        let b = |manifest: &str| member("x/b", &format!("[package]\nname = \"b\"\n{manifest}"));
        let uses = || b("[target.'cfg(unix)'.dependencies]\na.workspace = true\n");
        let rows: &[Layer<'_>] = &[("a", "x/a", &[]), ("b", "x/b", &["a"])];
        assert_eq!(held(rows, &[a(), uses()]), Vec::<String>::new());
        // a dependency that is not allowed, one that no crate uses, one that points up
        assert_eq!(held(&[("a", "x/a", &[]), ("b", "x/b", &[])], &[a(), uses()]).len(), 1);
        assert_eq!(held(rows, &[a(), b("[dev-dependencies]\na.workspace = true\n")]).len(), 1);
        assert_eq!(held(&[("b", "x/b", &["a"]), ("a", "x/a", &[])], &[a(), uses()]).len(), 1);
        // a row without a member, a member without a row, another name
        assert_eq!(held(rows, &[uses()]).len(), 1);
        assert_eq!(held(rows, &[a(), uses(), member("x/c", "")]).len(), 1);
        assert_eq!(held(&[("c", "x/a", &[])], &[a()]).len(), 1);
    }
}
