//! Hand-assembled guests: 32-bit code without paging, in an ELF file with a PVH note.
//!
//! These guests run on any KVM, also on one without hardware virtualization, which cannot run a stock kernel. Not here:
//! the tests that use them.

/// Address at which the code is loaded and starts.
const LOAD_AT: u32 = 0x10_0000;

/// The code of a guest, built one instruction at a time.
#[derive(Default)]
pub(crate) struct Guest(Vec<u8>);

impl Guest {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Writes a byte to a port.
    pub(crate) fn out(mut self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; mov al, value; out dx, al
        self.0.extend([0x66, 0xba, low, high, 0xb0, value, 0xee]);
        self
    }

    /// Writes text to the serial line.
    pub(crate) fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |guest, byte| guest.out(0x3f8, byte))
    }

    /// Reads a 32-bit word and writes its bytes to the serial line, the lowest first.
    pub(crate) fn print_word_at(mut self, address: u32) -> Self {
        // mov eax, [address]; mov dx, 0x3f8
        self.0.push(0xa1);
        self.0.extend(address.to_le_bytes());
        self.0.extend([0x66, 0xba, 0xf8, 0x03]);
        for _ in 0..4 {
            // out dx, al; shr eax, 8
            self.0.extend([0xee, 0xc1, 0xe8, 0x08]);
        }
        self
    }

    /// Writes a 32-bit word.
    pub(crate) fn write_word(mut self, address: u32, value: u32) -> Self {
        // mov dword [address], value
        self.0.extend([0xc7, 0x05]);
        self.0.extend([address, value].map(u32::to_le_bytes).concat());
        self
    }

    /// Waits until a 32-bit word is not zero.
    pub(crate) fn wait_for_word(mut self, address: u32) -> Self {
        // cmp dword [address], 0; je to the cmp
        self.0.extend([0x83, 0x3d]);
        self.0.extend(address.to_le_bytes());
        self.0.extend([0x00, 0x74, 0xf7]);
        self
    }

    /// Ends the code with a power-off by ACPI's register.
    pub(crate) fn power_off(self) -> Vec<u8> {
        self.out(chipset::power::SLEEP_CONTROL_PORT, chipset::power::SLEEP_TYPE_S5 << 2 | 1 << 5).spin()
    }

    /// Ends the code with a reset by ACPI's register.
    pub(crate) fn reset(self) -> Vec<u8> {
        self.out(chipset::power::RESET_PORT, chipset::power::RESET_VALUE).spin()
    }

    /// Ends the code with an endless loop.
    pub(crate) fn spin(mut self) -> Vec<u8> {
        self.0.extend([0xeb, 0xfe]);
        elf(&self.0)
    }

    /// Ends the code with an endless loop that writes a byte to the serial line.
    pub(crate) fn chatter(mut self) -> Vec<u8> {
        // mov dx, 0x3f8; mov al, '.'; out dx, al; jmp to the out
        self.0.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfd]);
        elf(&self.0)
    }

    /// Ends the code with a triple fault.
    pub(crate) fn triple_fault(mut self) -> Vec<u8> {
        // lidt [an empty table]; ud2
        let table = LOAD_AT + 0x1000;
        self.0.extend([0x0f, 0x01, 0x1d]);
        self.0.extend(table.to_le_bytes());
        self.0.extend([0x0f, 0x0b]);
        elf(&self.0)
    }
}

/// An ELF file that loads `code` and a page of zeroes behind the code. The PVH entry is the code's first byte.
fn elf(code: &[u8]) -> Vec<u8> {
    let segment = |kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64| {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(5u32.to_le_bytes());
        for field in [offset, address, address, in_file, in_memory, 4] {
            header.extend(field.to_le_bytes());
        }
        header
    };
    let mut note = Vec::new();
    // Length of the name, length of the value, XEN_ELFNOTE_PHYS32_ENTRY.
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(LOAD_AT.to_le_bytes());
    let (headers, count) = (64u64, 2u16);
    let notes = headers + u64::from(count) * 56;
    let code_at = notes + note.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for field in [u64::from(LOAD_AT), headers, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for field in [64u16, 56, count, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    let size = code.len() as u64;
    file.extend(segment(1, code_at, LOAD_AT.into(), size, 0x2000));
    file.extend(segment(4, notes, 0, note.len() as u64, note.len() as u64));
    file.extend(note);
    file.extend(code);
    file
}
