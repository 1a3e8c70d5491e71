//! Port accesses: the elements of a string instruction are served one at a time.

use std::ops::ControlFlow;

use hypervisor::{VcpuIo, VcpuStop};

/// Serves a write of elements `width` bytes long.
pub(crate) fn write(io: &mut impl VcpuIo, port: u16, data: &[u8], width: usize) -> Option<VcpuStop> {
    data.chunks(width).map(|element| io.port_write(port, element)).find_map(ControlFlow::break_value)
}

/// Serves a read of elements `width` bytes long.
pub(crate) fn read(io: &mut impl VcpuIo, port: u16, data: &mut [u8], width: usize) {
    data.chunks_mut(width).for_each(|element| io.port_read(port, element));
}
