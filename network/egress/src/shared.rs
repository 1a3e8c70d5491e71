//! The state that the services of one sandbox share: its policy as it is now, pins, and the audit.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egress_policy::{Name, Policy};
use tokio::sync::watch;

use crate::audit::Queue;
use crate::pins::Pins;

/// The state of one sandbox.
#[derive(Debug)]
pub struct Shared {
    policy: watch::Sender<Arc<Policy>>,
    pins: Mutex<Pins>,
    pub(crate) hosts: Vec<(Name, IpAddr)>,
    pub(crate) audit: Queue,
}

impl Shared {
    /// The state of a sandbox whose table of hosts has these entries.
    #[must_use]
    pub fn new(policy: Policy, hosts: Vec<(Name, IpAddr)>, audit: Queue) -> Arc<Self> {
        let pins = Mutex::new(Pins::new(&hosts));
        Arc::new(Self { policy: watch::Sender::new(Arc::new(policy)), pins, hosts, audit })
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

    pub(crate) fn pins(&self) -> MutexGuard<'_, Pins> {
        // Pins are whole between any two statements that can panic.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
