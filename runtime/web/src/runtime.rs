//! The thread of connections, and waiting for requests.
//!
//! Not here: the requests.

use std::io;

use tokio::runtime::{Builder, Runtime};
use waiting::{CancellationToken, GivenUp};

/// Connections live on a thread of their own, so that callers on several threads may block on them.
#[derive(Debug)]
pub struct Connections(Option<Runtime>);

impl Connections {
    /// Makes the thread, without connections.
    pub fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Waits for the outcome of requests, unless the work is given up first.
    pub fn wait_for<T>(
        &self,
        given_up: &CancellationToken,
        what: impl Future<Output = T>,
    ) -> Result<T, GivenUp> {
        let runtime = self.0.as_ref().ok_or(GivenUp)?;
        runtime.block_on(given_up.run_until_cancelled(what)).ok_or(GivenUp)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A normal shutdown would wait for names that are being looked up, which nothing can interrupt.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use waiting::testing::given_up_at_once;

    /// The system looks up names on a thread that blocks.
    #[test]
    fn a_name_that_is_being_looked_up_is_not_waited_for() {
        let (begun, wait) = channel();
        let (found, find) = channel::<()>();
        let look_up = move || {
            begun.send(()).unwrap();
            find.recv()
        };
        let error = given_up_at_once(
            || wait.recv().is_ok(),
            |token| {
                let connections = Connections::new().unwrap();
                connections.wait_for(token, async { tokio::task::spawn_blocking(look_up).await })
            },
        );
        assert_eq!(error, GivenUp);
        found.send(()).unwrap();
    }
}
