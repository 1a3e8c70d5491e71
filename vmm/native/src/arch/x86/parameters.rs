//! The kernel parameters this machine needs, around those it was given.
//!
//! Not here: what the guest's init wants to know.

/// For every kernel.
///
/// * `panic=-1`: a guest that panicked resets, and the machine ends.
/// * `reboot=acpi`: through the reset register. A kernel built with EFI would ask EFI, which is not there, if ACPI is
///   hardware-reduced.
/// * `pci=conf1,noearly`: the PCI bus is known to be there without a search of it, device by device; its absence would
///   be an error on the console.
const ALWAYS: &str = "panic=-1 reboot=acpi pci=conf1,noearly";
/// For a machine with one CPU: a kernel that finds itself alone takes the lock prefixes out of its code, all over, which
/// takes 7 % of the time to its init.
const ONE_CPU: &str = "noreplace-smp";
/// Without a virtio console.
const SERIAL: &str = "console=ttyS0";
/// With one: the serial line, at two exits a byte, is for what comes before it only, and nobody probes its ports.
const VIRTIO_CONSOLE: &str = "console=hvc0 8250.nr_uarts=0";
/// Early messages and panics. Parameters are obeyed in order: `quiet`, if given, must have come first.
const EARLY: &str = "earlycon=uart8250,io,0x3f8";

/// The whole command line. Of two settings of one parameter, kernels take the last: the caller's.
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
