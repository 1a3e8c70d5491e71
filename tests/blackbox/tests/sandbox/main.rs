//! Black-box tests of sandboxes: `matchlock` in, status and output out, nothing left behind.
fn main() {}
