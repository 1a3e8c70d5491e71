//! An exec on a running sandbox, as a client sees it, compared with its unavoidable parts: an empty round trip on a
//! vsock stream, and the agent's own time for the same program.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use guest_protocol::{Program, Stdio};
use sandbox::{Event, Exec, Guest, Home, Id};

use crate::Under;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    under: Under,
    /// Counted execs, after ten that are not
    #[arg(long, default_value_t = 200)]
    runs: u32,
}

/// One line of output; times in microseconds.
#[derive(serde::Serialize)]
struct Row {
    machine: String,
    exec_us: f64,
    exec_p99_us: f64,
    ping_us: f64,
    agent_us: f64,
    ratio: f64,
}

/// Runs before those that count.
pub(crate) const WARM_UP: u32 = 10;

pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Command::new(&options.under.matchlock)
        .args(["run", "-d", "--machine", &options.under.machine, "--memory", "256", "--image", "busybox"])
        .output()
        .context("matchlock")?;
    if !start.status.success() {
        bail!("matchlock run: {}", String::from_utf8_lossy(&start.stderr).trim());
    }
    let text = String::from_utf8_lossy(&start.stdout).trim().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let row = runtime.block_on(measure(options, &text));
    let end = Command::new(&options.under.matchlock).args(["kill", &text]).output()?;
    if !end.status.success() {
        bail!("matchlock kill: {}", String::from_utf8_lossy(&end.stderr).trim());
    }
    println!("{}", serde_json::to_string(&row?)?);
    Ok(())
}

async fn measure(options: &Options, id: &str) -> Result<Row> {
    let home = Home::from_env(None)?;
    let id: Id = id.parse()?;
    let (mut execs, mut agents, mut pings) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..WARM_UP + options.runs {
        let ran = ran(&home, &id, Program::Argv(vec!["true".to_owned()])).await?;
        let ping = ping(&home, &id).await?;
        if run >= WARM_UP {
            execs.push(ran.elapsed_us);
            agents.push(ran.agent_us);
            pings.push(ping);
        }
    }
    let (exec_us, ping_us, agent_us) = (at(&mut execs, 0.5), at(&mut pings, 0.5), at(&mut agents, 0.5));
    Ok(Row {
        machine: options.under.machine.clone(),
        exec_us,
        exec_p99_us: at(&mut execs, 0.99),
        ping_us,
        agent_us,
        ratio: exec_us / (ping_us + agent_us),
    })
}

/// A program's run, from the request to the supervisor to the last byte.
pub(crate) struct Ran {
    pub(crate) elapsed_us: f64,
    /// The agent's own measurement.
    pub(crate) agent_us: f64,
    pub(crate) output_bytes: u64,
}

/// Runs a program on the sandbox's own stream.
pub(crate) async fn ran(home: &Home, id: &Id, program: Program) -> Result<Ran> {
    let exec = Exec {
        program,
        env: Vec::new(),
        working_dir: None,
        user: None,
        stdio: Stdio::Null,
        detached: false,
        first: false,
    };
    let start = Instant::now();
    let mut service = Guest::of(home, id).exec(exec).await?;
    let mut output_bytes = 0;
    loop {
        match service.output.next().await? {
            Event::Stdout(data) => output_bytes += data.len() as u64,
            Event::Exited(_, usage) => {
                let agent_us = f64::from(u32::try_from(usage.wall_us)?);
                return Ok(Ran { elapsed_us: micros(start), agent_us, output_bytes });
            }
            Event::Failed(failure) => bail!("{failure:?}"),
            _ => {}
        }
    }
}

/// Microseconds since `start`.
pub(crate) fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// One empty round trip, on a stream that has had one before.
pub(crate) async fn ping(home: &Home, id: &Id) -> Result<f64> {
    let mut service = Guest::of(home, id).service().await?;
    service.ping().await?;
    let start = Instant::now();
    service.ping().await?;
    Ok(micros(start))
}

/// The value below which a share `rank` of the values lies.
pub(crate) fn at(values: &mut [f64], rank: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (values.len() as f64 * rank) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
