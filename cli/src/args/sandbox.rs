//! `run`, `exec` and `rpc`: what starts a sandbox, and what runs in one.
//!
//! Not here: what the values mean.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Container image
    #[arg(long, value_name = "REF")]
    pub(crate) image: String,
    /// When to ask the image's registry: missing (if it is not here), always, never; bare = always
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always",
          default_value = "missing", hide_default_value = true)]
    pub(crate) pull: images::Pull,
    /// CPUs; fractions are allowed
    #[arg(long, value_name = "N", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) cpus: f64,
    /// Memory in MB
    #[arg(long, value_name = "MB", default_value_t = 512)]
    pub(crate) memory: u64,
    /// Writable disk in MB
    #[arg(long, value_name = "MB", default_value_t = 5120)]
    pub(crate) disk_size: u64,
    /// ext4 image or named volume as a disk; options: ro, uid=N, gid=N
    #[arg(long, value_name = "PATH|@VOLUME:GUEST[:OPTIONS]")]
    pub(crate) disk: Vec<String>,
    /// Variable for every command; a bare NAME is copied from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File with one NAME[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// uid, uid:gid or name [default: the image's]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Program to put before the command; empty = none [default: the image's]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Host name [default: the sandbox's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Line for /etc/hosts
    #[arg(long, value_name = "HOST:IP", value_delimiter = ',')]
    pub(crate) add_host: Vec<String>,
    /// Give up after this many seconds, all preparations included
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Keep stdin open; with -t a terminal session
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// With -i: a terminal session
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Print the sandbox's id once it runs, and let it run on
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Remove the sandbox when the command ends; with =false it runs on until ^C
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = true, action = ArgAction::Set)]
    pub(crate) rm: bool,
    /// Forward a port of this host to one of the sandbox
    #[arg(short, long, value_name = "[LOCAL:]REMOTE")]
    pub(crate) publish: Vec<String>,
    /// Address for --publish to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) address: Vec<String>,
    /// No restrictions on commands inside the sandbox
    #[arg(long)]
    pub(crate) privileged: bool,
    /// How long commands may take to end by themselves, such as 5s
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration, hide_default_value = true)]
    pub(crate) graceful_shutdown: Duration,
    /// auto, kvm or software
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) machine: policy::machine::Request,
    /// Guest kernel: path, or image in a registry [default: Debian's]
    #[arg(
        long,
        value_name = "REF",
        env = "MATCHLOCK_KERNEL",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    pub(crate) kernel: String,
    /// No network (there is none yet)
    #[arg(long, hide = true)]
    pub(crate) no_network: bool,
    /// One line of JSON on stderr at the end: when the sandbox got where
    #[arg(long, hide = true)]
    pub(crate) timings: bool,
    /// Guest memory mapped shared (for measurements)
    #[arg(long, hide = true)]
    pub(crate) shared_memory: bool,
    #[command(flatten)]
    pub(crate) later: Later,
    /// Command and its arguments [default: the image's]
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Options that belong to parts which do not exist yet. Taken in to be refused by name.
#[derive(Debug, Args)]
pub(crate) struct Later {
    #[arg(long, hide = true)]
    workspace: Option<String>,
    #[arg(short = 'v', long, hide = true)]
    volume: Option<String>,
    #[arg(long, hide = true)]
    allow_host: Option<String>,
    #[arg(long, hide = true)]
    secret: Option<String>,
    #[arg(long, hide = true)]
    secret_placeholder: Option<String>,
    #[arg(long, hide = true)]
    secret_file: Option<String>,
    #[arg(long, hide = true)]
    dns_servers: Option<String>,
    #[arg(long, hide = true)]
    mtu: Option<String>,
    #[arg(long, hide = true)]
    network_intercept: bool,
}

impl Later {
    /// The first of them that was given, and the part it belongs to.
    pub(crate) fn given(&self) -> Option<(&'static str, &'static str)> {
        const MOUNTS: &str = "mounts";
        const NETWORK: &str = "the network";
        const SECRETS: &str = "secrets";
        let options = [
            ("--workspace", MOUNTS, self.workspace.is_some()),
            ("--volume", MOUNTS, self.volume.is_some()),
            ("--allow-host", NETWORK, self.allow_host.is_some()),
            ("--secret", SECRETS, self.secret.is_some()),
            ("--secret-placeholder", SECRETS, self.secret_placeholder.is_some()),
            ("--secret-file", SECRETS, self.secret_file.is_some()),
            ("--dns-servers", NETWORK, self.dns_servers.is_some()),
            ("--mtu", NETWORK, self.mtu.is_some()),
            ("--network-intercept", NETWORK, self.network_intercept),
        ];
        options.into_iter().find(|(_, _, given)| *given).map(|(option, part, _)| (option, part))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Keep stdin open; with -t a terminal session
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// With -i: a terminal session
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Working directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// uid, uid:gid or name [default: the image's]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Variable for this command; a bare NAME is copied from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Command and its arguments
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RpcArgs {
    /// auto, kvm or software
    #[arg(long, value_name = "KIND", env = "MATCHLOCK_MACHINE", default_value = "auto")]
    pub(crate) machine: policy::machine::Request,
    /// Guest kernel of sandboxes that name none: path, or image in a registry [default: Debian's]
    #[arg(
        long,
        value_name = "REF",
        env = "MATCHLOCK_KERNEL",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    pub(crate) kernel: String,
}

/// A duration as Go writes it: `90`, `5s`, `1m30s`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration such as 5s or 1m30s");
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| bad());
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let seconds = number.parse::<f64>().map_err(|_| bad())? * scale;
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("0", 0), ("5", 5000), ("5s", 5000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5x", "-5s", "5s5", "NaN", "1e400"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
