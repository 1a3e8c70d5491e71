//! `cargo xtask`: everything a developer runs. What users run is the `matchlock` binary.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod bench;
mod build;
mod conformance;
mod cross;
mod demo;
mod emulated;
mod fixtures;
mod host;
mod kernel;
mod probe;
mod sh;
mod steps;
mod stock;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use build::Profile;
use clap::{Parser, Subcommand};

/// Developer tasks of matchlock.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the host lacks, build, run one command in a sandbox and print how long its start took
    Demo {
        /// Say what would be installed, and stop if anything would be
        #[arg(long)]
        no_install: bool,
    },
    /// Everything: tidy, format, lints, documentation, unit and conformance tests, and the VM tests on every machine
    Test {
        /// Leave out the VM matrix
        #[arg(long)]
        no_vm: bool,
    },
    /// The hardware matrix: real guests on every kind of machine this host can offer
    TestVm {
        /// Run this cell only
        #[arg(long)]
        cell: Option<String>,
        /// List the cells and whether they can run here
        #[arg(long)]
        list: bool,
        /// Run only tests whose name contains this
        #[arg(long, default_value = "")]
        filter: String,
    },
    /// Measure: each figure beside its peer, as a ratio
    Bench(bench::Options),
    /// Suites of others, held against what is ours
    Conformance {
        /// What of it
        subject: conformance::Subject,
    },
    /// Build the slim guest kernel from the distribution's source
    Kernel,
    /// Check what no compiler checks: layers, dependencies, where platforms are named, module docs, file length
    Tidy,
    /// Check the crates for the platforms to come, as far as they are ported (xtask/unported.toml)
    Check {
        /// This platform only
        #[arg(long)]
        target: Option<String>,
    },
    /// What to run before a push: the fast half of `test`
    Prepush,
    /// Build every program into target/release
    Build {
        /// As published: optimized across crates, into target/dist
        #[arg(long)]
        dist: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        // Without the stack, which `RUST_BACKTRACE` would add where the error itself is returned.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo { no_install } => demo::run(!no_install),
        Task::Test { no_vm } => test::all(!no_vm),
        Task::TestVm { cell, list, filter } => vm::run(cell.as_deref(), list, &filter),
        Task::Bench(options) => bench::run(&options),
        Task::Conformance { subject } => conformance::run(subject),
        Task::Kernel => kernel::run().map(|path| println!("{}", path.display())),
        Task::Tidy => tidy::run(),
        Task::Check { target } => cross::run(target.as_deref()),
        Task::Prepush => test::fast(),
        Task::Build { dist } => build::programs(if dist { Profile::Dist } else { Profile::Release })
            .map(|programs| println!("{}", programs.display())),
    }
}
