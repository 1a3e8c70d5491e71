//! Shared folders without a machine: requests of FUSE to `matchlock-shares` and to virtiofsd, by a driver that stands for a
//! guest's kernel. Rounds are interleaved, so that the host's other work hits all alike.

mod cases;
mod server;
mod strace;
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use cases::{Case, Clients, Tree};
use server::{Kind, PEERS, Server};
use wire::Wire;

/// Clients at once.
const DEPTHS: [usize; 3] = [1, 16, 64];

/// Clients while system calls are counted.
const COUNTED_DEPTH: usize = 16;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program `matchlock-shares`
    #[arg(long)]
    shares: PathBuf,
    /// The program `virtiofsd`
    #[arg(long)]
    virtiofsd: PathBuf,
    /// Where the served tree is made
    #[arg(long, default_value = "/dev/shm")]
    within: PathBuf,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Seconds of each measurement, after a tenth of that which does not count
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Count system calls besides
    #[arg(long)]
    strace: bool,
}

/// A rate: one line of output for each case, depth, server and round.
#[derive(serde::Serialize)]
struct Rate {
    case: &'static str,
    depth: usize,
    server: &'static str,
    per_second: f64,
    cpu_us: f64,
}

/// System calls of an operation.
#[derive(serde::Serialize)]
struct Calls {
    case: &'static str,
    server: &'static str,
    calls: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let directory = tempfile::tempdir_in(&options.within)?;
    let most = DEPTHS.into_iter().max().unwrap_or(1);
    cases::plant(directory.path(), most)?;
    let peers = PEERS.iter().map(|(name, arguments)| Kind::Peer(&options.virtiofsd, name, arguments));
    let kinds: Vec<Kind<'_>> = std::iter::once(Kind::Ours(&options.shares)).chain(peers).collect();
    for _ in 0..options.runs {
        for kind in &kinds {
            with(*kind, directory.path(), most, |server, wire, tree| {
                rates(options, *kind, server, wire, tree)
            })
            .with_context(|| kind.name())?;
        }
    }
    if options.strace {
        for kind in &kinds {
            with(*kind, directory.path(), most, |server, wire, tree| calls(*kind, server, wire, tree))
                .with_context(|| kind.name())?;
        }
    }
    Ok(())
}

/// Serves the tree to a driver that has found everything in it.
fn with(
    kind: Kind<'_>,
    directory: &Path,
    slots: usize,
    work: impl FnOnce(&Server, &mut Wire<'_>, &Tree) -> Result<()>,
) -> Result<()> {
    let setup = wire::setup(slots);
    let (server, stream) = Server::start(kind, directory, setup.memory as u64)?;
    let mut rings = driven::Rings::connect(stream, setup);
    rings.start(&[0; 2], true);
    let mut wire = Wire::mount(&rings, slots)?;
    let tree = Tree::find(&mut wire, server.below, slots)?;
    work(&server, &mut wire, &tree)
}

fn rates(options: &Options, kind: Kind<'_>, server: &Server, wire: &mut Wire<'_>, tree: &Tree) -> Result<()> {
    let length = Duration::from_secs_f64(options.seconds);
    for case in Case::ALL {
        for depth in DEPTHS {
            let mut clients = Clients::new(case, tree, depth);
            // Each client has touched all of its memory by then.
            let (until, least) = (Instant::now() + length / 10, 2 * depth as u64);
            clients.run(wire, |begun| begun < least || Instant::now() < until)?;
            clients.done = 0;
            let (before, start) = (server.cpu_ns()?, Instant::now());
            clients.run(wire, |_| start.elapsed() < length)?;
            let seconds = start.elapsed().as_secs_f64();
            let cpu_us = (server.cpu_ns()? - before) as f64 / 1000.0;
            let done = clients.done as f64;
            let rate = Rate {
                case: case.name(),
                depth,
                server: kind.name(),
                per_second: done / seconds,
                cpu_us: cpu_us / done,
            };
            println!("{}", serde_json::to_string(&rate)?);
        }
    }
    Ok(())
}

fn calls(kind: Kind<'_>, server: &Server, wire: &mut Wire<'_>, tree: &Tree) -> Result<()> {
    let processes = crate::memory::processes(server.pid())?;
    for case in Case::ALL {
        // A list of a thousand takes as many calls as the others do together.
        let (few, many) = if case == Case::Readdirplus { (16, 32) } else { (400, 2400) };
        let mut count = |operations: u64| {
            let count = strace::Count::start(&processes)?;
            Clients::new(case, tree, COUNTED_DEPTH).run(wire, |begun| begun < operations)?;
            count.end()
        };
        let (first, second) = (count(few)?, count(many)?);
        let calls = (second as f64 - first as f64) / (many - few) as f64;
        println!("{}", serde_json::to_string(&Calls { case: case.name(), server: kind.name(), calls })?);
    }
    Ok(())
}
