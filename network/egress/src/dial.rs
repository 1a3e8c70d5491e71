//! Connections to servers, of which a bounded number is being opened at a time, and to one address fewer: one that does
//! not answer keeps no other from being reached. The rest waits, the longest first.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::audit::Fault;

/// Most connections that are being opened.
const MAX_OPENING: usize = 128;

/// Most connections that are being opened to one address.
const MAX_OPENING_TO_ONE: usize = 16;

/// How long a connection may take to be opened, with the time that it waits for others.
const LIMIT: Duration = Duration::from_secs(30);

/// Opens connections.
#[derive(Debug)]
pub(crate) struct Dialer {
    all: Semaphore,
    one: Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>,
}

impl Dialer {
    pub(crate) fn new() -> Self {
        Self { all: Semaphore::new(MAX_OPENING), one: Mutex::default() }
    }

    /// Opens a connection to this very address, after those that were asked for before.
    pub(crate) async fn connect(&self, destination: SocketAddr) -> Result<TcpStream, Fault> {
        let end = Instant::now() + LIMIT;
        let one = self.to(destination.ip());
        // A connection that waits for its address has no place among all meanwhile. Semaphores are fair, and these are
        // never closed.
        let places = async { (one.acquire().await, self.all.acquire().await) };
        let Ok((Ok(_one), Ok(_all))) = timeout_at(end, places).await else { return Err(Fault::TooMany) };
        let connected = timeout_at(end, TcpStream::connect(destination)).await;
        let server = connected.map_err(|_| Fault::Silent)?.map_err(|error| fault(&error))?;
        // Small pieces go on at once. Where this fails, the connection is gone already.
        let _ = server.set_nodelay(true);
        Ok(server)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    fn taken(places: &Semaphore) -> tokio::sync::SemaphorePermit<'_> {
        places.try_acquire_many(u32::try_from(MAX_OPENING_TO_ONE).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_address_has_a_bounded_number_of_connections_that_are_being_opened() {
        let dialer = Dialer::new();
        let address: SocketAddr = ([127, 0, 0, 1], 1).into();
        let places = dialer.to(address.ip());
        let held = taken(&places);
        let waiting = dialer.connect(address);
        let other = SocketAddr::from(([127, 0, 0, 2], 1));
        let freed = async {
            assert_eq!(dialer.connect(other).await.unwrap_err(), Fault::Refused);
            drop(held);
        };
        assert_eq!(tokio::join!(waiting, freed).0.unwrap_err(), Fault::Refused);
        drop(places);
        dialer.to(other.ip());
        assert_eq!(dialer.one.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_its_place_as_long_as_for_its_server() {
        let dialer = Dialer::new();
        let address: SocketAddr = ([127, 0, 0, 1], 1).into();
        let places = dialer.to(address.ip());
        let _held = taken(&places);
        let start = Instant::now();
        assert_eq!(dialer.connect(address).await.unwrap_err(), Fault::TooMany);
        assert_eq!(start.elapsed().as_secs(), LIMIT.as_secs());
    }

    #[tokio::test]
    async fn those_that_wait_are_opened_in_the_order_in_which_they_were_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = Arc::new(Dialer::new());
        let places = dialer.to(address.ip());
        let held = taken(&places);
        let mut all = JoinSet::new();
        for number in 0_u8..100 {
            let dialer = dialer.clone();
            all.spawn(async move {
                let mut server = dialer.connect(address).await.unwrap();
                server.write_u8(number).await.unwrap();
            });
            tokio::task::yield_now().await;
        }
        drop(held);
        let mut order = Vec::new();
        for _ in 0..100 {
            order.push(listener.accept().await.unwrap().0.read_u8().await.unwrap());
        }
        assert!(order.is_sorted(), "{order:?}");
        all.join_all().await;
        assert_eq!(places.available_permits(), MAX_OPENING_TO_ONE);
    }
}
