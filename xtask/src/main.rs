//! `cargo xtask`: all commands of a developer. The users' command is the `matchlock` binary.

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
mod tools;
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
        /// Print the packages that would be installed, and stop if there are any
        #[arg(long)]
        no_install: bool,
    },
    /// Run every check: tidy, format, lints, documentation, unit and conformance tests, and the VM tests on every
    /// machine
    Test {
        /// Leave the VM matrix out
        #[arg(long)]
        no_vm: bool,
    },
    /// Run the hardware matrix: real guests on every kind of machine that this host can offer
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
    /// Measure the product: each figure beside its peer's, as a ratio
    Bench(bench::Options),
    /// Run other projects' test suites, or proofs of ours that take minutes, against a part of the product
    Conformance {
        /// The part to test
        subject: conformance::Subject,
    },
    /// Build the slim guest kernel from the distribution's source
    Kernel,
    /// Check rules that no compiler checks: layers, dependencies, where platforms are named, module docs, file length
    Tidy,
    /// Check the crates for the platforms to come, as far as they are ported (xtask/unported.toml)
    Check {
        /// This platform only
        #[arg(long)]
        target: Option<String>,
    },
    /// Run the checks to make before a push: the fast half of `test`
    Prepush,
    /// Build every program into target/release
    Build {
        /// Build as for a release: optimized across crates, into target/dist
        #[arg(long)]
        dist: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        // The error is printed here, because returning it would add a stack if `RUST_BACKTRACE` is set.
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
