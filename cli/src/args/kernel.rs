//! `kernel`: guest kernels.
//!
//! Not here: the meaning of values.

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
    /// Kernels, as matchlock kernel ls calls them
    #[arg(value_name = "REF")]
    pub(crate) kernels: Vec<String>,
    /// The same, as the 0.2 releases had it
    #[arg(long = "ref", value_name = "REF", hide = true, conflicts_with = "kernels")]
    pub(crate) reference: Option<String>,
    /// Every one that no sandbox uses
    #[arg(long, conflicts_with_all = ["kernels", "reference"])]
    pub(crate) all: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}
