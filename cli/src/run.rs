//! `matchlock run`: a sandbox, a command in it, and the end of both.
//!
//! Whatever ends the command - itself, a signal, a time limit, another process - the sandbox is ended before this
//! returns. Not here: how any of it is done (`sandbox`).

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{Program, Stdio};
use sandbox::{Error, Exec, Home, ImageOverrides, Sandbox, Service, Spec, Start, Timings};
use tokio::time::{sleep, timeout};

use crate::args::RunArgs;
use crate::failure::Interrupted;
use crate::forward::Wanted;
use crate::progress::Bar;
use crate::say::tell;
use crate::signals::{SIGTERM, Signals};
use crate::stdio::{self, Watch};
use crate::{block_on, detach, environment};

/// How long the last output of a machine that has ended may take to arrive.
const LAST_OUTPUT_LIMIT: Duration = Duration::from_secs(2);

/// Runs it; the command's exit status.
pub(crate) fn run(args: RunArgs, start: Start) -> anyhow::Result<u8> {
    if let Some((option, part)) = args.later.given() {
        anyhow::bail!("{option} is not built yet ({part})");
    }
    if args.detach && (args.interactive || args.tty) {
        anyhow::bail!("--detach cannot be combined with -t/--tty or -i/--interactive");
    }
    let detached = detach::is_child();
    let home = Home::from_env()?;
    let run = Run {
        mode: stdio::mode(args.interactive && !detached, args.tty)?,
        spec: spec(&home, &args, detached)?,
        ports: Wanted::new(&args.publish, &args.address)?,
        detached,
        start,
        args,
    };
    if run.args.detach && !detached {
        return detach::launch();
    }
    block_on(run.supervise(&home))?
}

/// The sandbox that the options describe.
fn spec(home: &Home, args: &RunArgs, detached: bool) -> anyhow::Result<Spec> {
    let network = network(args)?;
    let entrypoint = args.entrypoint.as_ref().map(|program| match program.as_str() {
        "" => Vec::new(),
        program => vec![program.to_owned()],
    });
    Ok(Spec {
        image: args.image.clone(),
        pull: args.pull,
        kernel: args.kernel.clone(),
        machine: args.machine,
        resources: policy::resources::Request {
            cpus: args.cpus,
            memory_mb: args.memory,
            disk_size_mb: args.disk_size,
        },
        disks: policy::disks::specs(&args.disk)?,
        hostname: network.hostname,
        add_hosts: network.add_hosts,
        env: environment::collect(home, &args.env_file, &args.env)?,
        nameservers: network.nameservers,
        entrypoint,
        image_config: ImageOverrides::default(),
        privileged: args.privileged,
        no_network: network.no_network,
        launch_entrypoint: true,
        unenforced_timeout_seconds: None,
        time_limit: args.timeout.map(Duration::from_secs),
        keep: detached || !args.rm,
        grace: args.graceful_shutdown,
        shared_memory: args.shared_memory,
    })
}

/// The network that the options describe.
fn network(args: &RunArgs) -> anyhow::Result<policy::network::Network> {
    let request = policy::network::Request {
        no_network: args.no_network,
        add_hosts: args.add_host.clone(),
        hostname: args.hostname.clone(),
        ..Default::default()
    };
    Ok(policy::network::check(&request).map_err(|error| error.wrong)?)
}

struct Run {
    args: RunArgs,
    spec: Spec,
    ports: Wanted,
    mode: Stdio,
    detached: bool,
    start: Start,
}

impl Run {
    async fn supervise(self, home: &Home) -> anyhow::Result<u8> {
        let mut signals = Signals::catch()?;
        let mut sandbox = Sandbox::create(home, self.spec.clone(), self.start)?;
        let mut stop = sandbox.stop_requested();
        // Set once there is no command any more, and the end is nothing but the end.
        let idle = Cell::new(false);
        let interrupted = |signal| if idle.get() { Ok(0) } else { Err(Interrupted(signal).into()) };
        let outcome = tokio::select! {
            biased;
            signal = signals.next() => interrupted(signal),
            // What `matchlock kill` amounts to.
            () = stop.wait() => interrupted(SIGTERM),
            () = time_limit(self.args.timeout) => {
                Err(anyhow::anyhow!("timed out after {} s", self.args.timeout.unwrap_or_default()))
            }
            outcome = self.drive(&mut sandbox, &idle) => outcome,
        };
        let ended = sandbox.end().await;
        if let (true, Ok(timings)) = (self.args.timings, &ended) {
            tell!("{}", serde_json::to_string(&wire_timings(timings, self.start.elapsed_us()))?);
        }
        match (outcome, ended) {
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(error), Err(second)) => {
                tracing::warn!("ending the sandbox: {second}");
                Err(error)
            }
            (outcome, Ok(_)) => outcome,
        }
    }

    async fn drive(&self, sandbox: &mut Sandbox, idle: &Cell<bool>) -> anyhow::Result<u8> {
        let bar = Arc::new(Bar::default());
        let started = sandbox.start(Arc::clone(&bar) as _).await;
        bar.clear();
        started?;
        let _forwards = self.ports.bind(&sandbox.guest()?)?;
        if self.detached {
            detach::report(sandbox.id())?;
        } else if self.spec.keep {
            let id = sandbox.id();
            tell!("Sandbox {id} is running");
            tell!("  Connect: matchlock exec -it {id} sh");
            tell!("  Stop:    matchlock kill {id}");
        }
        let mut argv = sandbox.command(&self.args.command);
        if argv.is_empty() && matches!(self.mode, Stdio::Terminal(_)) {
            argv.push("sh".to_owned());
        }
        if argv.is_empty() && !self.spec.keep {
            anyhow::bail!("command required (or use --rm=false to start without a command)");
        }
        let mut status = 0;
        if !argv.is_empty() {
            status = self.command(sandbox, argv).await?;
        }
        if self.spec.keep {
            idle.set(true);
            sandbox.ended().wait().await;
            return Err(sandbox.why_ended("by itself").await.into());
        }
        Ok(status)
    }

    async fn command(&self, sandbox: &mut Sandbox, argv: Vec<String>) -> anyhow::Result<u8> {
        let mut env = Vec::new();
        if !self.spec.env.iter().any(|(name, _)| name == "TERM") {
            env.extend(terminal_type(self.mode));
        }
        let (working_dir, user) = (self.args.workdir.clone(), self.args.user.clone());
        let service = sandbox
            .exec(Exec {
                program: Program::Argv(argv),
                env,
                working_dir,
                user,
                stdio: self.mode,
                detached: false,
            })
            .await?;
        let mut watch = Watched {
            log: (!matches!(self.mode, Stdio::Terminal(_))).then(|| sandbox.log()),
            start: self.start,
            started_us: None,
        };
        let result = self.relay(sandbox, service, &mut watch).await;
        let timings = sandbox.timings_mut();
        timings.started_us = watch.started_us;
        timings.exited_us = Some(self.start.elapsed_us());
        match result {
            Err(error) if matches!(error.downcast_ref(), Some(Error::HangUp)) => {
                Err(sandbox.why_ended("while the command ran").await.into())
            }
            result => result,
        }
    }

    async fn relay(&self, sandbox: &Sandbox, service: Service, watch: &mut impl Watch) -> anyhow::Result<u8> {
        let mut ended = sandbox.ended();
        let mut relay = pin!(stdio::relay(service, self.mode, watch));
        tokio::select! {
            biased;
            result = &mut relay => return result,
            () = ended.wait() => {}
        }
        timeout(LAST_OUTPUT_LIMIT, relay).await.unwrap_or_else(|_| Err(Error::HangUp.into()))
    }
}

struct Watched<L> {
    log: Option<L>,
    start: Start,
    started_us: Option<u64>,
}

impl<L: Fn(&[u8])> Watch for Watched<L> {
    fn started(&mut self) {
        self.started_us = Some(self.start.elapsed_us());
    }

    fn output(&mut self, bytes: &[u8]) {
        if let Some(log) = &self.log {
            log(bytes);
        }
    }
}

/// The local terminal's type, for a program that gets one.
pub(crate) fn terminal_type(mode: Stdio) -> Option<(String, String)> {
    let name = std::env::var("TERM").ok().filter(|_| matches!(mode, Stdio::Terminal(_)))?;
    Some(("TERM".to_owned(), name))
}

async fn time_limit(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

fn wire_timings(timings: &Timings, end_us: u64) -> wire::Timings {
    wire::Timings {
        start_monotonic_ns: timings.start_monotonic_ns,
        created_us: timings.created_us,
        prepared_us: timings.prepared_us,
        machine_us: timings.machine_us,
        hello_us: timings.hello_us,
        ready_us: timings.ready_us,
        exec_us: timings.exec_us,
        started_us: timings.started_us,
        exited_us: timings.exited_us,
        stopped_us: timings.stopped_us,
        end_us,
        guest_agent_us: timings.guest_agent_us,
        guest_modules_us: timings.guest.map(|guest| guest.modules_us),
        guest_root_us: timings.guest.map(|guest| guest.root_us),
        guest_ready_us: timings.guest.map(|guest| guest.ready_us),
    }
}
