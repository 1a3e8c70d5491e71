//! System calls that a server makes for a request: the difference of two counts, so that what is not for requests does not
//! count.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A count that goes on.
pub(super) struct Count {
    strace: Child,
    output: tempfile::NamedTempFile,
}

impl Count {
    /// Counts the calls of every thread of these processes.
    pub(super) fn start(processes: &[u32]) -> Result<Self> {
        let output = tempfile::NamedTempFile::new()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(output.path());
        for pid in processes {
            command.args(["-p", &pid.to_string()]);
        }
        let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("strace")?;
        let mut said = BufReader::new(strace.stderr.take().context("its words")?).lines();
        for _ in processes {
            let line = said.next().context("strace ended")??;
            ensure!(line.contains("attached"), "strace: {line}");
        }
        // Threads that begin and end are told of, too, and nobody may have to wait for a reader.
        std::thread::spawn(move || said.for_each(drop));
        Ok(Self { strace, output })
    }

    /// Ends the count.
    pub(super) fn end(mut self) -> Result<u64> {
        let pid = Pid::from_child(&self.strace);
        kill_process(pid, Signal::INT)?;
        self.strace.wait()?;
        let table = std::fs::read_to_string(self.output.path())?;
        let calls = |line: &str| line.split_whitespace().next().and_then(|calls| calls.parse::<u64>().ok());
        let is_sum = |line: &str| line.split_whitespace().last() == Some("total");
        Ok(table.lines().filter(|line| !is_sum(line)).filter_map(calls).sum())
    }
}
