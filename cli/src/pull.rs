//! `matchlock pull`: an image from its registry into the store.
//!
//! Not here: registries (`registry`), the store (`images`).

use images::Store;
use sandbox::Home;

use crate::args::PullArgs;
use crate::image::{megabytes, wire_image};
use crate::progress::Bar;
use crate::say::{self, say, tell};

/// Fetches an image. Parts that have not changed are not fetched again.
pub(crate) fn pull(args: &PullArgs, home: &Home) -> anyhow::Result<u8> {
    let bar = Bar::default();
    if !args.json {
        tell!("Pulling {}...", args.image);
    }
    let tag = args.tag.as_deref().unwrap_or(&args.image);
    let pulled =
        Store::open(home.cache()).and_then(|store| home.registries().pull_as(&store, &args.image, tag, &bar));
    bar.clear();
    let pulled = pulled?;
    if let (true, Some(summary)) = (args.json, pulled.stored.first()) {
        say::json(&wire_image(summary))?;
        return Ok(0);
    }
    say!("Tagged: {tag}");
    say!("Digest: {}", pulled.image.digest);
    say!("Size: {}", megabytes(pulled.size()));
    Ok(0)
}
