//! TLS that is looked into: towards a guest with certificates of the sandbox's own, towards servers with the roots that
//! were given.
//!
//! No file is read, and no key leaves the process. Not here: which connections are looked into, and what is said on them.

mod authority;
mod leaves;

use std::net::IpAddr;
use std::sync::Arc;

use egress_policy::{Name, Policy};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector, client};

use leaves::{Leaf, Leaves};

/// Most sessions with servers that are kept for a quicker handshake.
const MAX_SESSIONS: usize = 64;

/// Tickets that a guest gets after a handshake.
const TICKETS: usize = 1;

/// A certificate, or a part of TLS, that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// There is no randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// TLS of one sandbox that is looked into.
#[derive(Debug)]
pub struct Interception {
    leaves: Leaves,
    http1: Sides,
    http2: Sides,
}

/// Settings towards both sides.
#[derive(Debug)]
struct Sides {
    guest: ServerConfig,
    server: Arc<ClientConfig>,
}

impl Interception {
    /// Makes an authority for a sandbox with this policy. Servers are verified with these roots, in DER; those that are not
    /// understood are left out.
    ///
    /// # Errors
    ///
    /// If keys or certificates cannot be made.
    pub fn new(policy: &Policy, roots: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.into_iter().map(CertificateDer::from));
        let sides = || sides(&store);
        let (http1, mut http2) = (sides()?, sides()?);
        for protocols in
            [&mut http2.guest.alpn_protocols, &mut Arc::make_mut(&mut http2.server).alpn_protocols]
        {
            protocols.insert(0, b"h2".to_vec());
        }
        Ok(Self { leaves: Leaves::new(policy)?, http1, http2 })
    }

    /// The authority's certificates, in PEM: all that the guest is to trust.
    #[must_use]
    pub fn authorities(&self) -> String {
        self.leaves.authorities()
    }

    /// Sees to it that there is an authority for all that a policy allows, and returns its certificate, in PEM, if it is a
    /// new one: programs of the guest that were started before do not trust it.
    ///
    /// # Errors
    ///
    /// If keys or certificates cannot be made.
    pub fn cover(&self, policy: &Policy) -> Result<Option<String>, TlsError> {
        self.leaves.cover(policy)
    }

    /// Answers a guest's `ClientHello` for a name, or for an address where none was stated.
    pub(crate) fn accept<S>(
        &self,
        name: Option<&Name>,
        address: IpAddr,
        stream: S,
        http2: bool,
    ) -> Result<Accept<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let leaf = self.leaves.leaf(name, address)?;
        let sides = if http2 { &self.http2 } else { &self.http1 };
        let mut config = sides.guest.clone();
        config.cert_resolver = Arc::new(Leaf(leaf));
        Ok(TlsAcceptor::from(Arc::new(config)).accept(stream))
    }

    /// Speaks TLS with a server, which is verified under a name or an address.
    pub(crate) async fn connect<S>(
        &self,
        name: &str,
        stream: S,
        http2: bool,
    ) -> std::io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let sides = if http2 { &self.http2 } else { &self.http1 };
        TlsConnector::from(sides.server.clone()).connect(name, stream).await
    }
}

fn sides(roots: &RootCertStore) -> Result<Sides, TlsError> {
    let provider = || Arc::new(ring::default_provider());
    let mut server = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    server.resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut guest = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(leaves::NoLeaf));
    guest.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Tickets keep sessions with the guest, under a key of this process.
    guest.session_storage = Arc::new(NoServerSessionStorage {});
    guest.ticketer = ring::Ticketer::new()?;
    guest.send_tls13_tickets = TICKETS;
    Ok(Sides { guest, server: Arc::new(server) })
}
