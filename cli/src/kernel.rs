//! `matchlock kernel`: the content of the kernel store.
//!
//! Not here: the store (`kernels`).

use kernels::{Store, StoredKernel};
use sandbox::{Error, Home};

use crate::args::{JsonArgs, KernelRmArgs};
use crate::failure::{self, FAILED};
use crate::hint::Hint;
use crate::image::megabytes;
use crate::say::{self, say};
use crate::table;

/// Lists kernels.
pub(crate) fn ls(args: &JsonArgs, home: &Home) -> anyhow::Result<u8> {
    let list = Store::open(home.cache())?.list()?;
    if args.json {
        let list: Vec<_> = list.into_iter().map(wire_kernel).collect();
        say::json(&list)?;
        return Ok(0);
    }
    let rows = list.into_iter().map(|kernel| {
        let notes = [(kernel.current, "default"), (kernel.in_use, "in use")];
        let notes: Vec<_> = notes.into_iter().filter(|(said, _)| *said).map(|(_, note)| note).collect();
        let StoredKernel { identifier, architecture, size, .. } = kernel;
        [identifier, architecture.name().to_owned(), megabytes(size), notes.join(", ")]
    });
    table::print(["IDENTIFIER", "ARCH", "SIZE", "STATUS"], rows);
    Ok(0)
}

fn wire_kernel(kernel: StoredKernel) -> wire::Kernel {
    wire::Kernel {
        identifier: kernel.identifier,
        arch: kernel.architecture.name().to_owned(),
        size: kernel.size,
        origin: kernel.origin,
        default: kernel.current,
        in_use: kernel.in_use,
    }
}

/// Removes one kernel, or every one that no sandbox uses.
pub(crate) fn rm(args: &KernelRmArgs, home: &Home) -> anyhow::Result<u8> {
    let named: Vec<_> = args.kernels.iter().chain(&args.reference).cloned().collect();
    let wanted = match named.is_empty() {
        false => named,
        true if args.all => {
            Store::open(home.cache())?.list()?.into_iter().map(|kernel| kernel.identifier).collect()
        }
        true => anyhow::bail!("kernel required (or use --all)"),
    };
    let mut all = wire::KernelsRemoved::default();
    let mut status = 0;
    for kernel in wanted {
        let removed = Store::open(home.cache()).and_then(|store| store.remove(&kernel));
        match removed.map_err(Error::from) {
            Ok(freed) => {
                all.freed += freed;
                if !args.json {
                    say!("Removed {kernel}");
                }
                all.removed.push(kernel);
            }
            // Another process has just removed it.
            Err(Error::Kernel(kernels::Error::Unknown(_))) if args.all => {}
            Err(error) => {
                failure::print(&error.to_string(), error.hint());
                status = FAILED;
            }
        }
    }
    if args.json && (args.all || !all.removed.is_empty()) {
        say::json(&all)?;
    }
    Ok(status)
}
