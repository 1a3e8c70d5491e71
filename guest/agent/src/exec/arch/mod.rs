//! Differences between processors: the numberings of system calls that programs can use.

use super::calls::Numbering;

/// `AUDIT_ARCH_*` of linux/audit.h, with the numbers that go with it; the agent's own first.
#[cfg(target_arch = "x86_64")]
pub(super) const NUMBERINGS: &[(u32, Numbering)] =
    &[(0xc000_003e, Numbering::X86_64), (0x4000_0003, Numbering::I386)];

/// `AUDIT_ARCH_*` of linux/audit.h, with the numbers that go with it; the agent's own first. Programs of 32-bit ARM are
/// refused as a whole.
#[cfg(target_arch = "aarch64")]
pub(super) const NUMBERINGS: &[(u32, Numbering)] = &[(0xc000_00b7, Numbering::Aarch64)];
