//! `diff`, `apply` and `discard`: what a sandbox changed of its overlays.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Only this file or directory of the guest's
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Only a line for each, without contents
    #[arg(long)]
    pub(crate) names: bool,
    /// As JSON, without contents
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TakeArgs {
    /// Sandbox, which has ended
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Only this file or directory of the guest's
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}
