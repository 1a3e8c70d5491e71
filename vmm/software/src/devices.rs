//! The device process: serves block, socket and entropy devices to QEMU's vhost-user front ends.
//!
//! The process holds the guest's disks and memory, and nothing else: after its one message it opens nothing. A guest
//! that took it over would find no file system, no network and no other process, and would have no user's rights. Not
//! here: the devices themselves.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail};
use confinement::{
    BACK_END_IF, FIONBIO, Forbidden, Limits, OWN_FCNTLS, Profile, RUNTIME_IF, STREAM_PAIRS, calls,
};
use machine::descriptors::Incoming;
use machine::software::protocol::{Devices, DevicesReport, Served};
use process::Channel;
use virtio::Device;

const PROGRAM: &str = "matchlock-devices";

/// Most bytes that this process maps besides the guest's memory: its code, buffers, and stacks of threads.
const OWN_MEMORY: u64 = 1 << 30;

/// A device, and the socket on which its front end waits.
struct Prepared {
    name: String,
    device: Box<dyn Device>,
    listener: UnixListener,
}

/// Serves until the supervisor hangs up or a device fails.
pub fn run(channel: Channel) -> anyhow::Result<()> {
    // This process has no use for root's user. If the user cannot be given up, `confine` says so.
    let _ = confinement::take_own_user();
    let channel = Arc::new(channel);
    // Descriptors and devices outlive the report of a failure: QEMU notices the loss of a device only after the
    // supervisor knows the reason.
    let (mut descriptors, mut prepared) = (Incoming::default(), Vec::new());
    let outcome = serve(&channel, &mut descriptors, &mut prepared);
    if let Err(error) = &outcome {
        fail(&channel, error);
    }
    outcome
}

fn serve(
    channel: &Arc<Channel>,
    descriptors: &mut Incoming,
    prepared: &mut Vec<Prepared>,
) -> anyhow::Result<()> {
    let Some((Devices { memory, devices: specs }, received)) = channel.recv().context("first message")?
    else {
        return Ok(());
    };
    *descriptors = Incoming::new(received);
    let longest = specs.iter().map(|served| served.device.writable_end());
    // Each device maps all of the memory for itself, and for a moment twice, when its front end sends a new memory
    // table.
    let mapped = u64::try_from(specs.len())?.saturating_mul(2).saturating_mul(memory);
    let limits = Limits::new(longest.max().unwrap_or(0), mapped, OWN_MEMORY);
    for Served { listener, device } in specs {
        let name = device.name().to_owned();
        let device = device.make(descriptors)?;
        prepared.push(Prepared { name, device, listener: descriptors.take(listener)?.into() });
    }

    confine(limits)?;
    for Prepared { name, device, listener } in prepared.drain(..) {
        let served = vhost_backend::start(&name, device, listener).with_context(|| name.clone())?;
        let channel = Arc::clone(channel);
        let wait = move || {
            if let Err(error) = served.wait() {
                fail(&channel, &anyhow::Error::new(error).context(name));
                std::process::exit(1);
            }
        };
        thread::Builder::new().spawn(wait).context("thread")?;
    }
    channel.send(&DevicesReport::Serving, &[])?;

    match channel.recv::<()>()? {
        None => Ok(()),
        Some(_) => bail!("the supervisor broke the protocol"),
    }
}

/// Leaves this process the powers that serving takes, and no others.
fn confine(limits: Limits) -> anyhow::Result<()> {
    let report = confinement::enter_with_nothing(limits)?;
    report.warnings().for_each(|warning| crate::say(PROGRAM, &warning));
    PROFILE.filter().install_for_all_threads().context("seccomp")
}

fn fail(channel: &Channel, error: &anyhow::Error) {
    // If the supervisor is gone, the report is lost with it.
    let _ = channel.send(&DevicesReport::Failed(format!("device process: {error:#}")), &[]);
}

const PROFILE: Profile<'_> = Profile {
    calls: &[calls::RUNTIME, calls::DEVICES, calls::BACK_END, &[calls::LSEEK]],
    conditional: &[RUNTIME_IF, BACK_END_IF, &[STREAM_PAIRS]],
    ioctls: &[FIONBIO],
    fcntls: OWN_FCNTLS,
    // No filter can see the flags of clone3(2). Where that call is absent, the C library starts threads by clone(2).
    absent: &[calls::CLONE3],
    otherwise: Forbidden::Kill,
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use confinement::testing::{self, Fate, asked, try_everything};
    use process::{Spawn, spawn};

    use super::*;

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined() {
        let asked = asked();
        confine(Limits::new(0, 0, OWN_MEMORY)).unwrap();
        asked.end(|| {
            // The process may use threads, events, memory and streams.
            thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();
            virtio::Event::new().unwrap().signal();
            drop(UnixStream::pair().unwrap());
        });
    }

    #[test]
    fn forbidden_calls_kill_the_process() {
        try_everything("devices::tests::confined", &[("clone3", Fate::Absent)], &Fate::Killed);
    }

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined_without_seccomp() {
        let channel = process::parent_channel().unwrap();
        confinement::enter_with_nothing(Limits::default()).unwrap();
        let denied = File::open("/etc/passwd").unwrap_err().kind();
        assert_eq!(denied, std::io::ErrorKind::PermissionDenied);
        let denied = TcpStream::connect("127.0.0.1:9").unwrap_err().kind();
        assert_eq!(denied, std::io::ErrorKind::PermissionDenied);
        assert!(rustix::thread::capabilities(None).unwrap().permitted.is_empty());
        channel.send(&"did it", &[]).unwrap();
        std::process::exit(0);
    }

    #[test]
    fn landlock_and_capabilities_hold_without_seccomp() {
        if !testing::has_landlock_of_networks() {
            skip::skip("landlock", "this kernel's Landlock is too old or switched off");
            return;
        }
        let mut spec = Spawn::new(&std::env::current_exe().unwrap());
        let test = "devices::tests::confined_without_seccomp";
        spec.args = ["--exact", test, "--ignored", "--test-threads=1"].map(Into::into).into();
        let (mut child, channel) = spawn(spec).unwrap();
        assert!(channel.recv::<String>().unwrap().is_some());
        assert_eq!(child.wait().unwrap(), ExitStatus::from_raw(0));
    }
}
