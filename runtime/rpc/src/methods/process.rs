//! `process_list`, `process_wait`, `process_signal`, `process_kill`, `process_output`: programs that were left running.

use sandbox::{DetachedInfo, DetachedState};
use wire::rpc::{
    Empty, ProcessInfo, ProcessListResult, ProcessOutputResult, ProcessParams, ProcessSignalParams,
    ProcessWaitResult,
};

use super::{Answer, Call, Inside, Result, bytes};
use crate::failure::Failure;

/// The signal of `process_signal` unless the client names one.
const SIGTERM: i64 = 15;

/// Linux's last signal.
const MAX_SIGNAL: i64 = 64;

pub(super) async fn list(mut call: Call, inside: Inside) -> Result<Answer> {
    let Empty {} = std::mem::take(&mut call.params).parse()?;
    match inside.guest.detached().await {
        Ok(programs) => {
            let processes = programs.into_iter().map(info).collect();
            Ok(call.answer(&ProcessListResult { processes }))
        }
        Err(error) => Err(inside.exec_failure(error).await),
    }
}

pub(super) async fn wait(mut call: Call, inside: Inside) -> Result<Answer> {
    let process = process(&mut call)?;
    match inside.guest.wait(process).await {
        Ok(exit) => Ok(call.answer(&ProcessWaitResult { exit_code: exit.status() })),
        Err(error) => Err(inside.exec_failure(error).await),
    }
}

pub(super) async fn signal(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: ProcessSignalParams = std::mem::take(&mut call.params).parse()?;
    let process = required(params.process_id)?;
    let signal = params.signal.unwrap_or(SIGTERM);
    let signal = i32::try_from(signal).ok().filter(|_| (1..=MAX_SIGNAL).contains(&signal));
    let signal = signal.ok_or_else(|| Failure::params(format!("signal must be in 1..{MAX_SIGNAL}")))?;
    match inside.guest.signal(process, signal).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(inside.exec_failure(error).await),
    }
}

pub(super) async fn kill(mut call: Call, inside: Inside) -> Result<Answer> {
    let process = process(&mut call)?;
    match inside.guest.kill(process).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(inside.exec_failure(error).await),
    }
}

pub(super) async fn output(mut call: Call, inside: Inside) -> Result<Answer> {
    let process = process(&mut call)?;
    match inside.guest.detached_output(process).await {
        Ok(output) => Ok(call.answer(&ProcessOutputResult { output: bytes::encode(&output) })),
        Err(error) => Err(inside.exec_failure(error).await),
    }
}

fn process(call: &mut Call) -> Result<u32> {
    let params: ProcessParams = std::mem::take(&mut call.params).parse()?;
    required(params.process_id)
}

fn required(process: Option<u32>) -> Result<u32> {
    process.ok_or_else(|| Failure::params("process_id is required"))
}

fn info(program: DetachedInfo) -> ProcessInfo {
    let (running, exit_code) = match program.state {
        DetachedState::Running => (true, None),
        DetachedState::Exited(exit) => (false, Some(exit.status())),
        DetachedState::Lost => (false, None),
    };
    ProcessInfo { process_id: program.id, command: program.command, running, exit_code }
}
