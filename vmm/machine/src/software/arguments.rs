//! QEMU's command line.
//!
//! The arguments are chosen for the shortest way to the guest's first instruction and the smallest machine on which a
//! stock kernel boots. QEMU itself serves only vCPUs, memory (and a balloon, by which the guest gives memory back), the
//! interrupt controller, a serial port, the power button, and the network device if there is one. The guest does not miss the left-out chips (PIT, PIC),
//! because it is told how fast its clock runs. The guest would miss a clock chip: a stock kernel that finds none polls
//! for one for seconds.

/// Least number of possible CPUs. For a machine that can never have a second CPU, TCG leaves memory barriers and atomic
/// instructions out as needless (QEMU 7.2 accel/tcg/tcg-accel-ops-mttcg.c, `max_cpus > 1`). But this project's devices
/// run beside the one CPU, and virtio's notifications rely on barriers (VIRTIO 1.3 §2.7.13.4.1, "a suitable memory
/// barrier"): without them a kick or an interrupt gets lost once in a while, and both sides wait.
const LEAST_MAX_CPUS: u8 = 2;

/// The inputs of QEMU's command line, with the numbers that descriptors have in QEMU.
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
    pub(super) network: Option<NetworkArguments>,
}

/// A network device of QEMU's own before an inherited TAP.
#[derive(Debug)]
pub(super) struct NetworkArguments {
    pub(super) tap: i32,
    pub(super) station: [u8; 6],
    pub(super) mtu: u16,
}

impl NetworkArguments {
    /// The option of the device. It offers what this project's own network device does, and no more: neither the
    /// control queue, with all that goes over it, nor a link that may be down.
    fn device(&self) -> String {
        const OFF: [&str; 9] = [
            "ctrl_vq",
            "ctrl_rx",
            "ctrl_vlan",
            "ctrl_rx_extra",
            "ctrl_mac_addr",
            "ctrl_guest_offloads",
            "guest_announce",
            "guest_ufo",
            "host_ufo",
        ];
        let Self { station, mtu, .. } = self;
        let station = station.map(|byte| format!("{byte:02x}")).join(":");
        let off = OFF.map(|feature| format!(",{feature}=off")).concat();
        format!("virtio-net-device,netdev=network,mac={station},host_mtu={mtu},status=off{off}")
    }
}

/// QEMU's front ends for devices in other processes, in the form of its options.
pub(super) mod front_end {
    use crate::devices::{DeviceSpec, Elsewhere, FILE_SYSTEM_QUEUE};

    // QEMU 7.2 does not ask this back end for its features, so features that the back end lacks are switched off.
    const ENTROPY: &str = "vhost-user-rng,indirect_desc=off,queue_reset=off";

    /// The front end for a device of the device process.
    pub(in super::super) fn of(device: &DeviceSpec) -> String {
        let name = match device {
            DeviceSpec::Block { .. } => "vhost-user-blk",
            DeviceSpec::Vsock(_) => "vhost-user-vsock-device",
            DeviceSpec::Entropy => ENTROPY,
        };
        name.to_owned()
    }

    /// The front end for a device of a process outside the machine.
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
        let Self { vcpus, memory_mib, kernel, initramfs, command_line, qmp, devices, network } = self;
        let mut args: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
        add("-machine", "microvm,memory-backend=ram,pit=off,pic=off,rtc=on,auto-kernel-cmdline=off".into());
        // Devices of other processes map this memory too, so it is a file.
        add("-object", format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on"));
        add("-m", format!("{memory_mib}M"));
        add("-accel", "tcg,thread=multi".into());
        // Five-level page tables would only make every emulated page walk longer.
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
        if let Some(network) = network {
            add("-netdev", format!("tap,id=network,fd={},vhost=off", network.tap));
            add("-device", network.device());
        }
        // The balloon comes after the other devices, whose order the guest knows. The host never inflates it: the guest
        // uses it to report free memory.
        add("-device", "virtio-balloon-device,free-page-reporting=on".into());
        add("-kernel", by_number(*kernel));
        add("-initrd", by_number(*initramfs));
        add("-append", (*command_line).to_owned());
        add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
        // `-S`: the supervisor's first QMP commands start the vCPUs, so that no event is missed.
        args.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-S"].map(str::to_owned));
        args
    }
}

/// A path that opens an inherited descriptor's file.
fn by_number(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}
