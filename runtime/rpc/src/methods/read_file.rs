//! `read_file`: a file, or a piece of one.

use guest_protocol::FileFailure;
use sandbox::GuestError;
use wire::rpc::{ErrorCode, ReadFileParams, ReadFileResult};

use super::{Answer, Call, Inside, Result, bytes, path};
use crate::failure::Failure;

/// Most bytes of one answer.
const MAX_LENGTH: u64 = 16 << 20;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: ReadFileParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    let length = params.length.unwrap_or(MAX_LENGTH);
    if length > MAX_LENGTH {
        return Err(Failure::params(format!("length is over {MAX_LENGTH}")));
    }
    let whole = params.offset.is_none() && params.length.is_none();
    let mut held = call.budget.hold();
    let limit = whole.then_some(MAX_LENGTH);
    let mut content = Vec::new();
    let read = async {
        let mut reader =
            inside.guest.files().read(&path, params.offset.unwrap_or_default(), length, limit).await?;
        while let Some(piece) = reader.next().await? {
            if !held.grow(piece.len()) {
                return Ok(false);
            }
            content.extend_from_slice(piece);
        }
        Ok(true)
    };
    match read.await {
        Ok(true) => {
            let answer = call.answer(&ReadFileResult { content: bytes::encode(&content) });
            Ok(Answer { held: Some(held), ..answer })
        }
        Ok(false) => Err(file_failure("too many large files are being read")),
        Err(GuestError::File(FileFailure::NotRegular)) => {
            Err(file_failure(&format!("read_file only supports regular files: {path}")))
        }
        Err(GuestError::File(FileFailure::TooLarge)) => Err(file_failure(&format!(
            "read_file exceeds {MAX_LENGTH} bytes: {path}; read it in pieces, by offset"
        ))),
        Err(error) => Err(inside.file_failure(error).await),
    }
}

fn file_failure(message: &str) -> Failure {
    Failure::new(ErrorCode::File, message)
}
