//! `log`: the whole log of a sandbox, even if the sandbox is closed.

use tokio::task::spawn_blocking;
use wire::rpc::{Empty, ErrorCode, LogResult};

use super::{Answer, Call, LogOf, Result, bytes};
use crate::failure::Failure;

pub(super) async fn run(mut call: Call, log: LogOf) -> Result<Answer> {
    let Empty {} = std::mem::take(&mut call.params).parse()?;
    let LogOf { home, id, .. } = log;
    let failed = |error: String| Failure::new(ErrorCode::File, error);
    let read = spawn_blocking(move || sandbox::log::read(&home, &id)).await;
    let content = read.map_err(|error| failed(error.to_string()))?;
    let content = content.map_err(|error| failed(error.to_string()))?;
    let mut held = call.budget.hold();
    if !held.grow(content.len()) {
        return Err(failed("too many logs are being read".to_owned()));
    }
    let answer = call.answer(&LogResult { content: bytes::encode(&content) });
    Ok(Answer { held: Some(held), ..answer })
}
