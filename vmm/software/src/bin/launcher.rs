//! `matchlock-launcher`: runs QEMU for the software machine. Started by matchlock, not by people.

fn main() -> anyhow::Result<()> {
    software::launcher::run(&process::parent_channel()?)
}
