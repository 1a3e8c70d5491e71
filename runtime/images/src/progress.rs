//! Progress of preparing an image, for a caller.

/// Receives the progress of a long operation, on the thread that does the work, so it must be quick.
pub trait Progress: Sync {
    /// A new step begins, such as `layer 2 of 5`. `total_bytes` is its length if that is known.
    fn step(&self, name: &str, total_bytes: Option<u64>);
    /// This many more bytes of the step are done.
    fn advance(&self, bytes: u64);
}

/// Ignores all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _name: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
}
