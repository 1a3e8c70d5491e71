//! `kernel`: guest kernels.
//!
//! Not here: what the values mean.

use clap::{Args, Subcommand};

use super::JsonArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// List kernels
    #[command(visible_alias = "list")]
    Ls(JsonArgs),
    /// Remove a kernel; the default one is fetched again, as new as there is, when it is needed
    #[command(visible_alias = "remove")]
    Rm(KernelRmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KernelRmArgs {
    /// Kernel, as matchlock kernel ls calls it
    #[arg(value_name = "REF")]
    pub(crate) kernel: Option<String>,
    /// The same, as the 0.2 releases had it
    #[arg(long = "ref", value_name = "REF", hide = true, conflicts_with = "kernel")]
    pub(crate) reference: Option<String>,
    /// Every one that no sandbox uses
    #[arg(long, conflicts_with_all = ["kernel", "reference"])]
    pub(crate) all: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}
