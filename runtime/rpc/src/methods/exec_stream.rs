//! `exec_stream`: a program's output as it comes.

use guest_protocol::{ExecFailure, Stdio};
use wire::rpc::{ErrorCode, ExecParams};

use super::program::{self, Ended, NO_USER};
use super::relay::{self, Names, Sink};
use super::{Answer, Call, Inside, Result};
use crate::failure::Failure;

const NAMES: Names =
    Names { ready: None, ack: None, stdout: "exec_stream.stdout", stderr: Some("exec_stream.stderr") };

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: ExecParams = std::mem::take(&mut call.params).parse()?;
    program::attached(&params)?;
    let exec = program::exec(params, Stdio::Null)?;
    let mut sink = Sink::new(&call, &NAMES);
    match relay::run(&call, &inside, exec, &NAMES, &mut sink).await? {
        Ended::Exited(exit) => Ok(relay::answer(&call, exit.status())),
        Ended::Failed(failure @ ExecFailure::User(_)) => {
            sink.stderr(format!("{}\n", program::words(failure)).as_bytes()).await;
            Ok(relay::answer(&call, NO_USER))
        }
        Ended::Failed(failure) => Err(Failure::new(ErrorCode::Exec, program::words(failure))),
    }
}
