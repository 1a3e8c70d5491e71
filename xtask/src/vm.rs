//! The hardware matrix: the same black-box suite against every kind of machine, with every available kernel.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::Profile;
use crate::emulated::{self, Clock, Job};
use crate::steps::Steps;
use crate::test::Counts;
use crate::{build, fixtures, host, kernel, sh, stock, test};

/// One kind of machine with one kernel, driven by the command line or by SDKs.
struct Cell {
    name: &'static str,
    machine: &'static str,
    slim: bool,
    sdk: bool,
}

impl Cell {
    const fn new(name: &'static str, machine: &'static str, slim: bool) -> Self {
        Self { name, machine, slim, sdk: false }
    }
}

const CELLS: &[Cell] = &[
    Cell::new("software-x86_64", "software", false),
    Cell::new("software-x86_64-slim", "software", true),
    Cell { sdk: true, ..Cell::new("software-x86_64-sdk", "software", false) },
    Cell::new("kvm-x86_64", "kvm", false),
    Cell::new("kvm-x86_64-slim", "kvm", true),
    Cell::new("kvm-aarch64", "", false),
    Cell::new("hvf-aarch64", "", false),
];

/// The place where a cell's guests run.
enum Place {
    /// On this host.
    Here,
    /// In an emulated host.
    Emulated,
}

impl Cell {
    /// The place where the cell runs, or the reason why it does not run.
    fn place(&self) -> Result<Place, String> {
        if self.machine.is_empty() {
            return Err(format!("{} is not built yet", self.name));
        }
        if self.slim && kernel::built().is_none() {
            return Err("the slim kernel is not built (cargo xtask kernel)".into());
        }
        if self.machine != "kvm" || hardware_kvm() {
            return Ok(Place::Here);
        }
        Ok(Place::Emulated)
    }
}

/// Whether this host's KVM has hardware behind it.
fn hardware_kvm() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    hardware && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Runs the matrix, or one cell of it.
pub(crate) fn run(only: Option<&str>, list: bool, filter: &str) -> Result<()> {
    if let Some(name) = only
        && !CELLS.iter().any(|cell| cell.name == name)
    {
        bail!(
            "no cell {name}; there are {}",
            CELLS.iter().map(|cell| cell.name).collect::<Vec<_>>().join(", ")
        );
    }
    let cells = || CELLS.iter().filter(|cell| only.is_none_or(|only| only == cell.name));
    if list {
        for cell in cells() {
            match cell.place() {
                Ok(Place::Here) => println!("{}: on this host", cell.name),
                Ok(Place::Emulated) => println!("{}: in an emulated host", cell.name),
                Err(reason) => println!("{}: skipped: {reason}", cell.name),
            }
        }
        return Ok(());
    }
    test::told(|steps| matrix(cells(), filter, steps))
}

/// Every cell that can run here.
pub(crate) fn all(steps: &mut Steps) -> Result<Counts> {
    matrix(CELLS.iter(), "", steps)
}

fn matrix<'a>(cells: impl Iterator<Item = &'a Cell>, filter: &str, steps: &mut Steps) -> Result<Counts> {
    let suite = suite(steps)?;
    steps.take("VM tests, guests included", || suite.run(cells, filter))
}

/// Tests of the software machine with these filters, with as many attempts as nobody waits for in every run.
pub(crate) fn long(filters: &[&str], steps: &mut Steps) -> Result<Counts> {
    let suite = Suite { long: true, ..suite(steps)? };
    let cells = CELLS.iter().filter(|cell| cell.machine == "software" && !cell.slim && !cell.sdk);
    let mut counts = Counts::default();
    for filter in filters {
        counts.add(&steps.take("VM tests, long", || suite.run(cells.clone(), filter))?);
    }
    Ok(counts)
}

fn suite(steps: &mut Steps) -> Result<Suite> {
    host::provide(&[host::RUN, host::TEST], true)?;
    steps.take("programs and images", Suite::build)
}

impl Suite {
    /// Runs the cells; cells in emulated hosts run beside those on this host.
    fn run<'a>(&self, cells: impl Iterator<Item = &'a Cell>, filter: &str) -> Result<Counts> {
        let mut counts = Counts::default();
        let (mut here, mut emulated) = (Vec::new(), Vec::new());
        for cell in cells {
            match cell.place() {
                Ok(Place::Here) => here.push(cell),
                // The emulated host gets its copy before any test on this host changes the shared cache.
                Ok(Place::Emulated) => emulated.push((cell, self.emulated_host(cell, filter)?)),
                Err(reason) => {
                    println!("SKIP cell {}: {reason}", cell.name);
                    counts.skipped_cells += 1;
                }
            }
        }
        // An emulated host takes one processor and waits for no other cell, so it runs beside them.
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                emulated.into_iter().try_fold(Counts::default(), |mut all, (cell, host)| {
                    all.add(&told(cell, || emulated_cell(cell, host))?);
                    anyhow::Ok(all)
                })
            });
            for cell in here {
                counts.add(&told(cell, || {
                    if cell.sdk { self.sdk(cell, filter) } else { self.here(cell, filter) }
                })?);
            }
            counts.add(&beside.join().map_err(|_| anyhow::anyhow!("the emulated hosts' thread panicked"))??);
            Ok(counts)
        })
    }
}

/// Runs a cell and prints its result.
fn told(cell: &Cell, run: impl FnOnce() -> Result<Counts>) -> Result<Counts> {
    let start = Instant::now();
    let result = run().with_context(|| format!("cell {}", cell.name))?;
    println!("cell {}: {result} in {}", cell.name, emulated::seconds(start));
    Ok(result)
}

/// Runs the suite in an emulated host; the cell's name marks its lines among those of cells beside it.
fn emulated_cell(cell: &Cell, host: emulated::Host) -> Result<Counts> {
    let mut counts = Counts::default();
    let status = host.run(|line| {
        println!("{}: {line}", cell.name);
        counts.read(line);
    })?;
    if status != 0 && counts.failed == 0 {
        bail!("the suite in the emulated host ended with status {status}");
    }
    Ok(counts)
}

/// The suite, and the files that it needs.
struct Suite {
    programs: PathBuf,
    binary: PathBuf,
    conformance: PathBuf,
    /// The directory of the images that tests pull and import.
    images: PathBuf,
    /// The program with the cases of shared folders.
    cases: PathBuf,
    home: tempfile::TempDir,
    /// Whether tests make more attempts than in every run.
    long: bool,
}

impl Suite {
    fn build() -> Result<Self> {
        let programs = build::programs(Profile::Release)?;
        let cases = build::share_cases(Profile::Release)?;
        let binary = test_binary("blackbox", "sandbox")?;
        let conformance = test_binary("hypervisor_conformance", "kvm")?;
        // All cells share one home, so kernel and built-in image are fetched once.
        let home = tempfile::tempdir()?;
        let cache = sh::target().join("cache");
        std::fs::create_dir_all(&cache)?;
        std::fs::create_dir(home.path().join(".cache"))?;
        std::os::unix::fs::symlink(&cache, home.path().join(".cache/matchlock"))?;
        let images = fixtures::provide()?;
        let suite = Self { programs, binary, conformance, images, cases, home, long: false };
        prime(&suite.programs, suite.home.path())?;
        Ok(suite)
    }

    /// The Python suites.
    fn sdk(&self, cell: &Cell, filter: &str) -> Result<Counts> {
        host::provide_venv()?;
        let mut python = test::python();
        python.env("HOME", self.home.path()).args(["vm", "--machine", cell.machine, "--bin"]);
        python.arg(self.programs.join("matchlock"));
        if !filter.is_empty() {
            python.arg(filter);
        }
        Counts::of_run(&mut python)
    }

    fn here(&self, cell: &Cell, filter: &str) -> Result<Counts> {
        let mut command = sh::command(&self.binary);
        command.env("HOME", self.home.path()).env("MATCHLOCK_BIN", self.programs.join("matchlock"));
        command.env("MATCHLOCK_TEST_IMAGES", &self.images).env("MATCHLOCK_TEST_CASES", &self.cases);
        command.env("MATCHLOCK_TEST_MACHINE", cell.machine).args(["--test-threads", "1"]);
        if let Some(kernel) = kernel::built().filter(|_| cell.slim) {
            command.env("MATCHLOCK_TEST_KERNEL", format!("file://{}", kernel.display()));
        }
        if self.long {
            command.env("LONG_PROOFS", "1");
        }
        if !filter.is_empty() {
            command.arg(filter);
        }
        Counts::of_run(&mut command)
    }

    fn emulated_host(&self, cell: &Cell, filter: &str) -> Result<emulated::Host> {
        let cache = sh::target().join("cache");
        let host_kernel = stock::Kernel::provide(Profile::Release)?;
        let mut files = vec![
            (PathBuf::from("/root/.cache/matchlock"), cache),
            (PathBuf::from("/opt/matchlock/suite"), self.binary.clone()),
            (PathBuf::from("/opt/matchlock/conformance"), self.conformance.clone()),
            (PathBuf::from("/opt/matchlock/images"), self.images.clone()),
        ];
        for program in build::PROGRAMS {
            files.push((Path::new("/opt/matchlock").join(program), self.programs.join(program)));
        }
        if let Some(kernel) = kernel::built() {
            files.push((PathBuf::from("/opt/matchlock/vmlinux-slim"), kernel));
        }
        let kernel =
            if cell.slim { "export MATCHLOCK_TEST_KERNEL=file:///opt/matchlock/vmlinux-slim" } else { "" };
        if let Some(registry) = sh::find("docker-registry") {
            files.push((PathBuf::from("/opt/matchlock/docker-registry"), registry));
        }
        let script = format!(
            "export MATCHLOCK_TEST_IMAGES=/opt/matchlock/images\n\
             export MATCHLOCK_BIN=/opt/matchlock/matchlock MATCHLOCK_TEST_MACHINE=kvm REQUIRE=kvm\n\
             {kernel}\n\
             cd /opt/matchlock\n\
             ./conformance --color never; a=$?\n\
             ./suite --color never --test-threads 1 {filter}; b=$?\n\
             [ $a = 0 ] && [ $b = 0 ]\n"
        );
        let job = Job {
            kernel: &host_kernel,
            files,
            script,
            clock: Clock::Wall,
            memory_mib: 3072,
            limit: Duration::from_secs(40 * 60),
        };
        emulated::Host::new(&job)
    }
}

/// Puts kernel and built-in image into this home's cache, because an emulated host could not fetch them.
pub(crate) fn prime(programs: &Path, home: &Path) -> Result<()> {
    let mut command = sh::command(programs.join("matchlock"));
    command.env("HOME", home).args(["run", "--machine", "software", "--image", "busybox", "--", "true"]);
    sh::run(&mut command)
}

/// Builds a test target and returns its executable.
fn test_binary(package: &str, target: &str) -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--no-run", "-p", package, "--test", target, "--message-format"]);
    cargo.arg("json-render-diagnostics").args(sh::quiet());
    let messages = sh::output(&mut cargo)?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    executable.with_context(|| format!("cargo built no executable for {package}/{target}"))
}
