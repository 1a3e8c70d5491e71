//! `matchlock run`: a sandbox, a command in it, and the end of both.
//!
//! However the command ends (by itself, by a signal, a time limit or another process), the sandbox is ended before
//! this returns. Not here: the sandbox itself (`sandbox`).

use std::cell::Cell;
use std::ffi::OsString;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{Program, Stdio};
use policy::files::WantedMasks;
use policy::mounts::{self, Mount};
use policy::network::{Member, Network, NetworkError, WantedNetwork, Wrong};
use sandbox::{
    AgentError, DEFAULT_GRACE, Error, Exec, FileWatch, Guest, Handle, Home, ImageOverrides, Powers,
    ProgramStream, Spec, Start, Stop, Terms, TimeLimit, Timings, Why,
};
use tokio::time::timeout;

use crate::args::{AccessArgs, RunArgs};
use crate::failure::Interrupted;
use crate::forward::Wanted;
use crate::progress::Bar;
use crate::say::tell;
use crate::signals::{SIGTERM, Signals};
use crate::stdio::{self, Watch};
use crate::{block_on, detach, environment};

/// How long the last output of a machine that has ended may take to arrive.
const LAST_OUTPUT_LIMIT: Duration = Duration::from_secs(2);

/// How long the output of a command that was cut short may take to be written.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(200);

/// Runs the command, and returns its exit status.
pub(crate) fn run(
    args: RunArgs,
    arguments: &[OsString],
    start: Start,
    home: impl FnOnce(Option<Powers>) -> anyhow::Result<Home>,
) -> anyhow::Result<u8> {
    if let Some((option, part)) = args.later.given() {
        anyhow::bail!("{option} is not built yet ({part})");
    }
    if args.detach && (args.interactive || args.tty) {
        anyhow::bail!("--detach cannot be combined with -t/--tty or -i/--interactive");
    }
    let detached = detach::is_child();
    if args.detach && !detached {
        return detach::launch(arguments, || home(None));
    }
    let home = home(Some(Powers::Sandbox))?;
    let run = Run {
        mode: stdio::mode(args.interactive && !detached, args.tty)?,
        spec: spec(&args, detached)?,
        ports: Wanted::new(&args.publish, &args.address)?,
        detached,
        start,
        args,
    };
    block_on(run.supervise(&home))?
}

/// The sandbox that the options describe.
fn spec(args: &RunArgs, detached: bool) -> anyhow::Result<Spec> {
    let network = network(args)?;
    let (workspace, mounts) = folders(args)?;
    let entrypoint = args.entrypoint.as_ref().map(|program| match program.as_str() {
        "" => Vec::new(),
        program => vec![program.to_owned()],
    });
    Ok(Spec {
        image: args.image.clone(),
        pull: args.pull,
        kernel: args.kernel.clone(),
        machine: args.machine,
        resources: policy::resources::WantedResources {
            cpus: args.cpus,
            memory_mb: args.memory,
            disk_size_mb: args.disk_size,
        },
        disks: policy::disks::specs(&args.disk)?,
        mounts,
        masks: masks(args),
        watch: FileWatch::default(),
        network,
        env: environment::collect(&args.env_file, &args.env)?,
        entrypoint,
        image_config: ImageOverrides { workspace, ..ImageOverrides::default() },
        privileged: args.privileged,
        launch_entrypoint: true,
        init: args.init,
        unenforced_timeout_seconds: None,
        time_limit: args.timeout.map(Duration::from_secs).map(TimeLimit::FromStart),
        keep: detached || !args.rm,
        grace: args.graceful_shutdown.unwrap_or(DEFAULT_GRACE),
    })
}

/// The workspace (empty = none) and the mounts that the options describe.
fn folders(args: &RunArgs) -> anyhow::Result<(String, Vec<Mount>)> {
    let has_mounts = !args.volume.is_empty() || !args.mount.is_empty();
    let workspace = mounts::workspace(&args.workspace, has_mounts);
    let workspace =
        workspace.map_err(|error| anyhow::anyhow!("invalid workspace: {error}"))?.unwrap_or_default();
    let volumes = args.volume.iter().map(|text| mounts::volume(text, &workspace));
    let named = args.mount.iter().map(|text| mounts::mount(text, &workspace));
    let mounts = volumes.chain(named).collect::<Result<Vec<_>, _>>()?;
    let masks = masks(args);
    anyhow::ensure!(
        masks.is_empty() || has_mounts,
        "--mask, --mask-readonly and --protect need -v or --mount"
    );
    let mounts = mounts.into_iter().map(|mount| mount.masked(&masks)).collect::<Result<_, _>>()?;
    Ok((workspace, mounts))
}

/// The masks of every mount.
fn masks(args: &RunArgs) -> WantedMasks {
    WantedMasks { hidden: args.mask.clone(), readonly: args.mask_readonly.clone(), protect: args.protect }
}

/// The network that the options describe.
fn network(args: &RunArgs) -> anyhow::Result<Network> {
    let AccessArgs { allow_host, deny_host, passthrough_host, allow_private_ips } = &args.access;
    let request = WantedNetwork {
        arrival: args.network,
        no_network: args.no_network,
        allowed_hosts: allow_host.clone(),
        denied_hosts: deny_host.clone(),
        passthrough: passthrough_host.clone(),
        private_open: *allow_private_ips,
        add_hosts: args.add_host.clone(),
        dns_servers: args.dns_servers.clone(),
        hostname: args.hostname.clone(),
        mtu: Some(args.mtu),
        ..WantedNetwork::default()
    };
    policy::network::check(&request).map_err(|NetworkError { member, wrong }| match wrong {
        Wrong::NoNetwork => anyhow::anyhow!("{} needs a network, and none is wanted", option(member)),
        Wrong::NotBuilt(way) => anyhow::anyhow!("{} {way} is not built yet", option(member)),
        Wrong::Size | Wrong::TooMany | Wrong::Address(_) => anyhow::anyhow!("{}: {wrong}", option(member)),
        wrong => wrong.into(),
    })
}

/// The option for a member of a network.
fn option(member: Member) -> &'static str {
    match member {
        Member::Arrival => "--network",
        Member::AllowedHosts => "--allow-host",
        Member::DeniedHosts => "--deny-host",
        Member::Passthrough => "--passthrough-host",
        Member::Secrets => "--secret",
        Member::Intercept | Member::Rules => "--network-intercept",
        Member::AddHosts => "--add-host",
        Member::DnsServers => "--dns-servers",
        Member::Hostname => "--hostname",
        Member::Mtu => "--mtu",
    }
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
        let bar = Arc::new(Bar::default());
        let (spec, terms) = (self.spec.clone(), Terms::default());
        let sandbox = sandbox::spawn(home, spec, self.start, terms, Arc::clone(&bar) as _)?;
        // Set once there is no command any more, so that only the sandbox's end is left.
        let idle = Cell::new(false);
        let interrupted = |signal| if idle.get() { Ok(0) } else { Err(Interrupted(signal).into()) };
        let own_timings = Cell::new(Timings::default());
        let mut driven = pin!(self.drive(&sandbox, &bar, &idle, &own_timings));
        let (outcome, finished) = tokio::select! {
            biased;
            signal = signals.next() => (interrupted(signal), false),
            why = sandbox.cut() => match why {
                Why::TimeLimit(limit) => {
                    (Err(anyhow::anyhow!("timed out after {} s", limit.as_secs())), false)
                }
                // Reported as the signal that `matchlock kill` stands for.
                _ => (interrupted(SIGTERM), false),
            },
            outcome = &mut driven => (outcome, true),
        };
        sandbox.stop(Stop { finished, ..Stop::default() });
        let ended = match finished {
            true => sandbox.gone().await,
            false => after_the_last_words(&sandbox, driven).await,
        };
        if let (true, Ok(timings)) = (self.args.timings, &ended) {
            let Timings { exec_us, started_us, exited_us, .. } = own_timings.get();
            let timings = Timings { exec_us, started_us, exited_us, ..*timings };
            tell!("{}", serde_json::to_string(&wire_timings(&timings, self.start.elapsed_us()))?);
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

    async fn drive(
        &self,
        sandbox: &Handle,
        bar: &Bar,
        idle: &Cell<bool>,
        timings: &Cell<Timings>,
    ) -> anyhow::Result<u8> {
        let risen = sandbox.ready().await;
        bar.clear();
        let ready = match risen {
            Ok(ready) => ready,
            Err(why) => return Err(failed(why)),
        };
        if let Some(why) = &ready.no_network {
            self.tell_of_no_network(why);
        }
        self.make_workspace(&ready.guest).await?;
        let _forwards = self.ports.bind(&ready.guest)?;
        if self.detached {
            detach::report(sandbox.id())?;
        } else if self.spec.keep {
            let id = sandbox.id();
            tell!("Sandbox {id} is running");
            tell!("  Connect: matchlock exec -it {id} sh");
            tell!("  Stop:    matchlock kill {id}");
        }
        let mut argv = ready.command(&self.args.command);
        if argv.is_empty() && matches!(self.mode, Stdio::Terminal(_)) {
            argv.push("sh".to_owned());
        }
        if argv.is_empty() && !self.spec.keep {
            anyhow::bail!("command required (or use --rm=false to start without a command)");
        }
        let mut status = 0;
        if !argv.is_empty() {
            sandbox.set_activity("while the command ran");
            status = self.command(sandbox, &ready.guest, argv, timings).await?;
        }
        if self.spec.keep {
            idle.set(true);
            sandbox.set_activity("by itself");
            return Err(failed(sandbox.over().await));
        }
        Ok(status)
    }

    async fn make_workspace(&self, guest: &Guest) -> anyhow::Result<()> {
        let workspace = &self.spec.image_config.workspace;
        if !workspace.is_empty() {
            let made = guest.files().make_directory(workspace, 0o755, true).await;
            made.map_err(|error| anyhow::anyhow!("workspace {workspace}: {error}"))?;
        }
        Ok(())
    }

    /// Without this line a sandbox would seem to have a broken network.
    fn tell_of_no_network(&self, why: &str) {
        let quiet = self.args.timings || !tracing::enabled!(tracing::Level::WARN);
        if !quiet {
            tell!("matchlock: the sandbox has no network: {why} (--no-network silences this line)");
        }
    }

    async fn command(
        &self,
        sandbox: &Handle,
        guest: &Guest,
        argv: Vec<String>,
        timings: &Cell<Timings>,
    ) -> anyhow::Result<u8> {
        let mut env = Vec::new();
        if !self.spec.env.iter().any(|(name, _)| name == "TERM") {
            env.extend(terminal_type(self.mode));
        }
        let (working_dir, user) = (self.args.workdir.clone(), self.args.user.clone());
        let exec = Exec {
            program: Program::Argv(argv),
            env,
            working_dir,
            user,
            stdio: self.mode,
            detached: false,
            first: !self.spec.init,
        };
        let service = match guest.exec(exec).await {
            Ok(service) => service,
            Err(error) => return Err(sandbox.explain(error).await.into()),
        };
        let exec_us = Some(self.start.elapsed_us());
        let log = (!matches!(self.mode, Stdio::Terminal(_))).then_some(|bytes: &[u8]| sandbox.log(bytes));
        let mut watch = Watched { log, start: self.start, started_us: None };
        let result = relay(sandbox, service, self.mode, &mut watch).await;
        let exited_us = Some(self.start.elapsed_us());
        timings.set(Timings { exec_us, started_us: watch.started_us, exited_us, ..Timings::default() });
        match result.map_err(anyhow::Error::downcast::<AgentError>) {
            Ok(status) => Ok(status),
            Err(Ok(error)) => Err(sandbox.explain(error).await.into()),
            Err(Err(other)) => Err(other),
        }
    }
}

/// The reason why the sandbox ended, as an error.
fn failed(why: Why) -> anyhow::Error {
    match why {
        Why::Failed(error) => error.into(),
        why => anyhow::anyhow!("{why}"),
    }
}

/// Waits until nothing is left of a sandbox whose command was cut short, while the rest of its output is passed on.
async fn after_the_last_words(
    sandbox: &Handle,
    mut driven: Pin<&mut impl Future<Output = anyhow::Result<u8>>>,
) -> Result<Timings, Arc<Error>> {
    tokio::select! {
        biased;
        _ = &mut driven => sandbox.gone().await,
        ended = sandbox.gone() => {
            let _ = timeout(LAST_WORDS_LIMIT, driven).await;
            ended
        }
    }
}

/// Carries the command's bytes until it ends; after the machine's end the last output has a time limit.
async fn relay(
    sandbox: &Handle,
    service: ProgramStream,
    mode: Stdio,
    watch: &mut impl Watch,
) -> anyhow::Result<u8> {
    let mut relay = pin!(stdio::relay(service, mode, watch));
    tokio::select! {
        biased;
        result = &mut relay => return result,
        () = no_more_output(sandbox) => {}
    }
    timeout(LAST_OUTPUT_LIMIT, relay).await.unwrap_or_else(|_| Err(AgentError::HangUp.into()))
}

/// Returns when no more output can come: a command that is told to end may write until the machine ends.
async fn no_more_output(sandbox: &Handle) {
    if sandbox.over().await.is_cut() {
        let _ = sandbox.gone().await;
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
