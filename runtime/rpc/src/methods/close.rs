//! `close`: the end of the sandbox.
//!
//! The session has cut all other requests short by now, and asked for the sandbox's end; this waits for it. Not here:
//! ending a sandbox.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use wire::rpc::Empty;

use super::{Answer, Result};
use crate::encode;
use crate::failure::Failure;
use crate::vm::Vm;

/// Longest time that a client may ask for.
pub(crate) const MAX_LIMIT: Duration = Duration::from_secs(3600);

pub(crate) async fn run(id: Option<u64>, vms: Vec<Arc<Vm>>, limit: Duration) -> Result<Answer> {
    let gone = async {
        let mut result = Ok(());
        for vm in vms {
            result = vm.gone().await.and(result);
        }
        result
    };
    match timeout(limit, gone).await {
        Ok(Ok(())) => Ok(Answer { line: encode::result(id, &Empty {}), held: None }),
        Ok(Err(error)) => Err(Failure::vm(format!("close: {error}"))),
        Err(_) => Err(Failure::cancelled(&format!("close has not ended in {} s", limit.as_secs_f64()))),
    }
}
