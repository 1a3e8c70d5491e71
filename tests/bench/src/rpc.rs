//! The cost of driving a sandbox by `matchlock rpc` instead of directly: an exec, many at once, a long output, a
//! large file, and the answer to `create` after the guest is ready.
//!
//! This program speaks the protocol itself, with as little code as possible, so that no SDK's own time is in the
//! figures.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_protocol::Program;
use sandbox::{Home, Id};
use serde_json::{Value, json};

use crate::Under;
use crate::exec::{WARM_UP, at, micros, ping, ran};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    under: Under,
    /// Counted execs, after ten that are not
    #[arg(long, default_value_t = 200)]
    runs: u32,
    /// Length of the long output and of the large file
    #[arg(long, default_value_t = 1024)]
    mib: u64,
}

/// Options of `measure launch`.
#[derive(clap::Args)]
pub(crate) struct LaunchOptions {
    #[command(flatten)]
    under: Under,
    /// Sandboxes to launch, after one that does not count
    #[arg(long, default_value_t = 5)]
    runs: u32,
}

/// Launches sandboxes one after the other, and prints one line for all.
pub(crate) fn launch(options: &LaunchOptions) -> Result<()> {
    let mut after_ready_us = Vec::new();
    for run in 0..=options.runs {
        let (server, after_us) = Server::launch(&options.under)?;
        server.end()?;
        if run > 0 {
            after_ready_us.push(after_us);
        }
    }
    println!("{}", json!({"machine": options.under.machine, "launch_after_ready_us": after_ready_us}));
    Ok(())
}

/// One line of output.
#[derive(serde::Serialize)]
struct Row {
    machine: String,
    /// From the line on which the server's log says "running" to the answer to `create` with an entrypoint.
    launch_after_ready_us: f64,
    rpc_exec_us: f64,
    rpc_exec_p99_us: f64,
    ping_us: f64,
    agent_us: f64,
    ratio: f64,
    concurrent: usize,
    concurrent_ms: f64,
    mib: u64,
    stream_mib_per_s: f64,
    raw_mib_per_s: f64,
    stream_ratio: f64,
    write_mib_per_s: f64,
    read_mib_per_s: f64,
    /// The server's peak of memory, before and after the streams and files.
    peak_rss_before_kib: u64,
    peak_rss_after_kib: u64,
}

const CONCURRENT: usize = 100;
const CHUNK: u64 = 1 << 20;

pub(crate) fn run(options: &Options) -> Result<()> {
    let (mut server, launch_after_ready_us) = Server::launch(&options.under)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let home = Home::from_env(None)?;
    let id: Id = server.id.parse()?;

    let (mut execs, mut agents, mut pings) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..WARM_UP + options.runs {
        let start = Instant::now();
        server.call("exec", json!({"command": "true"}))?;
        let exec = micros(start);
        let agent = runtime.block_on(ran(&home, &id, Program::Shell("true".to_owned())))?.agent_us;
        let ping = runtime.block_on(ping(&home, &id))?;
        if run >= WARM_UP {
            execs.push(exec);
            agents.push(agent);
            pings.push(ping);
        }
    }
    let (exec, ping, agent) = (at(&mut execs, 0.5), at(&mut pings, 0.5), at(&mut agents, 0.5));

    let start = Instant::now();
    let ids: Vec<_> =
        (0..CONCURRENT).map(|_| server.send("exec", json!({"command": "true"}))).collect::<Result<_>>()?;
    let mut waiting: std::collections::HashSet<u64> = ids.into_iter().collect();
    while !waiting.is_empty() {
        let answer = server.line()?;
        if answer["result"]["exit_code"] != 0 {
            bail!("one of many execs: {answer}");
        }
        waiting.remove(&answer["id"].as_u64().context("an answer's id")?);
    }
    let concurrent_ms = micros(start) / 1000.0;

    let peak_rss_before_kib = server.peak_rss()?;
    let bytes = options.mib << 20;
    // Large reads and writes: a program that takes time for its output would hide the cost of its way.
    let command = format!("dd if=/dev/zero bs=1M count={} 2>/dev/null", options.mib);
    let mib_per_s = |start: Instant| seconds_to_rate(options.mib, start.elapsed());
    let start = Instant::now();
    server.stream(&command, bytes)?;
    let stream = mib_per_s(start);
    let start = Instant::now();
    let received = runtime.block_on(ran(&home, &id, Program::Shell(command)))?.output_bytes;
    if received != bytes {
        bail!("{received} of {bytes} bytes came");
    }
    let raw = mib_per_s(start);
    let start = Instant::now();
    server.write_file(bytes)?;
    let write = mib_per_s(start);
    let start = Instant::now();
    server.read_file(bytes)?;
    let read = mib_per_s(start);
    let row = Row {
        machine: options.under.machine.clone(),
        launch_after_ready_us,
        rpc_exec_us: exec,
        rpc_exec_p99_us: at(&mut execs, 0.99),
        ping_us: ping,
        agent_us: agent,
        ratio: exec / (ping + agent),
        concurrent: CONCURRENT,
        concurrent_ms,
        mib: options.mib,
        stream_mib_per_s: stream,
        raw_mib_per_s: raw,
        stream_ratio: raw / stream,
        write_mib_per_s: write,
        read_mib_per_s: read,
        peak_rss_before_kib,
        peak_rss_after_kib: server.peak_rss()?,
    };
    server.end()?;
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

/// A `matchlock rpc` with a sandbox.
struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    next: u64,
    id: String,
}

impl Server {
    /// Starts a server and launches a sandbox whose entrypoint runs on; returns the time from the guest's readiness
    /// to the answer.
    fn launch(under: &Under) -> Result<(Self, f64)> {
        let mut child = Command::new(&under.matchlock)
            .args(["--log-level", "debug", "rpc"])
            .env("MATCHLOCK_MACHINE", &under.machine)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("matchlock")?;
        let log = BufReader::new(child.stderr.take().context("its log")?);
        let (sender, ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.trim_end().ends_with(": running") {
                    let _ = sender.send(Instant::now());
                }
            }
        });
        let (input, output) = (child.stdin.take().context("its input")?, child.stdout.take());
        let output = BufReader::new(output.context("its output")?);
        let mut server = Self { child, input, output, next: 0, id: String::new() };
        let params = json!({
            "image": "busybox:latest",
            "resources": {"memory_mb": 512, "disk_size_mb": 4096},
            "launch_entrypoint": true,
            "image_config": {"entrypoint": ["sleep"], "cmd": ["1000000"]},
        });
        let answer = server.call("create", params)?;
        let answered = Instant::now();
        server.id = answer["id"].as_str().context("the sandbox's id")?.to_owned();
        let ready = ready.recv_timeout(Duration::from_secs(10)).context("no word of the sandbox running")?;
        Ok((server, answered.saturating_duration_since(ready).as_secs_f64() * 1e6))
    }

    fn send(&mut self, method: &str, params: Value) -> Result<u64> {
        self.next += 1;
        let mut line =
            json!({"jsonrpc": "2.0", "method": method, "id": self.next, "params": params}).to_string();
        line.push('\n');
        self.input.write_all(line.as_bytes())?;
        Ok(self.next)
    }

    /// The next line that is no log output.
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("matchlock rpc ended");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// The answer to a request; no other message may come before it.
    fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let id = self.send(method, params)?;
        let mut answer = self.line()?;
        if answer["id"] != id || answer.get("error").is_some() {
            bail!("{method}: {answer}");
        }
        Ok(answer["result"].take())
    }

    /// Reads a command's output as it comes.
    fn stream(&mut self, command: &str, bytes: u64) -> Result<()> {
        let id = self.send("exec_stream", json!({"command": command}))?;
        let mut encoded = 0;
        loop {
            let answer = self.line()?;
            if answer["id"] == id {
                // Padding makes the text a little longer than 4/3.
                if answer["result"]["exit_code"] != 0 || encoded / 4 * 3 < bytes {
                    bail!("exec_stream: {answer} after {encoded} characters");
                }
                return Ok(());
            }
            encoded += answer["params"]["data"].as_str().map_or(0, |data| data.len() as u64);
        }
    }

    fn write_file(&mut self, bytes: u64) -> Result<()> {
        let content = "AAAA".repeat((CHUNK / 3) as usize);
        let chunk = CHUNK / 3 * 3;
        for part in 0..bytes / chunk {
            let params =
                json!({"path": "/root/large", "content": content, "mode": 420, "offset": part * chunk});
            self.call("write_file", params)?;
        }
        Ok(())
    }

    fn read_file(&mut self, bytes: u64) -> Result<()> {
        for part in 0..bytes / CHUNK {
            let params = json!({"path": "/root/large", "offset": part * CHUNK, "length": CHUNK});
            self.call("read_file", params)?;
        }
        Ok(())
    }

    fn peak_rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn end(mut self) -> Result<()> {
        self.call("close", json!({"timeout_seconds": 20}))?;
        drop(self.input);
        let status = self.child.wait()?;
        if !status.success() {
            bail!("matchlock rpc ended with {status}");
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn seconds_to_rate(mib: u64, elapsed: Duration) -> f64 {
    mib as f64 / elapsed.as_secs_f64()
}
