//! Tasks that end with their owner.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// A set of tasks, for parts of a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks(Arc<Mutex<JoinSet<()>>>);

/// The owner: when it is dropped, the tasks end.
#[derive(Debug, Default)]
pub(crate) struct Owned(pub(crate) Tasks);

impl Tasks {
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(future);
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        // Nothing panics while the set is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.spawn(async move { drop(future.await) });
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Tasks may hold this set themselves, so it would not end with its last holder.
        self.0.lock().abort_all();
    }
}
