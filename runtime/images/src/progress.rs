//! What a caller can be told while an image is made ready.

/// Hears how far a long operation is. Called from the thread that does the work, so it must be quick.
pub trait Progress: Sync {
    /// A new step begins, such as `layer 2 of 5`. `total_bytes` is its length where that is known.
    fn step(&self, name: &str, total_bytes: Option<u64>);
    /// This many more bytes of the step are done.
    fn advance(&self, bytes: u64);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _name: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
}
