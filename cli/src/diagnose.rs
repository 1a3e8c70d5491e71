//! `matchlock diagnose`: the parts of this host that sandboxes need, and remedies for the missing ones.
//!
//! Checks change nothing. Not here: the choice of a machine (`policy`).

use policy::machine::{Choice, HostFacts, KvmDevice, MachineKind, WantedMachine, choose};
use sandbox::host::{Lack, Lacking};
use sandbox::{Home, host};
use wire::CheckStatus::{Fail, Pass, Warn};
use wire::{Check, CheckStatus, Diagnosis};

use crate::args::JsonArgs;
use crate::hint::Hint;
use crate::say::{self, say};

/// This project's programs beside the command line.
const PROGRAMS: [&str; 7] = [
    "matchlock-vmm",
    "matchlock-devices",
    "matchlock-launcher",
    "matchlock-shares",
    "matchlock-arrival",
    "matchlock-egress",
    "matchlock-broker",
];

/// Memory below which the default sandbox does not fit.
const ENOUGH_MEMORY_MB: u64 = 1024;

/// Disk space below which images and kernels hardly fit.
const ENOUGH_DISK_MB: u64 = 2048;

/// Prints every check; status 1 if one failed.
pub(crate) fn diagnose(args: &JsonArgs, home: &Home) -> anyhow::Result<u8> {
    let facts = host::facts();
    let mut checks = vec![machine(&facts)];
    checks.extend(kvm(&facts));
    checks.push(qemu(&facts));
    checks.extend(qemu_walls());
    checks.extend(programs());
    checks.push(network());
    checks.push(kernel(home));
    checks.push(memory());
    checks.push(disk(home));
    checks.push(shared_memory_huge_pages());
    let ok = checks.iter().all(|check| check.status != Fail);
    let diagnosis = Diagnosis { ok, checks };
    if args.json {
        say::json(&diagnosis)?;
    } else {
        diagnosis.checks.iter().for_each(print);
    }
    Ok(u8::from(!ok))
}

fn print(check: &Check) {
    let mark = match check.status {
        Pass => '✓',
        Warn => '⚠',
        Fail => '✗',
    };
    say!("{mark} {}: {}", check.name, check.message);
    if let Some(fix) = &check.fix {
        say!("  fix: {fix}");
    }
}

fn check(name: &str, status: CheckStatus, message: impl Into<String>, fix: Option<&str>) -> Check {
    Check { name: name.to_owned(), status, message: message.into(), fix: fix.map(str::to_owned) }
}

fn machine(facts: &HostFacts) -> Check {
    match choose(WantedMachine::Auto, facts) {
        Ok(choice) => check("machine", Pass, format!("auto takes {}: {}", choice.kind, choice.why), None),
        Err(refusal) => check("machine", Fail, refusal.reason.clone(), Some(&refusal.hint)),
    }
}

/// A fault of KVM is no failure as long as another machine works, which `machine` tells.
fn kvm(facts: &HostFacts) -> Vec<Check> {
    let device = match &facts.kvm {
        KvmDevice::Absent => {
            check("kvm-device", Warn, "there is no /dev/kvm", Some("load kvm_intel or kvm_amd"))
        }
        KvmDevice::Broken(error) => check("kvm-device", Warn, format!("/dev/kvm: {error}"), None),
        KvmDevice::Denied => check("kvm-device", Pass, "/dev/kvm is there", None),
        KvmDevice::Open { api_version } => {
            check("kvm-device", Pass, format!("/dev/kvm speaks API version {api_version}"), None)
        }
    };
    let access = match &facts.kvm {
        KvmDevice::Denied => {
            let fix = "usermod -aG kvm $USER, then log in again";
            Some(check("kvm-access", Warn, "no permission to open /dev/kvm", Some(fix)))
        }
        KvmDevice::Open { .. } => Some(check("kvm-access", Pass, "/dev/kvm can be opened", None)),
        KvmDevice::Absent | KvmDevice::Broken(_) => None,
    };
    let hardware = facts.hardware_virtualization.map(|there| match there {
        true => check("cpu-virtualization", Pass, "the CPU shows vmx or svm", None),
        false => check(
            "cpu-virtualization",
            Warn,
            "the CPU shows neither vmx nor svm: sandboxes run on the slower software machine",
            Some("enable virtualization in the firmware, or nesting where this host is a guest"),
        ),
    });
    [Some(device), access, hardware].into_iter().flatten().collect()
}

fn qemu(facts: &HostFacts) -> Check {
    let needed =
        matches!(choose(WantedMachine::Auto, facts), Err(_) | Ok(Choice { kind: MachineKind::Software, .. }));
    match &facts.qemu {
        Some(path) => check("qemu", Pass, path.clone(), None),
        None => {
            let status = if needed { Fail } else { Warn };
            check("qemu", status, "qemu-system-x86_64 not found", Some("apt-get install qemu-system-x86"))
        }
    }
}

/// The walls between QEMU and its user's files. `None` if its programs are missing, which other checks report.
fn qemu_walls() -> Option<Check> {
    let walls = match host::qemu_walls()? {
        Ok(walls) => walls,
        Err(error) => return Some(check("qemu-confinement", Fail, error.to_string(), None)),
    };
    let message = walls.iter().map(|wall| match wall {
        Ok(wall) | Err(wall) => wall.as_str(),
    });
    let message = message.collect::<Vec<_>>().join(", ");
    let (status, fix) = match walls.iter().filter(|wall| wall.is_ok()).count() {
        0 => (Fail, Some("boot a kernel with Landlock, or allow user namespaces")),
        _ => (Pass, None),
    };
    Some(check("qemu-confinement", status, message, fix))
}

fn programs() -> Vec<Check> {
    let fix = "install all of matchlock's programs in one directory";
    let mut checks: Vec<_> = PROGRAMS
        .into_iter()
        .map(|name| match process::find_program(name) {
            Some(path) => check(name, Pass, path.display().to_string(), None),
            None => check(name, Fail, "not found", Some(fix)),
        })
        .collect();
    checks.push(match host::agent() {
        Ok(path) => check("guest-agent", Pass, path.display().to_string(), None),
        Err(error) => check("guest-agent", Fail, error.to_string(), error.hint()),
    });
    checks
}

/// A host without networks still runs the sandboxes that need none.
fn network() -> Check {
    const NAME: &str = "network";
    match host::network() {
        Ok(()) => {
            let message = "sandboxes get a TAP in a network namespace of their own";
            check(NAME, Pass, message, None)
        }
        Err(Lacking { what, why }) => {
            let fix = match what {
                Some(Lack::Namespace) => Some("use sudo, or allow user namespaces"),
                Some(Lack::Device) => Some("modprobe tun"),
                Some(Lack::Permission) => {
                    Some("chmod 666 /dev/net/tun, which gives nobody more than an interface of their own")
                }
                Some(Lack::Nftables) => Some("modprobe -a nf_tables nft_tproxy nft_reject_inet"),
                Some(Lack::Other) | None => None,
            };
            check(NAME, Warn, format!("sandboxes have no network: {why}"), fix)
        }
    }
}

fn kernel(home: &Home) -> Check {
    match kernels::Store::open(home.cache()).and_then(|store| store.list()) {
        Ok(list) => match list.iter().find(|kernel| kernel.current) {
            Some(kernel) => check("kernel", Pass, format!("{} ({})", kernel.identifier, kernel.origin), None),
            None => check(
                "kernel",
                Warn,
                "no kernel in the store yet",
                Some("the first run fetches Debian's cloud kernel; or use --kernel"),
            ),
        },
        Err(error) => check("kernel", Fail, error.to_string(), None),
    }
}

fn memory() -> Check {
    let resources = host::resources();
    let status = if resources.memory_mb < ENOUGH_MEMORY_MB { Warn } else { Pass };
    check("memory", status, format!("{} MB, {} CPUs", resources.memory_mb, resources.cpus), None)
}

fn disk(home: &Home) -> Check {
    // The cache itself may not exist yet, but an ancestor does.
    let path = home.cache().ancestors().find(|path| path.exists());
    let free = path.and_then(|path| rustix::fs::statvfs(path).ok());
    match free.map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) >> 20) {
        Some(free) if free < ENOUGH_DISK_MB => {
            check("disk", Warn, format!("{free} MB free for images and kernels"), Some("free some space"))
        }
        Some(free) => check("disk", Pass, format!("{free} MB free for images and kernels"), None),
        None => check("disk", Warn, format!("{} cannot be looked at", home.cache().display()), None),
    }
}

/// Shared guest memory without huge pages nearly doubles the time to start.
fn shared_memory_huge_pages() -> Check {
    const NAME: &str = "shmem-huge-pages";
    const FIX: &str = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let slower = |why: &dyn std::fmt::Display| {
        let message = format!("none for shared memory: sandboxes that need it start slower ({why})");
        check(NAME, Warn, message, Some(FIX))
    };
    match host::shared_memory() {
        Ok(file) => match file.pages() {
            host::Pages::Huge => check(NAME, Pass, "shmem_enabled allows them for shared memory", None),
            host::Pages::HugeByOwnMount => {
                let message = "the KVM machine has them for shared memory, from a tmpfs of its own; shmem_enabled gives the software machine none";
                check(NAME, Pass, message, None)
            }
            host::Pages::Small(why) => slower(why),
        },
        Err(error) => slower(&error),
    }
}
