//! The supervisor: owns one sandbox from its first file to its last.
//!
//! ```text
//! create ─▶ start ─────────────────────────────────────────▶ exec … ─▶ end
//!           image ┐
//!           kernel├ at once ─▶ machine boots ─▶ hello ─▶ boot ─▶ ready
//!           disk  ┘
//! ```
//!
//! `start` and everything a program does may be dropped at any await (^C, a time limit, a request to stop); `end` then
//! ends whatever has come into being. If even that is not reached, the kernel closes this process's descriptors, the
//! machine's processes end with them, and the next command's reconcile removes the files. Not here: terminals, and
//! what another process may ask for (`control`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_protocol::{BootConfig, HOST_PORT, HostEntry, UpperDisk, VERSION};
use images::{Progress, Pull};
use machine::tsc::Calibration;
use machine::{Ending, Kind, Machine, MachineError};
use policy::disks::Disk;
use policy::machine as choice;
use policy::resources::{self, Grant};
use rustix::fs::FlockOperation;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use waiting::{CancellationToken, DropGuard};

use crate::agent::Control;
use crate::command::{self, Defaults, Exec, ImageOverrides};
use crate::config::Config;
use crate::console::Console;
use crate::control::{self, Shared};
use crate::detached::Log;
use crate::disks::Disks;
use crate::guest::Guest;
use crate::history::{Change, Step};
use crate::home::{Home, OwnedVm, VmPaths};
use crate::lifecycle::{Lifecycle, Phase};
use crate::ports::Ports;
use crate::prepare::{self, OpenImage, OpenKernel};
use crate::records::{Record, Status};
use crate::service::Service;
use crate::timings::{Start, Timings};
use crate::writer::Writer;
use crate::{Error, Id, Result, descriptors, host, reconcile};

/// How long a guest may take from its first instruction to ready. An emulated one on a busy host takes seconds.
const START_LIMIT: Duration = Duration::from_secs(180);

/// How long an ended machine may take to show it, and its last console bytes to arrive.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// How long `end` waits for an image or a kernel that is being made ready. They hear that they are given up wherever they
/// wait for a server, a program or another process; this is for a disk that does not answer.
const OPENING_LIMIT: Duration = Duration::from_secs(2);

/// How long `end` waits for a machine that is being made; its processes end with this one in any case.
const BOOT_CALL_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest may take to sync and power off, beyond the grace its processes get.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// How long ending a sandbox may take beyond the grace its processes get; the limits above fit in it.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The kernel's own parameters. After a panic it resets at once, which is seen as the machine's end.
const COMMAND_LINE: &str = "quiet panic=-1";

/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Image reference.
    pub image: String,
    /// When its registry is asked.
    pub pull: Pull,
    /// Kernel reference; empty = the default kernel.
    pub kernel: String,
    /// Which machine.
    pub machine: choice::Request,
    /// CPUs, memory, disk.
    pub resources: resources::Request,
    /// Further disks.
    pub disks: Vec<Disk>,
    /// Host name; `None` = the id.
    pub hostname: Option<String>,
    /// Lines for /etc/hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Environment of every program, over the image's.
    pub env: Vec<(String, String)>,
    /// Lines for /etc/resolv.conf.
    pub nameservers: Vec<IpAddr>,
    /// Instead of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the rest of what the image says.
    pub image_config: ImageOverrides,
    /// No restrictions inside the guest.
    pub privileged: bool,
    /// Whether it was asked to have no network; remembered here, there is none yet.
    pub no_network: bool,
    /// Whether its command starts with it; remembered here, done by whoever owns it.
    pub launch_entrypoint: bool,
    /// What a client named as `timeout_seconds`; remembered, not enforced.
    pub unenforced_timeout_seconds: Option<f64>,
    /// How long the sandbox may live; remembered here, kept to by whoever owns it.
    pub time_limit: Option<Duration>,
    /// Keep the record and the log afterwards.
    pub keep: bool,
    /// How long the guest's processes may take to end by themselves; zero, not kept and no writable disk = the
    /// machine is just stopped.
    pub grace: Duration,
    /// Guest RAM mapped shared even where nothing needs it (measurements).
    pub shared_memory: bool,
}

/// A sandbox and everything it holds. Ends with [`Sandbox::end`].
#[derive(Debug)]
pub struct Sandbox {
    spec: Spec,
    home: Home,
    grant: Grant,
    kind: Kind,
    /// Started first of all: the longer it runs, the better it is.
    clock: Calibration,
    vm: OwnedVm,
    disks: Disks,
    lifecycle: Lifecycle,
    /// What has gone wrong since the last change of phase.
    failure: Option<String>,
    writer: Writer,
    recorded: Option<oneshot::Receiver<()>>,
    console: Arc<Console>,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    /// Threads that make files or processes; `end` waits for them, so that an interrupted start leaves none behind.
    opening_image: Option<JoinHandle<Result<OpenImage>>>,
    /// As long as it is there, those threads are waited for; dropping it tells them that they are given up.
    wanted: Option<DropGuard>,
    opening_kernel: Option<JoinHandle<Result<OpenKernel>>>,
    making_disk: Option<JoinHandle<Result<machine::Disk>>>,
    /// As long as this sandbox lives, its kernel counts as in use.
    kernel_lease: Option<Arc<kernels::Lease>>,
    booting: Option<JoinHandle<Result<Booted, MachineError>>>,
    machine: Option<Running>,
    control: Option<Control>,
    guest: Option<Guest>,
    defaults: Defaults,
    start: Start,
    timings: Timings,
    /// When the end must have come.
    end_by: Option<Instant>,
    /// How long was waited in vain for the guest to write back to the user's disks.
    unwritten: Option<Duration>,
}

/// A machine that nothing watches yet.
struct Booted(Box<dyn Machine>);

impl std::fmt::Debug for Booted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Booted").field(&self.0.kind()).finish()
    }
}

/// A booted machine and what watches it.
struct Running {
    machine: Box<dyn Machine>,
    ended: watch::Receiver<bool>,
    console: JoinHandle<()>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("kind", &self.machine.kind()).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Checks the spec, then makes the sandbox's directory, record and control socket. Needs a tokio runtime.
    pub fn create(home: &Home, spec: Spec, start: Start) -> Result<Self> {
        let clock = Calibration::start();
        let grant = resources::grant(&spec.resources, &host::resources())?;
        if let Some(hostname) = &spec.hostname {
            policy::names::hostname(hostname)?;
        }
        spec.env.iter().try_for_each(|(name, value)| policy::names::env(name, value))?;
        let choice = choice::choose(spec.machine, &host::facts())?;
        tracing::info!("machine {}: {}", choice.kind, choice.why);

        let disks = Disks::attach(home, &spec.disks)?;
        let vm = OwnedVm::create(home)?;
        // Before the record, so that whatever is known has a log.
        let console = Arc::new(Console::create(home, &vm.paths.logs())?);
        let (writer, recorded) = record(home, &vm.id, &spec, grant, choice.kind);
        let listener = home.as_user(|| control::bind(&vm.paths))?;
        let listener =
            tokio::net::UnixListener::from_std(listener).map_err(Error::system("control socket"))?;
        let shared = Arc::new(Shared {
            guest: watch::Sender::new(None),
            stop: watch::Sender::new(false),
            stop_limit: spec.grace.saturating_add(STOP_LIMIT),
        });
        let serve = tokio::spawn(control::serve(listener, Arc::clone(&shared)));
        let timings = Timings {
            start_monotonic_ns: start.monotonic_ns(),
            created_us: Some(start.elapsed_us()),
            ..Timings::default()
        };
        Ok(Self {
            spec,
            home: home.clone(),
            grant,
            kind: machine_kind(choice.kind),
            clock,
            vm,
            disks,
            lifecycle: Lifecycle::new(),
            failure: None,
            writer,
            recorded: Some(recorded),
            console,
            shared,
            tasks: vec![serve],
            opening_image: None,
            wanted: None,
            opening_kernel: None,
            making_disk: None,
            kernel_lease: None,
            booting: None,
            machine: None,
            control: None,
            guest: None,
            defaults: Defaults::default(),
            start,
            timings,
            end_by: None,
            unwritten: None,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.vm.id
    }

    /// When it got where.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// For the steps that only a caller sees.
    pub fn timings_mut(&mut self) -> &mut Timings {
        &mut self.timings
    }

    /// Prepares and boots it; returns when the guest is ready.
    pub async fn start(&mut self, progress: Arc<dyn Progress + Send + Sync>) -> Result<()> {
        let result = self.prepare_and_boot(progress).await;
        if let Err(error) = &result {
            self.failure = Some(error.to_string());
            let failed = if self.lifecycle.phase() == Phase::Creating {
                Phase::CreateFailed
            } else {
                Phase::StartFailed
            };
            self.to(failed);
        }
        result
    }

    async fn prepare_and_boot(&mut self, progress: Arc<dyn Progress + Send + Sync>) -> Result<()> {
        let (image, mut kernel, upper) = self.prepare(progress).await?;
        self.kernel_lease = kernel.lease.take();
        self.timings.prepared_us = Some(self.start.elapsed_us());
        self.to(Phase::Created);
        self.to(Phase::Starting);
        self.defaults = Defaults {
            image: self.spec.image_config.apply(image.config),
            env: self.spec.env.clone(),
            privileged: self.spec.privileged,
        };
        let config = self.boot_config(image.layers)?;
        let ports = self.boot(image.disk, upper, kernel).await?;

        let mut ended = self.ended();
        let ready = self.become_ready(&ports, config);
        let result = tokio::select! {
            biased;
            result = timeout(START_LIMIT, ready) => result,
            () = ended.wait() => Ok(Err(Error::HangUp)),
        };
        match result {
            Ok(Ok(())) => {}
            Ok(Err(Error::HangUp)) => return Err(self.why_ended("before the sandbox was ready").await),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let last_words = self.console.last_words();
                return Err(Error::NeverReady { after: START_LIMIT, last_words });
            }
        }
        self.timings.ready_us = Some(self.start.elapsed_us());
        self.serve(ports).await?;
        self.to(Phase::Running);
        Ok(())
    }

    /// Image, kernel and disk, all at once on threads of their own.
    async fn prepare(
        &mut self,
        progress: Arc<dyn Progress + Send + Sync>,
    ) -> Result<(OpenImage, OpenKernel, machine::Disk)> {
        let token = CancellationToken::new();
        self.wanted = Some(token.clone().drop_guard());
        let (home, reference) = (self.home.clone(), self.spec.image.clone());
        let (pull, given_up, image_progress) = (self.spec.pull, token.clone(), Arc::clone(&progress));
        self.opening_image = Some(spawn_blocking(move || {
            home.as_user(|| prepare::image(&home, &reference, pull, given_up, &*image_progress))
        }));
        let (home, reference) = (self.home.clone(), self.spec.kernel.clone());
        let given_up = token.clone();
        self.opening_kernel = Some(spawn_blocking(move || {
            home.as_user(|| prepare::kernel(&home, &reference, given_up, &*progress))
        }));
        let (home, directory) = (self.home.clone(), self.vm.paths.directory().to_path_buf());
        let size_mb = self.grant.disk_size_mb;
        self.making_disk = Some(spawn_blocking(move || {
            home.as_user(|| prepare::upper(home.cache(), &directory, size_mb, &token))
        }));

        let image = finished(&mut self.opening_image);
        let kernel = finished(&mut self.opening_kernel);
        let upper = finished(&mut self.making_disk);
        let (image, kernel, upper) = tokio::try_join!(image, kernel, upper)?;
        if let Some(recorded) = self.recorded.take()
            && recorded.await.is_err()
        {
            self.writer.finish()?;
        }
        Ok((image, kernel, upper))
    }

    async fn boot(
        &mut self,
        root: machine::Disk,
        upper: machine::Disk,
        kernel: OpenKernel,
    ) -> Result<Arc<Ports>> {
        let (ports, device) = Ports::pair().map_err(Error::system("vsock port channel"))?;
        let (log_reader, log) = std::io::pipe().map_err(Error::system("log pipe"))?;
        self.tasks.push(tokio::spawn(read_pipe(log_reader, self.log())));
        let (reader, writer) = std::io::pipe().map_err(Error::system("console pipe"))?;
        let mut disks = vec![root, upper];
        disks.extend(self.disks.devices().map_err(Error::system("disks"))?);
        let config = machine::Config {
            vcpus: self.grant.vcpus,
            memory_mib: self.grant.memory_mib,
            shared_memory: self.spec.shared_memory,
            kernel: kernel.kernel,
            initramfs: kernel.initramfs,
            command_line: COMMAND_LINE.to_owned(),
            disks,
            ports: device,
            console: writer.into(),
            log: Some(log.into()),
            entropy_out_of_process: false,
        };
        let console = Arc::clone(&self.console);
        let console = tokio::spawn(read_pipe(reader, move |bytes| console.console(bytes)));
        let (kind, clock) = (self.kind, self.clock);
        self.booting = Some(spawn_blocking(move || boot_machine(kind, config, clock)));
        let Booted(machine) = finished(&mut self.booting).await?;
        self.timings.machine_us = Some(self.start.elapsed_us());
        self.watch(machine, console)?;
        Ok(Arc::new(ports))
    }

    fn watch(&mut self, machine: Box<dyn Machine>, console: JoinHandle<()>) -> Result<()> {
        let (sender, ended) = watch::channel(false);
        let descriptor = machine.ended().try_clone_to_owned();
        self.machine = Some(Running { machine, ended, console });
        let descriptor = descriptor.map_err(Error::system("machine"))?;
        let descriptor =
            descriptors::watched(descriptor, Interest::READABLE).map_err(Error::system("machine"))?;
        self.tasks.push(tokio::spawn(async move {
            let _ = descriptor.readable().await;
            sender.send_replace(true);
        }));
        Ok(())
    }

    async fn become_ready(&mut self, ports: &Ports, mut config: BootConfig) -> Result<()> {
        let stream = loop {
            match ports.accept().await.map_err(Error::system("vsock port channel"))? {
                Some((HOST_PORT, stream)) => break stream,
                // Nothing else is listened on; dropping the stream resets it.
                Some(_) => {}
                None => return Err(Error::HangUp),
            }
        };
        let (control, agent_start_us) = Control::hello(stream).await?;
        self.timings.hello_us = Some(self.start.elapsed_us());
        self.timings.guest_agent_us = Some(agent_start_us);
        let control = self.control.insert(control);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        config.wall_clock_ns = u64::try_from(now.as_nanos()).unwrap_or(0);
        self.timings.guest = Some(control.boot(config).await?);
        Ok(())
    }

    async fn serve(&mut self, ports: Arc<Ports>) -> Result<()> {
        let guest = Guest::own(Arc::clone(&ports), self.defaults.clone(), Log::new(self.log()));
        guest.refill().await?;
        // Streams that the guest opens from now on have no taker; each is closed as it arrives.
        self.tasks.push(tokio::spawn(async move { while let Ok(Some(_)) = ports.accept().await {} }));
        self.shared.guest.send_replace(Some(guest.clone()));
        self.guest = Some(guest);
        Ok(())
    }

    /// The command of this sandbox with these arguments; known once it has started.
    #[must_use]
    pub fn command(&self, args: &[String]) -> Vec<String> {
        command::command(&self.defaults.image, self.spec.entrypoint.as_deref(), args)
    }

    /// Its guest, once that is ready. It may outlive the sandbox: whatever is asked of it then fails.
    pub fn guest(&self) -> Result<Guest> {
        self.guest.clone().ok_or(Error::HangUp)
    }

    /// Runs a program.
    pub async fn exec(&mut self, exec: Exec) -> Result<Service> {
        let service = self.guest()?.exec(exec).await?;
        self.timings.exec_us.get_or_insert(self.start.elapsed_us());
        Ok(service)
    }

    /// Adds a program's output to the log.
    pub fn log(&self) -> impl Fn(&[u8]) + Send + Sync + use<> {
        let console = Arc::clone(&self.console);
        move |bytes| console.log(bytes)
    }

    /// Tells when the machine has ended.
    #[must_use]
    pub fn ended(&self) -> Ended {
        Ended(self.machine.as_ref().map(|running| running.ended.clone()))
    }

    /// Tells when another process wants the sandbox to end.
    #[must_use]
    pub fn stop_requested(&self) -> Ended {
        Ended(Some(self.shared.stop.subscribe()))
    }

    /// The error that says how the machine ended; `when` as in "before the sandbox was ready".
    pub async fn why_ended(&mut self, when: &str) -> Error {
        if timeout(LAST_WORDS_LIMIT, self.ended().wait()).await.is_err() {
            return Error::HangUp;
        }
        let Some(Running { mut machine, mut console, ended }) = self.machine.take() else {
            return Error::HangUp;
        };
        let waited = spawn_blocking(move || {
            let ending = machine.wait();
            (machine, ending)
        });
        let (machine, ending) = joined(waited.await);
        // The console's last bytes are in the pipe, and its end is behind them.
        let _ = timeout(LAST_WORDS_LIMIT, &mut console).await;
        self.machine = Some(Running { machine, console, ended });
        let last_words = self.console.last_words();
        let panicked = last_words.as_ref().is_some_and(|words| words.contains("Kernel panic"));
        let how = match ending {
            Ending::Reset if panicked => format!("the guest kernel panicked {when}"),
            Ending::Reset => format!("the guest reset itself {when}"),
            Ending::PowerOff => format!("the guest powered off {when}"),
            Ending::Failed(reason) => format!("the machine failed {when}: {reason}"),
        };
        let error = Error::Ended { how, last_words };
        self.failure.get_or_insert_with(|| error.to_string());
        error
    }

    /// Nothing is to be kept of it, whatever its spec says, and its processes get no time.
    pub fn discard(&mut self) {
        self.spec.keep = false;
        self.spec.grace = Duration::ZERO;
    }

    /// Ends it like [`Sandbox::end`], but waits for nothing any longer than this: what the guest has not written back by
    /// then is lost.
    pub async fn end_within(mut self, limit: Duration) -> Result<Timings> {
        self.end_by = Instant::now().checked_add(limit);
        self.end().await
    }

    /// Ends it: guest, machine, files. After this nothing is left but what `keep` keeps.
    pub async fn end(mut self) -> Result<Timings> {
        self.wanted = None;
        if let Some(making) = self.making_disk.take() {
            let _ = making.await;
        }
        let opening_limit = self.at_most(OPENING_LIMIT);
        // What it leaves if that takes longer is found by the next one.
        let opening = async {
            if let Some(opening) = self.opening_image.take() {
                let _ = opening.await;
            }
            if let Some(opening) = self.opening_kernel.take() {
                let _ = opening.await;
            }
        };
        let _ = timeout(opening_limit, opening).await;
        if let Some(booting) = self.booting.take()
            && let Ok(Ok(Ok(Booted(machine)))) = timeout(self.at_most(BOOT_CALL_LIMIT), booting).await
        {
            let _ = self.watch(machine, tokio::spawn(std::future::ready(())));
        }
        let mut steps = Vec::new();
        if matches!(self.lifecycle.phase(), Phase::Starting | Phase::StartFailed | Phase::Running) {
            self.to(Phase::Stopping);
            steps = self.stop_machine().await;
            self.to(Phase::Stopped);
        }
        self.timings.stopped_us = Some(self.start.elapsed_us());
        self.to(Phase::Cleaning);
        self.tasks.iter().for_each(JoinHandle::abort);
        let result = if self.spec.keep { self.clean_and_keep(steps) } else { self.clean_and_forget() };
        let written_back = self.unwritten.map_or(Ok(()), |after| Err(Error::NotWrittenBack { after }));
        result.and(written_back).map(|()| self.timings)
    }

    /// The record last: should this process end in between, whoever finds it cleans up. Only then the lock goes, so
    /// that nobody judges what has not ended.
    fn clean_and_keep(&mut self, mut steps: Vec<Step>) -> Result<()> {
        let cleaned = self.clean(VmPaths::remove_own);
        let failure = cleaned.as_ref().err().map(ToString::to_string);
        steps.push(Step::done("files", failure.clone()));
        let phase = if failure.is_none() { Phase::Cleaned } else { Phase::CleanupFailed };
        self.lifecycle.to(phase);
        let (id, change) = (self.vm.id.clone(), Change::to(phase).because(failure).with(steps));
        self.writer.write(move |records| {
            records.advance(&id, &change)?;
            records.set_ended(&id, Status::Stopped)
        });
        let written = self.writer.finish();
        cleaned.and(written).and_then(|()| self.clean(VmPaths::remove_lock))
    }

    /// The record first: a directory without one is nobody's, should this process end in between.
    fn clean_and_forget(&mut self) -> Result<()> {
        let id = self.vm.id.clone();
        self.writer.write(move |records| records.delete(&id));
        self.writer.flush();
        let cleaned = self.clean(VmPaths::remove);
        let written = self.writer.finish();
        self.lifecycle.to(if cleaned.is_ok() { Phase::Cleaned } else { Phase::CleanupFailed });
        cleaned.and(written)
    }

    async fn stop_machine(&mut self) -> Vec<Step> {
        let gently = self.spec.keep || !self.spec.grace.is_zero() || self.disks.any_writable();
        let mut steps = Vec::new();
        let Some(mut running) = self.machine.take() else { return steps };
        if let (true, Some(mut control)) = (gently, self.control.take()) {
            let grace_ms = u32::try_from(self.spec.grace.as_millis()).unwrap_or(u32::MAX);
            let limit = self.at_most(self.spec.grace.saturating_add(SHUTDOWN_LIMIT));
            let shutdown = async {
                if control.shut_down(grace_ms).await.is_ok() {
                    let _ = running.ended.wait_for(|ended| *ended).await;
                }
            };
            let late = timeout(limit, shutdown).await.is_err();
            self.unwritten = Some(limit).filter(|_| late && self.disks.any_writable());
            let late = late.then(|| format!("the guest did not power off in {:.1} s", limit.as_secs_f32()));
            late.iter().for_each(|late| tracing::warn!("{late}"));
            steps.push(Step::done("guest", late));
        }
        running.machine.stop();
        let ending = joined(
            spawn_blocking(move || {
                let ending = running.machine.wait();
                running.console.abort();
                ending
            })
            .await,
        );
        tracing::debug!("machine ended: {ending:?}");
        steps.push(Step::done("machine", None));
        steps
    }

    /// This limit, or what is left of the time to end in.
    fn at_most(&self, limit: Duration) -> Duration {
        self.end_by.map_or(limit, |by| limit.min(by.saturating_duration_since(Instant::now())))
    }

    fn clean(&self, remove: impl FnOnce(&VmPaths) -> std::io::Result<()>) -> Result<()> {
        // Whoever looks for orphans sees all of it or nothing.
        let _removing = self.home.lock_vms(FlockOperation::LockShared)?;
        let paths = &self.vm.paths;
        self.home.as_user(|| remove(paths).map_err(Error::io(paths.directory())))
    }

    fn boot_config(&self, layers: u16) -> Result<BootConfig> {
        let mut entropy = [0; 32];
        getrandom::fill(&mut entropy).map_err(|_| Error::Entropy)?;
        let hosts = self.spec.add_hosts.iter();
        Ok(BootConfig {
            version: VERSION,
            // Filled in when it is sent: a guest takes its time to ask.
            wall_clock_ns: 0,
            entropy,
            layers,
            upper: UpperDisk::Ext4,
            hostname: self.spec.hostname.clone().unwrap_or_else(|| self.vm.id.to_string()),
            hosts: hosts.map(|(host, ip)| HostEntry { host: host.clone(), ip: ip.to_string() }).collect(),
            nameservers: self.spec.nameservers.iter().map(ToString::to_string).collect(),
            cpu_quota_milli: self.grant.cpu_quota_milli,
            disks: self.disks.mounts(),
        })
    }

    fn to(&mut self, phase: Phase) {
        self.lifecycle.to(phase);
        tracing::debug!("{}: {phase}", self.vm.id);
        let (id, change) = (self.vm.id.clone(), Change::to(phase).because(self.failure.take()));
        self.writer.write(move |records| records.advance(&id, &change));
    }
}

/// Something that happens at most once.
#[derive(Debug, Clone)]
pub struct Ended(Option<watch::Receiver<bool>>);

impl Ended {
    /// Returns once it has happened; never, if it cannot.
    pub async fn wait(&mut self) {
        let happened = match &mut self.0 {
            Some(receiver) => receiver.wait_for(|ended| *ended).await.is_ok(),
            None => false,
        };
        if !happened {
            std::future::pending::<()>().await;
        }
    }
}

/// Starts the records' thread with this sandbox's own record and the reconcile that every command begins with.
fn record(
    home: &Home,
    id: &Id,
    spec: &Spec,
    grant: Grant,
    kind: choice::Kind,
) -> (Writer, oneshot::Receiver<()>) {
    let record = Record {
        id: id.clone(),
        pid: std::process::id(),
        status: Status::Running,
        phase: Phase::Creating,
        backend: kind.to_string(),
        image: spec.image.clone(),
        created_at: String::new(),
        config: Config::new(spec, grant),
    };
    let writer = Writer::start(home.clone());
    let recorded = writer.write_and_tell(move |records| records.insert(&record));
    let home = home.clone();
    writer.alone(move |records| {
        // Somebody else's leftovers are no reason not to start.
        if let Err(error) = reconcile(&home, records) {
            tracing::warn!("cleaning up after earlier sandboxes: {error}");
        }
        Ok(())
    });
    (writer, recorded)
}

fn boot_machine(kind: Kind, config: machine::Config, clock: Calibration) -> Result<Booted, MachineError> {
    match kind {
        Kind::Kvm => Ok(Booted(Box::new(machine::native::Native::boot(config)?))),
        Kind::Software => Ok(Booted(Box::new(machine::software::Software::boot(config, clock)?))),
        Kind::Hvf => Err(MachineError::Refused("machine hvf is not built yet".to_owned())),
    }
}

fn machine_kind(kind: choice::Kind) -> Kind {
    match kind {
        choice::Kind::Kvm => Kind::Kvm,
        choice::Kind::Hvf => Kind::Hvf,
        choice::Kind::Software => Kind::Software,
    }
}

/// Gives everything that comes out of a pipe to `take`.
async fn read_pipe(pipe: std::io::PipeReader, take: impl Fn(&[u8])) {
    let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe.into()) else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        take(&buffer[..length]);
    }
}

/// The result of a thread; its panic goes on here.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits for the thread in `slot` and empties it. Dropped half-way, it leaves the thread where it is.
async fn finished<T>(slot: &mut Option<JoinHandle<T>>) -> T {
    let Some(handle) = slot else { return std::future::pending().await };
    let result = handle.await;
    *slot = None;
    joined(result)
}
