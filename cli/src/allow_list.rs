//! `matchlock allow-list`: the hosts that a running sandbox may reach, changed and shown.
//!
//! Not here: patterns (`policy`), and the sandbox's owner, which makes the change (`sandbox`).

use sandbox::{AllowList, Home, Id, ListChange};

use crate::args::AllowListCommand;
use crate::block_on;
use crate::failure::not_found;
use crate::say::say;

/// Changes the list, and prints what it is then.
pub(crate) fn change(command: &AllowListCommand, home: &Home) -> anyhow::Result<u8> {
    let (args, is_added) = match command {
        AllowListCommand::Add(args) => (args, true),
        AllowListCommand::Delete(args) => (args, false),
    };
    let hosts = args.hosts.iter().map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
    let hosts: Vec<_> = hosts.collect();
    anyhow::ensure!(!hosts.is_empty(), "hosts is required");
    let id: Id = args.id.parse().map_err(not_found)?;
    let change = if is_added {
        policy::network::patterns(&hosts)?;
        ListChange::Add(hosts)
    } else {
        ListChange::Delete(hosts)
    };
    let list = block_on(sandbox::change_allow_list(home, &id, change))?.map_err(not_found)?;
    tell(&id, is_added, &list);
    Ok(0)
}

fn tell(id: &Id, is_added: bool, list: &AllowList) {
    let AllowList { changed, allowed, .. } = list;
    let changed = changed.join(",");
    match (is_added, changed.is_empty()) {
        (true, true) => say!("No new hosts were added to {id}"),
        (true, false) => say!("Added to {id}: {changed}"),
        (false, true) => say!("No hosts were removed from {id}"),
        (false, false) => say!("Removed from {id}: {changed}"),
    }
    match allowed.as_slice() {
        [] => say!("Current allow-list: (empty: no host is allowed)"),
        allowed => say!("Current allow-list: {}", allowed.join(",")),
    }
}
