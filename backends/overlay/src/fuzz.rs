//! The fuzz bodies of what a guest may do with files that stay with it: the same acts on a provider and on a model of POSIX,
//! compared step by step.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer.

use std::sync::Arc;

use fuse::{Context, Errno, FileSystem, Gone, NodeId, Result};
use modelled::{Model, Run};

use crate::{Files, Options};

/// Acts on a folder in memory.
pub fn memory(data: &[u8]) {
    let files = folder();
    let free = free(&files);
    let mut run = Run::new(&files, Model::default());
    run.script(data);
    run.compare();
    run.leave_nothing();
    assert_eq!(self::free(&files), free, "space that nobody gives back");
}

/// Acts on a folder in memory, and then on what is over it. The first byte says where the one becomes the other.
pub fn over(data: &[u8]) {
    over_with(data, |below| Files::over(below, 1 << 30));
}

/// The same, with contents in files of their own, of which none stays.
pub fn kept(data: &[u8]) {
    let Ok(directory) = tempfile::tempdir() else { panic!("no temporary directory") };
    let count = || std::fs::read_dir(directory.path()).map(Iterator::count).unwrap_or_default();
    over_with(data, |below| {
        let opened = std::fs::File::open(directory.path()).map_err(|_| Errno::EIO)?;
        Files::over_kept(below, 1 << 30, opened.into())
    });
    assert_eq!(count(), 0, "files that nobody removes");
}

fn over_with(data: &[u8], over: impl FnOnce(Arc<dyn FileSystem>) -> Result<Files>) {
    let Some((first, acts)) = data.split_first() else { return };
    let (before, after) = acts.split_at(acts.len() * usize::from(*first) / 256);
    let below = Arc::new(folder());
    let mut run = Run::new(&*below, Model::default());
    run.script(before);
    let model = run.let_go();
    let Ok(files) = over(below.clone()) else { panic!("a directory is there") };
    let mut run = Run::new(&files, model.clone());
    run.script(after);
    run.compare();
    run.leave_nothing();
    files.let_go(NodeId::ROOT, Gone::Everything);
    // The file system below has not changed, whatever the steps were.
    let mut run = Run::new(&*below, model);
    run.compare();
}

fn folder() -> Files {
    let options = Options { limit: 1 << 30, mode: 0o755, uid: 0, gid: 0 };
    let Ok(files) = Files::in_memory(options) else { panic!("there is no room for a folder") };
    files
}

fn free(files: &dyn FileSystem) -> (u64, u64) {
    let statistics = files.statistics(&Context::default(), NodeId::ROOT);
    statistics.map(|told| (told.free, told.free_files)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use modelled::{WORDS, examples};

    fn examples_over() -> Vec<Vec<u8>> {
        let all = examples().concat();
        let first = [0, 60, 128, 200, 240, 255].map(|first| [&[first][..], &all].concat());
        let each = examples().into_iter().map(|one| [&[128][..], &one, &one].concat());
        first.into_iter().chain(each).collect()
    }

    #[test]
    fn over() {
        fuzzed::run("overlay_over", 800, &examples_over(), &WORDS, super::over);
    }

    #[test]
    fn kept() {
        fuzzed::run("overlay_kept", 150, &examples_over(), &WORDS, super::kept);
    }

    #[test]
    fn memory() {
        fuzzed::run("overlay_memory", 2000, &examples(), &WORDS, super::memory);
    }
}
