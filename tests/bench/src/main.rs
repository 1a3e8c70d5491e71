//! Measurements that `cargo xtask bench` runs, here or in the emulated host: one JSON object a line, with medians and
//! verdicts left to the reader. Not here: tests; no measurement passes or fails.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod exec;
mod exits;
mod memory;
mod rpc;
mod shares;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// The sandbox to measure.
#[derive(clap::Args)]
struct Under {
    /// The `matchlock` program
    #[arg(long)]
    matchlock: PathBuf,
    /// Machine
    #[arg(long, default_value = "kvm")]
    machine: String,
}

#[derive(Subcommand)]
enum What {
    /// From the start of a VMM's process to the guest's /init
    Start(start::Options),
    /// An exec of `true` on a running sandbox
    Exec(exec::Options),
    /// Overhead of `matchlock rpc`
    Rpc(rpc::Options),
    /// From the guest being ready to the answer to `create` with an entrypoint
    Launch(rpc::LaunchOptions),
    /// The frequency of the host's time-stamp counter in kHz, for a guest that cannot measure its own
    Tsc,
    /// Memory that the processes of a running sandbox have for themselves
    Memory(Under),
    /// Requests to shared folders, beside virtiofsd
    Shares(shares::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        // The error is printed here, because returning it would add a stack if `RUST_BACKTRACE` is set.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<()> {
    match what {
        What::Start(options) => start::run(&options),
        What::Exec(options) => exec::run(&options),
        What::Rpc(options) => rpc::run(&options),
        What::Launch(options) => rpc::launch(&options),
        What::Tsc => {
            println!("{}", machine::tsc::Calibration::start().khz());
            Ok(())
        }
        What::Memory(options) => memory::run(&options),
        What::Shares(options) => shares::run(&options),
    }
}
