//! `matchlock exec`: a command in a sandbox that another process owns.
//!
//! The owner hands over the stream to the guest; from then on this program talks to the guest directly, and its end
//! cancels the command. Not here: the owner's side (`sandbox`).

use guest_protocol::{Program, Stdio};
use sandbox::{AgentError, Exec, Guest, Home, Id};

use crate::args::ExecArgs;
use crate::failure::{Interrupted, not_found};
use crate::signals::Signals;
use crate::stdio::Unwatched;
use crate::{block_on, environment, run, stdio};

/// Runs a command, and returns its exit status.
pub(crate) fn exec(args: ExecArgs, home: &Home) -> anyhow::Result<u8> {
    let mode = stdio::mode(args.interactive, args.tty)?;
    let mut argv = args.command;
    if argv.is_empty() {
        match mode {
            Stdio::Terminal(_) => argv.push("sh".to_owned()),
            _ => anyhow::bail!("command required"),
        }
    }
    let mut env: Vec<_> = run::terminal_type(mode).into_iter().collect();
    env.extend(environment::collect(&[], &args.env)?);
    let exec = Exec {
        program: Program::Argv(argv),
        env,
        working_dir: args.workdir,
        user: args.user,
        stdio: mode,
        detached: false,
        first: false,
    };
    block_on(async {
        let id: Id = args.id.parse().map_err(not_found)?;
        let program = Guest::of(home, &id).exec(exec).await.map_err(not_found)?;
        let mut signals = Signals::catch()?;
        let mut nobody = Unwatched;
        let result = tokio::select! {
            biased;
            signal = signals.next() => Err(Interrupted(signal).into()),
            result = stdio::relay(program, mode, &mut nobody) => result,
        };
        result.map_err(|error| match error.downcast_ref() {
            Some(AgentError::HangUp) => anyhow::anyhow!("VM {} ended while the command ran", args.id),
            _ => error,
        })
    })?
}
