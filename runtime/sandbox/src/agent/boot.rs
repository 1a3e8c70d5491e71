//! The control stream: a guest becomes ready on it, and is asked on it to end.
//!
//! Not here: service streams, and the limits on how long a guest may take.

use guest_protocol::{BootConfig, ControlFromGuest, ControlFromHost, Ready, VERSION, frame};
use tokio::net::UnixStream;

use crate::agent::error::{Error, Result};
use crate::agent::frames::{read_frame, write_message};
use crate::records::console::printable;

/// The control stream of a guest.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    payload: Vec<u8>,
}

impl Control {
    /// Waits for the agent's hello, which says how many microseconds after the kernel's start the agent began.
    pub(crate) async fn hello(stream: UnixStream) -> Result<(Self, u64)> {
        let mut control = Self { stream, payload: Vec::new() };
        match control.receive().await? {
            ControlFromGuest::Hello { version: VERSION, agent_start_us } => Ok((control, agent_start_us)),
            ControlFromGuest::Hello { .. } => Err(Error::Guest("the guest agent is of another release")),
            _ => Err(Error::Guest("the guest's first message is no hello")),
        }
    }

    /// Sends the guest its configuration, and waits until the guest is ready.
    pub(crate) async fn boot(&mut self, config: BootConfig) -> Result<Ready> {
        self.send(&ControlFromHost::Boot(Box::new(config))).await?;
        match self.receive().await? {
            ControlFromGuest::Ready(ready) => Ok(ready),
            ControlFromGuest::Failed(failure) => Err(Error::Boot {
                step: printable(failure.step.as_bytes()),
                error: printable(failure.error.as_bytes()),
            }),
            ControlFromGuest::NoTimer => Err(Error::NoTimer),
            ControlFromGuest::Hello { .. } => Err(Error::Guest("the guest said hello twice")),
        }
    }

    /// Asks the guest to end every program and power off.
    pub(crate) async fn shut_down(&mut self, grace_ms: u32) -> Result<()> {
        self.send(&ControlFromHost::Shutdown { grace_ms }).await
    }

    async fn send(&mut self, message: &ControlFromHost) -> Result<()> {
        write_message(&mut self.stream, message).await
    }

    async fn receive(&mut self) -> Result<ControlFromGuest> {
        match read_frame(&mut self.stream, &mut self.payload).await? {
            Some((frame::Kind::Message, payload)) => Ok(frame::decode(payload)?),
            Some(_) => Err(Error::Guest("data on the control stream")),
            None => Err(Error::HangUp),
        }
    }
}
