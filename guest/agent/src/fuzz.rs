//! The fuzz body for the beginning of a service stream: any bytes of the host's are pings and a request, or an end.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here: the
//! requests' effects, which are no function of bytes (`tests/hostile.rs`).

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use guest_protocol::frame::{self, Kind, Splitter};
use guest_protocol::{Pong, Reply};

use crate::service;

/// Longest script: the pongs must fit into the socket, as nobody reads them before the end.
const MAX_BYTES: usize = 700;

/// Reads a stream's first bytes. Every ping before the request has its pong, and nothing else is sent.
pub fn first_request(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BYTES)];
    let Ok((agent, mut host)) = UnixStream::pair() else { return };
    if host.write_all(data).and_then(|()| host.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let requested = service::first_request(agent.as_fd());
    drop(agent);
    let (mut said, mut pongs) = (Vec::new(), Splitter::default());
    // The read ends with a reset if the agent did not read every byte.
    let _ = host.read_to_end(&mut said);
    pongs.push(&said);
    let mut count = 0;
    while let Ok(Some((kind, payload))) = pongs.next_frame() {
        assert_eq!((kind, frame::decode(payload)), (Kind::Message, Ok(Reply::Ok(Pong))));
        count += 1;
    }
    assert!(pongs.at_boundary() && count <= data.len() / frame::HEAD, "{count} pongs");
    if let Ok(Some((request, ..))) = requested {
        assert_ne!(request, guest_protocol::Request::Ping, "a ping is no request");
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::{FileRequest, ProgramControl, Request, TerminalSize};

    use super::*;

    #[test]
    fn first_request() {
        let request = |request: Request| frame::encode(&request).unwrap_or_default();
        let list = request(Request::File(FileRequest::List { path: "/".into() }));
        let ping = request(Request::Ping);
        let size = TerminalSize { rows: 24, cols: 80 };
        let examples = [
            [&ping[..], &ping, &list, b"more"].concat(),
            request(Request::Connect { port: 80 }),
            [&ping[..], &frame::encode(&ProgramControl::Resize(size)).unwrap_or_default()].concat(),
        ];
        fuzzed::run(
            "guest_agent_first_request",
            2000,
            &examples,
            &["\0\x02\0\0\0\0\0"],
            super::first_request,
        );
    }
}
