//! The control stream: the guest's one connection to the host that lasts as long as the guest.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use guest_protocol::frame::{self, FrameError, Kind, Splitter};
use guest_protocol::{BootConfig, ControlFromGuest, ControlFromHost, HOST_PORT, VERSION};
use rustix::event::{PollFd, PollFlags};

use crate::boot::{AtStep, Failure};
use crate::orphans::Orphans;
use crate::stream::{self, MESSAGE_CHUNK};
use crate::{log, vsock};

/// The stream, and the bytes that have arrived on it.
pub(crate) struct Control {
    stream: OwnedFd,
    input: Splitter,
}

/// Connects, introduces the agent, and waits for the host's configuration.
pub(crate) fn open(started: u64) -> Result<(Control, Box<BootConfig>), Failure> {
    let stream = vsock::connect(HOST_PORT).at("connect to the host")?;
    let mut control = Control { stream, input: Splitter::default() };
    control.send(&ControlFromGuest::Hello { version: VERSION, agent_start_us: started });
    match control.receive() {
        Ok(Some(ControlFromHost::Boot(config))) if config.version == VERSION => Ok((control, config)),
        Ok(Some(ControlFromHost::Boot(config))) => {
            let error = format!("the host speaks version {}, this agent {VERSION}", config.version);
            Err(Failure::because("greet the host", error))
        }
        Ok(Some(ControlFromHost::Shutdown { .. })) => {
            Err(Failure::because("greet the host", "shut down at once"))
        }
        Ok(None) => Err(Failure::because("greet the host", "it hung up")),
        Err(error) => Err(Failure::because("greet the host", error.to_string())),
    }
}

impl Control {
    /// Sends the host a message. A host that is gone is noticed elsewhere.
    pub(crate) fn send(&self, message: &ControlFromGuest) {
        let _ = frame::encode(message).and_then(|bytes| stream::send_all(&self.stream, &bytes));
    }

    /// The next message; `None` after the host's hang-up.
    fn receive(&mut self) -> Result<Option<ControlFromHost>, FrameError> {
        loop {
            if let Some((kind, payload)) = self.input.next_frame()? {
                return match kind {
                    Kind::Message => frame::decode(payload).map(Some),
                    other => Err(FrameError::Kind(other as u8)),
                };
            }
            let mut room = [MaybeUninit::uninit(); MESSAGE_CHUNK];
            if !stream::receive(self.stream.as_fd(), &mut self.input, &mut room) {
                return Ok(None);
            }
        }
    }

    /// Waits until the guest has to end, and returns its programs' grace. A host that hung up, or breaks the
    /// protocol, gives none. Orphans are reaped meanwhile.
    pub(crate) fn wait_for_the_end(&mut self, orphans: &Orphans) -> Duration {
        while self.input.at_boundary() {
            let mut fds = [
                PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(orphans.readiness(), PollFlags::IN),
            ];
            let polled = rustix::event::poll(&mut fds, None);
            let [stream, orphaned] = fds.map(|fd| !fd.revents().is_empty());
            if orphaned {
                orphans.reap();
            }
            if stream && polled.is_ok() {
                break;
            }
        }
        match self.receive() {
            Ok(Some(ControlFromHost::Shutdown { grace_ms })) => Duration::from_millis(u64::from(grace_ms)),
            Ok(None) => Duration::ZERO,
            Ok(Some(ControlFromHost::Boot(_))) | Err(_) => {
                log::line("the host sent nonsense on the control stream");
                Duration::ZERO
            }
        }
    }
}
