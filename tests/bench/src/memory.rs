//! Memory that the processes of a running sandbox have for themselves: private dirty and private clean memory, not
//! counting mappings of guest memory. And the time in which the host gets back the memory that the guest frees.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Under;

/// A mapping at least this large is guest memory: no other mapping of these processes comes near it.
const GUEST_MEMORY_KIB: u64 = 64 << 10;

#[derive(Debug, Default, serde::Serialize)]
struct Row {
    process: String,
    private_dirty_kib: u64,
    private_clean_kib: u64,
}

/// Guest memory on the host, summed over all processes, and the time in which freed memory came back.
#[derive(Debug, serde::Serialize)]
struct GivenBack {
    before_mib: u64,
    full_mib: u64,
    after_mib: u64,
    given_back_s: f64,
}

/// The guest's script: each line that it is sent starts the next step.
const SCRIPT: &str = "echo up; read line
    dd if=/dev/zero of=/dev/shm/x bs=1M count=100 2>/dev/null; echo full; read line
    rm /dev/shm/x; echo freed; cat";

/// Freed memory that may stay in the guest, and how long the rest is waited for.
const KEPT_MIB: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(options: &Under) -> Result<()> {
    let mut sandbox = Command::new(&options.matchlock)
        .args(["run", "--machine", &options.machine, "--memory", "256", "-i", "--image", "busybox"])
        .args(["--", "sh", "-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("matchlock")?;
    let output = BufReader::new(sandbox.stdout.take().context("its output")?);
    let input = sandbox.stdin.take().context("its input")?;
    let measured = Conversation { input, output }.measure(sandbox.id());
    let status = sandbox.wait()?;
    let (rows, given_back) = measured?;
    if !status.success() {
        bail!("the sandbox ended with {status}");
    }
    for row in rows {
        println!("{}", serde_json::to_string(&row)?);
    }
    println!("{}", serde_json::to_string(&given_back)?);
    Ok(())
}

/// The conversation with the guest's script. Dropping it ends the script.
struct Conversation {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    fn measure(mut self, supervisor: u32) -> Result<(Vec<Row>, GivenBack)> {
        self.hear("up")?;
        let (rows, before_mib) = (measure(supervisor)?, resident_mib(supervisor)?);
        self.go_on("full")?;
        let full_mib = resident_mib(supervisor)?;
        self.go_on("freed")?;
        let freed = Instant::now();
        loop {
            let after_mib = resident_mib(supervisor)?;
            let given_back_s = freed.elapsed().as_secs_f64();
            if after_mib <= before_mib + KEPT_MIB {
                return Ok((rows, GivenBack { before_mib, full_mib, after_mib, given_back_s }));
            }
            if freed.elapsed() > PATIENCE {
                bail!("of {full_mib} MiB the host still had {after_mib} after {given_back_s:.0} s");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn hear(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.trim_end() != expected {
            bail!("the guest said {line:?} instead of {expected}");
        }
        Ok(())
    }

    fn go_on(&mut self, expected: &str) -> Result<()> {
        self.input.write_all(b"\n")?;
        self.hear(expected)
    }
}

/// Memory of the supervisor and of every process below it, each page counted once.
fn resident_mib(supervisor: u32) -> Result<u64> {
    let mut kib = 0;
    for pid in processes(supervisor)? {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
        kib += pss.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(kib >> 10)
}

fn measure(supervisor: u32) -> Result<Vec<Row>> {
    processes(supervisor)?.into_iter().map(private).collect()
}

/// A process and every process below it.
pub(crate) fn processes(top: u32) -> Result<Vec<u32>> {
    let mut processes = vec![top];
    let mut next = 0;
    while let Some(pid) = processes.get(next) {
        // A child belongs to the thread that started it.
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            for child in children.split_whitespace() {
                processes.push(child.parse()?);
            }
        }
        next += 1;
    }
    Ok(processes)
}

fn private(pid: u32) -> Result<Row> {
    let process = fs::read_to_string(format!("/proc/{pid}/comm"))?.trim().to_owned();
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut row = Row { process, ..Row::default() };
    let mut counted = true;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        let Ok(kib) = value.parse::<u64>() else { continue };
        match key {
            // The first line of each mapping's figures.
            "Size:" => counted = kib < GUEST_MEMORY_KIB,
            "Private_Dirty:" if counted => row.private_dirty_kib += kib,
            "Private_Clean:" if counted => row.private_clean_kib += kib,
            _ => {}
        }
    }
    Ok(row)
}
