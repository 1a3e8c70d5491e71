//! The `matchlock` program: arguments in, exit status out.
//!
//! Standard output is for the guest's output, or for a command's answer; everything else goes to standard error. Not
//! here: sandboxes (`sandbox`).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod allow_list;
mod args;
mod audit;
mod build;
mod changes;
mod command_line;
mod detach;
mod diagnose;
mod environment;
mod exec;
mod explain;
mod failure;
mod forward;
mod gc;
mod hint;
mod image;
mod inspect;
mod kernel;
mod log;
mod mount;
mod progress;
mod pull;
mod rpc;
mod run;
mod say;
mod search_path;
mod signals;
mod state;
mod stdio;
mod streams;
mod table;
mod tame;
mod terminal;
mod volume;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Cli, Command, ImageCommand, KernelCommand, MountCommand, VolumeCommand};
use failure::advice;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox::{Home, Powers, Start};
use say::say;

fn main() -> ExitCode {
    let start = Start::now();
    if let Err(error) = search_path::put_right() {
        failure::print(&format!("starting again with another PATH: {error}"), None);
        return ExitCode::FAILURE;
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = match args::parse(arguments.clone()) {
        Ok(cli) => cli,
        Err(refusal) => return refusal.show(),
    };
    log_to_stderr(cli.log_level);
    command_line::hide(&arguments, cli.command.variables());
    heed_file_limits();
    match dispatch(cli, &arguments, start) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            failure::show(&error);
            ExitCode::from(failure::status(&error))
        }
    }
}

fn dispatch(cli: Cli, arguments: &[OsString], start: Start) -> anyhow::Result<u8> {
    // Under sudo this process is root's up to here.
    let home = |powers| -> anyhow::Result<Home> { Ok(Home::from_env(powers)?) };
    let (nothing, take_back, all) = (None, Some(Powers::TakeBack), Some(Powers::Sandbox));
    match cli.command {
        Command::Run(args) => run::run(*args, arguments, start, home),
        Command::Exec(args) => exec::exec(args, &home(take_back)?),
        Command::Rpc(args) => rpc::rpc(&args, home(all)?),
        Command::List(args) => state::list(&args, &home(take_back)?),
        Command::Kill(args) => state::kill(&args, &home(take_back)?),
        Command::Rm(args) => state::rm(&args, &home(take_back)?),
        Command::Prune => state::prune(&home(take_back)?),
        Command::Gc(args) => gc::gc(&args, &home(take_back)?),
        Command::Get(args) => inspect::get(&args, &home(take_back)?),
        Command::Inspect(args) => inspect::inspect(&args, &home(take_back)?),
        Command::Log(args) => log::log(&args, &home(nothing)?),
        Command::PortForward(args) => forward::port_forward(&args, &home(Some(Powers::Listen))?),
        Command::AllowList { command } => allow_list::change(&command, &home(take_back)?),
        Command::Audit(args) => audit::audit(&args, &home(nothing)?),
        Command::Explain(args) => explain::explain(&args, || home(take_back)),
        Command::Pull(args) => pull::pull(&args, &home(nothing)?),
        Command::Build(args) => build::build(&args, || home(nothing)),
        Command::Diff(args) => changes::diff(&args, &home(take_back)?),
        Command::Apply(args) => changes::apply(&args, &home(take_back)?),
        Command::Discard(args) => changes::discard(&args, &home(take_back)?),
        Command::Image { command } => match command {
            ImageCommand::Ls(args) => image::ls(&args, &home(nothing)?),
            ImageCommand::Import(args) => image::import(&args, &home(nothing)?),
            ImageCommand::Inspect(args) => image::inspect(&args, &home(nothing)?),
            ImageCommand::Rm(args) => image::rm(&args, &home(nothing)?),
            ImageCommand::Tag(args) => image::tag(&args, &home(nothing)?),
            ImageCommand::Prune(args) => image::prune(&args, &home(take_back)?),
            ImageCommand::Gc(args) => image::gc(&args, &home(nothing)?),
        },
        Command::Kernel { command } => match command {
            KernelCommand::Ls(args) => kernel::ls(&args, &home(nothing)?),
            KernelCommand::Rm(args) => kernel::rm(&args, &home(nothing)?),
        },
        Command::Volume { command } => match command {
            VolumeCommand::Create(args) => volume::create(&args, &home(nothing)?),
            VolumeCommand::Ls(args) => volume::ls(&args, &home(nothing)?),
            VolumeCommand::Rm(args) => volume::rm(&args, &home(nothing)?),
            VolumeCommand::Cp(args) => volume::copy(&args, &home(nothing)?),
        },
        Command::Mount { command } => match command {
            MountCommand::Add(args) => mount::add(&args, &home(nothing)?),
            MountCommand::Rm(args) => mount::rm(&args, &home(nothing)?),
            MountCommand::List(args) => mount::list(&args, &home(nothing)?),
        },
        Command::Diagnose(args) => diagnose::diagnose(&args, &home(all)?),
        Command::Completion { shell } => {
            say::bytes(&args::completion(shell));
            Ok(0)
        }
        Command::Setup(_) => {
            say!(
                "Nothing has to be set up. matchlock diagnose says what this host can run, and what it lacks."
            );
            Ok(0)
        }
        Command::Version => {
            let commit = option_env!("MATCHLOCK_COMMIT").unwrap_or("unknown");
            let built = option_env!("MATCHLOCK_BUILD_TIME").unwrap_or("unknown");
            say!("matchlock {} (commit: {commit}, built: {built})", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
    }
}

fn log_to_stderr(level: args::LogLevel) {
    tracing_subscriber::fmt()
        .with_writer(|| say::Log)
        .with_max_level(tracing::Level::from(level))
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .log_internal_errors(false)
        .without_time()
        .init();
}

/// Fewest open files with which a sandbox can be started and driven.
const LEAST_OPEN_FILES: u64 = 256;

/// Runs a future on this thread; threads that block forever do not keep the program from ending.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    Ok(output)
}

/// Turns writes past the limit on file sizes into errors, instead of a signal that ends the process without a word.
fn heed_file_limits() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    let limit = getrlimit(Resource::Fsize);
    let raised = setrlimit(Resource::Fsize, Rlimit { current: limit.maximum, ..limit });
    // Threads that start later inherit the blocked signal.
    if let Err(error) = signals.thread_block().map_err(std::io::Error::from).and(raised.map_err(Into::into)) {
        tracing::debug!("limits on files: {error}");
    }
}

/// Raises the limit on open files: the soft limit is for programs that use select(2).
fn raise_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < LEAST_OPEN_FILES) {
        let message = format!("no more than {} open files are allowed", limit.maximum.unwrap_or_default());
        return Err(advice(message, "ulimit -n 1024, in a shell that may, raises the limit"));
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}
