//! `matchlock log`: a sandbox's log, as it is or as it grows.
//!
//! A guest writes the log, and a terminal would act on some of its bytes, so these are made visible there unless
//! `--raw` is given. Not here: reading the log (`sandbox`).

use std::io::{self, IsTerminal};

use sandbox::{Home, Id, log};
use tokio::task::spawn_blocking;

use crate::args::LogArgs;
use crate::failure::Interrupted;
use crate::signals::{SIGINT, Signals};
use crate::tame::Tamer;
use crate::{block_on, say};

/// Prints the log; with `--follow` until ^C, or until the sandbox is removed.
pub(crate) fn log(args: &LogArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse()?;
    let mut tamer = (!args.raw && io::stdout().is_terminal()).then(Tamer::default);
    if args.follow {
        return block_on(follow(home, &id, tamer))?;
    }
    let mut log = log::read(home, &id)?;
    if let Some(mut tamer) = tamer.take() {
        log = [tamer.piece(&log), tamer.end()].concat().into_bytes();
    }
    say::bytes(&log);
    Ok(0)
}

async fn follow(home: &Home, id: &Id, mut tamer: Option<Tamer>) -> anyhow::Result<u8> {
    let mut signals = Signals::catch()?;
    let mut log = log::follow(home, id)?;
    let print = async {
        while let Some(more) = log.next().await? {
            let more = tamer.as_mut().map_or_else(|| more.to_vec(), |tamer| tamer.piece(more).into_bytes());
            // On a thread of its own: an output that blocks must not keep ^C waiting.
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
