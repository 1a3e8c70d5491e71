//! `cargo xtask bench`: figures, each beside its peer in the same run, as a ratio. Nothing here passes or fails.

mod images;
mod shares;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::build::Profile;
use crate::emulated::{self, Clock, Job};
use crate::{build, host, kernel, probe, sh, stock, vm};

/// Virtual seconds from the start to /init in the emulated host, slim kernel: the times of Firecracker v1.16.1 when the
/// targets were set, without and with the product's devices. They are printed, marked as recorded, if the peer is not
/// measured in the same run.
const RECORDED: [f64; 2] = [0.0703, 0.095];

/// The choices of one measurement.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure a peer in the same run: `firecracker=PATH`
    #[arg(long)]
    peer: Vec<String>,
    /// Only these parts: software, start, memory, exec, rpc, launch, images, shares
    #[arg(long)]
    only: Vec<String>,
    /// Counted runs of each figure
    #[arg(long, default_value_t = 5)]
    runs: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    host::provide(&[host::RUN, host::EMULATED], true)?;
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let firecracker = peer(options)?;
    let programs = build::programs(Profile::Dist)?;
    let measure = build::measure(Profile::Dist)?;
    if wanted("shares") {
        shares::run(options, &programs, &measure)?;
    }
    if !["software", "images", "rpc", "start", "memory", "exec", "launch"].into_iter().any(wanted) {
        return Ok(());
    }
    let cache = sh::target().join("cache");
    let stock = stock::Kernel::provide(Profile::Dist)?;
    if wanted("software") {
        software(options, &programs, &measure, &stock)?;
    }
    if wanted("images") {
        images::run(options, &programs)?;
    }
    if wanted("rpc") {
        rpc(&programs, &measure)?;
    }
    if ["start", "memory", "exec", "launch"].into_iter().any(wanted) {
        let scratch = tempfile::tempdir()?;
        vm::prime(&programs, &home(scratch.path())?)?;
        // Only the measurement of the start needs a kernel that has to be built.
        let slim = match kernel::built() {
            None if wanted("start") => Some(kernel::run()?),
            built => built,
        };
        let bench = Emulated { programs, measure, slim, stock: &stock, firecracker, cache };
        if wanted("start") {
            bench.start(options)?;
        }
        if wanted("launch") {
            bench.launch(options)?;
        }
        if wanted("memory") {
            bench.memory()?;
        }
        if wanted("exec") {
            bench.exec()?;
        }
    }
    Ok(())
}

fn peer(options: &Options) -> Result<Option<PathBuf>> {
    let mut firecracker = None;
    for peer in &options.peer {
        match peer.split_once('=') {
            Some(("firecracker", path)) => firecracker = Some(PathBuf::from(path)),
            _ => bail!("unknown peer {peer:?}; known: firecracker=PATH"),
        }
    }
    Ok(firecracker)
}

/// Measures the software machine against the same QEMU and kernel, bare, to an init that resets: the two in turn.
fn software(options: &Options, programs: &Path, measure: &Path, stock: &stock::Kernel) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let initramfs = marker_initramfs(stock, scratch.path())?;
    let home = home(scratch.path())?;
    let ours = || {
        let mut command = sh::command(programs.join("matchlock"));
        command.env("HOME", &home).args(["run", "--machine", "software", "--image", "busybox", "--", "true"]);
        timed(&mut command)
    };
    let khz = sh::output(sh::command(measure).arg("tsc"))?;
    let bare = || timed(&mut bare_qemu(stock, &initramfs, khz.trim()));
    ours()?;
    bare()?;
    let mut ratios = Vec::new();
    for _ in 0..options.runs {
        let (ours, bare) = (ours()?, bare()?);
        println!("software: run -- true {ours:.2} s, bare boot {bare:.2} s, ratio {:.2}", ours / bare);
        ratios.push(ours / bare);
    }
    println!("software: median ratio {:.2} (target 1.3)", median(&mut ratios));
    let mut command = sh::command(programs.join("matchlock"));
    command
        .env("HOME", &home)
        .args(["run", "--machine", "software", "--timings"])
        .args(["--image", "busybox", "true"]);
    let output = command.stdin(std::process::Stdio::null()).output()?;
    let timings =
        String::from_utf8_lossy(&output.stderr).lines().find_map(|line| serde_json::from_str(line).ok());
    say_breakdown("software", &timings.unwrap_or_default());
    Ok(())
}

/// Measures the time that `matchlock rpc` adds, on the software machine.
fn rpc(programs: &Path, measure: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let home = home(scratch.path())?;
    let mut command = sh::command(measure);
    command.env("HOME", &home).args(["rpc", "--machine", "software", "--matchlock"]);
    let output = sh::output(command.arg(programs.join("matchlock")))?;
    let row: Value = serde_json::from_str(output.trim())?;
    let of = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    println!(
        "rpc, software machine: exec of true median {:.0} us, p99 {:.0} us; round trip {:.0} + agent {:.0}; ratio {:.2} (target 1.2)",
        of("rpc_exec_us"),
        of("rpc_exec_p99_us"),
        of("ping_us"),
        of("agent_us"),
        of("ratio")
    );
    println!("  {} execs at once all answered in {:.0} ms", of("concurrent"), of("concurrent_ms"));
    println!(
        "  launch answered {:.1} ms after the guest was ready (target 20)",
        of("launch_after_ready_us") / 1000.0
    );
    println!(
        "  exec_stream of {} MiB: {:.0} MiB/s, the raw stream {:.0}: {:.2} times as long (target 2)",
        of("mib"),
        of("stream_mib_per_s"),
        of("raw_mib_per_s"),
        of("stream_ratio")
    );
    println!(
        "  write_file {:.0} MiB/s, read_file {:.0} MiB/s; server's peak memory {:.0} MiB before, {:.0} MiB after (target 64)",
        of("write_mib_per_s"),
        of("read_mib_per_s"),
        of("peak_rss_before_kib") / 1024.0,
        of("peak_rss_after_kib") / 1024.0
    );
    Ok(())
}

/// A home directory whose cache is the project's own.
fn home(scratch: &Path) -> Result<PathBuf> {
    let home = scratch.join("home");
    fs::create_dir_all(home.join(".cache"))?;
    std::os::unix::fs::symlink(sh::target().join("cache"), home.join(".cache/matchlock"))?;
    Ok(home)
}

/// Prints where the time from process start to the first exec's answer goes.
fn say_breakdown(machine: &str, timings: &Value) {
    let at = |key: &str| timings[key].as_f64().map_or(f64::NAN, |us| us / 1000.0);
    let agent_ms = at("guest_agent_us");
    println!("{machine}: start to first exec answered {:.0} ms (one run), of it", at("exited_us"));
    println!(
        "  preparing {:.1}, machine set-up {:.1}",
        at("prepared_us"),
        at("machine_us") - at("prepared_us")
    );
    println!("  kernel to agent {agent_ms:.0}, drivers {:.0}", at("guest_modules_us") - agent_ms);
    println!(
        "  root {:.0}, services {:.0}",
        at("guest_root_us") - at("guest_modules_us"),
        at("guest_ready_us") - at("guest_root_us")
    );
    println!(
        "  exec {:.0} (its start {:.0})",
        at("exited_us") - at("exec_us"),
        at("started_us") - at("exec_us")
    );
}

/// The software machine's QEMU and kernel parameters, without devices.
fn bare_qemu(kernel: &stock::Kernel, initramfs: &Path, khz: &str) -> std::process::Command {
    let mut qemu = sh::command("qemu-system-x86_64");
    qemu.args(["-M", "microvm,pit=off,pic=off,rtc=on,auto-kernel-cmdline=off", "-accel", "tcg,thread=multi"])
        .args(["-cpu", "max,la57=off", "-smp", "cpus=1,maxcpus=2", "-m", "512"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "null"])
        .arg("-kernel")
        .arg(&kernel.path)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 reboot=t panic=-1 tsc=reliable noreplace-smp pci=off quiet tsc_early_khz={khz}"
        ));
    qemu
}

fn timed(command: &mut std::process::Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.stdin(std::process::Stdio::null()).output()?;
    let seconds = start.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(seconds)
}

/// An initramfs whose init writes the marker to its console and resets the machine.
fn marker_initramfs(kernel: &stock::Kernel, directory: &Path) -> Result<PathBuf> {
    let path = directory.join("marker.cpio");
    let init = directory.join("marker");
    fs::write(&init, probe::marker_init())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    kernel.pack(&[], &[("init", &init)], &path)?;
    Ok(path)
}

/// The files and settings of measurements in the emulated host.
struct Emulated<'a> {
    programs: PathBuf,
    measure: PathBuf,
    slim: Option<PathBuf>,
    stock: &'a stock::Kernel,
    firecracker: Option<PathBuf>,
    cache: PathBuf,
}

impl Emulated<'_> {
    fn files(&self, scratch: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
        let opt = Path::new("/opt/matchlock");
        let mut files = vec![
            (PathBuf::from("/root/.cache/matchlock"), self.cache.clone()),
            (opt.join("measure"), self.measure.clone()),
            (opt.join("marker.cpio"), marker_initramfs(self.stock, scratch)?),
        ];
        for program in build::PROGRAMS {
            files.push((opt.join(program), self.programs.join(program)));
        }
        files.extend(self.slim.iter().map(|path| (opt.join("vmlinux-slim"), path.clone())));
        files.extend(self.firecracker.iter().map(|path| (opt.join("firecracker"), path.clone())));
        Ok(files)
    }

    /// Runs `script` in an emulated host; returns the JSON objects that the script printed.
    fn rows(&self, script: String, clock: Clock) -> Result<Vec<Value>> {
        let scratch = tempfile::tempdir()?;
        let job = Job {
            kernel: self.stock,
            files: self.files(scratch.path())?,
            script: format!(
                "cd /opt/matchlock; mount -t tracefs t /sys/kernel/tracing; mount -t tmpfs t /tmp\n{script}"
            ),
            clock,
            memory_mib: 2048,
            limit: Duration::from_secs(15 * 60),
        };
        let mut rows = Vec::new();
        let status = emulated::Host::new(&job)?.run(|line| match serde_json::from_str::<Value>(line) {
            Ok(row @ Value::Object(_)) => rows.push(row),
            _ => eprintln!("  {line}"),
        })?;
        if status != 0 {
            bail!("the measurement in the emulated host ended with status {status}");
        }
        Ok(rows)
    }

    fn start(&self, options: &Options) -> Result<()> {
        let mut script = String::from("set -e\n");
        for extra in ["", "--shared", "--devices", "--devices --shared"] {
            let common = format!(
                "--kernel /opt/matchlock/vmlinux-slim --initramfs /opt/matchlock/marker.cpio --runs {} {extra}",
                options.runs
            );
            script.push_str(&format!("./measure start --vmm /opt/matchlock/matchlock-vmm {common}\n"));
            if self.firecracker.is_some() && !extra.contains("--shared") {
                script.push_str(&format!(
                    "./measure start --vmm /opt/matchlock/firecracker --firecracker {common}\n"
                ));
            }
        }
        let rows = self.rows(script, Clock::Instructions)?;
        println!("start to /init: emulated host, instruction clock, 1 vCPU, 256 MiB, slim kernel, quiet");
        for devices in [false, true] {
            let of = |vmm: &str, shared: bool| {
                rows.iter()
                    .find(|row| row["vmm"] == vmm && row["devices"] == devices && row["shared"] == shared)
            };
            let peer = of("firecracker", false).map(seconds);
            let (base, how) = match peer {
                Some(seconds) => (seconds, "measured beside"),
                None => (RECORDED[usize::from(devices)], "recorded, not measured here"),
            };
            let what = if devices { "product devices" } else { "serial only" };
            println!("  {what}: firecracker {base:.4} s ({how})");
            if let Some(row) = of("firecracker", false) {
                println!("    exits {}", row["exits"]);
            }
            for shared in [false, true] {
                let Some(row) = of("matchlock", shared) else { continue };
                let memory = if shared { "shared" } else { "private" };
                let ours = seconds(row);
                println!(
                    "  {what}, {memory} memory: matchlock {ours:.4} s, ratio {:.3} (target 0.95)",
                    ours / base
                );
                println!("    exits {}; console {}", row["exits"], row["console"]);
            }
        }
        Ok(())
    }

    /// Measures `create` with an entrypoint, by the instruction clock: about the time that a fast host's clock would
    /// show.
    fn launch(&self, options: &Options) -> Result<()> {
        let script = format!(
            "./measure launch --matchlock /opt/matchlock/matchlock --machine kvm --runs {}\n",
            options.runs
        );
        for row in self.rows(script, Clock::Instructions)? {
            let all = row["launch_after_ready_us"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut ms: Vec<f64> = all.iter().filter_map(Value::as_f64).map(|us| us / 1000.0).collect();
            let median = median(&mut ms);
            println!(
                "launch, kvm in the emulated host, instruction clock: answered {median:.1} ms after the guest was ready, {:.1} at most (target 20)",
                ms.last().copied().unwrap_or(f64::NAN)
            );
        }
        Ok(())
    }

    fn exec(&self) -> Result<()> {
        let script = "./measure exec --matchlock /opt/matchlock/matchlock --machine kvm\n\
                      /opt/matchlock/matchlock run --timings --machine kvm --image busybox true\n";
        for row in self.rows(script.to_owned(), Clock::Wall)? {
            if row["exec_us"].is_f64() { say_exec(&row) } else { say_breakdown("kvm (stock kernel)", &row) }
        }
        Ok(())
    }

    fn memory(&self) -> Result<()> {
        let script = "./measure memory --matchlock /opt/matchlock/matchlock --machine kvm\n".to_owned();
        println!(
            "private memory with a guest up, guest memory left out (targets: VMM 1024 dirty, 5120 clean; supervisor 8192 dirty)"
        );
        for row in self.rows(script, Clock::Wall)? {
            match row["process"].as_str() {
                Some(name) => println!(
                    "  {name}: {} KiB dirty, {} KiB clean",
                    row["private_dirty_kib"], row["private_clean_kib"]
                ),
                None => println!(
                    "guest memory freed goes back: {} MiB, {} with 100 more written, {} again {:.1} s after they were removed",
                    row["before_mib"],
                    row["full_mib"],
                    row["after_mib"],
                    row["given_back_s"].as_f64().unwrap_or(f64::NAN)
                ),
            }
        }
        Ok(())
    }
}

/// Prints the figures of an exec in words.
fn say_exec(row: &Value) {
    let of = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    println!(
        "exec of true, {} machine: median {:.0} us, p99 {:.0} us; round trip {:.0} + agent {:.0}; ratio {:.2} (target 1.2)",
        row["machine"].as_str().unwrap_or("?"),
        of("exec_us"),
        of("exec_p99_us"),
        of("ping_us"),
        of("agent_us"),
        of("ratio")
    );
}

fn seconds(row: &Value) -> f64 {
    let all = row["seconds"].as_array().map(Vec::as_slice).unwrap_or_default();
    median(&mut all.iter().filter_map(Value::as_f64).collect::<Vec<_>>())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
