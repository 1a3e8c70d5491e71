//! `image`, `pull` and `build`: the content of the image store, and ways to add to it.
//!
//! Not here: the meaning of values.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::JsonArgs;

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

/// The configuration of a root file system's programs, which other images bring along.
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
    /// Tags
    #[arg(value_name = "TAG", required = true)]
    pub(crate) tags: Vec<String>,
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
pub(crate) struct PullArgs {
    /// Image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Name for it in the store [default: the same]
    #[arg(short, long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// Accepted; the registry is asked in any case, and what is here already is not fetched again
    #[arg(long, hide = true)]
    force: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Directory that the Dockerfile copies from
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: PathBuf,
    /// Name of the image
    #[arg(short, long, value_name = "TAG")]
    pub(crate) tag: String,
    /// Dockerfile [default: the one in CONTEXT]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Run every step anew
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Let the Dockerfile's steps run on this host, outside any sandbox
    #[arg(long)]
    pub(crate) unconfined_build: bool,
    #[command(flatten)]
    pub(crate) later: BuildLater,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options for builds in a sandbox, which do not exist yet. They are parsed to be refused by name.
#[derive(Debug, Args)]
pub(crate) struct BuildLater {
    #[arg(long, hide = true)]
    build_cpus: Option<String>,
    #[arg(long, hide = true)]
    build_memory: Option<String>,
    #[arg(long, hide = true)]
    build_disk: Option<String>,
    #[arg(long, hide = true)]
    build_cache_size: Option<String>,
    #[arg(long, hide = true)]
    mtu: Option<String>,
}

impl BuildLater {
    /// The first of the options that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let options = [
            ("--build-cpus", &self.build_cpus),
            ("--build-memory", &self.build_memory),
            ("--build-disk", &self.build_disk),
            ("--build-cache-size", &self.build_cache_size),
            ("--mtu", &self.mtu),
        ];
        options.into_iter().find(|(_, value)| value.is_some()).map(|(option, _)| option)
    }
}
