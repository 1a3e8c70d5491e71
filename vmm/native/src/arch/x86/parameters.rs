//! The kernel parameters that this machine needs, around the caller's.
//!
//! Not here: parameters for the guest's init.

/// Parameters for every kernel.
///
/// * `panic=-1`: a guest that panicked resets, and the machine ends.
/// * `reboot=acpi`: a reset goes through the reset register. A kernel built with EFI would otherwise ask EFI, which is
///   missing, if ACPI is hardware-reduced.
/// * `pci=conf1,noearly`: the kernel takes the PCI bus as present and does not search it device by device; without a
///   bus the kernel would log an error on the console.
const ALWAYS: &str = "panic=-1 reboot=acpi pci=conf1,noearly";
/// For a machine with one CPU: a kernel that finds itself alone patches every lock prefix out of its code, which takes
/// 7 % of the time to its init.
const ONE_CPU: &str = "noreplace-smp";
/// For a machine without a virtio console.
const SERIAL: &str = "console=ttyS0";
/// For a machine with a virtio console. Each byte on the serial line costs two exits, so the line serves only until the
/// console is up, and the kernel does not probe its ports.
const VIRTIO_CONSOLE: &str = "console=hvc0 8250.nr_uarts=0";
/// Early messages and panics. Kernels obey parameters in order: `quiet`, if given, must come first.
const EARLY: &str = "earlycon=uart8250,io,0x3f8";

/// The whole command line. If a parameter is set twice, kernels take the last setting, which is the caller's.
#[must_use]
pub fn command_line(given: &str, vcpus: u8, virtio_console: bool) -> String {
    let mut parts = vec![ALWAYS];
    parts.extend((vcpus == 1).then_some(ONE_CPU));
    parts.push(if virtio_console { VIRTIO_CONSOLE } else { SERIAL });
    parts.extend((!given.is_empty()).then_some(given));
    parts.extend(virtio_console.then_some(EARLY));
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_parameters_win_and_quiet_comes_before_the_early_console() {
        let line = command_line("quiet panic=5", 2, true);
        let at = |word: &str| line.find(word);
        assert!(at("panic=-1") < at("panic=5"));
        assert!(at("quiet") < at("earlycon="));
        assert!(command_line("", 1, false).ends_with(SERIAL));
    }
}
