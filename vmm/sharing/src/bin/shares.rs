//! `matchlock-shares`: serves directories of the host to a guest. Started by matchlock, not by people.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    // No unwinding, in any build: a thread that is gone would leave its queue standing still.
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        said(panic);
        std::process::abort();
    }));
    // The user comes in the arguments, which are root's if this process is, and in no message: messages are the
    // supervisor's, which may have no privilege.
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let told = (!arguments.is_empty()).then(|| confinement::User::from_arguments(arguments));
    let user = told.map(|user| user.context("the user of the shared folders")).transpose()?;
    sharing::run(process::parent_channel()?, user.as_ref())
}
