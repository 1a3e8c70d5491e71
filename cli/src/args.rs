//! The command line's grammar.
//!
//! Flags may stand before and after positional arguments, until `--`. Not here: what the values mean.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::build::BuildArgs;
use crate::pull::PullArgs;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// Runs code nobody has reviewed in a micro-VM.
#[derive(Debug, Parser)]
#[command(name = "matchlock", version, propagate_version = false)]
pub(crate) struct Cli {
    /// How much to say on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        env = "MATCHLOCK_LOG_LEVEL",
        default_value = "warn",
        hide_env = true
    )]
    pub(crate) log_level: LogLevel,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Info => Self::INFO,
            LogLevel::Warn => Self::WARN,
            LogLevel::Error => Self::ERROR,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a sandbox and run a command in it
    Run(Box<RunArgs>),
    /// Run a command in a running sandbox
    Exec(ExecArgs),
    /// Be driven by a program, over standard input and output
    Rpc(RpcArgs),
    /// List sandboxes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// End running sandboxes
    Kill(KillArgs),
    /// Remove ended sandboxes
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove every ended sandbox
    Prune,
    /// Remove what crashed sandboxes left, and say what that was
    Gc(GcArgs),
    /// Print what is known of a sandbox
    Get(IdArgs),
    /// Print what is known of a sandbox, and its history
    #[command(visible_alias = "stat")]
    Inspect(IdArgs),
    /// Print a sandbox's log
    Log(LogArgs),
    /// Forward ports of this host to a running sandbox
    PortForward(PortForwardArgs),
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// Build an image of a Dockerfile, by a builder of this host
    Build(BuildArgs),
    /// List, import and remove images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// List and remove guest kernels
    Kernel {
        #[command(subcommand)]
        command: KernelCommand,
    },
    /// Make, list, remove and copy named volumes
    Volume {
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Check what this host can run, and say what is missing
    Diagnose(JsonArgs),
    /// Print the version
    Version,
    /// Print what makes a shell complete the arguments of matchlock
    Completion {
        /// Which shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(JsonArgs),
    /// Store the image of a docker-archive, an OCI layout or a root file system
    Import(ImportArgs),
    /// Show an image, as JSON
    Inspect(ImageInspectArgs),
    /// Remove an image
    #[command(visible_alias = "remove")]
    Rm(ImageRmArgs),
    /// Give an image one more name
    Tag(ImageTagArgs),
    /// Remove the images of registries that no sandbox runs on
    Prune(ImagePruneArgs),
    /// Remove what no image needs, what failed pulls have left included
    Gc(JsonArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// List kernels
    #[command(visible_alias = "list")]
    Ls(JsonArgs),
    /// Remove a kernel; the default one is fetched again, as new as there is, when it is needed
    #[command(visible_alias = "remove")]
    Rm(KernelRmArgs),
}

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

#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Name for the image [default: the archive's own]
    #[arg(value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// Archive, or directory of an OCI layout or a root file system; `-` = standard input
    #[arg(value_name = "PATH", default_value = "-", hide_default_value = true)]
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How the programs of a root file system are run, which an image says itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "For a root file system")]
pub(crate) struct ConfigArgs {
    /// Program that every command is given to
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Command when none is given, a word each time
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// Environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User: uid, uid:gid or name
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageInspectArgs {
    /// Tag
    #[arg(value_name = "TAG")]
    pub(crate) tag: String,
    /// It always is
    #[arg(long, hide = true)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageRmArgs {
    /// Tag
    #[arg(value_name = "TAG")]
    pub(crate) tag: String,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageTagArgs {
    /// Image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Its new name
    #[arg(value_name = "TAG")]
    pub(crate) tag: String,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePruneArgs {
    /// Those that were imported or tagged as well
    #[arg(short, long)]
    pub(crate) all: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
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
    /// Volume
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
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

/// Why no command came out of the arguments.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Help or version was asked for.
    Asked(String),
    /// They are wrong.
    Wrong { message: String, hint: Option<String> },
}

impl Refusal {
    pub(crate) fn show(&self) -> ExitCode {
        match self {
            Self::Asked(text) => {
                crate::say::text(text);
                ExitCode::SUCCESS
            }
            Self::Wrong { message, hint } => {
                crate::failure::print(message, hint.as_deref());
                ExitCode::FAILURE
            }
        }
    }
}

/// Understands the arguments.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Refusal> {
    Cli::try_parse_from(args).map_err(|error| refusal(&error))
}

/// A script that makes a shell complete our arguments.
pub(crate) fn completion(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "matchlock", &mut script);
    script
}

/// clap's error as one line of ours.
fn refusal(error: &clap::Error) -> Refusal {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let hint = |text: &str| Some(text.to_owned());
    let (message, hint) = match error.kind() {
        ErrorKind::DisplayVersion => {
            return Refusal::Asked(format!("matchlock version {}\n", env!("CARGO_PKG_VERSION")));
        }
        ErrorKind::DisplayHelp => return Refusal::Asked(error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            ("a command is missing".to_owned(), hint("see matchlock --help"))
        }
        ErrorKind::UnknownArgument => match context(ContextKind::InvalidArg) {
            number if number.parse::<i64>().is_ok() => {
                (format!("{number} is out of range: it must not be negative"), None)
            }
            flag if flag.starts_with('-') => (
                format!("unknown flag: {flag}"),
                hint("put -- before a command that has flags of its own; see matchlock --help"),
            ),
            argument => (format!("unexpected argument {argument:?}"), None),
        },
        ErrorKind::InvalidSubcommand => (
            format!("unknown command {:?}", context(ContextKind::InvalidSubcommand)),
            hint("see matchlock --help"),
        ),
        ErrorKind::MissingRequiredArgument => (format!("missing {}", context(ContextKind::InvalidArg)), None),
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            match context(ContextKind::ValidValue) {
                none if none.is_empty() => (line.to_owned(), None),
                values => (format!("{line}; it may be {values}"), None),
            }
        }
    };
    Refusal::Wrong { message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, Refusal> {
        parse(std::iter::once("matchlock").chain(line.split_whitespace()).map(OsString::from))
    }

    fn run(line: &str) -> RunArgs {
        match parsed(&format!("run {line}")).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn message(line: &str) -> String {
        match parsed(line) {
            Err(Refusal::Wrong { message, .. }) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn grammar_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_commands() {
        assert_eq!(run("--image a cat /etc/os-release").command, ["cat", "/etc/os-release"]);
        assert_eq!(run("--image a -- sh -c x").command, ["sh", "-c", "x"]);
        assert_eq!(run("--image a -- --version").command, ["--version"]);
        let args = run("cat --image=a x --cpus 0.5 -it -e A=1,2 -e B --env-file f");
        assert_eq!(
            (args.command, args.cpus, args.interactive, args.tty),
            (vec!["cat".into(), "x".into()], 0.5, true, true)
        );
        assert_eq!(args.env, ["A=1,2", "B"]);
        assert_eq!(run("--image a --disk @a:/a:ro,uid=1 --disk b:/b x").disk, ["@a:/a:ro,uid=1", "b:/b"]);
        assert_eq!(run("--image a --add-host a:1.2.3.4,b:5.6.7.8 --add-host c:::1").add_host.len(), 3);
    }

    #[test]
    fn rm_is_true_unless_said_otherwise() {
        assert!(run("--image a").rm);
        assert!(run("--image a --rm").rm);
        assert!(!run("--image a --rm=false").rm);
        let args = run("--image a --rm true");
        assert!(args.rm);
        assert_eq!(args.command, ["true"]);
    }

    #[test]
    fn exec_takes_flags_after_the_id() {
        let Command::Exec(args) = parsed("exec vm-1 -it -u 1 sh").unwrap().command else { panic!() };
        assert_eq!(
            (args.id.as_str(), args.interactive && args.tty, args.user.as_deref()),
            ("vm-1", true, Some("1"))
        );
        assert_eq!(args.command, ["sh"]);
        let Command::Exec(args) = parsed("exec vm-1 -- sh -c x").unwrap().command else { panic!() };
        assert_eq!(args.command, ["sh", "-c", "x"]);
    }

    #[test]
    fn ports_and_addresses() {
        let args = run("--image a -p 80 -p 8081:81 --address ::1,127.0.0.1 --address localhost true");
        assert_eq!(args.publish, ["80", "8081:81"]);
        assert_eq!(args.address, ["::1", "127.0.0.1", "localhost"]);
        let Command::PortForward(args) = parsed("port-forward vm-1 80 81:82 --address ::1").unwrap().command
        else {
            panic!()
        };
        assert_eq!((args.id.as_str(), args.ports.len(), args.address.len()), ("vm-1", 2, 1));
    }

    #[test]
    fn errors_are_one_line() {
        for (line, expected) in [
            ("run --image a --frob", "unknown flag: --frob"),
            ("exec vm-1 sh -c x", "unknown flag: -c"),
            ("frob", "unknown command \"frob\""),
            ("", "a command is missing"),
            ("run true", "missing --image <REF>"),
            ("run --image a --cpus x", "invalid value 'x' for '--cpus <N>': invalid float literal"),
            (
                "run --image a --machine x",
                "invalid value 'x' for '--machine <KIND>': \"x\" is none of auto, kvm, hvf, software",
            ),
            ("run --image a --rm=maybe", "invalid value 'maybe' for '--rm[=<BOOL>]'; it may be true, false"),
            ("run --image a --memory -1", "-1 is out of range: it must not be negative"),
            ("kill a b", "unexpected argument \"b\""),
            ("get", "missing <ID>"),
            ("port-forward vm-1", "missing <[LOCAL:]REMOTE>..."),
        ] {
            assert_eq!(message(line), expected, "{line}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["--help", "--version", "run --help", "image --help", "help-me --version"] {
            let asked = matches!(parsed(line), Err(Refusal::Asked(_)));
            assert_eq!(asked, line != "help-me --version", "{line}");
        }
    }

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

    #[test]
    fn options_of_later_parts_are_named() {
        assert_eq!(run("--image a -v /x:/y").later.given(), Some(("--volume", "mounts")));
        assert_eq!(run("--image a --secret A@b").later.given(), Some(("--secret", "secrets")));
        assert_eq!(run("--image a --no-network").later.given(), None);
    }
}
