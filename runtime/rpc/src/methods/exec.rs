//! `exec`: a program whose output is collected, or one that is left running.

use guest_protocol::{ExecFailure, Stdio};
use sandbox::{Event, ProgramStream};
use wire::rpc::{ErrorCode, ExecParams, ExecResult, StartedResult};

use super::program::{self, Ended, NO_USER};
use super::{Answer, Call, Inside, Result, bytes};
use crate::budget::Held;
use crate::failure::Failure;

/// Most output that is collected of one program, in bytes.
const MAX_OUTPUT: usize = 256 << 20;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: ExecParams = std::mem::take(&mut call.params).parse()?;
    let exec = program::exec(params, Stdio::Null)?;
    if exec.detached {
        return match inside.guest.detach(exec).await {
            Ok(process_id) => Ok(call.answer(&StartedResult { process_id })),
            Err(error) => Err(inside.exec_failure(error).await),
        };
    }
    let program = match inside.guest.exec(exec).await {
        Ok(program) => program,
        Err(error) => return Err(inside.exec_failure(error).await),
    };
    let mut collected = Collected { stdout: Vec::new(), stderr: Vec::new(), held: call.budget.hold() };
    let exit_code = match collected.all(program, &inside).await? {
        Ended::Exited(exit) => exit.status(),
        Ended::Failed(failure @ ExecFailure::User(_)) => {
            collected.stderr = format!("{}\n", program::words(failure)).into_bytes();
            NO_USER
        }
        Ended::Failed(failure) => return Err(Failure::new(ErrorCode::Exec, program::words(failure))),
    };
    let duration_ms = call.millis();
    let Collected { stdout, stderr, held } = collected;
    let encode = |output: Vec<u8>| bytes::encode(&output);
    let result = ExecResult { exit_code, stdout: encode(stdout), stderr: encode(stderr), duration_ms };
    let answer = call.answer(&result);
    Ok(Answer { held: Some(held), ..answer })
}

/// A program's output.
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    held: Held,
}

impl Collected {
    async fn all(&mut self, program: ProgramStream, inside: &Inside) -> Result<Ended> {
        // The input stays open: its end would cancel the program.
        let ProgramStream { mut output, input: _input } = program;
        loop {
            match output.next().await {
                Ok(Event::Started) => {}
                Ok(Event::Stdout(piece)) => self.keep(piece, |this| &mut this.stdout)?,
                Ok(Event::Stderr(piece)) => self.keep(piece, |this| &mut this.stderr)?,
                Ok(Event::Exited(exit, _)) => return Ok(Ended::Exited(exit)),
                Ok(Event::Failed(failure)) => return Ok(Ended::Failed(failure)),
                Err(error) => return Err(inside.exec_failure(error).await),
            }
        }
    }

    fn keep(&mut self, piece: &[u8], stream: impl FnOnce(&mut Self) -> &mut Vec<u8>) -> Result<()> {
        if self.held.bytes() + piece.len() > MAX_OUTPUT || !self.held.grow(piece.len()) {
            let message = format!("more output than is kept ({MAX_OUTPUT} bytes); use exec_stream");
            return Err(Failure::new(ErrorCode::Exec, message));
        }
        stream(self).extend_from_slice(piece);
        Ok(())
    }
}
