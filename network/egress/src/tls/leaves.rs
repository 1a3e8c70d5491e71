//! Certificates for the names that a guest asks for, made when they are, of which a bounded number is kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use egress_policy::{Name, Policy};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};

use super::TlsError;
use super::authority::{self, Authority, LEAF_USE};

/// Most certificates that are kept.
const MAX_LEAVES: usize = 256;

/// The certificates of one sandbox. They share a key, which takes as long to make as a certificate does.
#[derive(Debug)]
pub(super) struct Leaves {
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// May be constrained to the names of a list.
    first: Authority,
    /// Made where the first one no longer covers the list; it is not constrained.
    second: Option<Authority>,
    leaves: BTreeMap<Key, Kept>,
    turn: u64,
}

/// A name, or an address where there is none.
type Key = Result<Name, IpAddr>;

#[derive(Debug)]
struct Kept {
    certified: Arc<CertifiedKey>,
    made: Instant,
    turn: u64,
}

impl Leaves {
    pub(super) fn new(policy: &Policy) -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = any_ecdsa_type(&der)?;
        let first = Authority::new(authority::domains(policy))?;
        let state = State { first, second: None, leaves: BTreeMap::new(), turn: 0 };
        Ok(Self { key, signing, state: Mutex::new(state) })
    }

    pub(super) fn authorities(&self) -> String {
        let state = self.state();
        std::iter::once(&state.first).chain(&state.second).map(Authority::pem).collect()
    }

    pub(super) fn cover(&self, policy: &Policy) -> Result<Option<String>, TlsError> {
        let mut state = self.state();
        if state.second.is_some() || state.first.covers_all(authority::domains(policy).as_ref()) {
            return Ok(None);
        }
        let second = state.second.insert(Authority::new(None)?);
        Ok(Some(second.pem()))
    }

    /// The certificate for a name, or for an address where there is none.
    pub(super) fn leaf(&self, name: Option<&Name>, address: IpAddr) -> Result<Arc<CertifiedKey>, TlsError> {
        let key: Key = name.cloned().ok_or(address);
        let mut state = self.state();
        state.turn += 1;
        let turn = state.turn;
        if let Some(kept) = state.leaves.get_mut(&key).filter(|kept| kept.made.elapsed() < LEAF_USE) {
            kept.turn = turn;
            return Ok(kept.certified.clone());
        }
        // Where neither is meant for it, clients that check say so.
        let second = state.second.as_ref().filter(|_| !state.first.covers(name));
        let authority = second.unwrap_or(&state.first);
        let chain = vec![authority.sign(&self.key, name, address)?, authority.certificate().clone()];
        let certified = Arc::new(CertifiedKey::new(chain, self.signing.clone()));
        state.leaves.insert(key, Kept { certified: certified.clone(), made: Instant::now(), turn });
        if state.leaves.len() > MAX_LEAVES {
            let oldest = state.leaves.iter().min_by_key(|(_, kept)| kept.turn).map(|(key, _)| key.clone());
            oldest.map(|oldest| state.leaves.remove(&oldest));
        }
        Ok(certified)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificate of one connection.
#[derive(Debug)]
pub(super) struct Leaf(pub(super) Arc<CertifiedKey>);

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// No certificate: each connection has its own.
#[derive(Debug)]
pub(super) struct NoLeaf;

impl ResolvesServerCert for NoLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use egress_policy::WantedPolicy;

    use super::*;

    #[test]
    fn a_bounded_number_is_kept_of_those_that_were_used_last() {
        let leaves = Leaves::new(&Policy::new(&WantedPolicy::default()).unwrap()).unwrap();
        let address = [203, 0, 113, 10].into();
        let leaf = |name: &str| leaves.leaf(Some(&name.parse().unwrap()), address).unwrap();
        let first = leaf("first.test");
        for number in 0..MAX_LEAVES {
            leaf(&format!("n{number}.test"));
            assert!(Arc::ptr_eq(&leaf("first.test"), &first));
        }
        assert_eq!(leaves.state().leaves.len(), MAX_LEAVES);
        assert!(!leaves.state().leaves.contains_key(&Ok("n0.test".parse().unwrap())));
        let other = leaves.leaf(None, address).unwrap();
        assert_ne!(other.cert[0], first.cert[0]);
        assert_eq!(other.cert[1], first.cert[1]);
    }
}
