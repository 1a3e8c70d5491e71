//! ACPI tables: how a stock kernel finds the virtio devices, its CPUs, the serial line, and the way to turn off.
//!
//! Hardware-reduced ACPI (ACPI 6.5 §4.1): no SCI, no PM timer, no fixed events, no legacy PIC and timer. The tables are
//! data for the guest only; this module runs none of their code. Not here: PCI, power buttons, hotplug.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::layout::{self, Slot};

const OEM: [u8; 6] = *b"MTCHLK";
const OEM_TABLE: [u8; 8] = *b"MATCHVMM";
const OEM_REVISION: u32 = 1;
/// Length of the header of a system description table.
const SDT_HEADER: u32 = 36;

/// ACPI 6.5 table 5.10: "VGA Not Present", "CMOS RTC Not Present". A kernel that reads these flags takes the time from
/// its hypervisor clock and polls no ports.
const IAPC_BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// The tables, the RSDP first, for a guest that finds them at `base`.
#[must_use]
pub(super) fn tables(base: u64, vcpus: u8, devices: &[Slot]) -> Vec<u8> {
    // Every address is relative to `base`. The RSDP's place is kept free until the XSDT has an address.
    let mut blob = vec![0; Rsdp::len()];
    let dsdt = append(&mut blob, base, &dsdt(devices));
    let fadt = append(&mut blob, base, &bytes(&fadt(dsdt)));
    let madt = append(&mut blob, base, &bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut blob, base, &bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    blob[..rsdp.len()].copy_from_slice(&rsdp);
    blob
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Appends a table and returns its guest address.
fn append(blob: &mut Vec<u8>, base: u64, table: &[u8]) -> u64 {
    blob.resize(blob.len().next_multiple_of(8), 0);
    let address = base + blob.len() as u64;
    blob.extend_from_slice(table);
    address
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    // Kernels look for buttons that are "present" as fixed hardware; these flags say that there are none (table 5.9).
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = IAPC_BOOT_ARCH.into();
    fadt.reset_reg = port(chipset::power::RESET_PORT);
    fadt.reset_value = chipset::power::RESET_VALUE;
    fadt.sleep_control_reg = port(chipset::power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(chipset::power::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local_apic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(devices: &[Slot]) -> Vec<u8> {
    let mut aml = Vec::new();
    // ACPI 6.5 §7.4.2.6: the first element is the value for SLP_TYP.
    let s5 = Package::new(vec![&chipset::power::SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml);
    let devices: Vec<_> = devices.iter().zip(0u8..).map(|(slot, index)| VirtioMmio { slot, index }).collect();
    let mut children: Vec<&dyn Aml> = vec![&Serial];
    children.extend(devices.iter().map(|device| device as &dyn Aml));
    Scope::new("_SB_".into(), children).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

struct VirtioMmio<'a> {
    slot: &'a Slot,
    index: u8,
}

impl Aml for VirtioMmio<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        #[allow(clippy::cast_possible_truncation, reason = "the hole is below 4 GiB")]
        let registers = Memory32Fixed::new(true, self.slot.window as u32, layout::VIRTIO_WINDOW as u32);
        let interrupt = Interrupt::new(true, true, false, false, self.slot.irq.0);
        let path: Path = format!("VR{:02X}", self.index).as_str().into();
        Device::new(
            path,
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.index),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct Serial;

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ.0);
        let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8);
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &0u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt, &ports])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::process::Command;

    const BASE: u64 = layout::ACPI_TABLES.0;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at a guest address, its checksum verified.
    fn table(blob: &[u8], address: u64) -> (String, &[u8]) {
        let table = &blob[usize::try_from(address - BASE).unwrap()..];
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(sum(table), 0);
        (String::from_utf8(table[..4].to_vec()).unwrap(), table)
    }

    /// Follows the pointers as a kernel does: RSDP, XSDT, FADT, DSDT.
    fn walk(blob: &[u8]) -> Vec<(String, &[u8])> {
        assert_eq!(&blob[..8], b"RSD PTR ");
        assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0));
        let xsdt = table(blob, u64_at(blob, 24));
        assert_eq!(xsdt.0, "XSDT");
        let mut tables: Vec<_> = xsdt.1[36..].chunks(8).map(|entry| table(blob, u64_at(entry, 0))).collect();
        assert_eq!(tables[0].0, "FACP");
        tables.push(table(blob, u64_at(tables[0].1, 140)));
        tables
    }

    #[test]
    fn a_kernel_finds_every_table() {
        let slots: Vec<_> = layout::slots().collect();
        let blob = tables(BASE, 32, &slots);
        assert!((blob.len() as u64) < layout::ACPI_TABLES_MAX);
        let names: Vec<_> = walk(&blob).into_iter().map(|table| table.0).collect();
        assert_eq!(names, ["FACP", "APIC", "DSDT"]);
    }

    #[test]
    fn every_cpu_is_listed_with_the_io_apic() {
        let blob = tables(BASE, 3, &[]);
        let madt = &walk(&blob)[1].1[44..];
        assert_eq!(madt.len(), 3 * 8 + 12);
        for id in 0..3u8 {
            assert_eq!(madt[usize::from(id) * 8..][..8], [0, 8, id, id, 1, 0, 0, 0]);
        }
        assert_eq!((madt[24], u32_at(madt, 28), u32_at(madt, 32)), (1, layout::IO_APIC, 0));
    }

    #[test]
    fn the_fixed_table_says_hardware_reduced_and_where_to_turn_off() {
        let blob = tables(BASE, 1, &[]);
        let fadt = walk(&blob)[0].1;
        assert_ne!(u32_at(fadt, 112) & 1 << 20, 0);
        assert_eq!(u64_at(fadt, 120), u64::from(chipset::power::RESET_PORT));
        assert_eq!(u64_at(fadt, 248), u64::from(chipset::power::SLEEP_CONTROL_PORT));
        assert_eq!(u64_at(fadt, 260), u64::from(chipset::power::SLEEP_STATUS_PORT));
    }

    /// Reads the tables a second time, by ACPICA itself.
    #[test]
    fn the_reference_disassembler_reads_the_devices() {
        if Command::new("iasl").arg("-v").output().is_err() {
            skip::skip("iasl", "iasl (package acpica-tools) is not installed");
            return;
        }
        let slots: Vec<_> = layout::slots().collect();
        let dir = std::env::temp_dir().join(format!("matchlock-acpi-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        for (name, bytes) in walk(&tables(BASE, 2, &slots)) {
            let file = dir.join(name.to_lowercase() + ".dat");
            std::fs::write(&file, bytes).unwrap();
            let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !text.contains("Error"), "{name}: {text}");
        }
        let source = std::fs::read_to_string(dir.join("dsdt.dsl")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(source.matches("LNRO0005").count(), slots.len());
        for slot in slots {
            assert!(source.contains(&format!("0x{:08X},         // Address Base", slot.window)), "{slot:x?}");
            assert!(source.contains(&format!("0x{:08X},\n", slot.irq.0)), "{slot:x?}");
        }
        assert!(source.contains("Edge, ActiveHigh, Exclusive"));
        assert!(source.contains("0x03F8,             // Range Minimum"));
    }
}
