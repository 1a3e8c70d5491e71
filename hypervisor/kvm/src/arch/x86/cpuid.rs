//! The guest's CPUID: every feature that KVM supports, with a topology of one package and one thread per core.
//!
//! Leaf numbers and fields: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const VENDOR: u32 = 0;
const FEATURES: u32 = 1;
const INTEL_CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
/// Leaves that repeat [`TOPOLOGY`] in more detail. They are left out, so that the topology is told once.
const OTHER_TOPOLOGY: [u32; 2] = [0x1f, 0x8000_0026];
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// A field of a register.
struct Field {
    low: u32,
    bits: u32,
}

impl Field {
    const fn new(low: u32, bits: u32) -> Self {
        Self { low, bits }
    }

    fn get(&self, register: u32) -> u32 {
        (register >> self.low) & ((1 << self.bits) - 1)
    }

    fn set(&self, register: &mut u32, value: u32) {
        let mask = (1 << self.bits) - 1;
        *register = (*register & !(mask << self.low)) | ((value & mask) << self.low);
    }
}

/// The CPUID table of vCPU `index` of `vcpus`; the vCPU's APIC id is its index.
pub(super) fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    index: u8,
    vcpus: u8,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let leaf = |function| supported.iter().find(|entry| entry.function == function);
    let amd = leaf(VENDOR).is_some_and(|entry| matches!(&entry.ebx.to_le_bytes(), b"Auth" | b"Hygo"));
    let has_topology = leaf(VENDOR).is_some_and(|entry| entry.eax >= TOPOLOGY);

    let replaced =
        |entry: &&kvm_cpuid_entry2| entry.function != TOPOLOGY && !OTHER_TOPOLOGY.contains(&entry.function);
    let mut table: Vec<_> = supported.iter().filter(replaced).copied().collect();
    let chip = Chip { index: index.into(), vcpus: vcpus.into(), amd, tsc_deadline };
    table.iter_mut().for_each(|entry| chip.adjust(entry));
    if has_topology {
        table.extend(chip.topology());
    }
    table
}

struct Chip {
    index: u32,
    vcpus: u32,
    amd: bool,
    tsc_deadline: bool,
}

impl Chip {
    /// Bits of an APIC id that tell the package's cores apart.
    fn core_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().ilog2()
    }

    fn adjust(&self, entry: &mut kvm_cpuid_entry2) {
        let several = u32::from(self.vcpus > 1);
        match entry.function {
            FEATURES => {
                const HYPERVISOR: Field = Field::new(31, 1);
                const TSC_DEADLINE: Field = Field::new(24, 1);
                const HTT: Field = Field::new(28, 1);
                Field::new(24, 8).set(&mut entry.ebx, self.index);
                Field::new(16, 8).set(&mut entry.ebx, 1 << self.core_bits());
                HYPERVISOR.set(&mut entry.ecx, 1);
                TSC_DEADLINE.set(&mut entry.ecx, u32::from(self.tsc_deadline));
                // "The value in EBX[23:16] is valid": more than one logical processor in the package.
                HTT.set(&mut entry.edx, several);
            }
            INTEL_CACHES if !self.amd => {
                self.share_cache(entry);
                if Field::new(0, 5).get(entry.eax) != 0 {
                    // EAX[31:26]: addressable ids of cores in the package, minus 1; at most 64 fit.
                    Field::new(26, 6).set(&mut entry.eax, (1u32 << self.core_bits()).min(64) - 1);
                }
            }
            AMD_FEATURES if self.amd => {
                const CMP_LEGACY: Field = Field::new(1, 1);
                CMP_LEGACY.set(&mut entry.ecx, several);
            }
            AMD_SIZES if self.amd => {
                Field::new(0, 8).set(&mut entry.ecx, self.vcpus - 1);
                Field::new(12, 4).set(&mut entry.ecx, self.core_bits());
            }
            AMD_CACHES if self.amd => self.share_cache(entry),
            AMD_TOPOLOGY if self.amd => {
                entry.eax = self.index;
                // EBX: core id, and threads per core minus 1. ECX: one node, number 0.
                entry.ebx = self.index & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Levels 1 and 2 belong to a core, level 3 to the package.
    fn share_cache(&self, entry: &mut kvm_cpuid_entry2) {
        if Field::new(0, 5).get(entry.eax) == 0 {
            return;
        }
        let sharing = if Field::new(5, 3).get(entry.eax) < 3 { 1 } else { 1 << self.core_bits() };
        Field::new(14, 12).set(&mut entry.eax, sharing - 1);
    }

    /// Leaf 0Bh: a thread level with one thread, a core level with all cores.
    fn topology(&self) -> [kvm_cpuid_entry2; 2] {
        let level = |index, kind: u32, shift, processors| kvm_cpuid_entry2 {
            function: TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: (kind << 8) | index,
            edx: self.index,
            ..Default::default()
        };
        [level(0, 1, 0, 1), level(1, 2, self.core_bits(), self.vcpus)]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn get(table: &[kvm_cpuid_entry2], function: u32) -> [u32; 4] {
        let found: Vec<_> = table.iter().filter(|entry| entry.function == function).collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}");
        [found[0].eax, found[0].ebx, found[0].ecx, found[0].edx]
    }

    fn host(vendor: &[u8; 4]) -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, [0x1f, u32::from_le_bytes(*vendor), 0, 0]),
            // A host CPU with APIC id 0x7f, 64 logical processors, an 8-byte-times-8 CLFLUSH, no hypervisor bit.
            entry(1, [0, 0x7f40_0800, 0x0000_0001, 1 << 28]),
            // Level 1 and level 3, shared by 2 and 64, 32 cores.
            entry(4, [0x21 | 1 << 14 | 31 << 26, 1, 2, 3]),
            entry(0xb, [1, 2, 0x100, 0x7f]),
            entry(0x1f, [1, 2, 0x100, 0x7f]),
            entry(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            entry(0x8000_0001, [0, 0, 2, 0]),
            entry(0x8000_0008, [0x3030, 0, 6 << 12 | 63, 0]),
            entry(0x8000_001d, [0x63 | 63 << 14, 0, 0, 0]),
            entry(0x8000_001e, [0x7f, 0x13f, 0x701, 0]),
            entry(0x8000_0026, [1, 1, 1, 1]),
        ]
    }

    #[test]
    fn one_vcpu_is_alone() {
        let table = for_vcpu(&host(b"Genu"), 0, 1, false);
        assert_eq!(get(&table, 1), [0, 0x0001_0800, 0x8000_0001, 0]);
        assert_eq!(get(&table, 4), [0x21, 1, 2, 3]);
    }

    #[test]
    fn vcpus_are_cores_of_one_package() {
        let table = for_vcpu(&host(b"Genu"), 2, 3, true);
        assert_eq!(get(&table, 1), [0, 0x0204_0800, 0x8100_0001, 1 << 28]);
        assert_eq!(get(&table, 4), [0x21 | 3 << 26, 1, 2, 3]);
        let levels: Vec<_> = table.iter().filter(|entry| entry.function == 0xb).collect();
        assert_eq!(
            levels.iter().map(|l| (l.index, l.eax, l.ebx, l.ecx, l.edx)).collect::<Vec<_>>(),
            [(0, 0, 1, 0x100, 2), (1, 2, 3, 0x201, 2),]
        );
        // An Intel host has none of AMD's fields.
        assert_eq!(get(&table, 0x8000_0001)[2], 2);
        assert_eq!(get(&table, 0x8000_0008)[2], 6 << 12 | 63);
    }

    #[test]
    fn amd_says_it_in_its_own_leaves() {
        let table = for_vcpu(&host(b"Auth"), 1, 2, true);
        assert_eq!(get(&table, 0x8000_0001)[2], 2);
        assert_eq!(get(&table, 0x8000_0008)[2], 1 << 12 | 1);
        assert_eq!(get(&table, 0x8000_001d)[0], 0x63 | 1 << 14);
        assert_eq!(get(&table, 0x8000_001e), [1, 1, 0, 0]);
        assert_eq!(get(&for_vcpu(&host(b"Auth"), 0, 1, true), 0x8000_0001)[2], 0);
    }

    #[test]
    fn there_is_one_topology_and_the_signature_stays() {
        let table = for_vcpu(&host(b"Auth"), 0, 1, true);
        assert!(table.iter().all(|entry| entry.function != 0x1f && entry.function != 0x8000_0026));
        assert_eq!(get(&table, 0x4000_0000), [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        let mut old = host(b"Genu");
        old[0].eax = 4;
        assert!(for_vcpu(&old, 0, 1, true).iter().all(|entry| entry.function != 0xb));
    }
}
