//! Connections to servers, of which a bounded number is being opened at a time, and to one address fewer: one that does
//! not answer keeps no other from being reached.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::audit::Fault;

/// Most connections that are being opened.
const MAX_OPENING: usize = 128;

/// Most connections that are being opened to one address.
const MAX_OPENING_TO_ONE: usize = 16;

/// How long a server may take for a connection, and how long one that is not opened yet may have to wait.
const LIMIT: Duration = Duration::from_secs(30);

/// Opens connections.
#[derive(Debug)]
pub(crate) struct Dialer {
    all: Semaphore,
    one: Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>,
}

/// A way to take one's turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Turn {
    /// At once, or not at all.
    Now,
    /// After others.
    Waiting,
}

impl Dialer {
    pub(crate) fn new() -> Self {
        Self { all: Semaphore::new(MAX_OPENING), one: Mutex::default() }
    }

    /// Opens a connection to this very address.
    pub(crate) async fn connect(&self, destination: SocketAddr, turn: Turn) -> Result<TcpStream, Fault> {
        let one = self.to(destination.ip());
        let connect = async {
            // One that waits for an address has no place among all meanwhile.
            let (one, all) = match turn {
                Turn::Now => (one.try_acquire().ok(), self.all.try_acquire().ok()),
                Turn::Waiting => (one.acquire().await.ok(), self.all.acquire().await.ok()),
            };
            let (Some(_one), Some(_all)) = (one, all) else { return Err(Fault::TooMany) };
            let server = TcpStream::connect(destination).await.map_err(|error| fault(&error))?;
            // Small pieces go on at once. Where this fails, the connection is gone already.
            let _ = server.set_nodelay(true);
            Ok(server)
        };
        timeout(LIMIT, connect).await.unwrap_or(Err(Fault::Silent))
    }

    fn to(&self, address: IpAddr) -> Arc<Semaphore> {
        // Nothing panics while the map is locked.
        let mut one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        one.retain(|_, places| Arc::strong_count(places) > 1);
        one.entry(address).or_insert_with(|| Arc::new(Semaphore::new(MAX_OPENING_TO_ONE))).clone()
    }
}

fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::Refused,
        io::ErrorKind::TimedOut => Fault::Silent,
        _ => Fault::NoWay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_has_a_bounded_number_of_connections_that_are_being_opened() {
        let dialer = Dialer::new();
        let address: SocketAddr = ([127, 0, 0, 1], 1).into();
        let taken = dialer.to(address.ip());
        let places = taken.acquire_many(u32::try_from(MAX_OPENING_TO_ONE).unwrap()).await.unwrap();
        assert_eq!(dialer.connect(address, Turn::Now).await.unwrap_err(), Fault::TooMany);
        let other = SocketAddr::from(([127, 0, 0, 2], 1));
        assert_eq!(dialer.connect(other, Turn::Now).await.unwrap_err(), Fault::Refused);
        let waiting = dialer.connect(address, Turn::Waiting);
        let freed = async { drop(places) };
        assert_eq!(tokio::join!(waiting, freed).0.unwrap_err(), Fault::Refused);
        drop(taken);
        dialer.to(other.ip());
        assert_eq!(dialer.one.lock().unwrap().len(), 1);
    }
}
