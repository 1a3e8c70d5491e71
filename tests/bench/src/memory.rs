//! What the processes of a running sandbox keep for themselves: private dirty and private clean memory, mappings that
//! are guest memory left out.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Under;

/// A mapping at least this large is guest memory: nothing else in these processes comes near it.
const GUEST_MEMORY_KIB: u64 = 64 << 10;

#[derive(Debug, Default, serde::Serialize)]
struct Row {
    process: String,
    private_dirty_kib: u64,
    private_clean_kib: u64,
}

pub(crate) fn run(options: &Under) -> Result<()> {
    let mut sandbox = Command::new(&options.matchlock)
        .args(["run", "--machine", &options.machine, "--memory", "256", "-i", "--image", "busybox"])
        .args(["--", "sh", "-c", "echo up; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("matchlock")?;
    let mut output = BufReader::new(sandbox.stdout.take().context("its output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    let measured = if line == "up\n" { measure(sandbox.id()) } else { Ok(Vec::new()) };
    drop(sandbox.stdin.take());
    let status = sandbox.wait()?;
    if line != "up\n" || !status.success() {
        bail!("the sandbox ended with {status}");
    }
    for row in measured? {
        println!("{}", serde_json::to_string(&row)?);
    }
    Ok(())
}

/// The supervisor and every process below it.
fn measure(supervisor: u32) -> Result<Vec<Row>> {
    let mut rows = vec![private(supervisor)?];
    // A child belongs to the thread that started it.
    for thread in fs::read_dir(format!("/proc/{supervisor}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children"))?;
        for child in children.split_whitespace() {
            rows.push(private(child.parse()?)?);
        }
    }
    Ok(rows)
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
