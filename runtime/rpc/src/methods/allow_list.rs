//! `allow_list_add` and `allow_list_delete`: the hosts that the sandbox may reach.
//!
//! Not here: patterns (`policy`), and the change itself (`sandbox`).

use sandbox::ListChange;
use wire::rpc::{AllowListAddResult, AllowListDeleteResult, AllowListParams};

use super::{Answer, Call, Inside, Result};
use crate::failure::Failure;

pub(super) async fn add(mut call: Call, inside: Inside) -> Result<Answer> {
    let hosts = hosts(&mut call)?;
    policy::network::patterns(&hosts)
        .map_err(|wrong| Failure::params(format!("invalid configuration: hosts: {wrong}")))?;
    let list = change(&inside, ListChange::Add(hosts)).await?;
    Ok(call.answer(&AllowListAddResult { added: list.changed, allowed_hosts: list.allowed }))
}

pub(super) async fn delete(mut call: Call, inside: Inside) -> Result<Answer> {
    let hosts = hosts(&mut call)?;
    let list = change(&inside, ListChange::Delete(hosts)).await?;
    Ok(call.answer(&AllowListDeleteResult { removed: list.changed, allowed_hosts: list.allowed }))
}

async fn change(inside: &Inside, change: ListChange) -> Result<sandbox::AllowList> {
    inside.vm.sandbox.change_allow_list(change).await.map_err(Failure::vm)
}

fn hosts(call: &mut Call) -> Result<Vec<String>> {
    let params: AllowListParams = std::mem::take(&mut call.params).parse()?;
    let hosts = params.hosts.into_iter().flatten().map(|host| host.trim().to_owned());
    let hosts: Vec<_> = hosts.filter(|host| !host.is_empty()).collect();
    if hosts.is_empty() { Err(Failure::params("hosts is required")) } else { Ok(hosts) }
}
