//! Requests to the host's kernel: the only place that names a system call.

mod linux;
mod mount;

pub use linux::OwnFiles;
pub(crate) use linux::{
    Directory, Found, Identity, Kind, Version, append, copy, create, create_nameless, current_time,
    descriptor_limit, is_without_devices, list, make_directory, make_symbolic_link, open_at, open_beneath,
    open_root, read_link, remove, rename, reserve, seek, set_times, stat, stat_at, statistics, sync,
    sync_all, truncate,
};
pub use mount::{MountError, Mounted};
