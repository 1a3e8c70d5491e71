//! The stages of a sandbox: the parts that exist in each, the event it waits for, the stage that follows, and its
//! end.
//!
//! Waiting may be given up at any await: the stage still holds every part that exists then. Not here: the decision to
//! give up, and the record ([`super::driver`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_protocol::{BootConfig, HOST_PORT, HostEntry, UpperDisk, VERSION};
use images::Progress;
use machine::Kind;
use machine::shares::AgentTaker;
use policy::network::Arrival;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};
use waiting::{CancellationToken, DropGuard};

use super::added::Adding;
use super::base::{Base, Created};
use super::running::{Booted, Running, read_pipe};
use crate::agent;
use crate::agent::boot::Control;
use crate::agent::command::Defaults;
use crate::agent::own::OwnGuest;
use crate::agent::ports::Ports;
use crate::life::error::{Error, Result};
use crate::life::network::Network;
use crate::life::prepare::{self, OpenImage, OpenKernel};
use crate::records::console::Console;
use crate::records::history::Step;

/// How long a guest may take from its first instruction to ready. An emulated one on a busy host takes seconds.
const START_LIMIT: Duration = Duration::from_secs(180);

/// How long the end waits for the threads that prepare an image or a kernel. They notice that they are given up
/// wherever they wait for a server, a program or another process; this limit is for a disk that does not answer.
const OPENING_LIMIT: Duration = Duration::from_secs(2);

/// How long the end waits for a machine that is being made. The machine's processes end with this one in any case.
const BOOT_CALL_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest may take to sync and power off, beyond its programs' grace.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// The kernel's own parameters. After a panic the kernel resets at once, which ends the machine.
const COMMAND_LINE: &str = "quiet panic=-1";

/// The parts of a sandbox beside its [`Base`].
#[derive(Debug)]
pub(super) enum Stage {
    /// No part.
    Bare,
    /// Threads that open the machine's parts.
    Preparing(Preparing),
    /// A machine that is being made.
    Booting(Booting),
    /// A machine whose agent has not said hello.
    Starting(Starting),
    /// A machine whose agent is assembling the sandbox.
    Configuring(Configuring),
    /// A ready guest.
    Up(Up),
    /// A machine that has ended by itself and was reaped.
    Reaped,
}

/// The way in which a stage ended.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// The steps that were taken.
    pub(super) steps: Vec<Step>,
    /// How long the guest had to write back to the user's disks, if it did not finish.
    pub(super) unwritten: Option<Duration>,
}

impl Stage {
    /// Ends every part of the stage.
    pub(super) async fn end(self, base: &Base) -> Ending {
        match self {
            Self::Bare => Ending::default(),
            Self::Preparing(preparing) => {
                preparing.end(base).await;
                Ending::default()
            }
            Self::Booting(booting) => booting.end(base).await,
            Self::Starting(Starting { running, .. }) => stopped(running).await,
            // No program runs yet.
            Self::Configuring(Configuring { running, control, .. }) => {
                shut_down(base, control, running, Duration::ZERO, base.any_writable()).await
            }
            Self::Up(Up { running, control, mut adding, .. }) => {
                let any_writable = base.any_writable() || adding.any_writable();
                let ending = shut_down(base, control, running, base.spec.grace, any_writable).await;
                adding.end().await;
                ending
            }
            Self::Reaped => Ending { steps: vec![Step::done("machine", None)], unwritten: None },
        }
    }
}

impl Stage {
    /// Reaps a machine that has ended by itself, and returns the error that says how; `when` is a phrase such as
    /// "before the sandbox was ready". If the machine still runs, the stage stays, and the error is that the guest
    /// hung up.
    pub(super) async fn why(self, console: &Arc<Console>, when: &str) -> (Self, Error) {
        let (running, rest): (Running, Box<dyn FnOnce(Running) -> Self + Send>) = match self {
            Self::Starting(stage) => {
                let Starting { running, ports, plan, by } = stage;
                (running, Box::new(move |running| Self::Starting(Starting { running, ports, plan, by })))
            }
            Self::Configuring(stage) => {
                let Configuring { running, control, ports, plan, by } = stage;
                let rest =
                    move |running| Self::Configuring(Configuring { running, control, ports, plan, by });
                (running, Box::new(rest))
            }
            Self::Up(stage) => {
                let Up { running, control, guest, image, adding, refusing, lease } = stage;
                let rest =
                    move |running| Self::Up(Up { running, control, guest, image, adding, refusing, lease });
                (running, Box::new(rest))
            }
            without_machine => return (without_machine, agent::Error::HangUp.into()),
        };
        match running.why(console, when).await {
            Ok(error) => (Self::Reaped, error),
            Err(running) => (rest(running), agent::Error::HangUp.into()),
        }
    }
}

/// Threads that open image and kernel and make the writable disk.
#[derive(Debug)]
pub(super) struct Preparing {
    image: Job<Result<OpenImage>>,
    kernel: Job<Result<OpenKernel>>,
    upper: Job<Result<machine::Disk>>,
    network: Job<Result<Network>>,
    recorded: oneshot::Receiver<()>,
    /// Dropping it tells the threads that they are given up.
    wanted: DropGuard,
}

/// The parts of a machine.
#[derive(Debug)]
pub(super) struct Prepared {
    image: OpenImage,
    kernel: OpenKernel,
    upper: machine::Disk,
}

impl Prepared {
    /// The same open files, for another machine.
    pub(super) fn again(&self) -> Result<Self> {
        let Self { image, kernel, upper } = self;
        let clone = || -> std::io::Result<Self> {
            Ok(Self { image: image.try_clone()?, kernel: kernel.try_clone()?, upper: upper.try_clone()? })
        };
        clone().map_err(Error::system("files of the machine"))
    }
}

impl Preparing {
    /// Starts to prepare image, kernel, disk and network, each on a thread of its own.
    pub(super) fn begin(base: &Base, created: Created, progress: Arc<dyn Progress + Send + Sync>) -> Self {
        let token = CancellationToken::new();
        let wanted = token.clone().drop_guard();
        let (home, reference, pull) = (base.home.clone(), base.spec.image.clone(), base.spec.pull);
        let (given_up, image_progress) = (token.clone(), Arc::clone(&progress));
        let image = Job::start(move || prepare::image(&home, &reference, pull, given_up, &*image_progress));
        let (home, reference, given_up) = (base.home.clone(), base.spec.kernel.clone(), token.clone());
        let with_modules = base.spec.privileged;
        let extras = kernels::Extras {
            shares: !base.shares.is_empty(),
            network: base.spec.network.arrival != Arrival::None,
        };
        let kernel = Job::start(move || {
            prepare::kernel(&home, &reference, with_modules, extras, given_up, &*progress)
        });
        let (home, directory) = (base.home.clone(), base.vm.paths.directory().to_path_buf());
        let size_mb = base.grant.disk_size_mb;
        let upper = Job::start(move || prepare::upper(home.cache(), &directory, size_mb, &token));
        let (network, audit, log) = (base.spec.network.clone(), base.vm.paths.audit(), base.log_pipe());
        let network = Job::start(move || Network::make(&network, &audit, log?));
        Self { image, kernel, upper, network, recorded: created.recorded, wanted }
    }

    /// Waits for all of them, and for the record.
    pub(super) async fn finished(&mut self, base: &mut Base) -> Result<Prepared> {
        let Self { image, kernel, upper, network, .. } = self;
        // A network that was made is the base's from then on, whatever becomes of the rest.
        let network = async {
            base.network = network.result().await?;
            base.network.watch(&base.shared.gate, base.log())
        };
        let all = tokio::try_join!(image.result(), kernel.result(), upper.result(), network);
        let (image, kernel, upper, ()) = all?;
        if (&mut self.recorded).await.is_err() {
            base.journal.writer.finish()?;
        }
        Ok(Prepared { image, kernel, upper })
    }

    async fn end(self, base: &Base) {
        let Self { image, kernel, upper, network, recorded: _, wanted } = self;
        drop(wanted);
        // The disk's file must be gone before the directory is.
        upper.ended().await;
        let opening = async {
            image.ended().await;
            kernel.ended().await;
            network.ended().await;
        };
        // The next command removes the leftovers of a thread that takes longer.
        let _ = timeout(base.at_most(OPENING_LIMIT), opening).await;
    }
}

/// The guest's configuration, and its programs' defaults.
#[derive(Debug)]
struct Plan {
    config: BootConfig,
    defaults: Defaults,
    /// The kernel counts as in use for as long as the sandbox lives.
    lease: Option<Arc<kernels::Lease>>,
    /// The process that tells the agent of the host's changes of files, if there is one.
    agent_taker: Option<AgentTaker>,
}

/// A machine that is being made.
#[derive(Debug)]
pub(super) struct Booting {
    call: Job<Result<Booted>>,
    ports: Ports,
    console: JoinHandle<()>,
    plan: Plan,
}

impl Booting {
    /// Begins to make the machine.
    pub(super) fn begin(base: &Base, prepared: Prepared) -> Result<Self> {
        let Prepared { image, kernel, upper } = prepared;
        let volumes = image.config.volumes.clone();
        let defaults = Defaults {
            image: base.spec.image_config.apply(image.config),
            env: base.spec.env.clone(),
            privileged: base.spec.privileged,
        };
        let (modules, release) = prepare::if_room(kernel.modules, image.layers.len()).unzip();
        let (read_only, layers) = prepare::read_only_disk(&image.reference, image.layers, modules)?;
        let config = boot_config(base, layers, release, volumes)?;
        let (ports, device) = Ports::pair().map_err(Error::system("vsock port channel"))?;
        let log = base.log_pipe()?;
        let (reader, writer) = std::io::pipe().map_err(Error::system("console pipe"))?;
        let mut disks = vec![read_only, upper];
        disks.extend(base.disks.devices().map_err(Error::system("disks"))?);
        let process_log = log.try_clone().map_err(Error::system("log pipe"))?;
        let watch = base.spec.watch.spec();
        let served = base.shares.serve(&base.vm.paths, base.grant, watch, process_log)?;
        let (mut shares, elsewhere) = served.unzip();
        if let Some(shares) = shares.as_mut().filter(|_| base.spec.watch.events) {
            base.files.listen(shares, base.log())?;
        }
        if let Some(keeper) = shares.as_ref().and_then(machine::shares::Shares::keeper) {
            base.shared.set_keeper(keeper);
        }
        let agent_taker = shares.as_ref().map(machine::shares::Shares::agent_taker);
        let plan = Plan { config, defaults, lease: kernel.lease, agent_taker };
        let config = machine::Config {
            vcpus: base.grant.vcpus,
            memory_mib: base.grant.memory_mib,
            kernel: kernel.kernel,
            initramfs: kernel.initramfs,
            command_line: COMMAND_LINE.to_owned(),
            disks,
            network: base.network.device()?,
            elsewhere: elsewhere.unwrap_or_default(),
            ports: device,
            console: writer.into(),
            log: Some(log),
        };
        // The task ends when the last process of the machine closes its end.
        let console = Arc::clone(&base.console);
        let console = tokio::spawn(read_pipe(reader, move |bytes| console.console(bytes)));
        let (kind, clock) = (base.kind, base.clock);
        let call = Job::start(move || Booted::boot(kind, config, clock, shares));
        Ok(Self { call, ports, console, plan })
    }

    /// Waits for the machine.
    pub(super) async fn booted(&mut self) -> Result<Booted> {
        self.call.result().await
    }

    /// Goes on with the machine that was made.
    pub(super) fn start(self, booted: Booted) -> Starting {
        let running = Running::new(booted, self.console);
        let by = Instant::now() + START_LIMIT;
        Starting { running, ports: Arc::new(self.ports), plan: self.plan, by }
    }

    async fn end(self, base: &Base) -> Ending {
        match timeout(base.at_most(BOOT_CALL_LIMIT), self.call.outcome()).await {
            Ok(Some(Ok(booted))) => stopped(Running::new(booted, self.console)).await,
            _ => Ending::default(),
        }
    }
}

/// A machine whose agent has not said hello.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) running: Running,
    ports: Arc<Ports>,
    plan: Plan,
    /// The time by which the guest must be ready.
    by: Instant,
}

impl Starting {
    /// A machine that the test plays, with the device's end of its ports.
    #[cfg(test)]
    pub(super) fn played(base: &Base, running: Running) -> (Self, std::os::fd::OwnedFd) {
        let (ports, device) = Ports::pair().unwrap();
        let plan = Plan {
            config: boot_config(base, 1, None, Vec::new()).unwrap(),
            defaults: Defaults::default(),
            lease: None,
            agent_taker: None,
        };
        (Self { running, ports: Arc::new(ports), plan, by: Instant::now() + START_LIMIT }, device)
    }

    /// Waits for the agent's control stream and its hello, which says when the agent began.
    pub(super) async fn hello(&mut self, base: &Base) -> Result<(Control, u64)> {
        let ports = Arc::clone(&self.ports);
        let hello = self.running.or_hang_up(async move {
            loop {
                match ports.accept().await.map_err(Error::system("vsock port channel"))? {
                    Some((HOST_PORT, stream)) => return Ok(Control::hello(stream).await?),
                    // No other port is listened on; dropping the stream resets it.
                    Some(_) => {}
                    None => return Err(agent::Error::HangUp.into()),
                }
            }
        });
        in_time(self.by, base, hello).await
    }

    /// Goes on with an agent that said hello.
    pub(super) fn configure(self, control: Control) -> Configuring {
        let Self { running, ports, plan, by } = self;
        Configuring { running, control, ports, plan, by }
    }
}

/// A machine whose agent is assembling the sandbox.
#[derive(Debug)]
pub(super) struct Configuring {
    pub(super) running: Running,
    control: Control,
    ports: Arc<Ports>,
    plan: Plan,
    by: Instant,
}

impl Configuring {
    /// Ends the machine of a guest that reported that it cannot go on.
    pub(super) async fn give_up(self) {
        stopped(self.running).await;
    }

    /// Sends the agent the sandbox's configuration, and waits until the guest is ready.
    pub(super) async fn ready(&mut self, base: &Base) -> Result<(guest_protocol::Ready, OwnGuest)> {
        let Self { running, control, ports, plan, by } = self;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let config =
            BootConfig { wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(0), ..plan.config.clone() };
        let guest = OwnGuest::new(Arc::clone(ports), plan.defaults.clone(), base.log());
        let ready = running.or_hang_up(async {
            let ready = control.boot(config).await?;
            guest.refill().await?;
            Ok(ready)
        });
        let ready = in_time(*by, base, ready).await?;
        if let Some(taker) = plan.agent_taker.clone() {
            tokio::spawn(tell_of_host_changes(guest.clone(), taker));
        }
        Ok((ready, guest))
    }

    /// Goes on with a ready guest.
    pub(super) fn up(self, base: &Base, guest: OwnGuest) -> Up {
        let Self { running, control, ports, plan, .. } = self;
        let adding = Adding::start(base, &guest);
        let image = plan.defaults.image;
        // Nothing accepts the streams that the guest opens from now on; each is closed as it arrives.
        let refusing = tokio::spawn(async move { while let Ok(Some(_)) = ports.accept().await {} });
        Up { running, control, guest, image, adding, refusing: AbortOnDrop(refusing), lease: plan.lease }
    }
}

/// A ready guest.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) running: Running,
    control: Control,
    pub(super) guest: OwnGuest,
    /// The image's configuration, with the sandbox's values in place.
    pub(super) image: images::ImageConfig,
    adding: Adding,
    /// Dropped with the stage, which ends the task.
    refusing: AbortOnDrop,
    /// Keeps the kernel in its store.
    lease: Option<Arc<kernels::Lease>>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Gives the process that serves files a stream to the agent, which it tells of the host's changes.
async fn tell_of_host_changes(guest: OwnGuest, taker: AgentTaker) {
    let given = async {
        let stream = guest.host_changes().await?.into_std().map_err(Error::system("agent's stream"))?;
        Ok::<_, Error>(taker.give(stream.into())?)
    };
    // A sandbox may end as soon as it is ready.
    if let Err(error) = given.await {
        tracing::debug!("the agent hears of no changes of the host: {error}");
    }
}

/// The result of `work`, if it comes in time.
async fn in_time<T>(by: Instant, base: &Base, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(by, work).await.unwrap_or_else(|_| {
        let last_words = base.console.last_words();
        Err(Error::NeverReady { after: START_LIMIT, last_words })
    })
}

/// Stops a machine whose guest cannot be asked.
async fn stopped(running: Running) -> Ending {
    running.stop().await;
    Ending { steps: vec![Step::done("machine", None)], unwritten: None }
}

/// Asks the guest to end, if there is data to save or a program to wait for, and stops its machine.
async fn shut_down(
    base: &Base,
    mut control: Control,
    running: Running,
    grace: Duration,
    any_writable: bool,
) -> Ending {
    let mut ending = Ending::default();
    if base.spec.keep || !grace.is_zero() || any_writable {
        let limit = base.at_most(grace.saturating_add(SHUTDOWN_LIMIT));
        // The other half is left for the guest to write everything back.
        let grace_ms = u32::try_from(grace.min(limit / 2).as_millis()).unwrap_or(u32::MAX);
        let ended = running.ended();
        let shutdown = async {
            if control.shut_down(grace_ms).await.is_ok() {
                ended.await;
            }
        };
        let late = timeout(limit, shutdown).await.is_err();
        ending.unwritten = Some(limit).filter(|_| late && any_writable);
        let late = late.then(|| format!("the guest did not power off in {:.1} s", limit.as_secs_f32()));
        late.iter().for_each(|late| tracing::warn!("{late}"));
        ending.steps.push(Step::done("guest", late));
    }
    ending.steps.extend(stopped(running).await.steps);
    ending
}

/// The guest's configuration. The time is filled in when it is sent, which may be much later.
fn boot_config(
    base: &Base,
    layers: u16,
    modules: Option<String>,
    volumes: Vec<String>,
) -> Result<BootConfig> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).map_err(|_| Error::Entropy)?;
    let spec = &base.spec;
    let hosts = spec.network.add_hosts.iter();
    Ok(BootConfig {
        version: VERSION,
        wall_clock_ns: 0,
        entropy,
        layers,
        modules,
        directories: volumes,
        upper: UpperDisk::Ext4,
        hostname: spec.network.hostname.clone().unwrap_or_else(|| base.vm.id.to_string()),
        hosts: hosts.map(|(host, ip)| HostEntry { host: host.clone(), ip: ip.to_string() }).collect(),
        network: base.network.told(),
        nameservers: spec.network.nameservers.iter().map(ToString::to_string).collect(),
        cpu_quota_milli: base.grant.cpu_quota_milli,
        check_timer: base.kind == Kind::Software,
        disks: base.disks.mounts(),
        shares: base.shares.mounts(),
    })
}

/// Work on a thread of its own, whose result is taken once.
#[derive(Debug)]
enum Job<T> {
    Running(JoinHandle<T>),
    Taken,
}

impl<T: Send + 'static> Job<T> {
    fn start(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::Running(spawn_blocking(work))
    }

    /// Waits for the result. A call that is dropped leaves the thread running; the result of a taken job never comes.
    async fn result(&mut self) -> T {
        let Self::Running(handle) = self else { return std::future::pending().await };
        let result = handle.await;
        *self = Self::Taken;
        joined(result)
    }

    /// The result, if it was not taken.
    async fn outcome(self) -> Option<T> {
        match self {
            Self::Running(handle) => handle.await.ok(),
            Self::Taken => None,
        }
    }

    /// Waits until the thread has ended.
    async fn ended(self) {
        drop(self.outcome().await);
    }
}

/// The result of a thread, whose panic is continued here.
pub(super) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
