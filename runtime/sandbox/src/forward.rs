//! Port forwards: listeners on the host, each of whose connections goes to a port of the guest's loopback address.
//!
//! The end of either direction is passed on, the other goes on until it ends too. Not here: how a connection into the
//! guest is made ([`Guest::connect`]), and who may listen where.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::guest::Guest;
use crate::{Error, Result};

/// Most connections at once, all listeners together; more wait in the listeners' queues. Each is two descriptors here
/// and a stream of the guest's.
pub const MAX_CONNECTIONS: usize = 128;

/// Buffer for one direction of a connection.
const BUFFER: usize = 64 << 10;

/// Out of descriptors, the next accept would say the same at once.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// From which port to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Port on the host; 0 = any that is free.
    pub local_port: u16,
    /// Port in the guest.
    pub remote_port: u16,
}

/// A listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Where it listens.
    pub address: IpAddr,
    /// The port there.
    pub local_port: u16,
    /// The port in the guest.
    pub remote_port: u16,
}

/// Listeners and their connections. Dropping it closes all of them soon, [`Forwards::close`] before it returns.
#[derive(Debug)]
pub struct Forwards {
    listeners: JoinSet<()>,
}

impl Forwards {
    /// Listens for each forward on each address: all of them or none. Needs a tokio runtime around it.
    pub fn bind(guest: &Guest, forwards: &[Forward], addresses: &[IpAddr]) -> Result<(Self, Vec<Binding>)> {
        let mut bound = Vec::new();
        let mut taken = HashSet::new();
        for forward in forwards {
            for address in addresses {
                let address = SocketAddr::new(*address, forward.local_port);
                if forward.local_port != 0 && !taken.insert(address) {
                    return Err(Error::Listener { address, source: io::Error::other("given twice") });
                }
                let listener = listen(address).map_err(|source| Error::Listener { address, source })?;
                bound.push((listener, forward.remote_port));
            }
        }
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut listeners = JoinSet::new();
        let mut bindings = Vec::new();
        for ((listener, address), remote_port) in bound {
            bindings.push(Binding { address: address.ip(), local_port: address.port(), remote_port });
            listeners.spawn(accept(listener, guest.clone(), remote_port, Arc::clone(&slots)));
        }
        Ok((Self { listeners }, bindings))
    }

    /// Closes the listeners, so that their ports are free when this returns, and the connections.
    pub async fn close(mut self) {
        self.listeners.shutdown().await;
    }
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn accept(listener: TcpListener, guest: Guest, port: u16, slots: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let guest = guest.clone();
                connections.spawn(async move {
                    if let Err(error) = relay(stream, &guest, port).await {
                        tracing::debug!("connection to port {port}: {error}");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!("listener for port {port}: {error}");
                sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}

async fn relay(mut stream: TcpStream, guest: &Guest, port: u16) -> Result<()> {
    let mut inside = guest.connect(port).await?;
    // Whoever wrote small pieces on one side wants them small on the other.
    let _ = stream.set_nodelay(true);
    copy_bidirectional_with_sizes(&mut stream, &mut inside, BUFFER, BUFFER)
        .await
        .map_err(Error::system("connection"))?;
    Ok(())
}
