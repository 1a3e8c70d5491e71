//! `volume`: named volumes.
//!
//! Not here: the meaning of values.

use clap::{Args, Subcommand};

use super::JsonArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make an empty volume
    Create(VolumeCreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(JsonArgs),
    /// Remove a volume and all in it
    #[command(visible_alias = "remove")]
    Rm(VolumeRmArgs),
    /// Copy a volume
    #[command(visible_alias = "copy")]
    Cp(VolumeCopyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeCreateArgs {
    /// Volume
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Size in MB
    #[arg(long, value_name = "MB", default_value_t = 10240)]
    pub(crate) size: u64,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeRmArgs {
    /// Volumes
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeCopyArgs {
    /// Volume to copy
    #[arg(value_name = "SOURCE")]
    pub(crate) from: String,
    /// Volume to make
    #[arg(value_name = "DEST")]
    pub(crate) to: String,
}
