//! `list`, `kill`, `rm`, `gc`, `get`, `inspect`, `log` and `port-forward`: recorded sandboxes.
//!
//! Not here: the meaning of values.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only these sandboxes
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Only those that run
    #[arg(long)]
    pub(crate) running: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Sandboxes
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Every running one
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Sandboxes
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Every one that does not run
    #[arg(long)]
    pub(crate) stopped: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IdsArgs {
    /// Sandboxes
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Sandboxes [default: all]
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Kill those that run first
    #[arg(long)]
    pub(crate) force_running: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Go on as it grows, until ^C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Leave control characters as they are, also on a terminal
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PortForwardArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Ports here and in the sandbox
    #[arg(value_name = "[[ADDRESS:]LOCAL:]REMOTE", required = true)]
    pub(crate) ports: Vec<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) address: Vec<String>,
}
