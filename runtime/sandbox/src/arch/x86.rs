//! x86-64: CPUID says whether the processor can run guests.

use std::arch::x86_64::__cpuid;

/// VMX (Intel SDM vol. 2A, CPUID leaf 1: ECX bit 5) or SVM (AMD APM vol. 3, leaf 8000_0001h: ECX bit 2).
pub(crate) fn hardware_virtualization() -> Option<bool> {
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let svm = __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    Some(vmx || svm)
}
