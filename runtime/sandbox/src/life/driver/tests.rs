//! The driver with a machine and an agent that the tests play; records, files, sockets and disks are real.

use std::os::fd::{AsFd, OwnedFd};

use guest_protocol::{ControlFromGuest, ControlFromHost, HOST_PORT, VERSION, frame};
use machine::Ending;
use machine::tsc::Calibration;
use policy::network::{Arrival, Network};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use virtio::vsock::{PortMessage, channel};

use super::super::running::tests::{Pretended, running};
use super::super::stages::Stage;
use super::*;
use crate::agent::command::ImageOverrides;
use crate::agent::detached::Log;
use crate::agent::frames::read_frame;
use crate::life::files::FileWatch;
use crate::records::store::Records;
use crate::{Id, Version};

fn spec(keep: bool) -> Spec {
    Spec {
        image: "busybox".into(),
        pull: images::Pull::Never,
        kernel: String::new(),
        machine: policy::machine::WantedMachine::Auto,
        resources: policy::resources::WantedResources { cpus: 1.0, memory_mb: 128, disk_size_mb: 64 },
        disks: Vec::new(),
        mounts: Vec::new(),
        masks: policy::files::WantedMasks::default(),
        watch: FileWatch::default(),
        network: Network { arrival: Arrival::None, hostname: Some("box".into()), ..Network::default() },
        env: Vec::new(),
        entrypoint: Some(vec!["entry".into()]),
        image_config: ImageOverrides::default(),
        privileged: false,
        launch_entrypoint: false,
        init: false,
        unenforced_timeout_seconds: None,
        time_limit: None,
        keep,
        grace: Duration::ZERO,
    }
}

/// A sandbox whose preparations are over, and its home.
struct Played {
    _directory: tempfile::TempDir,
    home: Home,
    id: Id,
    handle: Handle,
    driver: Driver,
}

impl Played {
    fn new(spec: Spec) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let kind = policy::machine::MachineKind::Software;
        let grant = super::super::base::check(&spec).unwrap();
        let created = Base::create_on(&home, spec, grant, Start::now(), kind, Calibration::start());
        let (mut base, _) = created.unwrap();
        base.journal.to(Phase::Created, None);
        base.journal.to(Phase::Starting, None);
        let id = base.vm.id.clone();
        let (handle, ends) = base.handle();
        let calls = Calls { stop: ends.stop.clone(), killed: base.shared.stop.subscribe(), time: None };
        Self {
            _directory: directory,
            home,
            id,
            handle,
            driver: Driver { base, ends, calls, terms: Terms::default() },
        }
    }

    /// Takes a machine up whose agent is played by `agent`.
    async fn rise<F>(&mut self, machine: Pretended, agent: impl FnOnce(UnixStream) -> F) -> Result<Up, Halt>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (starting, device) = Starting::played(&self.driver.base, running(machine));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        channel::send(device.as_fd(), PortMessage::Accept { port: HOST_PORT }, theirs.as_fd()).unwrap();
        let agent = tokio::spawn(agent(UnixStream::from_std(ours).unwrap()));
        let device: OwnedFd = device;
        let up = self.driver.greet(starting).await;
        drop((agent, device));
        up
    }

    /// Ends the sandbox, and returns its record: the phases, the steps of the end, and the last error.
    async fn end(self, halt: Halt, failed_to_start: bool) -> Remembered {
        let Halt { stage, why } = halt;
        end(self.driver.base, stage, &why, failed_to_start).await.unwrap();
        assert!(!self.home.vm(&self.id).lock().exists());
        let records = Records::open(&self.home).unwrap();
        let history = records.history(&self.id).unwrap();
        let steps = history.iter().flat_map(|version| &version.cleanup);
        let mut steps: Vec<_> = steps.map(|step| step.name.clone()).collect();
        steps.sort();
        Remembered {
            phases: history.iter().map(|version| version.phase).collect(),
            steps,
            error: history.iter().find_map(|Version { last_error, .. }| last_error.clone()),
        }
    }
}

struct Remembered {
    phases: Vec<Phase>,
    steps: Vec<String>,
    error: Option<String>,
}

async fn say(stream: &mut UnixStream, message: &ControlFromGuest) {
    stream.write_all(&frame::encode(message).unwrap()).await.unwrap();
}

async fn hear(stream: &mut UnixStream) -> Option<ControlFromHost> {
    let mut payload = Vec::new();
    let (_, payload) = read_frame(stream, &mut payload).await.ok()??;
    Some(frame::decode(payload).unwrap())
}

const READY: guest_protocol::Ready = guest_protocol::Ready { modules_us: 1, root_us: 2, ready_us: 3 };

/// An agent that does its part, and hangs up when it is told to shut down.
async fn agent(mut stream: UnixStream) {
    say(&mut stream, &ControlFromGuest::Hello { version: VERSION, agent_start_us: 7 }).await;
    let Some(ControlFromHost::Boot(config)) = hear(&mut stream).await else { panic!("no boot") };
    assert!(config.hostname == "box" && config.wall_clock_ns > 0);
    say(&mut stream, &ControlFromGuest::Ready(READY)).await;
    assert_eq!(hear(&mut stream).await, Some(ControlFromHost::Shutdown { grace_ms: 0 }));
}

#[tokio::test]
async fn a_guest_is_told_what_it_is_and_asked_to_end() {
    let mut played = Played::new(spec(true));
    let (machine, power) = Pretended::with_power_switch();
    let up = played.rise(machine, |stream| async move {
        agent(stream).await;
        drop(power);
    });
    let Ok(up) = up.await else { panic!("not up") };
    let timings = played.driver.base.timings;
    assert_eq!((timings.guest_agent_us, timings.guest), (Some(7), Some(READY)));

    let handle = played.handle.clone();
    let stay = async {
        let halt = played.driver.stay(up).await;
        (played, halt)
    };
    let ask = async {
        let ready = handle.ready().await.unwrap();
        assert_eq!(ready.command(&["arg".into()]), ["entry", "arg"]);
        handle.stop(Stop::default());
    };
    let ((played, halt), ()) = tokio::join!(stay, ask);
    assert!(matches!(halt, Halt { stage: Stage::Up(_), why: Why::Asked }));
    let remembered = played.end(halt, false).await;
    use Phase::{Cleaned, Cleaning, Created, Creating, Running, Starting, Stopped, Stopping};
    let phases = [Creating, Created, Starting, Running, Stopping, Stopped, Cleaning, Cleaned];
    assert_eq!(remembered.phases, phases);
    assert_eq!(
        (remembered.steps, remembered.error),
        (vec!["files".into(), "guest".into(), "machine".into()], None)
    );
}

/// An agent that sends the grace on when it is told to shut down.
async fn agent_with_grace(mut stream: UnixStream, told: tokio::sync::oneshot::Sender<u32>) {
    say(&mut stream, &ControlFromGuest::Hello { version: VERSION, agent_start_us: 7 }).await;
    hear(&mut stream).await;
    say(&mut stream, &ControlFromGuest::Ready(READY)).await;
    let Some(ControlFromHost::Shutdown { grace_ms }) = hear(&mut stream).await else { panic!("no end") };
    told.send(grace_ms).unwrap();
}

/// The grace that a guest's programs get when the sandbox is ended like this.
async fn grace_of(stop: Stop) -> u32 {
    let mut played = Played::new(Spec { grace: Duration::from_secs(3), ..spec(true) });
    let (machine, power) = Pretended::with_power_switch();
    let (told, grace) = tokio::sync::oneshot::channel();
    let up = played.rise(machine, |stream| async move {
        agent_with_grace(stream, told).await;
        drop(power);
    });
    let Ok(up) = up.await else { panic!("not up") };
    played.handle.stop(stop);
    let halt = played.driver.stay(up).await;
    played.driver.heed_how_it_is_to_end(false);
    played.end(halt, false).await;
    grace.await.unwrap()
}

#[tokio::test]
async fn programs_get_time_unless_the_command_has_ended() {
    assert_eq!(grace_of(Stop::default()).await, 3000);
    assert_eq!(grace_of(Stop { finished: true, ..Stop::default() }).await, 0);
    // Three quarters of the given time are the guest's, and half of these its programs'.
    let by = Some(Instant::now() + Duration::from_secs(4));
    let grace = grace_of(Stop { by, ..Stop::default() }).await;
    assert!(grace <= 1500 && grace > 500, "{grace}");
}

#[tokio::test]
async fn a_machine_that_ends_early_says_so() {
    let mut played = Played::new(spec(true));
    let Err(halt) = played.rise(Pretended::dead(Ending::Reset), |_| async {}).await else { panic!("up") };
    assert!(matches!(halt.stage, Stage::Reaped), "{:?}", halt.stage);
    let remembered = played.end(halt, true).await;
    assert!(remembered.phases.contains(&Phase::StartFailed), "{:?}", remembered.phases);
    assert_eq!(remembered.steps, ["files", "machine"]);
    assert_eq!(remembered.error.as_deref(), Some("the guest reset itself before the sandbox was ready"));
}

#[tokio::test]
async fn an_agent_that_cannot_start_says_why_and_its_machine_is_ended() {
    let mut played = Played::new(spec(true));
    let failing = |mut stream: UnixStream| async move {
        say(&mut stream, &ControlFromGuest::Hello { version: VERSION, agent_start_us: 7 }).await;
        hear(&mut stream).await;
        let failure = guest_protocol::BootFailure { step: "mount".into(), error: "no".into() };
        say(&mut stream, &ControlFromGuest::Failed(failure)).await;
    };
    let Err(halt) = played.rise(Pretended::new(), failing).await else { panic!("up") };
    assert_eq!(halt.why.to_string(), "the guest cannot start: mount: no");
    assert!(matches!(halt.stage, Stage::Configuring(_)));
    // Only `stop` cuts the stand-in's power, so a machine that is not stopped would hang the test.
    tokio::time::pause();
    assert_eq!(played.end(halt, true).await.steps, ["files", "guest", "machine"]);
}

#[tokio::test]
async fn a_start_is_given_up_at_any_stage() {
    let silent = |stream: UnixStream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    };
    let half = |mut stream: UnixStream| async move {
        say(&mut stream, &ControlFromGuest::Hello { version: VERSION, agent_start_us: 7 }).await;
        while hear(&mut stream).await.is_some() {}
    };
    for heard in [false, true] {
        let mut played = Played::new(spec(false));
        let handle = played.handle.clone();
        let rise = async {
            let risen = match heard {
                false => played.rise(Pretended::new(), silent).await,
                true => played.rise(Pretended::new(), half).await,
            };
            (played, risen)
        };
        let ask = async {
            // The driver is polled first, so by then it has heard of the end.
            tokio::task::yield_now().await;
            handle.stop(Stop::default());
        };
        let ((played, risen), ()) = tokio::join!(rise, ask);
        let Err(halt) = risen else { panic!("up") };
        assert!(matches!(halt.why, Why::Asked));
        let (home, id) = (played.home.clone(), played.id.clone());
        assert_eq!(played.end(halt, false).await.phases, [], "nothing is kept of it");
        assert!(!home.vm_directory(&id).exists());
    }
}

#[tokio::test]
async fn reasons_to_end_have_an_order() {
    let (handle, ends) =
        Handle::new("vm-00000001".parse().unwrap(), Log::new(|_| {}), Arc::default(), Arc::default());
    let killed = watch::Sender::new(false);
    let mut calls =
        Calls { stop: ends.stop.clone(), killed: killed.subscribe(), time: Time::from_now(Duration::ZERO) };
    assert!(matches!(calls.asked().await, Why::TimeLimit(Duration::ZERO)));
    killed.send_replace(true);
    assert!(matches!(calls.asked().await, Why::Killed));
    let other = handle.clone();
    drop(handle);
    assert!(matches!(calls.asked().await, Why::Killed), "somebody has a handle");
    drop(other);
    assert!(matches!(calls.asked().await, Why::Asked), "nobody has one any more");
}

#[tokio::test]
async fn the_first_request_to_stop_counts() {
    let (handle, ends) =
        Handle::new("vm-00000001".parse().unwrap(), Log::new(|_| {}), Arc::default(), Arc::default());
    handle.stop(Stop { discard: true, ..Stop::default() });
    handle.stop(Stop::default());
    assert!(ends.stop.borrow().is_some_and(|stop| stop.discard));
}

#[test]
fn the_guest_gets_its_part_of_the_time() {
    assert_eq!(end_by(None, None), None);
    let patience = Duration::from_secs(4);
    let left = end_by(None, Some(patience)).unwrap() - std::time::Instant::now();
    assert!(left <= Duration::from_secs(3) && left > Duration::from_secs(2), "{left:?}");
    let by = Stop { by: Some(Instant::now()), ..Stop::default() };
    assert!(end_by(Some(by), Some(patience)).unwrap() <= std::time::Instant::now());
}
