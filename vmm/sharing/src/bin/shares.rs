//! `matchlock-shares`: serves directories of the host to a guest. Started by matchlock, not by people.

fn main() -> anyhow::Result<()> {
    // No unwinding, in any build: a thread that is gone would leave its queue standing still.
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        said(panic);
        std::process::abort();
    }));
    sharing::run(process::parent_channel()?)
}
