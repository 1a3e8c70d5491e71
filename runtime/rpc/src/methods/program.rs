//! The programs that the exec methods request from the guest.

use std::collections::BTreeMap;

use guest_protocol::{ExecFailure, Exit, Program, Stdio};
use sandbox::{AgentError, Exec};
use wire::rpc::{ExecParams, ExecTtyParams};

use super::Result;
use super::plan::variables;
use crate::failure::Failure;

/// Status of a program whose user is unknown.
pub(super) const NO_USER: u8 = 127;

/// Status of a piped program that could not be started.
pub(super) const NOT_STARTED: u8 = 1;

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The program ran.
    Exited(Exit),
    /// The program did not run.
    Failed(ExecFailure),
}

pub(super) fn exec(params: ExecParams, stdio: Stdio) -> Result<Exec> {
    let ExecParams { command, argv, working_dir, user, env, detached, .. } = params;
    build(command, argv, working_dir, user, env, stdio, detached.unwrap_or_default())
}

pub(super) fn exec_tty(params: ExecTtyParams, stdio: Stdio) -> Result<Exec> {
    let ExecTtyParams { command, argv, working_dir, user, env, .. } = params;
    build(command, argv, working_dir, user, env, stdio, false)
}

/// For methods whose program cannot outlive the request.
pub(super) fn attached(params: &ExecParams) -> Result<()> {
    match params.detached {
        Some(true) => Err(Failure::params("detached is for exec only")),
        _ => Ok(()),
    }
}

fn build(
    command: Option<String>,
    argv: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    env: Option<BTreeMap<String, Option<String>>>,
    stdio: Stdio,
    detached: bool,
) -> Result<Exec> {
    let program = match (command, argv) {
        (Some(_), Some(_)) => return Err(Failure::params("command and argv exclude each other")),
        (Some(command), None) => Program::Shell(command),
        (None, Some(argv)) if !argv.is_empty() => Program::Argv(argv),
        (None, _) => return Err(Failure::params("command or argv is required")),
    };
    Ok(Exec {
        program,
        env: variables(env)?,
        working_dir: working_dir.filter(|directory| !directory.is_empty()),
        user: user.filter(|user| !user.is_empty()),
        stdio,
        detached,
        first: false,
    })
}

/// The reason why a program did not run, as a message.
pub(super) fn words(failure: ExecFailure) -> String {
    AgentError::NotStarted(failure).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wire::rpc::ErrorCode;

    use super::*;

    fn of(params: Value) -> Result<Exec> {
        exec(serde_json::from_value(params).unwrap(), Stdio::Null)
    }

    #[test]
    fn programs() {
        let exec =
            of(json!({"command": "", "working_dir": "", "user": "", "env": {"A": "1", "B": null}})).unwrap();
        assert_eq!(exec.program, Program::Shell(String::new()));
        assert_eq!((exec.working_dir, exec.user, exec.detached), (None, None, false));
        assert_eq!(exec.env, [("A".to_owned(), "1".to_owned())]);
        let exec = of(json!({"argv": ["a", ""], "user": "0", "detached": true})).unwrap();
        assert_eq!(exec.program, Program::Argv(vec!["a".into(), String::new()]));
        assert_eq!((exec.user.as_deref(), exec.detached), (Some("0"), true));
    }

    #[test]
    fn wrong_ones() {
        for params in [
            json!({}),
            json!({"argv": []}),
            json!({"command": null, "argv": null}),
            json!({"command": "a", "argv": ["a"]}),
            json!({"command": "a", "env": {"A=": ""}}),
        ] {
            assert_eq!(of(params).unwrap_err().code, ErrorCode::InvalidParams);
        }
    }
}
