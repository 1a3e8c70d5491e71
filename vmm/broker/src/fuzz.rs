//! The fuzz body of what a supervisor that its guest has taken over asks of the process that stays root.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here: the
//! packets that requests come in (`process`).

use confinement::User;
use process::Channel;
use rustix::net::SendFlags;

use crate::requests::{Powers, Request};
use crate::server::Broker;

/// The longest request: an address with its port.
const LONGEST: usize = 32;

/// One request. It is none, or is refused, or says of processes that there are none.
pub fn requests(data: &[u8]) {
    let Ok((ours, theirs)) = Channel::pair() else { return };
    let packet = [&[0; 4], data].concat();
    if rustix::net::send(&theirs, &packet, SendFlags::DONTWAIT).is_err() {
        return;
    }
    let Ok(Some((request, descriptors))) = ours.try_recv::<Request>() else { return };
    let again = theirs.send(&request, &[]).and_then(|()| ours.try_recv::<Request>());
    let Ok(Some((again, _))) = again else { panic!("{request:?} cannot be said again") };
    assert_eq!(request, again);
    assert!(size_of_val(&request) <= LONGEST, "a request that holds a list");
    // A broker that may do nothing gets the requests that would have an effect on the host.
    let powers = match request {
        Request::Kill(_) | Request::Reap(_) => Powers::Sandbox,
        Request::DeleteInterface(_) => return,
        _ => Powers::TakeBack,
    };
    let mut broker = Broker::new(User { uid: 1, gid: 1, groups: Vec::new() }, powers);
    if broker.obey(again, descriptors, &ours).is_err() {
        panic!("{request:?} is not answered");
    }
    let answer = theirs.try_recv::<Result<(), (Option<i32>, String)>>();
    assert!(matches!(answer, Ok(Some((Err(_), _)))), "{request:?}: {answer:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::{Kill, Listen, Program, Reap, Start};

    #[test]
    fn requests() {
        let examples = [
            Start { program: Program::Shares }.into(),
            Kill { child: 3 }.into(),
            Reap { child: 70_000 }.into(),
            Listen { address: "127.0.0.1:80".parse().unwrap() }.into(),
            Listen { address: "[::1]:80".parse().unwrap() }.into(),
        ];
        let examples = examples.map(|request: Request| postcard::to_stdvec(&request).unwrap());
        let words = ["\0", "\x01", "\x02", "\x03", "\x04", "\x05", "\x06"];
        fuzzed::run("broker_requests", 4000, &examples, &words, super::requests);
    }
}
