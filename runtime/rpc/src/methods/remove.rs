//! `remove`: removes a file, a link or a directory.

use wire::rpc::{Empty, RemoveParams};

use super::{Answer, Call, Inside, Result, path};

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: RemoveParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    match inside.guest.files().remove(&path, params.recursive.unwrap_or_default()).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(inside.file_failure(error).await),
    }
}
