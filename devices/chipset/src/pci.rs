//! PCI configuration mechanism #1 of a machine without PCI devices.
//!
//! A kernel built with PCI support that finds no way to configuration space logs an error on its console. The kernel
//! tests whether the address register keeps the value written to it (with `pci=conf1` this test is enough for the
//! kernel); this register keeps it, and no device answers. Not here: any device.

use crate::{Outcome, answer};

/// First port.
pub const PORT: u16 = 0xcf8;
/// Number of ports: address and data, four bytes each.
pub const PORTS: u16 = 8;

/// PCI Local Bus Specification 3.0 §3.2.2.3.2: the bits of `CONFIG_ADDRESS` that are not "read-only and must return 0's".
const ADDRESS_MASK: u32 = 0x80ff_fffc;

/// The address register.
#[derive(Debug, Default, Clone, Copy)]
pub struct PciConfig {
    address: u32,
}

impl PciConfig {
    /// Fills `data` from the port at `offset` from [`PORT`].
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            // "Anytime a host bridge sees a full DWORD I/O write from the host to CONFIG_ADDRESS": the same holds for
            // reads.
            Ok(data) if offset == 0 => *data = self.address.to_le_bytes(),
            // A missing device reads as all ones.
            _ => answer(data, || 0xff),
        }
    }

    /// Takes a write of `data` to the port at `offset` from [`PORT`].
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Outcome {
        if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address = u32::from_le_bytes(address) & ADDRESS_MASK;
        }
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pci_check_type1()` of Linux 6.12.
    #[test]
    fn linux_finds_the_mechanism() {
        let mut pci = PciConfig::default();
        let mut data = [0; 4];
        assert_eq!(pci.write(3, &[1]), Outcome::Continue);
        assert_eq!(pci.write(0, &0x8000_0000u32.to_le_bytes()), Outcome::Continue);
        pci.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
    }

    #[test]
    fn there_is_no_device_and_no_access_is_harmful() {
        let mut pci = PciConfig::default();
        for offset in [0, 1, 3, 4, 6, 7, u16::MAX] {
            for len in [0, 1, 2, 4] {
                assert_eq!(pci.write(offset, &[0xff; 4][..len]), Outcome::Continue);
                let mut data = [0; 4];
                pci.read(offset, &mut data[..len]);
                let kept = offset == 0 && len == 4;
                assert_eq!(data[..len] == [0xff; 4][..len], !kept || len == 0);
            }
        }
    }
}
