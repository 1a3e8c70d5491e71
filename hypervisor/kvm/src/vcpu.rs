//! A vCPU: the run loop and the completion of port and MMIO accesses.

use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;

use hypervisor::{Error, Result, Vcpu, VcpuIo, VcpuSeed, VcpuStop};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch::{self, ports};
use crate::kick::Kick;
use crate::vm::Slots;

/// Most accesses that one instruction may still make after the write that stopped the machine. A string instruction may
/// want more; nobody runs the vCPU again to notice that they are missing.
const FINISH_LIMIT: usize = 64;

/// A vCPU that has no thread yet.
#[derive(Debug)]
pub struct KvmSeed {
    fd: VcpuFd,
    kick: Arc<Kick>,
    slots: Slots,
}

impl KvmSeed {
    pub(crate) fn new(fd: VcpuFd, kick: Arc<Kick>, slots: Slots) -> Self {
        Self { fd, kick, slots }
    }
}

impl VcpuSeed for KvmSeed {
    type Vcpu = KvmVcpu;

    fn bind(self) -> Result<KvmVcpu> {
        self.kick.bind().map_err(|source| Error::Host { operation: "unblocking the kick signal", source })?;
        Ok(KvmVcpu { fd: self.fd, kick: self.kick, _slots: self.slots, _bound: PhantomData })
    }
}

/// A vCPU that is bound to its thread.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    kick: Arc<Kick>,
    /// The memory slots, which outlive `fd`: the kernel's machine may live as long as that descriptor.
    _slots: Slots,
    /// Keeps the vCPU on the thread that bound it, the thread that kicks signal.
    _bound: PhantomData<*const ()>,
}

/// The outcome of one `KVM_RUN`.
enum Step {
    /// The access is served; the vCPU goes on.
    Done,
    /// No access is pending, and something asks for the vCPU's attention.
    Interrupted,
    /// A write stops the machine; the instruction that wrote is not finished.
    Write(VcpuStop),
    /// The vCPU cannot go on.
    Stop(VcpuStop),
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &mut impl VcpuIo) -> VcpuStop {
        loop {
            match self.step(io) {
                Step::Done => {}
                Step::Interrupted if self.kick.take() => return VcpuStop::Kicked,
                Step::Interrupted => {}
                Step::Write(stop) => {
                    self.finish(io);
                    return stop;
                }
                Step::Stop(stop) => return stop,
            }
        }
    }
}

impl KvmVcpu {
    /// Enters the guest once and serves the access for which it exits.
    fn step(&mut self, io: &mut impl VcpuIo) -> Step {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                ports::write(io, port, data, self.kick.port_width()).map_or(Step::Done, Step::Write)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                ports::read(io, port, data, self.kick.port_width());
                Step::Done
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                for (offset, len) in pieces(data.len()) {
                    io.mmio_read(address + offset as u64, &mut data[offset..offset + len]);
                }
                Step::Done
            }
            Ok(VcpuExit::MmioWrite(address, data)) => pieces(data.len())
                .map(|(offset, len)| io.mmio_write(address + offset as u64, &data[offset..offset + len]))
                .find_map(ControlFlow::break_value)
                .map_or(Step::Done, Step::Write),
            Ok(VcpuExit::Hlt) => Step::Stop(VcpuStop::Halted),
            // Intel SDM vol. 3C §25.2: a triple fault is a VM exit; on a board it pulls the reset line.
            Ok(VcpuExit::Shutdown) => Step::Stop(VcpuStop::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Step::Stop(VcpuStop::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Step::Stop(VcpuStop::Reset),
            Ok(VcpuExit::SystemEvent(event, _)) => self.crashed(format!("KVM system event {event}")),
            Ok(VcpuExit::Intr) => Step::Interrupted,
            Ok(VcpuExit::InternalError) => {
                let what = self.internal_error();
                self.crashed(what)
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                self.crashed(format!("hardware refused to enter the guest on CPU {cpu}, reason {reason:#x}"))
            }
            Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
                self.crashed(format!("host has no memory for guest address {gpa:#x}, {size} bytes"))
            }
            Ok(other) => {
                let what = format!("unexpected KVM exit {other:?}");
                self.crashed(what)
            }
            Err(error) => match error.errno() {
                libc::EINTR => Step::Interrupted,
                // An application processor received its INIT or SIPI; the next KVM_RUN goes on from there.
                libc::EAGAIN => Step::Done,
                _ => self.crashed(format!("KVM_RUN: {}", std::io::Error::from(error))),
            },
        }
    }

    /// Completes the instruction that stopped the machine, so that no access is pending. The first reason for the stop
    /// counts.
    fn finish(&mut self, io: &mut impl VcpuIo) {
        self.kick.finish_only();
        for _ in 0..FINISH_LIMIT {
            match self.step(io) {
                Step::Done | Step::Write(_) => {}
                // The next run finds `immediate_exit` set, and that no kick set it.
                Step::Interrupted | Step::Stop(_) => break,
            }
        }
    }

    fn crashed(&self, what: String) -> Step {
        let place = arch::place(&self.fd).map_or_else(String::new, |place| format!(" at {place}"));
        Step::Stop(VcpuStop::Crashed(what + &place))
    }

    fn internal_error(&mut self) -> String {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason says that KVM filled in this member of the union; any bytes are valid for it.
        let error = unsafe { run.__bindgen_anon_1.internal };
        let name = match error.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "emulation",
            KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "event delivery",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
            _ => "unknown",
        };
        let mut text = format!("KVM internal error {} ({name})", error.suberror);
        let flagged = error.data[0] & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION && error.ndata >= 3 && flagged {
            // After the flags come one byte that counts the instruction's bytes, then the bytes themselves.
            let bytes: Vec<u8> = error.data[1..3].iter().flat_map(|word| word.to_ne_bytes()).collect();
            let code = &bytes[1..][..usize::from(bytes[0]).min(bytes.len() - 1)];
            text += &format!(", instruction {code:02x?}");
        }
        text
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.unbind();
    }
}

/// Cuts an access into pieces of 8, 4, 2 or 1 bytes: an access that crosses a page arrives as two accesses of any
/// length.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let piece = 1 << (len - offset).checked_ilog2()?;
        offset += piece;
        Some((offset - piece, piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_cut_into_powers_of_two() {
        let cut = |len| pieces(len).collect::<Vec<_>>();
        assert_eq!(cut(0), []);
        assert_eq!(cut(1), [(0, 1)]);
        assert_eq!(cut(3), [(0, 2), (2, 1)]);
        assert_eq!(cut(7), [(0, 4), (4, 2), (6, 1)]);
        assert_eq!(cut(8), [(0, 8)]);
    }
}
