//! arm64: no instruction tells a program.

/// Unknown. /dev/kvm exists only if the kernel runs at EL2.
pub(crate) fn hardware_virtualization() -> Option<bool> {
    None
}
