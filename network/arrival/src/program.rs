//! The program `matchlock-arrival`: a process with one thread, which may therefore have a user namespace, and which ends
//! as soon as the network is handed over. The kernel keeps that for whom has a descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use broker::Program;
use process::{Channel, Spawn};
use serde::{Deserialize, Serialize};
use tap::Tap;

use super::{Arrival, Error, Sockets};

/// Something that the host must have for such a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lack {
    /// Root, CAP_SYS_ADMIN, or namespaces for users.
    Namespace,
    /// The kernel's TUN/TAP.
    Device,
    /// Permission to open its device.
    Permission,
    /// The kernel's nftables, with transparent proxies.
    Nftables,
    /// Something else: a limit, memory, a part of the kernel.
    Other,
}

/// Why a host gives no such network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// The thing that is missing.
    pub lack: Lack,
    text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let lack = match &error {
            Error::NoNamespace(_) => Lack::Namespace,
            Error::Tap(tap::Error::NoDevice) => Lack::Device,
            Error::Tap(tap::Error::NotOpened | tap::Error::NotAllowed) => Lack::Permission,
            Error::NoNftables(_) => Lack::Nftables,
            Error::Tap(_) | Error::System { .. } => Lack::Other,
        };
        Self { lack, text: error.to_string() }
    }
}

/// Why no network came.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The host gives none.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The program cannot be talked to.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// The program's end could not be waited for.
    #[error("matchlock-arrival: {0}")]
    End(#[source] io::Error),
    /// The program ended without a word, or with other descriptors than a network has.
    #[error("matchlock-arrival handed over no network")]
    Nothing,
}

/// Starts the program, which is the file `program`, or the broker's own if this process has a broker, and waits for the
/// network that the program makes.
pub fn start(program: &Path) -> Result<Arrival, ReceiveError> {
    let (mut child, channel) = broker::start(Program::Arrival, Spawn::new(program))?;
    let arrival = Arrival::receive(&channel)?;
    child.wait().map_err(ReceiveError::End)?;
    Ok(arrival)
}

/// Makes a network in this process, which is the program's, and hands it over.
pub fn serve(channel: &Channel) -> process::Result<()> {
    let (report, descriptors) = match Arrival::enter() {
        Ok(Arrival { tap, sockets }) => {
            let sockets: [OwnedFd; Sockets::COUNT] = sockets.into();
            (Ok(()), [tap.into()].into_iter().chain(sockets).collect())
        }
        Err(error) => (Err(Refusal::from(error)), Vec::new()),
    };
    channel.send::<Result<(), Refusal>>(&report, &descriptors.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

impl Arrival {
    /// Waits for the network that the program at the other end of `channel` makes.
    pub fn receive(channel: &Channel) -> Result<Self, ReceiveError> {
        let (report, descriptors) = channel.recv::<Result<(), Refusal>>()?.ok_or(ReceiveError::Nothing)?;
        report?;
        let mut descriptors = descriptors.into_iter();
        let tap = descriptors.next().and_then(|fd| Tap::new(fd).ok()).ok_or(ReceiveError::Nothing)?;
        let sockets = descriptors.collect::<Vec<_>>().try_into();
        let sockets: [OwnedFd; Sockets::COUNT] = sockets.map_err(|_| ReceiveError::Nothing)?;
        Ok(Self { tap, sockets: sockets.into() })
    }
}
