//! arm64: no instruction says whether the processor can run guests.

/// Unknown. /dev/kvm exists only if the kernel runs at EL2.
pub(crate) fn hardware_virtualization() -> Option<bool> {
    None
}
