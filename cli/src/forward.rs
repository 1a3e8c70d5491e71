//! Port forwards on the command line: `matchlock port-forward`, and `--publish` of `run`.
//!
//! Not here: the listeners and their connections (`sandbox`), and the syntax of a specification (`policy`).

use std::net::{IpAddr, SocketAddr};

use sandbox::{Binding, Client, Forward, Forwards, Guest, GuestError, Home, Id};
use tokio::task::spawn_blocking;

use crate::args::PortForwardArgs;
use crate::block_on;
use crate::failure::{Interrupted, not_found};
use crate::say::tell;
use crate::signals::{SIGINT, SIGTERM, Signals};

/// The requested forwards.
#[derive(Debug)]
pub(crate) struct Wanted {
    forwards: Vec<Forward>,
    addresses: Vec<IpAddr>,
}

impl Wanted {
    /// Parses the options.
    pub(crate) fn new(specs: &[String], addresses: &[String]) -> anyhow::Result<Self> {
        let pairs = policy::ports::specs(specs)?.into_iter();
        let forward = |pair: policy::ports::PortPair| Forward {
            address: pair.address,
            local_port: pair.local_port,
            remote_port: pair.remote_port,
        };
        Ok(Self { forwards: pairs.map(forward).collect(), addresses: policy::ports::addresses(addresses)? })
    }

    /// Listens, and prints the addresses. Needs a tokio runtime around it.
    pub(crate) fn bind(&self, guest: &Guest) -> Result<Forwards, GuestError> {
        let (forwards, bindings) = Forwards::bind(guest, &self.forwards, &self.addresses)?;
        for Binding { address, local_port, remote_port } in bindings {
            tell!("Forwarding {} -> sandbox:{remote_port}", SocketAddr::new(address, local_port));
        }
        Ok(forwards)
    }
}

/// Forwards until ^C, or until the sandbox ends.
pub(crate) fn port_forward(args: &PortForwardArgs, home: &Home) -> anyhow::Result<u8> {
    let wanted = Wanted::new(&args.ports, &args.address)?;
    let id: Id = args.id.parse().map_err(not_found)?;
    block_on(async {
        let mut signals = Signals::catch()?;
        // If the sandbox cannot be reached, this says why.
        drop(Client::connect(home, &id).map_err(not_found)?);
        let forwards = wanted.bind(&Guest::of(home, &id))?;
        let (owned, of) = (home.clone(), id.clone());
        let ended = spawn_blocking(move || sandbox::wait_for_end(&owned, &of));
        let result = tokio::select! {
            biased;
            signal = signals.next() => match signal {
                SIGINT | SIGTERM => Ok(0),
                signal => Err(Interrupted(signal).into()),
            },
            ended = ended => match ended? {
                Ok(()) => Err(anyhow::anyhow!("VM {id} ended")),
                Err(error) => Err(error.into()),
            },
        };
        forwards.close().await;
        result
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let wanted = Wanted::new(&strings(&["80", "[::1]:8081:81"]), &[]).unwrap();
        let expected = [(None, 80, 80), (Some("::1".parse().unwrap()), 8081, 81)];
        let expected =
            expected.map(|(address, local_port, remote_port)| Forward { address, local_port, remote_port });
        assert_eq!((&wanted.forwards[..], wanted.addresses), (&expected[..], vec![[127, 0, 0, 1].into()]));
        let error = Wanted::new(&strings(&["x"]), &[]).unwrap_err().to_string();
        assert!(error.starts_with("invalid port-forward specification"), "{error}");
        let error = Wanted::new(&strings(&["80"]), &strings(&["x"])).unwrap_err().to_string();
        assert!(error.starts_with("invalid port-forward bind address"), "{error}");
    }
}
