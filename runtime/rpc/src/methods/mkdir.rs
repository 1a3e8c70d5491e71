//! `mkdir`: a new directory.

use wire::rpc::{Empty, MkdirParams};

use super::{Answer, Call, Inside, Result, path};

/// Permissions of a new directory.
const MODE: u32 = 0o755;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: MkdirParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    let mode = params.mode.filter(|mode| *mode != 0).unwrap_or(MODE) & 0o7777;
    match inside.guest.files().make_directory(&path, mode, params.parents.unwrap_or_default()).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(inside.file_failure(error).await),
    }
}
