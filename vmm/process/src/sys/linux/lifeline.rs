//! The lifeline of a process whose other threads may be busy.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::Channel;

/// Stack of the thread. Only touched pages take memory.
const STACK: usize = 64 << 10;

/// Ends this process with `status` as soon as the parent hangs up, whatever its other threads are doing. Messages that
/// the parent sent before are not waited for, and this thread receives none.
///
/// When this function returns, the thread has made all system calls of a thread's start: the process may confine
/// itself.
pub fn exit_on_hang_up(channel: &Channel, status: u8) -> io::Result<()> {
    let socket = channel.as_fd().try_clone_to_owned()?;
    let (begin, begun) = mpsc::channel();
    let wait = move || {
        drop(begin);
        // poll(2) always reports POLLHUP; other events are for another thread.
        while let Ok(0) | Err(Errno::INTR) = poll(&mut [PollFd::new(&socket, PollFlags::empty())], None) {}
        // The standard library's exit would wait in pause(2) if another thread is already ending the process.
        // SAFETY: `_exit` does not return, runs no handler, and touches no memory.
        unsafe { libc::_exit(status.into()) }
    };
    thread::Builder::new().name("lifeline".to_owned()).stack_size(STACK).spawn(wait)?;
    // The other end of this channel is dropped, never used.
    let _: Result<(), _> = begun.recv();
    Ok(())
}
