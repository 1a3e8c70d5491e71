//! `stat`: describes one file.

use wire::rpc::StatParams;

use super::file_info::info;
use super::{Answer, Call, Inside, Result, path};

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: StatParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    match inside.guest.files().stat(&path, params.follow.unwrap_or(true)).await {
        Ok(entry) => Ok(call.answer(&info(&entry))),
        Err(error) => Err(inside.file_failure(error).await),
    }
}
