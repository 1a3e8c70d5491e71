//! `allow_list_add` and `allow_list_delete`: refused until there is a network with a list to change.

use wire::rpc::AllowListParams;

use super::{Answer, Call, Result};
use crate::failure::Failure;

pub(super) async fn run(call: Call) -> Result<Answer> {
    let params: AllowListParams = call.params.parse()?;
    if params.hosts.unwrap_or_default().is_empty() {
        return Err(Failure::params("hosts is required"));
    }
    Err(Failure::vm("allow-list updates unavailable: sandbox was started without network interception"))
}
