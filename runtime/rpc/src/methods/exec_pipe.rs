//! `exec_pipe`: a program with input and output.

use guest_protocol::{ExecFailure, Stdio};
use wire::rpc::ExecParams;

use super::program::{self, Ended, NO_USER, NOT_STARTED};
use super::relay::{self, Names, Sink};
use super::{Answer, Call, Inside, Result};

const NAMES: Names = Names {
    ready: Some("exec_pipe.ready"),
    ack: None,
    stdout: "exec_pipe.stdout",
    stderr: Some("exec_pipe.stderr"),
};

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: ExecParams = std::mem::take(&mut call.params).parse()?;
    program::attached(&params)?;
    let ack = (params.stdin_ack == Some(true)).then_some("exec_pipe.stdin_ack");
    let names = Names { ack, ..NAMES };
    let exec = program::exec(params, Stdio::Pipe)?;
    let mut sink = Sink::new(&call, &names);
    let exit_code = match relay::run(&call, &inside, exec, &names, &mut sink).await? {
        Ended::Exited(exit) => exit.status(),
        Ended::Failed(failure) => {
            let status = if matches!(failure, ExecFailure::User(_)) { NO_USER } else { NOT_STARTED };
            sink.stderr(format!("{}\n", program::words(failure)).as_bytes()).await;
            status
        }
    };
    Ok(relay::answer(&call, exit_code))
}
