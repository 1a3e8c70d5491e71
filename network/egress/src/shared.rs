//! The state that the services of one sandbox share: its policy as it is now, pins, and the audit.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egress_policy::{Dial, Name, Policy, Reason};
use tokio::sync::watch;

use crate::audit::Queue;
use crate::pins::Pins;

/// The state of one sandbox.
#[derive(Debug)]
pub struct Shared {
    policy: watch::Sender<Arc<Policy>>,
    pins: Mutex<Pins>,
    flows: AtomicU64,
    pub(crate) hosts: Vec<(Name, IpAddr)>,
    pub(crate) audit: Queue,
}

impl Shared {
    /// The state of a sandbox whose table of hosts has these entries.
    #[must_use]
    pub fn new(policy: Policy, hosts: Vec<(Name, IpAddr)>, audit: Queue) -> Arc<Self> {
        let pins = Mutex::new(Pins::new(&hosts));
        Arc::new(Self {
            policy: watch::Sender::new(Arc::new(policy)),
            pins,
            flows: AtomicU64::new(1),
            hosts,
            audit,
        })
    }

    /// The policy as it is now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.borrow().clone()
    }

    /// Another policy holds from now on.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(Arc::new(policy));
    }

    /// The policy, and each that follows.
    pub(crate) fn policies(&self) -> watch::Receiver<Arc<Policy>> {
        self.policy.subscribe()
    }

    /// The number of the next flow.
    pub(crate) fn next_flow(&self) -> u64 {
        self.flows.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn pins(&self) -> MutexGuard<'_, Pins> {
        // Pins are whole between any two statements that can panic.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an address may be connected to, under the name that was stated, or else under any that it was given out for.
pub(crate) fn may_dial(
    policy: &Policy,
    destination: SocketAddr,
    names: &[Name],
    stated: Option<&Name>,
) -> Result<(), Reason> {
    let ask = |name: Option<&Name>| {
        let verdict = policy.dial(name, destination.ip(), destination.port());
        (verdict.decision == Dial::Deny).then_some(verdict.reason)
    };
    let mut denial = None;
    let all = std::iter::once(None).chain(names.iter().map(Some));
    let one = std::iter::once(stated);
    let asked: Vec<Option<&Name>> = if stated.is_some() { one.collect() } else { all.collect() };
    for name in asked {
        match ask(name) {
            None => return Ok(()),
            Some(reason) => denial = denial.or(Some(reason)),
        }
    }
    Err(denial.unwrap_or(Reason::NotListed))
}
