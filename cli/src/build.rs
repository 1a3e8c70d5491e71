//! `matchlock build`: an image of a Dockerfile, made by a builder of this host (ADR 8).
//!
//! The builder runs the Dockerfile's steps unconfined, so the user has to ask for that. The image comes through a
//! pipe into the store, as any archive does. Not here: reading a Dockerfile.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use images::{ImportSource, Imported, Store};
use process::Group;
use sandbox::Home;

use crate::args::BuildArgs;
use crate::failure::advice;
use crate::image::{megabytes, wire_image};
use crate::progress::Bar;
use crate::say::{self, say};

/// A builder, and the command that writes an image to standard output.
struct Builder {
    program: &'static str,
    save: &'static [&'static str],
}

/// The builders, of which the first that is installed is used.
const BUILDERS: &[Builder] = &[
    Builder { program: "buildah", save: &["push", "--quiet", "{}", "docker-archive:/dev/stdout"] },
    Builder { program: "podman", save: &["save", "--quiet", "{}"] },
    Builder { program: "docker", save: &["save", "{}"] },
];

/// Builds an image and stores it.
pub(crate) fn build(args: &BuildArgs, home: impl FnOnce() -> anyhow::Result<Home>) -> anyhow::Result<u8> {
    if let Some(option) = args.later.given() {
        bail!("{option} is not built yet (builds in a sandbox)");
    }
    if !args.unconfined_build {
        let hint = "matchlock build --unconfined-build … allows that; or build elsewhere, and: matchlock image import";
        return Err(advice("the steps of a Dockerfile would run on this host, outside any sandbox", hint));
    }
    // Checked now and not only after the build.
    images::check_reference(&args.tag)?;
    let file = args.file.clone().unwrap_or_else(|| args.context.join("Dockerfile"));
    for path in [&args.context, &file] {
        fs::metadata(path).with_context(|| path.display().to_string())?;
    }
    let builder = BUILDERS.iter().find(|builder| process::find_program(builder.program).is_some());
    let builder = builder.ok_or_else(|| {
        advice("no builder is installed: buildah, podman or docker", "apt-get install buildah")
    })?;
    // The builder ends with this process, in whatever way that ends.
    let group = Group::start()?;
    let image = builder.run(args, &file, &group)?;
    let imported = builder.store(&image, &args.tag, &group, home)?;
    if let (true, Some(summary)) = (args.json, imported.stored.first()) {
        say::json(&wire_image(summary))?;
        return Ok(0);
    }
    say!("Successfully built and tagged {}", args.tag);
    say!("Layers: {}", imported.image.layers.len());
    say!("Size: {}", megabytes(imported.size()));
    Ok(0)
}

impl Builder {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.stdin(Stdio::null());
        command
    }

    /// Builds, with the builder's own messages on standard error, and returns the image's id.
    fn run(&self, args: &BuildArgs, file: &Path, group: &Group) -> anyhow::Result<String> {
        let scratch = tempfile::tempdir()?;
        let id = scratch.path().join("id");
        let mut command = self.command();
        command.arg("build").arg("--iidfile").arg(&id).arg("--file").arg(file);
        if args.no_cache {
            command.arg("--no-cache");
        }
        // A name may begin with a hyphen.
        command.arg("--").arg(&args.context).stdout(io::stderr().as_fd().try_clone_to_owned()?);
        let status = group.place(&mut command)?.status().context(self.program)?;
        if !status.success() {
            bail!("{} did not build {}: {status}", self.program, file.display());
        }
        Ok(fs::read_to_string(&id).with_context(|| id.display().to_string())?.trim().to_owned())
    }

    /// Stores the image that was built.
    fn store(
        &self,
        image: &str,
        tag: &str,
        group: &Group,
        home: impl FnOnce() -> anyhow::Result<Home>,
    ) -> anyhow::Result<Imported> {
        let mut command = self.command();
        command.args(self.save.iter().map(|word| if *word == "{}" { image } else { word }));
        let mut child = group.place(&mut command)?.stdout(Stdio::piped()).spawn().context(self.program)?;
        let mut output = child.stdout.take().context("the builder's output")?;
        // Behind sudo the builder is root's; the one who reads what it writes is not.
        let home = home()?;
        let bar = Bar::default();
        let imported = Store::open(home.cache())
            .and_then(|store| store.import(ImportSource::Reader(&mut output), Some(tag), &bar));
        bar.clear();
        // A builder that still writes must not wait for a reader.
        drop(output);
        let status = child.wait()?;
        // If the image cannot be read, the builder's messages may tell why.
        let imported = imported.with_context(|| format!("{} gave no image ({status})", self.program))?;
        if !status.success() {
            bail!("{} ended with {status} while it gave its image", self.program);
        }
        Ok(imported)
    }
}
