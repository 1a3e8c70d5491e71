//! What the machines of one architecture have and those of another do not. Plain values, which every host can name; back
//! ends translate them.

pub mod x86;

/// A machine's architecture, with what is said of such a machine alone.
#[derive(Debug, Clone)]
pub enum Arch {
    /// x86-64.
    X86(x86::Chip),
}
