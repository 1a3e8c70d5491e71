//! Guests of a few instructions, as PVH kernels: 32-bit code, flat segments, paging off.

/// The serial port's data register.
const SERIAL: [u8; 2] = 0x3f8u16.to_le_bytes();
/// QEMU hw/i386/microvm.h, `GED_MMIO_BASE_REGS`: the sleep control register.
const SLEEP_CONTROL: [u8; 4] = 0xfea0_0200u32.to_le_bytes();
/// ACPI 6.5 §4.8.3.7: SLP_EN, and SLP_TYP 5 (QEMU's S5).
const POWER_OFF: u8 = 0x20 | 5 << 2;
/// Address at which the kernel is loaded and begins.
const LOAD: u32 = 0x10_0000;
/// More bytes than a pipe holds.
const MUCH: [u8; 4] = 200_000u32.to_le_bytes();

/// A guest's behaviour after it has written `up` to its console.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Guest {
    Halt,
    PowerOff,
    Reset,
    Chatter,
    ChatterThenPowerOff,
    /// For each round of the host's: stores its number, passes a barrier, loads the number that the host stored.
    Crossing,
}

/// The place where [`Guest::Crossing`] and its host meet.
pub(crate) const MEETING: u32 = 0x20_0080;

/// The words at [`MEETING`], as distances from there. Words that one side writes share no cache line with words that
/// the other side writes.
pub(crate) mod word {
    /// Written by the host: the round that may begin.
    pub(crate) const TURN: i8 = -128;
    /// Written by the guest: the round.
    pub(crate) const GUEST: i8 = -64;
    /// Written by the host: the round.
    pub(crate) const HOST: i8 = 0;
    /// Written by the guest: the host's round as the guest saw it.
    pub(crate) const SEEN: i8 = 64;
    /// Written by the guest: the round that is over.
    pub(crate) const DONE: i8 = 68;
}

impl Guest {
    fn code(self) -> Vec<u8> {
        let [low, high] = SERIAL;
        // mov dx, SERIAL
        let mut code = vec![0x66, 0xba, low, high];
        for byte in *b"up\n" {
            // mov al, byte; out dx, al
            code.extend([0xb0, byte, 0xee]);
        }
        // mov byte [SLEEP_CONTROL], POWER_OFF
        let power_off = [[0xc6, 0x05].as_slice(), &SLEEP_CONTROL, &[POWER_OFF]].concat();
        match self {
            Self::Halt => {}
            Self::PowerOff => code.extend(power_off),
            // push 0; push 0; lidt [esp]; int3: a trap without a handler, three times
            Self::Reset => code.extend([0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0xcc]),
            // out dx, al; jmp -3
            Self::Chatter => code.extend([0xee, 0xeb, 0xfd]),
            Self::ChatterThenPowerOff => {
                // mov ecx, MUCH
                code.push(0xb9);
                code.extend(MUCH);
                // out dx, al; loop -3
                code.extend([0xee, 0xe2, 0xfd]);
                code.extend(power_off);
            }
            Self::Crossing => code.extend(crossing()),
        }
        // cli; hlt; jmp -3
        code.extend([0xfa, 0xf4, 0xeb, 0xfd]);
        code
    }

    /// A 32-bit ELF file with the PVH note.
    pub(crate) fn elf(self) -> Vec<u8> {
        const HEADERS: u32 = 52 + 2 * 32;
        let code = self.code();
        // Name length, descriptor length, XEN_ELFNOTE_PHYS32_ENTRY, "Xen", the entry.
        let note =
            [4u32.to_le_bytes(), 4u32.to_le_bytes(), 18u32.to_le_bytes(), *b"Xen\0", LOAD.to_le_bytes()]
                .concat();
        let (note_len, code_len) = (u32::try_from(note.len()).unwrap(), u32::try_from(code.len()).unwrap());
        let halves = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(halves(&[2, 3]));
        file.extend(words(&[1, LOAD, 52, 0, 0]));
        file.extend(halves(&[52, 32, 2, 40, 0, 0]));
        // PT_NOTE, then PT_LOAD with both.
        file.extend(words(&[4, HEADERS, LOAD + 0x1000, LOAD + 0x1000, note_len, note_len, 4, 4]));
        file.extend(words(&[1, HEADERS + note_len, LOAD, LOAD, code_len, code_len, 7, 0x1000]));
        file.extend(note);
        file.extend(code);
        file
    }
}

fn crossing() -> Vec<u8> {
    let at = i8::cast_unsigned;
    [
        // mov esi, MEETING; mov esp, esi; mov ecx, 1
        [[0xbe].as_slice(), &MEETING.to_le_bytes(), &[0x89, 0xf4, 0xb9, 1, 0, 0, 0]].concat(),
        // cmp [esi + TURN], ecx; jne -5
        vec![0x39, 0x4e, at(word::TURN), 0x75, 0xfb],
        // mov [esi + GUEST], ecx
        vec![0x89, 0x4e, at(word::GUEST)],
        // lock add dword [esp - 4], 0: what Linux takes for a barrier on x86
        vec![0xf0, 0x83, 0x44, 0x24, 0xfc, 0],
        // mov eax, [esi + HOST]; mov [esi + SEEN], eax
        vec![0x8b, 0x46, at(word::HOST), 0x89, 0x46, at(word::SEEN)],
        // mov [esi + DONE], ecx; inc ecx; jmp -26
        vec![0x89, 0x4e, at(word::DONE), 0x41, 0xeb, 0xe6],
    ]
    .concat()
}
