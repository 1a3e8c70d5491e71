//! `list_files`: the entries of a directory.

use wire::rpc::{ErrorCode, ListFilesResult, PathParams};

use super::file_info::info;
use super::{Answer, Call, Inside, Result, path};
use crate::failure::Failure;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: PathParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    let mut held = call.budget.hold();
    let mut full = false;
    let room = |more| {
        full = !held.grow(more);
        !full
    };
    match inside.guest.files().list_within(&path, room).await {
        Ok(entries) => {
            let answer = call.answer(&ListFilesResult { files: entries.iter().map(info).collect() });
            Ok(Answer { held: Some(held), ..answer })
        }
        Err(_) if full => Err(Failure::new(ErrorCode::File, "too many large directories are being listed")),
        Err(error) => Err(inside.file_failure(error).await),
    }
}
