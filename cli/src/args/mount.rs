//! `mount`: the mounts of a running sandbox.
//!
//! Not here: the meaning of values.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum MountCommand {
    /// Mount a folder or file of this host in a running sandbox
    Add(MountAddArgs),
    /// Take away what was added
    #[command(visible_alias = "remove")]
    Rm(MountRmArgs),
    /// List a running sandbox's mounts
    #[command(visible_alias = "ls")]
    List(MountListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MountAddArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Folder or file of this host, its place in the sandbox, and options, as of run -v
    #[arg(value_name = "HOST:GUEST[:OPTIONS]")]
    pub(crate) volume: String,
}

#[derive(Debug, Args)]
pub(crate) struct MountRmArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Its place in the sandbox
    #[arg(value_name = "GUEST")]
    pub(crate) place: String,
    /// Even if programs use it: what they have open there fails then
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MountListArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}
