//! `list`, `kill`, `rm`, `gc`, `get`, `inspect`, `log` and `port-forward`: sandboxes that are known.
//!
//! Not here: what the values mean.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those that run
    #[arg(long)]
    pub(crate) running: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Every running one
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Every one that does not run
    #[arg(long)]
    pub(crate) stopped: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Sandbox [default: all]
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
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
}

#[derive(Debug, Args)]
pub(crate) struct PortForwardArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Ports here and in the sandbox
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub(crate) ports: Vec<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) address: Vec<String>,
}
