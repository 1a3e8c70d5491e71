//! Shared folders: requests of a driver without a machine, beside virtiofsd's best for each of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Options, median};
use crate::tools::{self, VIRTIOFSD};
use crate::{host, sh};

/// The server that is ours, as the measuring program calls it.
const OURS: &str = "matchlock-shares";

/// Of all of it: how many times virtiofsd's rate at least, and what part of its processor time at most.
const TARGETS: (f64, f64) = (1.5, 0.6);

/// System calls that each kind of operation may take, with 16 at once: one more than a prototype took that had no limits, no
/// walls, and nothing to look up.
const CALLS: &[(&str, f64)] = &[
    ("GETATTR", 2.1),
    ("LOOKUP", 2.1),
    ("LOOKUP of nothing", 2.1),
    ("OPEN, READ 4 KiB, RELEASE", 5.2),
    ("READ 4 KiB", 2.1),
    ("WRITE 4 KiB", 2.1),
    ("CREATE, RELEASE, UNLINK, FORGET", 5.2),
];

/// The figures of a server, one for each round.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    cpu_us: Vec<f64>,
}

/// Figures of a kind of operation with so many at once, by server.
type Servers = BTreeMap<String, Measured>;

pub(super) fn run(options: &Options, programs: &Path, measure: &Path) -> Result<()> {
    host::provide(&[host::SHARES], true)?;
    let virtiofsd = tools::installed(VIRTIOFSD)?;
    let mut command = sh::command(measure);
    command.arg("shares").arg("--shares").arg(programs.join(OURS)).arg("--virtiofsd").arg(virtiofsd);
    command.args(["--strace", "--runs", &options.runs.to_string()]);
    let output = sh::output(&mut command)?;
    let mut order = Vec::new();
    let mut measured: BTreeMap<(String, u64), Servers> = BTreeMap::new();
    let mut calls: BTreeMap<(String, bool), f64> = BTreeMap::new();
    for line in output.lines() {
        let row: Value = serde_json::from_str(line)?;
        let word = |key: &str| row[key].as_str().map(str::to_owned).with_context(|| line.to_owned());
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let (case, server) = (word("case")?, word("server")?);
        if let Some(depth) = row["depth"].as_u64() {
            if !order.contains(&case) {
                order.push(case.clone());
            }
            let of = measured.entry((case, depth)).or_default().entry(server).or_default();
            of.rates.push(number("per_second"));
            of.cpu_us.push(number("cpu_us"));
        } else {
            // The fewest of any way to set virtiofsd up.
            let least = calls.entry((case, server == OURS)).or_insert(f64::INFINITY);
            *least = least.min(number("calls"));
        }
    }
    say(&order, &mut measured, &calls);
    Ok(())
}

/// Prints the table of docs/performance.md.
fn say(
    order: &[String],
    measured: &mut BTreeMap<(String, u64), Servers>,
    calls: &BTreeMap<(String, bool), f64>,
) {
    let mut depths: Vec<u64> = measured.keys().map(|(_, depth)| *depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let named = |what: &str| depths.iter().map(|depth| format!(" {what}, {depth} |")).collect::<String>();
    let columns = named("rate") + &named("processor");
    println!("| operation |{columns} system calls | target | virtiofsd's |");
    println!("|{}", " --- |".repeat(4 + 2 * depths.len()));
    let mut all: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for case in order {
        let mut ratios = Vec::new();
        for depth in &depths {
            let Some(servers) = measured.get_mut(&(case.clone(), *depth)) else { continue };
            let ratio = compare(servers);
            all.entry(*depth).or_default().push(ratio);
            ratios.push(ratio);
        }
        let of = |ours: bool| {
            calls.get(&(case.clone(), ours)).map_or(String::new(), |calls| format!("{calls:.1}"))
        };
        let target = CALLS.iter().find(|(name, _)| name == case);
        let target = target.map_or(String::new(), |(_, calls)| format!("{calls:.1}"));
        println!("| {case} |{} {} | {target} | {} |", cells(&ratios), of(true), of(false));
    }
    let mean = |of: fn(&(f64, f64)) -> f64, ratios: &Vec<(f64, f64)>| {
        let logarithms: f64 = ratios.iter().map(|ratio| of(ratio).ln()).sum();
        (logarithms / ratios.len() as f64).exp()
    };
    let means: Vec<_> =
        all.values().map(|ratios| (mean(|ratio| ratio.0, ratios), mean(|ratio| ratio.1, ratios))).collect();
    println!("| geometric mean |{} | | |", cells(&means));
    println!("| target |{} | | |", cells(&vec![TARGETS; depths.len()]));
}

/// Our rate and our processor time, as parts of virtiofsd's best of each.
fn compare(servers: &mut Servers) -> (f64, f64) {
    let (mut ours, mut peers) = ((f64::NAN, f64::NAN), (0.0f64, f64::INFINITY));
    for (name, measured) in servers {
        let rate = median(&mut measured.rates);
        // The least is what the work takes; what others of the host add to it varies.
        let cpu_us = measured.cpu_us.iter().copied().fold(f64::INFINITY, f64::min);
        if name == OURS {
            ours = (rate, cpu_us);
        } else {
            peers = (peers.0.max(rate), peers.1.min(cpu_us));
        }
    }
    (ours.0 / peers.0, ours.1 / peers.1)
}

fn cells(ratios: &[(f64, f64)]) -> String {
    let cell = |number: f64| format!(" {number:.2} |");
    let (rates, cpu): (Vec<_>, Vec<_>) = ratios.iter().map(|ratio| (cell(ratio.0), cell(ratio.1))).unzip();
    rates.concat() + &cpu.concat()
}
