//! `write_file`: a file, or a piece of one.

use guest_protocol::{FileFailure, WriteAt};
use sandbox::GuestError;
use wire::rpc::{Empty, ErrorCode, WriteFileParams};

use super::{Answer, Call, Inside, Result, bytes, path};
use crate::failure::Failure;

/// Permissions of a new file.
const MODE: u32 = 0o644;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: WriteFileParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    let at = match (params.offset, params.append.unwrap_or_default()) {
        (None, false) => WriteAt::Truncate,
        (None, true) => WriteAt::Append,
        (Some(offset), false) => WriteAt::Offset(offset),
        (Some(_), true) => return Err(Failure::params("offset and append exclude each other")),
    };
    let content = bytes::decode(&params.content.unwrap_or_default());
    let content = content.ok_or_else(|| Failure::params("invalid base64 content"))?;
    let mode = params.mode.filter(|mode| *mode != 0).unwrap_or(MODE) & 0o7777;
    let written = async {
        let mut writer = inside.guest.files().write(&path, mode, at).await?;
        writer.data(&content).await?;
        writer.finish().await
    };
    match written.await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(GuestError::File(FileFailure::NotRegular)) => {
            let why = format!("write_file only supports regular files: {path}");
            Err(Failure::new(ErrorCode::File, why))
        }
        Err(error) => Err(inside.file_failure(error).await),
    }
}
