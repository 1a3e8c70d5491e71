//! `matchlock image`: the content of the image store.
//!
//! Not here: the store (`images`).

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;

use images::{Collected, Form, ImageConfig, ImageSummary, ImportSource, Store};
use sandbox::{Home, Status};

use crate::args::{
    ConfigArgs, ImageInspectArgs, ImagePruneArgs, ImageRmArgs, ImageTagArgs, ImportArgs, JsonArgs,
};
use crate::failure::{self, FAILED, advice};
use crate::progress::Bar;
use crate::say::{self, say, tell};
use crate::streams::Stdin;
use crate::table;

/// Lists images.
pub(crate) fn ls(args: &JsonArgs, home: &Home) -> anyhow::Result<u8> {
    let list = Store::open(home.cache())?.list()?;
    if args.json {
        let list: Vec<_> = list.iter().map(wire_image).collect();
        say::json(&list)?;
        return Ok(0);
    }
    let rows = list.iter().map(|image| {
        let created = table::timestamp(image.created);
        [image.tag.clone(), image.source.clone(), megabytes(image.size), created[..16].to_owned()]
    });
    table::print(["TAG", "SOURCE", "SIZE", "CREATED"], rows);
    Ok(0)
}

pub(crate) fn wire_image(image: &ImageSummary) -> wire::Image {
    wire::Image {
        tag: image.tag.clone(),
        source: image.source.clone(),
        digest: image.digest.to_string(),
        size: image.size,
        created_at: table::rfc3339(image.created),
    }
}

/// Shows an image.
pub(crate) fn inspect(args: &ImageInspectArgs, home: &Home) -> anyhow::Result<u8> {
    let store = Store::open(home.cache())?;
    let found = store.get(&args.tag)?.zip(store.summary(&args.tag)?);
    let (image, summary) = found.ok_or_else(|| images::Error::UnknownTag(args.tag.clone()))?;
    let ImageConfig { user, working_dir, entrypoint, cmd, env, volumes: _ } = image.config;
    let layers = image.layers.iter();
    let layers =
        layers.map(|layer| wire::ImageLayer { digest: layer.digest.to_string(), size: layer.len }).collect();
    let details = wire::ImageDetails {
        image: wire_image(&summary),
        config: wire::ImageExecution { user, working_dir, entrypoint, cmd, env },
        layers,
    };
    say::json(&details)?;
    Ok(0)
}

/// Imports an archive.
pub(crate) fn import(args: &ImportArgs, home: &Home) -> anyhow::Result<u8> {
    let bar = Bar::default();
    let config = config(&args.config)?;
    let mut reader = Stdin;
    let source = if args.path.as_os_str() == "-" {
        // A name that looks like an archive and exists as a file was hardly meant as a name.
        if let Some(path) = args.tag.as_deref().filter(|tag| tag.contains(".t") && Path::new(tag).is_file()) {
            let hint = "matchlock image import TAG PATH, or: matchlock image import TAG < PATH";
            return Err(advice(format!("{path} is a file, not a tag"), hint));
        }
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let hint = "docker save IMAGE | matchlock image import TAG, or: matchlock image import TAG PATH";
            return Err(advice("standard input is a terminal, not an archive", hint));
        }
        let file = File::from(stdin.as_fd().try_clone_to_owned()?);
        match file.metadata()?.is_file() {
            // The store reads the file in place, without a copy.
            true => ImportSource::File(file),
            false => ImportSource::Reader(&mut reader),
        }
    } else {
        ImportSource::Path(&args.path)
    };
    let store = Store::open(home.cache())?;
    let (imported, form) = store.import_as(source, args.tag.as_deref(), config, &bar)?;
    bar.clear();
    if args.json {
        let stored: Vec<_> = imported.stored.iter().map(wire_image).collect();
        say::json(&stored)?;
        return Ok(0);
    }
    // Any archive can be a root file system, so a user who meant an image is told.
    if matches!(form, Form::RootTar | Form::RootDirectory) {
        tell!("taken as {form}");
    }
    for tag in imported.tags() {
        say!("Imported: {tag}");
    }
    say!("Layers: {}", imported.image.layers.len());
    say!("Size: {}", megabytes(imported.size()));
    Ok(0)
}

/// The configuration for a root file system, if one was given.
fn config(args: &ConfigArgs) -> anyhow::Result<Option<ImageConfig>> {
    let ConfigArgs { entrypoint, cmd, env, workdir, user } = args;
    if let Some(wrong) = env.iter().find(|variable| !variable.contains('=') || variable.starts_with('=')) {
        anyhow::bail!("--env {wrong}: expected NAME=VALUE");
    }
    let config = ImageConfig {
        user: user.clone().unwrap_or_default(),
        working_dir: workdir.clone().unwrap_or_default(),
        entrypoint: entrypoint.iter().cloned().collect(),
        cmd: cmd.clone(),
        env: env.clone(),
        volumes: Vec::new(),
    };
    Ok((config != ImageConfig::default()).then_some(config))
}

/// Removes tags; a failure for one does not affect the others.
pub(crate) fn rm(args: &ImageRmArgs, home: &Home) -> anyhow::Result<u8> {
    let mut all = wire::ImagesRemoved::default();
    let mut status = 0;
    for tag in &args.tags {
        match Store::open(home.cache()).and_then(|store| store.remove(tag)) {
            Ok(Collected { blobs, bytes }) => {
                (all.blobs, all.freed) = (all.blobs + blobs, all.freed + bytes);
                all.removed.push(tag.clone());
                if !args.json {
                    say!("Removed {tag}");
                }
            }
            Err(error) => {
                failure::show(&error.into());
                status = FAILED;
            }
        }
    }
    if args.json && !all.removed.is_empty() {
        removal(&all)?;
    }
    Ok(status)
}

/// Gives an image one more tag.
pub(crate) fn tag(args: &ImageTagArgs, home: &Home) -> anyhow::Result<u8> {
    let summary = Store::open(home.cache())?.tag(&args.image, &args.tag)?;
    match args.json {
        true => say::json(&wire_image(&summary))?,
        false => say!("Tagged: {}", summary.tag),
    }
    Ok(0)
}

/// Removes images that can be pulled again, or all, unless a sandbox runs on them.
pub(crate) fn prune(args: &ImagePruneArgs, home: &Home) -> anyhow::Result<u8> {
    let records = crate::state::open(home)?;
    let records = records.list()?;
    let running = records.iter().filter(|record| record.status == Status::Running);
    let store = Store::open(home.cache())?;
    let used = running.map(|record| store.summary(&record.image)).collect::<Result<Vec<_>, _>>()?;
    let unused = |image: &ImageSummary| !used.iter().flatten().any(|used| used == image);
    let images = store.list()?.into_iter().filter(|image| args.all || image.source == "registry");
    let mut all = wire::ImagesRemoved::default();
    for image in images.filter(unused) {
        let Collected { blobs, bytes } = store.remove(&image.tag)?;
        (all.blobs, all.freed) = (all.blobs + blobs, all.freed + bytes);
        all.removed.push(image.tag);
    }
    if args.json {
        return removal(&all);
    }
    for tag in &all.removed {
        say!("Removed {tag}");
    }
    say!("Freed {}", megabytes(all.freed));
    Ok(0)
}

/// Removes files that no image needs.
pub(crate) fn gc(args: &JsonArgs, home: &Home) -> anyhow::Result<u8> {
    let Collected { blobs, bytes } = Store::open(home.cache())?.gc()?;
    if args.json {
        return removal(&wire::ImagesRemoved { removed: Vec::new(), blobs, freed: bytes });
    }
    say!("Removed {blobs} unreferenced blobs");
    Ok(0)
}

fn removal(what: &wire::ImagesRemoved) -> anyhow::Result<u8> {
    say::json(what)?;
    Ok(0)
}

/// Megabytes with one decimal.
pub(crate) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / (1 << 20);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}
