//! `allow-list`, `audit` and `explain`, and the options for what may leave a sandbox.
//!
//! Not here: the meaning of values.

use clap::{Args, Subcommand};

/// The traffic that may leave a sandbox.
#[derive(Debug, Default, Args)]
pub(crate) struct AccessArgs {
    /// Host that may be reached, and no other: a name, *.NAME, an address or a network, with :PORT or :PORT-PORT if need be;
    /// METHOD,... before it and /PATH behind it for certain requests alone [default: the public internet]
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Network")]
    pub(crate) allow_host: Vec<String>,
    /// Host that may not be reached, whatever else is said; the same patterns
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Network")]
    pub(crate) deny_host: Vec<String>,
    /// Host whose TLS is not looked into
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Network")]
    pub(crate) passthrough_host: Vec<String>,
    /// Private addresses are open like all others; closed even then: this host, link-local ones and the like
    #[arg(long, help_heading = "Network")]
    pub(crate) allow_private_ips: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AllowListCommand {
    /// Let a sandbox reach more hosts
    Add(AllowListArgs),
    /// Let a sandbox reach fewer hosts; open connections to them are cut
    Delete(AllowListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AllowListArgs {
    /// Sandbox, which runs
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Patterns, as --allow-host of run takes them
    #[arg(value_name = "HOST", value_delimiter = ',', required = true)]
    pub(crate) hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Go on as more happens, until ^C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what was denied
    #[arg(long)]
    pub(crate) denied: bool,
    /// As JSON, an event a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Sandbox whose network is meant [default: that of the options]
    #[arg(long, value_name = "ID", conflicts_with_all = ["allow_host", "deny_host", "passthrough_host", "allow_private_ips"])]
    pub(crate) sandbox: Option<String>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Method of a request
    #[arg(value_name = "METHOD")]
    pub(crate) method: String,
    /// Address of a request: http or https
    #[arg(value_name = "URL")]
    pub(crate) url: String,
}
