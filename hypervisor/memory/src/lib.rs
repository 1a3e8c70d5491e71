//! Guest RAM: where it lives on the host and how it is shared.
//!
//! Everything above sees [`GuestRam`] and vm-memory's traits. Not here: the guest-physical layout (that is the VMM's),
//! and who reads or writes the memory.

#![allow(unsafe_code, reason = "mapping memory at an address of our choice; system calls on guest memory")]

mod allocate;
mod discard;
mod file;
mod packet;
mod page;
mod socket;
mod sys;

pub use allocate::{Backing, Error, allocate};
pub use discard::discard;
pub use file::{read_at, read_exact_at, write_all_at, write_at};
pub use packet::{read_packet, write_packet};
pub use socket::{receive, send};
pub use sys::{NoOwnMount, Pages, SharedFile};

/// The guest's physical memory. Cheap to clone: clones share the mappings.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
