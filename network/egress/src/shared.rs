//! The state that the services of one sandbox share: its policy as it is now, pins, and the audit.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use egress_policy::{Dial, Name, Policy, Reason};
use tokio::sync::{oneshot, watch};

use crate::audit::Queue;
use crate::pins::Pins;

/// A policy, which open flows hold as long as they go by it.
#[derive(Debug)]
pub(crate) struct InForce {
    policy: Arc<Policy>,
    /// Nothing is sent: a change waits for the end of this value.
    ended: OnceLock<oneshot::Sender<Infallible>>,
}

impl InForce {
    fn new(policy: Policy) -> Arc<Self> {
        Arc::new(Self { policy: Arc::new(policy), ended: OnceLock::new() })
    }
}

impl Deref for InForce {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.policy
    }
}

/// The policy denies an open flow.
#[derive(Debug)]
pub(crate) struct Denial {
    pub(crate) reason: Reason,
    /// The policy that allowed the flow, until the flow is cut.
    _before: Option<Arc<InForce>>,
}

/// The state of one sandbox.
#[derive(Debug)]
pub struct Shared {
    policy: watch::Sender<Arc<InForce>>,
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
            policy: watch::Sender::new(InForce::new(policy)),
            pins,
            flows: AtomicU64::new(1),
            hosts,
            audit,
        })
    }

    /// The policy as it is now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.borrow().policy.clone()
    }

    /// Another policy holds from now on.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(InForce::new(policy));
    }

    /// Another policy holds from now on. Returns once every open flow has been judged by it, and those that it denies are
    /// cut. One change at a time: a flow may be at the policy before the last.
    pub async fn change_policy(&self, policy: Policy) {
        let (ended, end) = oneshot::channel();
        let before = self.policy.send_replace(InForce::new(policy));
        // A policy is replaced once.
        let _ = before.ended.set(ended);
        drop(before);
        // Nothing comes but the end.
        let _ = end.await;
    }

    /// Ends when the policy denies an address under a name that was stated, or else under any that it was given out for:
    /// now, or after a change.
    pub(crate) async fn denial(
        &self,
        destination: SocketAddr,
        names: &[Name],
        stated: Option<&Name>,
    ) -> Denial {
        self.denial_of(|policy| may_dial(policy, destination, names, stated).err()).await
    }

    /// Ends when the policy denies: now, or after a change.
    pub(crate) async fn denial_of(&self, denies: impl Fn(&Policy) -> Option<Reason>) -> Denial {
        let mut policies = self.policy.subscribe();
        let mut before = None;
        loop {
            let policy = policies.borrow_and_update().clone();
            if let Some(reason) = denies(&policy) {
                return Denial { reason, _before: before };
            }
            before = Some(policy);
            // The sender lives as long as this value.
            if policies.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The number of the next flow.
    pub(crate) fn next_flow(&self) -> u64 {
        self.flows.fetch_add(1, Ordering::Relaxed)
    }

    /// A flow to an address is open until the value is dropped.
    pub(crate) fn hold(&self, address: IpAddr) -> Held<'_> {
        self.pins().hold(address);
        Held { shared: self, address }
    }

    pub(crate) fn pins(&self) -> MutexGuard<'_, Pins> {
        // Pins are whole between any two statements that can panic.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open flow to an address, whose pins stay while it is open.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    shared: &'a Shared,
    address: IpAddr,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.pins().let_go(self.address);
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
