//! A connected stream, one end of which is still to be accepted.
//!
//! Some servers take a listener and nothing else. Such a server gets a listener that has no name in any file system and
//! exactly one connection waiting, whose other end this process holds.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen, socket_with,
};

/// Makes a listener with one connection waiting to be accepted, and the other end of that connection.
///
/// No other connection can be accepted first: the listener has room for one, and this one is in it. Another user who
/// sees the listener's abstract name may be quicker to connect; then the next listener has another name.
pub fn accept_pair() -> io::Result<(UnixListener, UnixStream)> {
    let mut tries = 0..MAX_TRIES;
    loop {
        match attempt(|_| ()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries.next().is_some() => {}
            made => return made,
        }
    }
}

/// How often another user may be quicker, within a few microseconds, before the attempts end.
const MAX_TRIES: u32 = 1000;

/// Makes a pair. The error is `WouldBlock` if another user was quicker to connect. `between` runs before this process
/// connects.
fn attempt(between: impl FnOnce(&OwnedFd)) -> io::Result<(UnixListener, UnixStream)> {
    let listener = stream_socket(SocketFlags::empty())?;
    // unix(7): "If a bind(2) call specifies addrlen as sizeof(sa_family_t) […] then the socket is autobound to an
    // abstract address."
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    listen(&listener, 0)?;
    between(&listener);
    let connection = stream_socket(SocketFlags::NONBLOCK)?;
    // Without room this call fails with EAGAIN, because the socket does not wait.
    connect(&connection, &getsockname(&listener)?)?;
    let connection = UnixStream::from(connection);
    connection.set_nonblocking(false)?;
    Ok((UnixListener::from(listener), connection))
}

fn stream_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | flags, None)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn somebody_who_is_quicker_is_never_the_one_accepted() {
        let mut intruders = Vec::new();
        let error = attempt(|listener| {
            let intruder = stream_socket(SocketFlags::NONBLOCK).unwrap();
            connect(&intruder, &getsockname(listener).unwrap()).unwrap();
            intruders.push(intruder);
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(intruders.len(), 1);
    }

    #[test]
    fn the_connection_waiting_is_ours_and_there_is_room_for_no_other() {
        let (listener, mut ours) = accept_pair().unwrap();
        let intruder = stream_socket(SocketFlags::NONBLOCK).unwrap();
        let refused = connect(&intruder, &getsockname(&listener).unwrap()).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::AGAIN);
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(b"ping").unwrap();
        drop(ours);
        let mut word = String::new();
        theirs.read_to_string(&mut word).unwrap();
        assert_eq!(word, "ping");
    }
}
