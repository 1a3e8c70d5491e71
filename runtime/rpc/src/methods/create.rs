//! `create`: a sandbox, and its entrypoint if the client asks for it.
//!
//! Not here: the parameters (`plan`).

use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{ExecFailure, Program, Stdio};
use sandbox::{AgentError, Exec, GuestError, Ready, Spec};
use tokio::time::{Instant, timeout_at};
use wire::rpc::CreateResult;

use super::{Answer, Result};
use crate::encode;
use crate::failure::Failure;
use crate::vm::Vm;

pub(crate) use super::plan::plan;

/// How long after the guest is ready an early failure of the entrypoint is waited for, if the guest is fast.
const EARLY_EXIT: Duration = Duration::from_millis(15);

/// The same wait for a slow guest, as a multiple of the entrypoint's start: the end of a PID 1 is that of its
/// namespace, and takes longer than its start.
const EARLY_EXIT_STARTS: u32 = 3;

pub(crate) async fn run(id: Option<u64>, spec: Spec, vm: Arc<Vm>) -> Result<Answer> {
    match bring_up(&spec, &vm).await {
        Ok(()) => {
            Ok(Answer { line: encode::result(id, &CreateResult { id: vm.id.to_string() }), held: None })
        }
        Err(failure) => {
            vm.discard().await;
            Err(failure)
        }
    }
}

async fn bring_up(spec: &Spec, vm: &Vm) -> Result<()> {
    let ready = vm.ready().await?;
    let workspace = &spec.image_config.workspace;
    if !workspace.is_empty() {
        let made = ready.guest.files().make_directory(workspace, 0o755, true).await;
        if let Err(error) = made {
            return Err(Failure::vm(format!("workspace {workspace}: {}", vm.explain(error).await)));
        }
    }
    let entrypoint = ready.command(&[]);
    if spec.launch_entrypoint && !entrypoint.is_empty() {
        launch(vm, ready, entrypoint, spec.init).await?;
    }
    Ok(())
}

/// Starts the entrypoint, and waits a short time for it to fail.
async fn launch(vm: &Vm, ready: Ready, entrypoint: Vec<String>, init: bool) -> Result<()> {
    let asked = Instant::now();
    let exec = Exec {
        program: Program::Argv(entrypoint),
        env: Vec::new(),
        working_dir: None,
        user: None,
        stdio: Stdio::Null,
        detached: true,
        first: !init,
    };
    let failed = |code: u8, why: &str| {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        Err(Failure::vm(format!("start image entrypoint: exit code {code}{why}")))
    };
    let program = match ready.guest.detach(exec).await {
        Ok(program) => program,
        Err(GuestError::Agent(error @ AgentError::NotStarted(ExecFailure::NotExecutable(_)))) => {
            return failed(126, &error.to_string());
        }
        Err(GuestError::Agent(error @ AgentError::NotStarted(_))) => return failed(127, &error.to_string()),
        Err(error) => {
            return Err(Failure::vm(format!("start image entrypoint: {}", vm.explain(error).await)));
        }
    };
    let by = (ready.since + EARLY_EXIT).max(Instant::now() + asked.elapsed() * EARLY_EXIT_STARTS);
    match timeout_at(by, ready.guest.wait(program)).await {
        Ok(Ok(exit)) if exit.status() != 0 => failed(exit.status(), ""),
        Ok(Err(error)) => Err(Failure::vm(format!("start image entrypoint: {}", vm.explain(error).await))),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}
