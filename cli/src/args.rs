//! The command line's grammar.
//!
//! It is Cobra's, which scripts written for the 0.2 releases rely on. Flags may stand before and after positional
//! arguments, until `--`; of a flag that is given twice the last counts; a switch may have a value (`--rm=false`).
//! Not here: the meaning of values.

mod changes;
mod image;
mod kernel;
mod mount;
mod network;
mod records;
mod sandbox;
mod volume;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use changes::*;
pub(crate) use image::*;
pub(crate) use kernel::*;
pub(crate) use mount::*;
pub(crate) use network::*;
pub(crate) use records::*;
pub(crate) use sandbox::*;
pub(crate) use volume::*;

/// Runs code nobody has reviewed in a micro-VM.
#[derive(Debug, Parser)]
#[command(name = "matchlock", version, propagate_version = false, disable_version_flag = true)]
pub(crate) struct Cli {
    /// Print the version
    #[arg(id = "version", short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    _version: Option<bool>,
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
    Get(IdsArgs),
    /// Print what is known of a sandbox, and its history
    #[command(visible_alias = "stat")]
    Inspect(IdsArgs),
    /// Print a sandbox's log
    Log(LogArgs),
    /// Show what a sandbox changed of its overlays
    Diff(DiffArgs),
    /// Take over what a sandbox changed of its overlays
    Apply(TakeArgs),
    /// Throw away what a sandbox changed of its overlays
    Discard(TakeArgs),
    /// Add, take away and list mounts of a running sandbox
    Mount {
        #[command(subcommand)]
        command: MountCommand,
    },
    /// Forward ports of this host to a running sandbox
    PortForward(PortForwardArgs),
    /// Change which hosts a running sandbox may reach
    AllowList {
        #[command(subcommand)]
        command: AllowListCommand,
    },
    /// Print what a sandbox sent outside, and what was denied
    Audit(AuditArgs),
    /// Say whether a request may leave a sandbox, and why
    Explain(ExplainArgs),
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
    /// Prepare this host
    #[command(hide = true)]
    Setup(RestArgs),
    /// Print what makes a shell complete the arguments of matchlock
    Completion {
        /// Shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// The options with variables for a guest, some of them with values.
    pub(crate) fn variables(&self) -> &[String] {
        match self {
            Self::Run(args) => &args.env,
            Self::Exec(args) => &args.env,
            _ => &[],
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of a command that only prints a message.
#[derive(Debug, Args)]
pub(crate) struct RestArgs {
    /// Anything
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The reason why the arguments made no command.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The arguments ask for help or version, which is the text.
    Asked(String),
    /// The arguments are wrong.
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

/// Parses the arguments.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Refusal> {
    let args: Vec<_> = args.into_iter().collect();
    let mut grammar = with_valued_switches(Cli::command().args_override_self(true));
    let parsed = grammar.try_get_matches_from_mut(&args);
    let parsed = parsed.and_then(|mut found| Cli::from_arg_matches_mut(&mut found));
    parsed.map_err(|error| refusal(&error.format(&mut grammar), &args))
}

/// The same grammar, in which a switch may have a value.
fn with_valued_switches(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .value_parser(boolean)
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false"),
        _ => arg,
    });
    command.mut_subcommands(with_valued_switches)
}

/// Parses a truth value as Go does.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// The help of the command that the arguments name. The parser's own would show a value after each switch.
fn help(args: &[OsString]) -> String {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    // `help` lists all commands below it, without options.
    let words = args.iter().skip(1).take_while(|word| *word != "--").filter(|word| *word != "help");
    for word in words {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    command.clone().render_help().to_string()
}

/// A script with which a shell completes the arguments.
pub(crate) fn completion(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "matchlock", &mut script);
    script
}

/// Turns clap's error into one line.
fn refusal(error: &clap::Error, args: &[OsString]) -> Refusal {
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
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => return Refusal::Asked(help(args)),
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
            ("run true", "missing --image <REF>"),
            ("run --image a --cpus x", "invalid value 'x' for '--cpus <N>': invalid float literal"),
            (
                "run --image a --machine x",
                "invalid value 'x' for '--machine <KIND>': \"x\" is none of auto, kvm, hvf, software",
            ),
            ("run --image a --rm=maybe", "invalid value 'maybe' for '--rm[=<BOOL>]': expected true or false"),
            ("kill --all=2", "invalid value '2' for '--all[=<BOOL>]': expected true or false"),
            ("run --image a --memory -1", "-1 is out of range: it must not be negative"),
            ("log a b", "unexpected argument \"b\""),
            ("get", "missing <ID>..."),
            ("port-forward vm-1", "missing <[[ADDRESS:]LOCAL:]REMOTE>..."),
        ] {
            assert_eq!(message(line), expected, "{line}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["--help", "--version", "-v", "-V", "run --help", "image --help", "help-me --version"] {
            let asked = matches!(parsed(line), Err(Refusal::Asked(_)));
            assert_eq!(asked, line != "help-me --version", "{line}");
        }
        let help = |line: &str| match parsed(line) {
            Err(Refusal::Asked(text)) => text,
            other => panic!("{line}: {other:?}"),
        };
        for (line, usage) in [
            ("", "Usage: matchlock [OPTIONS] <COMMAND>"),
            ("--log-level debug", "Usage: matchlock [OPTIONS] <COMMAND>"),
            ("image", "Usage: matchlock image [OPTIONS] <COMMAND>"),
            ("volume", "Usage: matchlock volume [OPTIONS] <COMMAND>"),
            ("mount", "Usage: matchlock mount [OPTIONS] <COMMAND>"),
            ("kernel", "Usage: matchlock kernel [OPTIONS] <COMMAND>"),
            ("run -h", "Usage: matchlock run [OPTIONS] --image <REF> [COMMAND]..."),
            ("help run", "Usage: matchlock run [OPTIONS] --image <REF> [COMMAND]..."),
            ("image list --help", "Usage: matchlock image ls [OPTIONS]"),
        ] {
            assert!(help(line).contains(&format!("{usage}\n")), "{line}: {}", help(line));
        }
    }

    #[test]
    fn help_of_run_is_in_groups_with_an_example_each() {
        let Err(Refusal::Asked(text)) = parsed("run --help") else { panic!() };
        for group in RUN_EXAMPLES {
            assert!(text.contains(&format!("\n{}:\n", group.0)), "{}: {text}", group.0);
            let line: Vec<_> = group.1.split_whitespace().collect();
            let parsed = parse(line.iter().map(OsString::from)).unwrap();
            assert!(matches!(parsed.command, Command::Run(_)), "{line:?}");
            assert!(text.contains(group.1), "{line:?}");
        }
        for option in ["--no-network\n", "--privileged  ", "--rm[=<BOOL>]  ", "-d, --detach  "] {
            assert!(text.contains(option), "{option}: {text}");
        }
    }

    #[test]
    fn the_last_of_a_flag_counts_and_switches_have_values() {
        let args =
            run("--memory 256 --image b --memory=512 -w /a -w /b --image a -it -i=f --privileged=false");
        assert_eq!((args.memory, args.image.as_str(), args.workdir.as_deref()), (512, "a", Some("/b")));
        assert_eq!((args.interactive, args.tty, args.privileged), (false, true, false));
        let args = run(
            "--image a --no-network=true --rm=TRUE --rm=F -d=1 --privileged --privileged x --privileged=0 y",
        );
        assert_eq!((args.no_network, args.rm, args.detach, args.privileged), (true, false, true, false));
        assert_eq!(args.command, ["x", "y"]);
        assert_eq!(run("--image a -e A=1 -e A=2").env.len(), 2, "lists stay lists");
    }

    #[test]
    fn folders() {
        let args = run("--image a -v /x:/y --mount type=memory,target=/z,ro -v a,b:c --workspace /w x");
        assert_eq!(
            (args.volume, args.mount),
            (vec!["/x:/y".into(), "a,b:c".into()], vec!["type=memory,target=/z,ro".into()])
        );
        assert_eq!((args.workspace.as_str(), run("--image a x").workspace.as_str()), ("/w", ""));
    }

    #[test]
    fn networks() {
        let args = run(
            "--image a --allow-host a,b:8080 --allow-host *.c --deny-host d --mtu 1400 --dns-servers ::1 x",
        );
        assert_eq!(args.access.allow_host, ["a", "b:8080", "*.c"]);
        assert_eq!((args.access.deny_host.len(), args.mtu, args.dns_servers.len()), (1, 1400, 1));
        assert_eq!(args.network, policy::network::WantedArrival::Auto);
        let parsed_list = parsed("allow-list add vm-1 a,b c").unwrap().command;
        let Command::AllowList { command: AllowListCommand::Add(args) } = parsed_list else { panic!() };
        assert_eq!((args.id.as_str(), args.hosts.len()), ("vm-1", 3));
        assert_eq!(message("allow-list delete vm-1"), "missing <HOST>...");
        let Command::Explain(args) = parsed("explain --allow-host a GET http://a/").unwrap().command else {
            panic!()
        };
        assert_eq!((args.method.as_str(), args.access.allow_host.len()), ("GET", 1));
        let both = message("explain --sandbox vm-1 --allow-host a GET http://a/");
        assert!(both.starts_with("the argument '--sandbox <ID>' cannot be used with"), "{both}");
        let Command::Audit(args) = parsed("audit vm-1 -f --denied").unwrap().command else { panic!() };
        assert!(args.follow && args.denied && !args.json);
    }

    #[test]
    fn several_sandboxes() {
        let Command::Kill(args) = parsed("kill a b --all=false c").unwrap().command else { panic!() };
        assert_eq!((args.ids, args.all), (vec!["a".into(), "b".into(), "c".into()], false));
        let Command::List(args) = parsed("ls a --json b").unwrap().command else { panic!() };
        assert_eq!((args.ids.len(), args.json), (2, true));
    }

    #[test]
    fn options_of_later_parts_are_named() {
        assert_eq!(
            run("--image a -v /x:/y:ro -v .:/z:host_fs,uid=1").volume,
            ["/x:/y:ro", ".:/z:host_fs,uid=1"]
        );
        assert_eq!(run("--image a --secret A@b").later.given(), Some(("--secret", "secrets")));
        assert_eq!(run("--image a --no-network").later.given(), None);
    }
}
