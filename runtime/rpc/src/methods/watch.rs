//! `watch`: changes below a directory, until the request is cancelled.

use guest_protocol::ChangeKind as Guest;
use wire::rpc::{ChangeKind, ChangeParams, IdParams, WatchParams};

use super::{Answer, Call, Inside, Result, path};
use crate::encode;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: WatchParams = std::mem::take(&mut call.params).parse()?;
    let path = path(params.path)?;
    let mut watch = match inside.guest.files().watch(&path, params.recursive.unwrap_or_default()).await {
        Ok(watch) => watch,
        Err(error) => return Err(inside.file_failure(error).await),
    };
    call.outbox.notify(encode::notification("watch.ready", &IdParams { id: call.id })).await;
    loop {
        let change = match watch.next().await {
            Ok(change) => change,
            Err(error) => return Err(inside.file_failure(error).await),
        };
        let kind = match change.kind {
            Guest::Created => ChangeKind::Created,
            Guest::Modified => ChangeKind::Modified,
            Guest::Removed => ChangeKind::Removed,
            Guest::Overflow => ChangeKind::Overflow,
        };
        let path = String::from_utf8_lossy(&change.path).into_owned();
        // The session refuses this method without an id.
        let params = ChangeParams { id: call.id.unwrap_or_default(), kind, path };
        call.outbox.notify(encode::notification("watch.change", &params)).await;
    }
}
