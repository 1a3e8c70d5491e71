//! `matchlock mount`: the mounts of a running sandbox.
//!
//! The sandbox's owner opens the files and serves them. Not here: the owner's side (`sandbox`).

use policy::mounts;
use sandbox::{Guest, Home, Id, MountInfo, Records, RecordsError};

use crate::args::{MountAddArgs, MountListArgs, MountRmArgs};
use crate::failure::not_found;
use crate::say::{self, say};
use crate::{block_on, inspect, table};

/// Adds a mount.
pub(crate) fn add(args: &MountAddArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse().map_err(not_found)?;
    let mount = mounts::volume(&args.volume, &workspace(home, &id)?)?;
    block_on(Guest::of(home, &id).add_mount(&mount))?.map_err(not_found)?;
    say!("Mounted {}", mount.guest_path);
    Ok(0)
}

/// The directory of the sandbox's that relative places are in.
fn workspace(home: &Home, id: &Id) -> anyhow::Result<String> {
    let record = Records::open(home)?.get(id)?;
    let record = record.ok_or_else(|| not_found(RecordsError::UnknownVm(id.to_string())))?;
    let named = Some(record.config.workspace).filter(|workspace| !workspace.is_empty());
    Ok(named.unwrap_or_else(|| mounts::DEFAULT_WORKSPACE.to_owned()))
}

/// Takes a mount away.
pub(crate) fn rm(args: &MountRmArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse().map_err(not_found)?;
    block_on(Guest::of(home, &id).remove_mount(&args.place, args.force))?.map_err(not_found)?;
    say!("Removed mount {}", args.place);
    Ok(0)
}

/// Lists mounts.
pub(crate) fn list(args: &MountListArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse().map_err(not_found)?;
    let list = block_on(Guest::of(home, &id).mounts())?.map_err(not_found)?;
    if args.json {
        say::json_line(&list.iter().map(wire_mount).collect::<Vec<_>>())?;
        return Ok(0);
    }
    table::print(["PLACE", "TYPE", "HOST", "ACCESS", "ADDED", "STATE"], list.into_iter().map(row));
    Ok(0)
}

fn row(MountInfo { mount, failure }: MountInfo) -> [String; 6] {
    let access = if mount.readonly { "read-only" } else { "read-write" };
    let added = if mount.added { "yes" } else { "no" };
    let host = mount.host_path.unwrap_or_else(|| "-".to_owned());
    let state = failure.map_or_else(|| "served".to_owned(), |why| format!("gone: {why}"));
    [mount.guest_path, mount.kind, host, access.to_owned(), added.to_owned(), state]
}

fn wire_mount(info: &MountInfo) -> wire::rpc::MountEntry {
    let mount = inspect::mount(&info.mount);
    wire::rpc::MountEntry {
        guest_path: info.mount.guest_path.clone(),
        kind: mount.kind,
        host_path: mount.host_path,
        readonly: mount.readonly,
        owner_uid: mount.owner_uid,
        owner_gid: mount.owner_gid,
        cache: mount.cache,
        added: mount.added,
        failure: info.failure.clone(),
    }
}
