//! vCPU threads, and the gate that starts, parks and ends them together.
//!
//! ```text
//!            every thread is ready                pause: kick, then all parked
//!  Starting ──────────────────────▶ Running ◀──────────────────────────────────▶ Paused
//!                                      │ a vCPU stops for good
//!                                      ▼
//!                                    Ended: the event thread learns of it by an event; the process ends
//! ```
//!
//! Not here: what the vCPUs' accesses mean (`board`).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use hypervisor::{Vcpu, VcpuSeed, VcpuStop, Vm};
use virtio::Event;

use crate::board::Board;

/// The phase that the vCPU threads should be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Paused,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// How many threads wait in the gate.
    waiting: usize,
    /// Why the first vCPU stopped.
    stop: Option<VcpuStop>,
    /// Why a thread could not start.
    failure: Option<hypervisor::Error>,
}

/// The place where vCPU threads wait.
#[derive(Debug)]
pub struct Gate {
    vcpus: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Signalled when a vCPU stops for good.
    ended: Event,
}

impl Gate {
    /// A closed gate for that many threads.
    pub fn new(vcpus: u8) -> std::io::Result<Self> {
        let state = State { phase: Phase::Starting, waiting: 0, stop: None, failure: None };
        let ended = Event::new()?;
        Ok(Self { vcpus: vcpus.into(), state: Mutex::new(state), changed: Condvar::new(), ended })
    }

    /// An event that is readable once a vCPU has stopped for good.
    #[must_use]
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Why the first vCPU stopped for good.
    #[must_use]
    pub fn stop(&self) -> Option<VcpuStop> {
        self.lock().stop.clone()
    }

    /// Waits until every vCPU is bound to its thread, or until one could not be bound.
    pub fn wait_ready(&self) -> hypervisor::Result<()> {
        let mut state = self.wait_until(|state| state.waiting == self.vcpus || state.failure.is_some());
        state.failure.take().map_or(Ok(()), Err)
    }

    /// Lets every thread run.
    pub fn open(&self) {
        self.lock().phase = Phase::Running;
        self.changed.notify_all();
    }

    /// Stops every vCPU and waits until none runs.
    pub fn close<V: Vm>(&self, vm: &V) -> hypervisor::Result<()> {
        self.lock().phase = Phase::Paused;
        for index in 0..self.vcpus {
            vm.kick(u8::try_from(index).unwrap_or(u8::MAX))?;
        }
        drop(self.wait_until(|state| state.waiting == self.vcpus));
        Ok(())
    }

    /// Makes a vCPU's thread wait until it should run.
    fn pass(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.phase != Phase::Running || state.stop.is_some() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    fn wait_until(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let guard = self.lock();
        self.changed.wait_while(guard, |state| !condition(state)).unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: hypervisor::Error) {
        self.lock().failure = Some(error);
        self.changed.notify_all();
    }

    /// Notes that a vCPU stopped for good.
    pub(crate) fn end(&self, stop: VcpuStop) {
        self.lock().stop.get_or_insert(stop);
        self.ended.signal();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of a vCPU's thread. This function does not return once its vCPU has run: the thread ends with the process.
pub fn run<S: VcpuSeed>(seed: S, board: &Board, gate: &Gate) {
    let mut vcpu = match seed.bind() {
        Ok(vcpu) => vcpu,
        Err(error) => return gate.fail(error),
    };
    loop {
        gate.pass();
        match vcpu.run(&mut &*board) {
            VcpuStop::Kicked => {}
            stop => gate.end(stop),
        }
    }
}
