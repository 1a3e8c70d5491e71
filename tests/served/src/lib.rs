//! Servers on the loopback, which live as long as their handles: a real registry, Debian's `docker-registry`, and one
//! for answers that no real server gives (`http`).
//!
//! Not here: their content and their clients.

pub mod http;

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running registry, which ends when it is dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    /// Serves `data` on a free port; `more` is added to the registry's configuration: its part below `http`, and then
    /// the rest.
    ///
    /// # Errors
    ///
    /// If the registry does not start, with its messages.
    pub fn start(data: &Path, more: &str) -> io::Result<Self> {
        let storage = format!("storage: {{filesystem: {{rootdirectory: {}}}}}", data.display());
        let config = format!("version: 0.1\n{storage}\nhttp:\n  addr: 127.0.0.1:0\n{more}");
        let mut command = Command::new("docker-registry");
        // The registry reads its configuration from a path.
        command.args(["serve", "/proc/self/fd/0"]).stdin(Stdio::piped());
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = process.stdin.take() {
            io::Write::write_all(&mut stdin, config.as_bytes())?;
        }
        let messages = process.stderr.take();
        let mut registry = Self { process, address: String::new() };
        let mut lines = BufReader::new(messages.ok_or(io::ErrorKind::BrokenPipe)?).lines();
        let mut said = String::new();
        loop {
            let Some(line) = lines.next().transpose()? else { return Err(io::Error::other(said)) };
            if let Some((_, rest)) = line.split_once("listening on ") {
                registry.address = rest.split([',', '"', ' ']).next().unwrap_or_default().to_owned();
                break;
            }
            said.push_str(&line);
        }
        // The registry would end if nobody read its output.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(registry)
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The registry may have ended by itself; either way it is reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
