//! `list_files`: what is in a directory.

use wire::rpc::{ListFilesResult, PathParams};

use super::file_info::info;
use super::{Answer, Call, Inside, Result, path};

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: PathParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    match inside.guest.files().list(&path).await {
        Ok(entries) => Ok(call.answer(&ListFilesResult { files: entries.iter().map(info).collect() })),
        Err(error) => Err(inside.file_failure(error).await),
    }
}
