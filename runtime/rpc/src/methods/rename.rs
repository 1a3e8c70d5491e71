//! `rename`: gives a file another name.

use wire::rpc::{Empty, RenameParams};

use super::{Answer, Call, Inside, Result};
use crate::failure::Failure;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: RenameParams = std::mem::take(&mut call.params).parse()?;
    let (Some(from), Some(to)) = (params.from, params.to) else {
        return Err(Failure::params("from and to are required"));
    };
    match inside.guest.files().rename(&from, &to).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(inside.file_failure(error).await),
    }
}
