//! `matchlock rpc`: a sandbox for a program that drives it over standard input and output.
//!
//! Standard output carries the protocol and nothing else. Not here: the protocol (`rpc`).

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use ::rpc::Setup;
use sandbox::Home;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::args::RpcArgs;
use crate::block_on;
use crate::failure::Interrupted;
use crate::signals::Signals;
use crate::streams::{Stdin, Stdout};

/// Serves until the client is gone, or a signal comes.
pub(crate) fn rpc(args: &RpcArgs, home: Home) -> anyhow::Result<u8> {
    let setup = Setup { home, machine: args.machine, kernel: args.kernel.clone() };
    let last = std::io::stdin().as_fd().try_clone_to_owned()?;
    block_on(async {
        let mut signals = Signals::catch()?;
        let signal = Cell::new(None);
        let end = async { signal.set(Some(signals.next().await)) };
        ::rpc::serve(setup, Stdin, Stdout, hang_up(last), end).await;
        match signal.get() {
            None => Ok(0),
            Some(signal) => Err(Interrupted(signal).into()),
        }
    })?
}

/// Returns once a client can send nothing more, even if not all of its input has been read.
#[allow(
    deprecated,
    reason = "its objection is to types whose descriptor may change; an `OwnedFd` keeps its own"
)]
async fn hang_up(input: OwnedFd) {
    if let Ok(input) = AsyncFd::with_interest(input, Interest::READABLE) {
        while let Ok(mut ready) = input.readable().await {
            if ready.ready().is_read_closed() {
                return;
            }
            ready.clear_ready();
        }
    }
    // A file cannot be watched; it ends when it has been read.
    std::future::pending().await
}
