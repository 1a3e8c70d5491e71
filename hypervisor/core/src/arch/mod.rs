//! The choices that exist on the machines of one architecture only. They are plain values, which every host can name;
//! back ends translate them.

pub mod x86;

/// A machine's architecture, with the choices that only such a machine has.
#[derive(Debug, Clone)]
pub enum Arch {
    /// x86-64.
    X86(x86::Chip),
}
