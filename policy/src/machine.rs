//! The choice of the machine that a sandbox runs on, with its reason.
//!
//! Not here: probing the host; [`HostFacts`] is a probe's result.

use std::fmt;
use std::str::FromStr;

/// The only KVM API version (Linux Documentation/virt/kvm/api.rst §4.1: "12 is the only supported version").
pub const KVM_API_VERSION: i32 = 12;

/// The user's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WantedMachine {
    /// The best kind that works.
    #[default]
    Auto,
    /// Exactly this kind.
    Exactly(MachineKind),
}

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineKind {
    /// Our VMM on KVM.
    Kvm,
    /// Our VMM on Hypervisor.framework.
    Hvf,
    /// QEMU TCG as vCPU engine, our devices.
    Software,
}

/// The result of probing the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The KVM device.
    pub kvm: KvmDevice,
    /// The CPU's hardware virtualization as the host sees it; `None` = the architecture has no flag for it, and a
    /// working device is proof enough.
    pub hardware_virtualization: Option<bool>,
    /// Whether Hypervisor.framework exists and is allowed.
    pub hvf: bool,
    /// The path of QEMU, if it is installed.
    pub qemu: Option<String>,
}

/// The result of opening the KVM device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmDevice {
    /// The host has no such device, or is no Linux.
    Absent,
    /// The device exists but cannot be opened.
    Denied,
    /// Opening or querying the device gave another error, in the system's words.
    Broken(String),
    /// The device answers.
    Open {
        /// The answer to KVM_GET_API_VERSION.
        api_version: i32,
    },
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The machine.
    pub kind: MachineKind,
    /// The reason, as one line for people.
    pub why: String,
}

/// No machine fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The reason.
    pub reason: String,
    /// The remedy.
    pub hint: String,
}

/// Chooses a machine.
///
/// KVM counts as usable only with hardware behind it: a KVM that emulates (PVM, or a nested host that hides vmx and
/// svm) opens and answers like any other, but runs stock kernels at a few MIPS, or kills them in an instruction that
/// it does not know. An explicit request for such a KVM is refused with the reason, and `auto` skips it.
pub fn choose(request: WantedMachine, facts: &HostFacts) -> Result<Choice, Refusal> {
    match request {
        WantedMachine::Exactly(MachineKind::Kvm) => match kvm_trouble(facts) {
            None => Ok(Choice { kind: MachineKind::Kvm, why: "asked for".into() }),
            Some(trouble) => Err(Refusal {
                reason: format!("machine kvm: {}", trouble.what),
                hint: trouble.hint.unwrap_or("use --machine software (QEMU without hardware support)").into(),
            }),
        },
        WantedMachine::Exactly(MachineKind::Hvf) if facts.hvf => {
            Ok(Choice { kind: MachineKind::Hvf, why: "asked for".into() })
        }
        WantedMachine::Exactly(MachineKind::Hvf) => Err(Refusal {
            reason: "machine hvf: Hypervisor.framework is not available here".into(),
            hint: "it exists on macOS on Apple Silicon only; use --machine auto".into(),
        }),
        WantedMachine::Exactly(MachineKind::Software) if facts.qemu.is_some() => {
            Ok(Choice { kind: MachineKind::Software, why: "asked for".into() })
        }
        WantedMachine::Exactly(MachineKind::Software) => {
            Err(Refusal { reason: "machine software: QEMU not found".into(), hint: QEMU_HINT.into() })
        }
        WantedMachine::Auto => choose_best(facts),
    }
}

const QEMU_HINT: &str = "install qemu-system-x86 (Debian)";

fn choose_best(facts: &HostFacts) -> Result<Choice, Refusal> {
    if facts.hvf {
        return Ok(Choice { kind: MachineKind::Hvf, why: "Hypervisor.framework is available".into() });
    }
    match kvm_trouble(facts) {
        None => {
            Ok(Choice { kind: MachineKind::Kvm, why: "/dev/kvm works and has hardware behind it".into() })
        }
        Some(trouble) if facts.qemu.is_some() => {
            Ok(Choice { kind: MachineKind::Software, why: format!("no usable KVM: {}", trouble.what) })
        }
        Some(trouble) => Err(Refusal {
            reason: format!(
                "no machine works here: {}; and QEMU, for the software machine, is not found",
                trouble.what
            ),
            hint: QEMU_HINT.into(),
        }),
    }
}

struct KvmTrouble {
    what: String,
    hint: Option<&'static str>,
}

fn kvm_trouble(facts: &HostFacts) -> Option<KvmTrouble> {
    let trouble = |what: &str, hint| Some(KvmTrouble { what: what.into(), hint });
    match (&facts.kvm, facts.hardware_virtualization) {
        (KvmDevice::Absent, Some(false)) => {
            trouble("there is no /dev/kvm, and the CPU offers no hardware virtualization (vmx, svm)", None)
        }
        (KvmDevice::Absent, _) => {
            trouble("there is no /dev/kvm", Some("load kvm_intel or kvm_amd, or use --machine software"))
        }
        (KvmDevice::Denied, _) => trouble(
            "no permission to open /dev/kvm",
            Some(
                "let your group have it (usually: usermod -aG kvm $USER, then log in again), or use --machine software",
            ),
        ),
        (KvmDevice::Broken(error), _) => trouble(&format!("/dev/kvm: {error}"), None),
        (KvmDevice::Open { api_version }, _) if *api_version != KVM_API_VERSION => {
            trouble(&format!("/dev/kvm speaks API version {api_version}, not {KVM_API_VERSION}"), None)
        }
        (KvmDevice::Open { .. }, Some(false)) => {
            trouble("/dev/kvm only emulates: the CPU shows neither vmx nor svm", None)
        }
        (KvmDevice::Open { .. }, Some(true) | None) => None,
    }
}

impl MachineKind {
    /// The name that users type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Software => "software",
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of auto, kvm, hvf, software")]
pub struct UnknownMachine(pub String);

impl FromStr for WantedMachine {
    type Err = UnknownMachine;

    fn from_str(text: &str) -> Result<Self, UnknownMachine> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Exactly(MachineKind::Kvm)),
            "hvf" => Ok(Self::Exactly(MachineKind::Hvf)),
            "software" => Ok(Self::Exactly(MachineKind::Software)),
            other => Err(UnknownMachine(other.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kvm: KvmDevice, hardware: Option<bool>, qemu: bool) -> HostFacts {
        HostFacts {
            kvm,
            hardware_virtualization: hardware,
            hvf: false,
            qemu: qemu.then(|| "/usr/bin/qemu-system-x86_64".into()),
        }
    }

    const OPEN: KvmDevice = KvmDevice::Open { api_version: 12 };

    /// Every combination that a Linux host can show, and the result of each request: `kind` or `!reason`.
    #[test]
    fn decision_table() {
        let hosts = [
            ("hardware", facts(OPEN, Some(true), true)),
            ("hardware, no qemu", facts(OPEN, Some(true), false)),
            ("arm64", facts(OPEN, None, true)),
            ("emulating", facts(OPEN, Some(false), true)),
            ("emulating, no qemu", facts(OPEN, Some(false), false)),
            ("denied", facts(KvmDevice::Denied, Some(true), true)),
            ("no module", facts(KvmDevice::Absent, Some(true), true)),
            ("container", facts(KvmDevice::Absent, Some(false), true)),
            ("nothing", facts(KvmDevice::Absent, Some(false), false)),
            ("odd", facts(KvmDevice::Open { api_version: 11 }, Some(true), true)),
        ];
        let mut table = String::new();
        for (name, facts) in &hosts {
            for request in ["auto", "kvm", "software"] {
                let result = match choose(request.parse().unwrap(), facts) {
                    Ok(choice) => format!("{} ({})", choice.kind, choice.why),
                    Err(refusal) => format!("! {refusal}"),
                };
                table.push_str(&format!("{name} | {request} -> {result}\n"));
            }
        }
        let expected = "\
hardware | auto -> kvm (/dev/kvm works and has hardware behind it)
hardware | kvm -> kvm (asked for)
hardware | software -> software (asked for)
hardware, no qemu | auto -> kvm (/dev/kvm works and has hardware behind it)
hardware, no qemu | kvm -> kvm (asked for)
hardware, no qemu | software -> ! machine software: QEMU not found
arm64 | auto -> kvm (/dev/kvm works and has hardware behind it)
arm64 | kvm -> kvm (asked for)
arm64 | software -> software (asked for)
emulating | auto -> software (no usable KVM: /dev/kvm only emulates: the CPU shows neither vmx nor svm)
emulating | kvm -> ! machine kvm: /dev/kvm only emulates: the CPU shows neither vmx nor svm
emulating | software -> software (asked for)
emulating, no qemu | auto -> ! no machine works here: /dev/kvm only emulates: the CPU shows neither vmx nor svm; and QEMU, for the software machine, is not found
emulating, no qemu | kvm -> ! machine kvm: /dev/kvm only emulates: the CPU shows neither vmx nor svm
emulating, no qemu | software -> ! machine software: QEMU not found
denied | auto -> software (no usable KVM: no permission to open /dev/kvm)
denied | kvm -> ! machine kvm: no permission to open /dev/kvm
denied | software -> software (asked for)
no module | auto -> software (no usable KVM: there is no /dev/kvm)
no module | kvm -> ! machine kvm: there is no /dev/kvm
no module | software -> software (asked for)
container | auto -> software (no usable KVM: there is no /dev/kvm, and the CPU offers no hardware virtualization (vmx, svm))
container | kvm -> ! machine kvm: there is no /dev/kvm, and the CPU offers no hardware virtualization (vmx, svm)
container | software -> software (asked for)
nothing | auto -> ! no machine works here: there is no /dev/kvm, and the CPU offers no hardware virtualization (vmx, svm); and QEMU, for the software machine, is not found
nothing | kvm -> ! machine kvm: there is no /dev/kvm, and the CPU offers no hardware virtualization (vmx, svm)
nothing | software -> ! machine software: QEMU not found
odd | auto -> software (no usable KVM: /dev/kvm speaks API version 11, not 12)
odd | kvm -> ! machine kvm: /dev/kvm speaks API version 11, not 12
odd | software -> software (asked for)
";
        assert_eq!(table, expected);
    }

    #[test]
    fn hvf_wins_where_it_is() {
        let mut host = facts(KvmDevice::Absent, None, false);
        assert!(choose(WantedMachine::Exactly(MachineKind::Hvf), &host).is_err());
        host.hvf = true;
        assert_eq!(choose(WantedMachine::Auto, &host).unwrap().kind, MachineKind::Hvf);
        assert_eq!(choose(WantedMachine::Exactly(MachineKind::Hvf), &host).unwrap().kind, MachineKind::Hvf);
    }

    #[test]
    fn unknown_names_are_refused() {
        for text in ["", "KVM", "qemu", "auto "] {
            assert_eq!(text.parse::<WantedMachine>(), Err(UnknownMachine(text.into())));
        }
    }
}
