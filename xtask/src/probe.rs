//! The marker program: the init of a measured guest.

/// The byte that the marker program writes to its console.
pub(crate) const MARKER: u8 = 0xa5;

/// A static x86-64 ELF program: write the marker to descriptor 1, then `reboot(RESTART)`.
pub(crate) fn marker_init() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: usize = 64 + 56;
    #[rustfmt::skip]
    let code: &[u8] = &[
        0x68, MARKER, 0, 0, 0,                    // push MARKER
        0xbf, 1, 0, 0, 0,                         // mov edi, 1
        0x48, 0x89, 0xe6,                         // mov rsi, rsp
        0xba, 1, 0, 0, 0,                         // mov edx, 1
        0xb8, 1, 0, 0, 0,                         // mov eax, 1 (write)
        0x0f, 0x05,                               // syscall
        0xbf, 0xad, 0xde, 0xe1, 0xfe,             // mov edi, LINUX_REBOOT_MAGIC1
        0xbe, 0x69, 0x19, 0x12, 0x28,             // mov esi, LINUX_REBOOT_MAGIC2
        0xba, 0x67, 0x45, 0x23, 0x01,             // mov edx, LINUX_REBOOT_CMD_RESTART
        0xb8, 169, 0, 0, 0,                       // mov eax, 169 (reboot)
        0x0f, 0x05,                               // syscall
        0xeb, 0xfe,                               // jmp .
    ];
    let size = (HEADERS + code.len()) as u64;
    let mut elf = Vec::with_capacity(HEADERS + code.len());
    // e_ident: 64-bit, little-endian, version 1; then type EXEC, machine x86-64, version 1
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for field in [BASE + HEADERS as u64, 64, 0] {
        elf.extend_from_slice(&field.to_le_bytes()); // entry, program headers, section headers
    }
    // flags, header size, program header size and count, section headers: none
    elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable
    elf.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for field in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(code);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    /// Run under an ordinary user's kernel, the program writes the marker, is refused the reset, and spins, so the test
    /// limits its processor time.
    #[test]
    fn the_marker_program_writes_the_marker() {
        if rustix::process::geteuid().is_root() {
            println!("SKIP the_marker_program_writes_the_marker: as root it would reset this host");
            return;
        }
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(&marker_init()).expect("write");
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o755)).expect("mode");
        let path = file.into_temp_path();
        let script = format!("ulimit -t 1; exec {}", path.display());
        let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh");
        assert_eq!(output.stdout, [MARKER]);
    }
}
