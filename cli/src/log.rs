//! `matchlock log`: a sandbox's log, as it is or as it grows.
//!
//! Not here: where the log is and how it is followed (`sandbox`).

use sandbox::{Home, Id, log};
use tokio::task::spawn_blocking;

use crate::args::LogArgs;
use crate::failure::Interrupted;
use crate::signals::{SIGINT, Signals};
use crate::{block_on, say};

/// Prints it; with `--follow` until ^C, or until the sandbox is removed.
pub(crate) fn log(args: &LogArgs) -> anyhow::Result<u8> {
    let home = Home::from_env()?;
    let id: Id = args.id.parse()?;
    if args.follow {
        return block_on(follow(&home, &id))?;
    }
    say::bytes(&log::read(&home, &id)?);
    Ok(0)
}

async fn follow(home: &Home, id: &Id) -> anyhow::Result<u8> {
    let mut signals = Signals::catch()?;
    let mut log = log::follow(home, id)?;
    let print = async {
        while let Some(more) = log.next().await? {
            let more = more.to_vec();
            // On a thread of its own: a reader that does not read must not keep ^C from us.
            spawn_blocking(move || say::bytes(&more)).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        signal = signals.next() => match signal {
            SIGINT => Ok(0),
            signal => Err(Interrupted(signal).into()),
        },
        result = print => result.map(|()| 0),
    }
}
