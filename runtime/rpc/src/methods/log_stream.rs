//! `log_stream`: a sandbox's log as it grows, until it is cancelled or the sandbox ends.

use wire::rpc::{Empty, ErrorCode};

use super::{Answer, Call, LogOf, Result};
use crate::encode;
use crate::failure::Failure;
use crate::utf8::Whole;

pub(super) async fn run(mut call: Call, log: LogOf) -> Result<Answer> {
    let Empty {} = std::mem::take(&mut call.params).parse()?;
    let failed = |error: sandbox::RecordsError| Failure::new(ErrorCode::File, error.to_string());
    let mut follow = sandbox::log::follow(&log.home, &log.id).map_err(failed)?;
    let over = async {
        match &log.vm {
            Some(vm) => vm.sandbox.over().await.to_string(),
            None => "the sandbox was closed".to_owned(),
        }
    };
    let mut over = std::pin::pin!(over);
    let mut whole = Whole::default();
    loop {
        let more = tokio::select! {
            biased;
            more = follow.next() => more.map_err(failed)?,
            why = &mut over => return Err(Failure::cancelled(&why)),
        };
        let Some(more) = more else {
            return Err(Failure::cancelled("the sandbox was removed"));
        };
        let bytes = whole.next(more);
        if !bytes.is_empty() {
            // The session refuses this method without an id.
            let line = encode::data("log_stream.data", call.id.unwrap_or_default(), &bytes);
            call.outbox.notify(line).await;
        }
    }
}
