//! `matchlock-egress`: carries what a guest sends outside. Started by matchlock, not by people.

fn main() -> anyhow::Result<()> {
    // No unwinding, in any build: a network of which a part is gone must not go on.
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        said(panic);
        std::process::abort();
    }));
    outlet::run(process::parent_channel()?)
}
