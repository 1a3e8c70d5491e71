//! `matchlock volume`: named volumes.
//!
//! Not here: the volumes (`images::Volumes`).

use images::{Volume, Volumes};
use sandbox::Home;

use crate::args::{JsonArgs, VolumeCopyArgs, VolumeCreateArgs, VolumeRmArgs};
use crate::failure::{self, FAILED};
use crate::image::megabytes;
use crate::say::{self, say};
use crate::table;

/// Makes a volume.
pub(crate) fn create(args: &VolumeCreateArgs, home: &Home) -> anyhow::Result<u8> {
    let volume = Volumes::open(home.cache())?.create(&args.name, args.size)?;
    if args.json {
        say::json_line(&wire_volume(&volume))?;
    } else {
        say!("Created volume {} ({} MB)", volume.name, args.size);
    }
    Ok(0)
}

/// Lists volumes.
pub(crate) fn ls(args: &JsonArgs, home: &Home) -> anyhow::Result<u8> {
    let list = Volumes::open(home.cache())?.list()?;
    if args.json {
        let list: Vec<_> = list.iter().map(wire_volume).collect();
        say::json_line(&list)?;
        return Ok(0);
    }
    table::print(["NAME", "SIZE"], list.iter().map(|volume| [volume.name.clone(), megabytes(volume.size)]));
    Ok(0)
}

/// Removes volumes; a failure for one does not affect the others.
pub(crate) fn rm(args: &VolumeRmArgs, home: &Home) -> anyhow::Result<u8> {
    let mut status = 0;
    for name in &args.names {
        match Volumes::open(home.cache()).and_then(|volumes| volumes.remove(name)) {
            Ok(()) => say!("Removed volume {name}"),
            Err(error) => {
                failure::show(&error.into());
                status = FAILED;
            }
        }
    }
    Ok(status)
}

/// Copies a volume.
pub(crate) fn copy(args: &VolumeCopyArgs, home: &Home) -> anyhow::Result<u8> {
    Volumes::open(home.cache())?.copy(&args.from, &args.to)?;
    say!("Copied volume {} to {}", args.from, args.to);
    Ok(0)
}

fn wire_volume(volume: &Volume) -> wire::Volume {
    wire::Volume {
        name: volume.name.clone(),
        size: megabytes(volume.size),
        path: volume.path.to_string_lossy().into_owned(),
    }
}
