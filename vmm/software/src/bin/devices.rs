//! `matchlock-devices`: serves the software machine's devices. Started by matchlock, not by people.

fn main() -> anyhow::Result<()> {
    software::devices::run(process::parent_channel()?)
}
