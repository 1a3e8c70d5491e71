//! The time from the start of a VMM's process to the guest's `/init`, for our VMM and Firecracker alike: the guest's
//! init writes one marker byte to its console and resets the machine; the clock stops when the byte arrives here.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use machine::KernelFormat;
use machine::descriptors::Outgoing;
use machine::devices::{DeviceSpec, DiskSpec, SegmentSpec};
use machine::native::protocol::{Report, Request, Spec};
use process::Spawn;

use crate::exits;

/// The byte that the guest's init writes, which no kernel message has.
const MARKER: u8 = 0xa5;
/// Size of each disk.
const DISK_BYTES: u64 = 64 << 20;
const COMMAND_LINE: &str = "quiet panic=-1 reboot=k";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Program of the VMM: `matchlock-vmm`, or Firecracker
    #[arg(long)]
    vmm: PathBuf,
    /// The VMM is Firecracker
    #[arg(long)]
    firecracker: bool,
    /// An ELF kernel with everything built in
    #[arg(long)]
    kernel: PathBuf,
    /// Initramfs whose /init writes the marker (made by xtask)
    #[arg(long)]
    initramfs: PathBuf,
    /// Two disks, vsock, entropy and console besides the serial line
    #[arg(long)]
    devices: bool,
    /// Guest memory that other processes could map
    #[arg(long)]
    shared: bool,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 256)]
    memory: u32,
    /// Counted runs, after one that is not
    #[arg(long, default_value_t = 5)]
    runs: u32,
}

/// One line of output.
#[derive(serde::Serialize)]
struct Row {
    vmm: &'static str,
    devices: bool,
    shared: bool,
    seconds: Vec<f64>,
    exits: Option<exits::Exits>,
    console: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    for disk in ["root", "upper"] {
        File::create(scratch.path().join(disk))?.set_len(DISK_BYTES)?;
    }
    let boot = || {
        if options.firecracker { firecracker(options, scratch.path()) } else { ours(options, scratch.path()) }
    };
    let mut console = boot()?.console;
    let mut seconds = Vec::new();
    for _ in 0..options.runs {
        let boot = boot()?;
        seconds.push(boot.seconds);
        console = boot.console;
    }
    let exits = exits::count(|| boot().map(drop))?;
    let vmm = if options.firecracker { "firecracker" } else { "matchlock" };
    let console = String::from_utf8_lossy(&console).into_owned();
    let row = Row { vmm, devices: options.devices, shared: options.shared, seconds, exits, console };
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

struct Boot {
    seconds: f64,
    console: Vec<u8>,
}

/// Waits for the marker; everything before it is console text.
fn until_marker(console: &mut impl Read, start: Instant) -> Result<Boot> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = console.read(&mut buffer)?;
        let seconds = start.elapsed().as_secs_f64();
        if n == 0 {
            bail!("the guest never reached /init; its console: {}", String::from_utf8_lossy(&text));
        }
        let bytes = buffer.get(..n).unwrap_or_default();
        text.extend(bytes.iter().take_while(|byte| **byte != MARKER));
        if bytes.contains(&MARKER) {
            return Ok(Boot { seconds, console: text });
        }
    }
}

fn ours(options: &Options, scratch: &Path) -> Result<Boot> {
    let (mut console, write) = std::io::pipe()?;
    // Kept open: a VMM whose port channel hangs up reports that.
    let (ports, device_ports) = process::Channel::pair()?;
    let mut descriptors = Outgoing::default();
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let mut devices = Vec::new();
    if options.devices {
        for (id, readonly) in [("root", true), ("upper", false)] {
            let file = descriptors.add(File::options().read(true).write(true).open(scratch.join(id))?);
            let segments = vec![SegmentSpec::File { file, offset: 0, len: DISK_BYTES }];
            devices.push(DeviceSpec::Block { id: id.to_owned(), disk: DiskSpec { segments, readonly } });
        }
        devices.extend([DeviceSpec::Vsock(descriptors.add(device_ports)), DeviceSpec::Entropy]);
    }
    let spec = Spec {
        vcpus: 1,
        memory_mib: options.memory,
        shared_memory: options.shared,
        hypervisor: descriptors
            .add(File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?),
        kernel: descriptors.add(open(&options.kernel)?),
        kernel_format: KernelFormat::Elf,
        initramfs: descriptors.add(open(&options.initramfs)?),
        command_line: COMMAND_LINE.to_owned(),
        devices,
        console: descriptors.add(write),
        virtio_console: options.devices,
        balloon: false,
        network: None,
        elsewhere: Vec::new(),
    };
    let start = Instant::now();
    let (mut child, channel) = process::spawn(Spawn::new(&options.vmm))?;
    descriptors.send(&channel, &Request::Boot(Box::new(spec)))?;
    drop(descriptors);
    let boot = until_marker(&mut console, start);
    if boot.is_err() {
        while let Some((report, _)) = channel.recv::<Report>()? {
            eprintln!("{report:?}");
        }
    }
    child.wait()?;
    drop(ports);
    boot
}

fn firecracker(options: &Options, scratch: &Path) -> Result<Boot> {
    let vsock = scratch.join("vsock");
    // Firecracker refuses to bind over the socket of an earlier run; the first run has none.
    let _ = fs::remove_file(&vsock);
    let drive = |name: &str, readonly: bool| {
        serde_json::json!({"drive_id": name, "path_on_host": scratch.join(name), "is_root_device": false,
            "is_read_only": readonly})
    };
    let mut config = serde_json::json!({
        "boot-source": {"kernel_image_path": options.kernel, "initrd_path": options.initramfs,
            "boot_args": format!("console=ttyS0 {COMMAND_LINE}")},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": options.memory},
        "drives": [],
    });
    if options.devices {
        config["drives"] = serde_json::json!([drive("root", true), drive("upper", false)]);
        config["vsock"] = serde_json::json!({"guest_cid": 3, "uds_path": vsock});
        config["entropy"] = serde_json::json!({});
    }
    let path = scratch.join("firecracker.json");
    File::create(&path)?.write_all(config.to_string().as_bytes())?;
    let start = Instant::now();
    let mut child = Command::new(&options.vmm)
        .args(["--no-api", "--config-file"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| options.vmm.display().to_string())?;
    let mut console = child.stdout.take().context("firecracker's output")?;
    let boot = until_marker(&mut console, start);
    if boot.is_err() {
        child.kill()?;
    }
    // Reads the rest of the console, so that the guest never waits for a reader.
    std::io::copy(&mut console, &mut std::io::sink())?;
    child.wait()?;
    boot
}
