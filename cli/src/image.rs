//! `matchlock image`: what is in the image store.
//!
//! Not here: the store (`images`).

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;

use images::{Form, ImageConfig, ImageSummary, ImportSource, Store};
use sandbox::Home;

use crate::args::{ImageRmArgs, ImportArgs, JsonArgs};
use crate::failure::advice;
use crate::progress::Bar;
use crate::say::{say, tell};
use crate::table;

/// Lists images.
pub(crate) fn ls(args: &JsonArgs) -> anyhow::Result<u8> {
    let list = with_store(|store| Ok(store.list()?))?;
    if args.json {
        let list: Vec<_> = list.iter().map(wire_image).collect();
        say!("{}", serde_json::to_string_pretty(&list)?);
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
        created_at: table::timestamp(image.created),
    }
}

/// Shows an image.
pub(crate) fn inspect(args: &ImageRmArgs) -> anyhow::Result<u8> {
    let (image, summary) = with_store(|store| Ok(store.get(&args.tag)?.zip(store.summary(&args.tag)?)))?
        .ok_or_else(|| images::Error::UnknownTag(args.tag.clone()))?;
    let ImageConfig { user, working_dir, entrypoint, cmd, env } = image.config;
    let layers = image.layers.iter();
    let layers =
        layers.map(|layer| wire::ImageLayer { digest: layer.digest.to_string(), size: layer.len }).collect();
    let details = wire::ImageDetails {
        image: wire_image(&summary),
        config: wire::ImageExecution { user, working_dir, entrypoint, cmd, env },
        layers,
    };
    say!("{}", serde_json::to_string_pretty(&details)?);
    Ok(0)
}

/// Imports an archive.
pub(crate) fn import(args: &ImportArgs) -> anyhow::Result<u8> {
    let bar = Bar::default();
    let source = if args.path.as_os_str() == "-" {
        // What looks like an archive and is there was hardly meant as a name.
        if let Some(path) = args.tag.as_deref().filter(|tag| tag.contains(".t") && Path::new(tag).is_file()) {
            let hint = "matchlock image import TAG PATH, or: matchlock image import TAG < PATH";
            return Err(advice(format!("{path} is a file, not a tag"), hint));
        }
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let hint = "docker save IMAGE | matchlock image import TAG, or: matchlock image import TAG PATH";
            return Err(advice("standard input is a terminal, not an archive", hint));
        }
        ImportSource::File(File::from(stdin.as_fd().try_clone_to_owned()?))
    } else {
        ImportSource::Path(&args.path)
    };
    let (imported, form) =
        with_store(|store| Ok(store.import_as(source, args.tag.as_deref(), None, &bar)?))?;
    bar.clear();
    // Anything can be a root file system, so whoever meant an image hears of it.
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

/// Removes a tag.
pub(crate) fn rm(args: &ImageRmArgs) -> anyhow::Result<u8> {
    with_store(|store| Ok(store.remove(&args.tag)?))?;
    say!("Removed {}", args.tag);
    Ok(0)
}

fn with_store<T>(act: impl FnOnce(Store) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let home = Home::from_env()?;
    home.as_user(|| act(Store::open(home.cache())?))
}

/// One decimal of a megabyte.
pub(crate) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / (1 << 20);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}
