//! QEMU's command line.
//!
//! Chosen for the shortest way to the guest's first instruction and the smallest machine that a stock kernel boots on;
//! QEMU itself serves nothing but vCPUs, memory (and a balloon, by which the guest gives memory back), the interrupt
//! controller, a serial port and the power button. What is left out of the machine (PIT, PIC) the guest does not miss,
//! because it is told how fast its clock runs. A clock chip it would miss: a stock kernel that finds none asks for one
//! for seconds.

/// A machine that could never have a second CPU has no memory barriers: TCG takes them, and what makes an instruction
/// atomic, for needless then (QEMU 7.2 accel/tcg/tcg-accel-ops-mttcg.c, `max_cpus > 1`). But our devices run beside the
/// one CPU, and virtio's notifications rely on barriers (VIRTIO 1.3 §2.7.13.4.1, "a suitable memory barrier"): without
/// them a kick or an interrupt gets lost once in a while, and both sides wait.
const LEAST_MAX_CPUS: u8 = 2;

/// What QEMU is to run, its descriptors already numbered as QEMU will see them.
#[derive(Debug)]
pub(super) struct Arguments<'a> {
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
    pub(super) kernel: i32,
    pub(super) initramfs: i32,
    pub(super) command_line: &'a str,
    pub(super) qmp: i32,
    /// Front ends and their sockets, in guest order.
    pub(super) devices: &'a [(String, i32)],
}

/// The front ends that QEMU has for devices of others, as its options name them.
pub(super) mod front_end {
    use crate::devices::{DeviceSpec, Elsewhere, FILE_SYSTEM_QUEUE};

    // QEMU 7.2 does not ask this back end what it offers, so what ours does not is switched off.
    const ENTROPY: &str = "vhost-user-rng,indirect_desc=off,queue_reset=off";

    /// For a device of the device process.
    pub(in super::super) fn of(device: &DeviceSpec) -> String {
        let name = match device {
            DeviceSpec::Block { .. } => "vhost-user-blk",
            DeviceSpec::Vsock(_) => "vhost-user-vsock-device",
            DeviceSpec::Entropy => ENTROPY,
        };
        name.to_owned()
    }

    /// For a device of a process outside of the machine.
    pub(in super::super) fn elsewhere(device: &Elsewhere) -> String {
        match device {
            Elsewhere::Entropy => ENTROPY.to_owned(),
            Elsewhere::FileSystem { tag, request_queues } => {
                // QEMU "Command line parsing": a comma in a value is written twice.
                let tag = tag.replace(',', ",,");
                format!(
                    "vhost-user-fs-device,tag={tag},num-request-queues={request_queues},queue-size={FILE_SYSTEM_QUEUE}"
                )
            }
        }
    }
}

impl Arguments<'_> {
    pub(super) fn build(&self) -> Vec<String> {
        let Self { vcpus, memory_mib, kernel, initramfs, command_line, qmp, devices } = self;
        let mut args: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
        add("-machine", "microvm,memory-backend=ram,pit=off,pic=off,rtc=on,auto-kernel-cmdline=off".into());
        // Our devices map it too, so it is a file both can have.
        add("-object", format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on"));
        add("-m", format!("{memory_mib}M"));
        add("-accel", "tcg,thread=multi".into());
        // Five-level page tables only make every emulated walk longer.
        add("-cpu", "max,la57=off".into());
        add("-smp", format!("cpus={vcpus},maxcpus={}", (*vcpus).max(LEAST_MAX_CPUS)));
        add("-display", "none".into());
        // VIRTIO 1.3 §4.2.4: QEMU's default is the legacy interface.
        add("-global", "virtio-mmio.force-legacy=false".into());
        add("-chardev", "stdio,id=console,signal=off".into());
        add("-serial", "chardev:console".into());
        add("-chardev", format!("socket,id=qmp,fd={qmp}"));
        add("-mon", "chardev=qmp,mode=control".into());
        for (index, (front_end, socket)) in devices.iter().enumerate() {
            add("-chardev", format!("socket,id=device{index},fd={socket}"));
            add("-device", format!("{front_end},chardev=device{index}"));
        }
        // The balloon comes behind our devices, whose order the guest knows. The host never inflates it: by it the guest
        // reports memory that is free.
        add("-device", "virtio-balloon-device,free-page-reporting=on".into());
        add("-kernel", by_number(*kernel));
        add("-initrd", by_number(*initramfs));
        add("-append", (*command_line).to_owned());
        add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
        // `-S`: the supervisor's first QMP commands start the vCPUs, and no event of theirs is missed.
        args.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-S"].map(str::to_owned));
        args
    }
}

/// A path that opens an inherited descriptor's file.
fn by_number(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}
