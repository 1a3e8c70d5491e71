//! `run`, `exec` and `rpc`: starting a sandbox, and running commands in one.
//!
//! Not here: the meaning of values.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::AccessArgs;

/// A command for each group of options of `run`, in the order of its help.
pub(crate) const RUN_EXAMPLES: &[(&str, &str)] = &[
    ("Image", "matchlock run --image python:3.12-alpine --pull -- python3 --version"),
    ("Command", "matchlock run --image busybox -e TOKEN -w /tmp -i -- wc -l"),
    ("Machine", "matchlock run --image busybox --cpus 0.5 --memory 256 -- nproc"),
    ("Life", "matchlock run --image busybox --detach --timeout 3600"),
    ("Network", "matchlock run --image busybox --allow-host a.org -- nslookup a.org"),
    ("Disks", "matchlock run --image busybox --disk @data:/data:ro -- ls /data"),
    ("Folders", "matchlock run --image busybox -v .:src:host_fs -- ls src"),
];

fn run_examples() -> String {
    let lines = RUN_EXAMPLES.iter().map(|(group, command)| format!("  {group:9}{command}\n"));
    let later = "Not built yet: --network-intercept (interception);
  --secret, --secret-file, --secret-placeholder (secrets)";
    format!("Examples:\n{}\n{later}", lines.collect::<String>())
}

#[derive(Debug, Args)]
#[command(after_help = run_examples())]
pub(crate) struct RunArgs {
    /// Container image
    #[arg(long, value_name = "REF", help_heading = "Image")]
    pub(crate) image: String,
    /// When to ask the image's registry: missing (if it is not here), always, never; bare = always
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always",
          default_value = "missing", hide_default_value = true, help_heading = "Image")]
    pub(crate) pull: images::Pull,
    /// Program to put before the command; empty = none [default: the image's]
    #[arg(long, value_name = "PROGRAM", help_heading = "Command")]
    pub(crate) entrypoint: Option<String>,
    /// Variable for every command; a bare NAME is copied from here, which other users do not see
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    pub(crate) env: Vec<String>,
    /// File with one NAME[=VALUE] a line
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory [default: the image's, then the workspace]
    #[arg(short, long, value_name = "DIR", help_heading = "Command")]
    pub(crate) workdir: Option<String>,
    /// User, user:group or :group, names or numbers [default: the image's]
    #[arg(short, long, value_name = "USER", help_heading = "Command")]
    pub(crate) user: Option<String>,
    /// A small init as PID 1 above the command, which reaps orphans
    #[arg(long, help_heading = "Command")]
    pub(crate) init: bool,
    /// Keep stdin open; with -t a terminal session
    #[arg(short, long, help_heading = "Command")]
    pub(crate) interactive: bool,
    /// With -i: a terminal session
    #[arg(short, long, help_heading = "Command")]
    pub(crate) tty: bool,
    /// No restrictions on commands inside the sandbox
    #[arg(long, help_heading = "Command")]
    pub(crate) privileged: bool,
    /// CPUs; fractions are allowed
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Machine"
    )]
    pub(crate) cpus: f64,
    /// Memory in MB
    #[arg(long, value_name = "MB", default_value_t = 512, help_heading = "Machine")]
    pub(crate) memory: u64,
    /// Writable disk in MB
    #[arg(long, value_name = "MB", default_value_t = 5120, help_heading = "Machine")]
    pub(crate) disk_size: u64,
    /// auto, kvm or software
    #[arg(long, value_name = "KIND", default_value = "auto", help_heading = "Machine")]
    pub(crate) machine: policy::machine::WantedMachine,
    /// Guest kernel: path, or image in a registry [default: Debian's]
    #[arg(
        long,
        value_name = "REF",
        env = "MATCHLOCK_KERNEL",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true,
        help_heading = "Machine"
    )]
    pub(crate) kernel: String,
    /// Print the sandbox's id once it runs, and let it run on
    #[arg(short, long, help_heading = "Life")]
    pub(crate) detach: bool,
    /// Remove the sandbox when the command ends; with =false it runs on until ^C
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = true, action = ArgAction::Set, value_parser = super::boolean, help_heading = "Life")]
    pub(crate) rm: bool,
    /// Give up after this many seconds, all preparations included
    #[arg(long, value_name = "SECONDS", help_heading = "Life")]
    pub(crate) timeout: Option<u64>,
    /// How long commands may take to end by themselves; 0 = end them at once [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Life")]
    pub(crate) graceful_shutdown: Option<Duration>,
    /// How packets get out: tap (Linux), none, or auto, which is tap where the host gives one
    #[arg(
        long,
        value_name = "WAY",
        default_value = "auto",
        hide_default_value = true,
        help_heading = "Network"
    )]
    pub(crate) network: policy::network::WantedArrival,
    /// No network
    #[arg(long, help_heading = "Network")]
    pub(crate) no_network: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// Server that names are asked of [default: the host's]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', help_heading = "Network")]
    pub(crate) dns_servers: Vec<String>,
    /// Largest packet, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = policy::network::DEFAULT_MTU.into(), allow_negative_numbers = true,
          help_heading = "Network")]
    pub(crate) mtu: i64,
    /// Forward a port of this host to one of the sandbox; ranges such as 8080-8082:80-82 too
    #[arg(short, long, value_name = "[[ADDRESS:]LOCAL:]REMOTE", help_heading = "Network")]
    pub(crate) publish: Vec<String>,
    /// Address for --publish to listen on where it names none [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', help_heading = "Network")]
    pub(crate) address: Vec<String>,
    /// Host name [default: the sandbox's id]
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub(crate) hostname: Option<String>,
    /// Line for /etc/hosts
    #[arg(long, value_name = "HOST:IP", value_delimiter = ',', help_heading = "Network")]
    pub(crate) add_host: Vec<String>,
    /// ext4 image or named volume as a disk; options: ro, uid=N, gid=N
    #[arg(long, value_name = "PATH|@VOLUME:GUEST[:OPTIONS]", help_heading = "Disks")]
    pub(crate) disk: Vec<String>,
    /// Directory or file of the host in the guest, whose changes end with the sandbox; with host_fs they are the host's, with
    /// ro there are none. :GUEST:memory is an empty folder. More options: uid=N, gid=N, owner=UID:GID,
    /// cache=none|auto|always, mask=GLOB, mask-ro=GLOB, protect
    #[arg(short = 'v', long, value_name = "HOST:GUEST[:OPTIONS]", help_heading = "Folders")]
    pub(crate) volume: Vec<String>,
    /// The same by names: type=host_fs|overlay|memory,source=HOST,target=GUEST; then readonly, uid=N, gid=N,
    /// cache=MODE, mask=GLOB
    #[arg(long, value_name = "NAME=VALUE,...", help_heading = "Folders")]
    pub(crate) mount: Vec<String>,
    /// Names that the guest does not see, in every folder that -v and --mount name, memory too: a glob of a name, or of a path
    /// from the folder on if it begins with a slash
    #[arg(long, value_name = "GLOB", help_heading = "Folders")]
    pub(crate) mask: Vec<String>,
    /// Names that the guest cannot change, likewise
    #[arg(long, value_name = "GLOB", help_heading = "Folders")]
    pub(crate) mask_readonly: Vec<String>,
    /// The guest cannot change what programs of the host run or obey by themselves, such as hooks of git
    #[arg(long, help_heading = "Folders")]
    pub(crate) protect: bool,
    /// Directory that relative GUEST paths are in; it is made if missing [default with folders: /workspace]
    #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true, help_heading = "Folders")]
    pub(crate) workspace: String,
    /// One line of JSON on stderr at the end: when the sandbox got where
    #[arg(long, hide = true)]
    pub(crate) timings: bool,
    #[command(flatten)]
    pub(crate) later: Later,
    /// Command and its arguments [default: the image's]
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Options for parts that do not exist yet. They are parsed to be refused by name.
#[derive(Debug, Args)]
pub(crate) struct Later {
    #[arg(long, hide = true)]
    secret: Option<String>,
    #[arg(long, hide = true)]
    secret_placeholder: Option<String>,
    #[arg(long, hide = true)]
    secret_file: Option<String>,
    #[arg(long, hide = true)]
    network_intercept: bool,
}

impl Later {
    /// The first of the options that was given, and its part.
    pub(crate) fn given(&self) -> Option<(&'static str, &'static str)> {
        const SECRETS: &str = "secrets";
        let options = [
            ("--secret", SECRETS, self.secret.is_some()),
            ("--secret-placeholder", SECRETS, self.secret_placeholder.is_some()),
            ("--secret-file", SECRETS, self.secret_file.is_some()),
            ("--network-intercept", "interception", self.network_intercept),
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
    /// Working directory [default: the image's, then the workspace]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, user:group or :group, names or numbers [default: the image's]
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
    pub(crate) machine: policy::machine::WantedMachine,
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

/// Parses a duration as Go writes it: `90`, `5s`, `1m30s`, `500ms`; a bare number is seconds.
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
