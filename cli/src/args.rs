//! The command line's grammar.
//!
//! Flags may stand before and after positional arguments, until `--`. Not here: what the values mean.

mod image;
mod kernel;
mod records;
mod sandbox;
mod volume;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub(crate) use image::*;
pub(crate) use kernel::*;
pub(crate) use records::*;
pub(crate) use sandbox::*;
pub(crate) use volume::*;

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

#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
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
    fn options_of_later_parts_are_named() {
        assert_eq!(run("--image a -v /x:/y").later.given(), Some(("--volume", "mounts")));
        assert_eq!(run("--image a --secret A@b").later.given(), Some(("--secret", "secrets")));
        assert_eq!(run("--image a --no-network").later.given(), None);
    }
}
