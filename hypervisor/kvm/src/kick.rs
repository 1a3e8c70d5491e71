//! Making a vCPU return from `KVM_RUN`, whether it is inside, about to enter, or elsewhere.

use std::io;
use std::mem::offset_of;
use std::process;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering::SeqCst};

use hypervisor::Error;
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags};

/// Size of the mapping, which the kernel rounds up to whole host pages.
const SIZE: usize = size_of::<kvm_run>();

/// The signal that interrupts `KVM_RUN`. Its handler does nothing.
#[must_use]
pub fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs the handler of [`kick_signal`]. Other system calls that the signal interrupts are restarted.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: all zeroes is a valid sigaction: default handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialized and its handler, which does nothing, is async-signal-safe.
    match unsafe { libc::sigaction(kick_signal(), &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One vCPU's kick, shared by its thread and the threads that kick.
///
/// The value holds a mapping of its own of the page shared with KVM: kicks may come after the vCPU is gone, and
/// kvm-ioctls makes exclusive references to its own mapping.
#[derive(Debug)]
pub(crate) struct Kick {
    /// Raised by a kick, taken by the vCPU. `immediate_exit` cannot serve as this flag: the vCPU also sets
    /// `immediate_exit` for itself.
    requested: AtomicBool,
    /// The vCPU's thread; 0 while the vCPU has none.
    thread: AtomicI32,
    run: NonNull<kvm_run>,
}

// SAFETY: `run` is a mapping owned by this value, accessed atomically or (by the vCPU's thread alone) by volatile reads.
unsafe impl Send for Kick {}
// SAFETY: as for `Send`: every access to `run` is atomic or by the vCPU's thread alone.
unsafe impl Sync for Kick {}

impl Kick {
    pub(crate) fn new(vcpu: &VcpuFd) -> Result<Self, Error> {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: `vcpu` keeps its descriptor open for the length of this function.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address the kernel picks touches nothing that exists.
        let page = unsafe { rustix::mm::mmap(ptr::null_mut(), SIZE, prot, MapFlags::SHARED, fd, 0) };
        let page =
            page.map_err(|errno| Error::Host { operation: "mmap of kvm_run", source: errno.into() })?;
        let run = NonNull::new(page.cast()).ok_or(Error::Invalid("kvm_run mapped at 0"))?;
        Ok(Self { requested: AtomicBool::new(false), thread: AtomicI32::new(0), run })
    }

    /// Makes the vCPU stop with `Kicked`, once.
    ///
    /// The order matters: [`Kick::take`] clears `immediate_exit` before it looks at `requested`, so a kick that it does
    /// not see leaves `immediate_exit` set. A vCPU that is past KVM's check of `immediate_exit` is inside `KVM_RUN`,
    /// where the signal is pending at the latest when the vCPU enters the guest. If no thread is bound yet, the first
    /// `KVM_RUN` sees the page.
    pub(crate) fn kick(&self) -> io::Result<()> {
        self.requested.store(true, SeqCst);
        self.immediate_exit().store(1, SeqCst);
        let thread = self.thread.load(SeqCst);
        if thread == 0 {
            return Ok(());
        }
        // SAFETY: sends a signal whose handler is empty; at worst a reused thread id makes the signal wake another
        // thread.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, process::id(), thread, kick_signal()) };
        match sent {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                // The thread is gone, and its vCPU with it.
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Whether somebody has kicked since the last call. Afterwards `KVM_RUN` runs guest code until the next kick.
    pub(crate) fn take(&self) -> bool {
        self.immediate_exit().store(0, SeqCst);
        self.requested.swap(false, SeqCst)
    }

    /// Makes `KVM_RUN` finish the pending access and return before it runs guest code. The effect lasts until
    /// [`Kick::take`].
    pub(crate) fn finish_only(&self) {
        self.immediate_exit().store(1, SeqCst);
    }

    /// Makes the calling thread the one that kicks signal. The signal must not be blocked in this thread.
    pub(crate) fn bind(&self) -> io::Result<()> {
        let signal = kick_signal();
        vmm_sys_util::signal::unblock_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
        // SAFETY: `gettid` always succeeds and touches no memory.
        self.thread.store(unsafe { libc::gettid() }, SeqCst);
        Ok(())
    }

    /// Notes that the vCPU is gone, so that later kicks signal no thread.
    pub(crate) fn unbind(&self) {
        self.thread.store(0, SeqCst);
    }

    /// Bytes of one element of the port access that KVM just exited for.
    pub(crate) fn port_width(&self) -> usize {
        let size = self.byte(offset_of!(kvm_run, __bindgen_anon_1.io.size));
        // SAFETY: the field lies within the mapped `kvm_run`; KVM writes it only during `KVM_RUN`, and this thread is
        // not in that call.
        usize::from(unsafe { size.read_volatile() }).max(1)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the field lies within the mapped `kvm_run`, which outlives the reference; this process accesses the
        // field only atomically, and KVM only reads it.
        unsafe { AtomicU8::from_ptr(self.byte(offset_of!(kvm_run, immediate_exit))) }
    }

    fn byte(&self, offset: usize) -> *mut u8 {
        self.run.as_ptr().cast::<u8>().wrapping_add(offset)
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: `run` is the mapping made by `new`; no reference into it outlives a method of `self`.
        let _ = unsafe { rustix::mm::munmap(self.run.as_ptr().cast(), SIZE) };
    }
}
