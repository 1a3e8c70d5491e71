//! `mount_add`, `mount_remove` and `mount_list`: mounts of a sandbox that runs.

use sandbox::MountInfo;
use wire::rpc::{Empty, MountAddParams, MountEntry, MountListResult, MountRemoveParams};

use super::plan::check_mount;
use super::{Answer, Call, Inside, Result};
use crate::failure::Failure;

pub(super) async fn add(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: MountAddParams = std::mem::take(&mut call.params).parse()?;
    let mount = check_mount(&place(params.guest_path)?, &params.mount.unwrap_or_default())?;
    match inside.guest.add_mount(&mount).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(Failure::vm(inside.vm.explain(error).await)),
    }
}

pub(super) async fn remove(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: MountRemoveParams = std::mem::take(&mut call.params).parse()?;
    let guest_path = place(params.guest_path)?;
    match inside.guest.remove_mount(&guest_path, params.force.unwrap_or_default()).await {
        Ok(()) => Ok(call.answer(&Empty {})),
        Err(error) => Err(Failure::vm(inside.vm.explain(error).await)),
    }
}

pub(super) async fn list(call: Call, inside: Inside) -> Result<Answer> {
    match inside.guest.mounts().await {
        Ok(mounts) => {
            let mounts = mounts.into_iter().map(entry).collect();
            Ok(call.answer(&MountListResult { mounts }))
        }
        Err(error) => Err(Failure::vm(inside.vm.explain(error).await)),
    }
}

fn place(path: Option<String>) -> Result<String> {
    path.filter(|path| !path.is_empty()).ok_or_else(|| Failure::params("guest_path is required"))
}

fn entry(MountInfo { mount, failure }: MountInfo) -> MountEntry {
    MountEntry {
        guest_path: mount.guest_path,
        kind: mount.kind,
        host_path: mount.host_path,
        readonly: mount.readonly,
        owner_uid: mount.uid,
        owner_gid: mount.gid,
        cache: mount.cache.filter(|cache| cache != "auto"),
        added: mount.added,
        failure,
    }
}
