//! `exec_tty`: a program on a terminal.

use guest_protocol::{ExecFailure, Stdio, TerminalSize};
use wire::rpc::ExecTtyParams;

use super::program::{self, Ended, NO_USER, NOT_STARTED};
use super::relay::{self, Names, Sink};
use super::{Answer, Call, Inside, Result};
use crate::failure::Failure;

const NAMES: Names =
    Names { ready: Some("exec_tty.ready"), ack: None, stdout: "exec_tty.stdout", stderr: None };

/// Size of a terminal whose size is 0.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: ExecTtyParams = std::mem::take(&mut call.params).parse()?;
    let size = size(params.rows, params.cols)?;
    let exec = program::exec_tty(params, Stdio::Terminal(size))?;
    let mut sink = Sink::new(&call, &NAMES);
    let exit_code = match relay::run(&call, &inside, exec, &NAMES, &mut sink).await? {
        Ended::Exited(exit) => exit.status(),
        Ended::Failed(ExecFailure::User(_)) => NO_USER,
        Ended::Failed(_) => NOT_STARTED,
    };
    Ok(relay::answer(&call, exit_code))
}

fn size(rows: Option<i64>, cols: Option<i64>) -> Result<TerminalSize> {
    let number = |name: &str, number: Option<i64>, default: u16| match number.unwrap_or_default() {
        0 => Ok(default),
        number => u16::try_from(number).map_err(|_| Failure::params(format!("{name} must be in 0..65535"))),
    };
    let rows = number("rows", rows, DEFAULT_SIZE.rows)?;
    Ok(TerminalSize { rows, cols: number("cols", cols, DEFAULT_SIZE.cols)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size(None, Some(0)), Ok(DEFAULT_SIZE));
        assert_eq!(size(Some(1), Some(65_535)), Ok(TerminalSize { rows: 1, cols: 65_535 }));
        assert!(size(Some(65_536), None).is_err() && size(None, Some(-1)).is_err());
    }
}
