//! `matchlock-launcher`: runs QEMU for the software machine. Started by matchlock, not by people.

use std::path::Path;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    // Not from the supervisor, whose user may have less to say than the one who starts this.
    let qemu = std::env::args_os().nth(1).context("QEMU's file is missing")?;
    software::launcher::run(&process::parent_channel()?, Path::new(&qemu))
}
