//! Random guests against random hosts: nothing panics, nothing grows, nothing is lost.

use proptest::prelude::*;

use super::super::credit::WINDOW;
use super::super::packet::{Header, Operation};
use super::super::switch::{MAX_RESETS, MAX_STREAMS};
use super::*;

/// A step of a guest that follows no rule.
#[derive(Debug, Clone)]
enum Wild {
    /// A packet whose fields come from small sets, so that they often hit a stream.
    Packet {
        header: Header,
        payload: usize,
        pieces: Vec<usize>,
    },
    /// Bytes that may be too few for a header.
    Raw(Vec<u8>),
    Connect {
        port: u32,
    },
    HostWrite(prop::sample::Index, usize),
    HostRead(prop::sample::Index),
    HostShutdown(prop::sample::Index, bool),
    HostClose(prop::sample::Index),
    HostAccept,
    Refill(bool),
    PostRx(usize),
    Run,
    DeviceReset,
}

fn any_header() -> impl Strategy<Value = Header> {
    let cid = || prop_oneof![20 => Just(0u64), 1 => any::<u64>()];
    let port = || prop_oneof![8 => 0..4u32, 1 => any::<u32>()];
    let op = prop_oneof![5 => 1..3u16, 8 => 4..8u16, 5 => Just(5u16), 2 => 0..9u16, 1 => any::<u16>()];
    let kind = prop_oneof![20 => Just(1u16), 1 => any::<u16>()];
    let count = || prop_oneof![4 => 0..200_000u32, 1 => any::<u32>()];
    (
        cid(),
        cid(),
        port(),
        port(),
        op,
        kind,
        0..5u32,
        count(),
        count(),
        prop_oneof![8 => Just(None), 1 => any::<u32>().prop_map(Some)],
    )
        .prop_map(|(src, dst, src_port, dst_port, op, kind, flags, buf_alloc, fwd_cnt, len)| Header {
            src_cid: GUEST_CID ^ src,
            dst_cid: 2 ^ dst,
            src_port: if src_port < 4 { GUEST_PORT + src_port / 2 } else { src_port },
            // The listening port, or one of those that the device takes for its own streams.
            dst_port: match dst_port {
                0 | 1 => HOST_PORT,
                2 | 3 => (1 << 31) + dst_port - 2,
                other => other,
            },
            // A length of zero stands for the length of the payload.
            len: len.unwrap_or(0),
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        })
}

fn any_wild() -> impl Strategy<Value = Wild> {
    let index = any::<prop::sample::Index>;
    let payload = prop_oneof![4 => 0..2000usize, 1 => Just(65_536), 1 => 0..69_000usize];
    prop_oneof![
        12 => (any_header(), payload, proptest::collection::vec(0..100usize, 0..4))
            .prop_map(|(header, payload, pieces)| Wild::Packet { header, payload, pieces }),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Wild::Raw),
        2 => (0..2u32).prop_map(|port| Wild::Connect { port: GUEST_PORT + port }),
        4 => (index(), 0..100_000usize).prop_map(|(host, len)| Wild::HostWrite(host, len)),
        3 => index().prop_map(Wild::HostRead),
        1 => (index(), any::<bool>()).prop_map(|(host, write)| Wild::HostShutdown(host, write)),
        1 => index().prop_map(Wild::HostClose),
        3 => Just(Wild::HostAccept),
        1 => any::<bool>().prop_map(Wild::Refill),
        2 => (0..40usize).prop_map(Wild::PostRx),
        6 => Just(Wild::Run),
        1 => Just(Wild::DeviceReset),
    ]
}

/// The bytes that the device may send to one pair of ports, by the packets that the guest sent.
#[derive(Debug, Default, Clone, Copy)]
struct Allowance {
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
}

fn wild_step(guest: &mut Guest, channel: &OwnedFd, hosts: &mut Vec<UnixStream>, step: &Wild) {
    let pick = |hosts: &Vec<UnixStream>, index: &prop::sample::Index| {
        (!hosts.is_empty()).then(|| index.index(hosts.len()))
    };
    match step {
        Wild::Packet { header, payload, pieces } => {
            let len = if header.len == 0 { *payload as u32 } else { header.len };
            guest.post(&Header { len, ..*header }, &vec![7; *payload], pieces);
        }
        Wild::Raw(bytes) => {
            guest.post_raw(bytes, &[]);
        }
        Wild::Connect { port } => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            // A full channel is not the device's concern.
            if channel::send(channel.as_fd(), PortMessage::Connect { port: *port }, theirs.as_fd()).is_ok() {
                hosts.push(ours);
            }
        }
        Wild::HostWrite(index, len) => {
            if let Some(index) = pick(hosts, index) {
                let _ = hosts[index].write(&vec![9; *len]);
            }
        }
        Wild::HostRead(index) => {
            if let Some(index) = pick(hosts, index) {
                let _ = hosts[index].read(&mut vec![0; 100_000]);
            }
        }
        Wild::HostShutdown(index, write) => {
            if let Some(index) = pick(hosts, index) {
                let how = if *write { std::net::Shutdown::Write } else { std::net::Shutdown::Read };
                let _ = hosts[index].shutdown(how);
            }
        }
        Wild::HostClose(index) => {
            if let Some(index) = pick(hosts, index) {
                hosts.swap_remove(index);
            }
        }
        Wild::HostAccept => {
            if let Ok(Some((_, stream))) = channel::receive(channel.as_fd()) {
                let host = UnixStream::from(stream);
                host.set_nonblocking(true).unwrap();
                hosts.push(host);
            }
        }
        Wild::Refill(refill) => guest.refill = *refill,
        Wild::PostRx(count) => guest.post_rx(*count),
        Wild::Run => {
            guest.run();
        }
        Wild::DeviceReset => guest.activate(),
    }
}

/// Reads the packets that the device sent, and compares them with its allowance.
fn check_received(guest: &mut Guest, allowances: &mut std::collections::HashMap<(u32, u32), Allowance>) {
    while let Some((header, _)) = guest.receive() {
        assert_eq!((header.src_cid, header.dst_cid), (2, GUEST_CID));
        let operation = Operation::new(header.op).expect("an operation of the norm");
        assert!(header.kind == 1 || operation == Operation::Reset);
        assert!(operation == Operation::Payload || header.len == 0);
        let key = (header.src_port, header.dst_port);
        let allowance = allowances.entry(key).or_default();
        match operation {
            // A stream begins or ends here, so its counters start over.
            Operation::Request | Operation::Response if header.kind == 1 => allowance.sent = 0,
            Operation::Payload => {
                let free = allowance.buf_alloc.saturating_sub(allowance.sent.wrapping_sub(allowance.fwd_cnt));
                assert!(header.len > 0 && header.len <= free, "{key:?}: {} of {free}", header.len);
                allowance.sent = allowance.sent.wrapping_add(header.len);
            }
            _ => {}
        }
    }
}

fn check_bounds(guest: &Guest) {
    let streams = guest.device.streams();
    assert!(streams <= MAX_STREAMS);
    assert!(guest.device.waiting() <= streams * WINDOW as usize);
    assert!(guest.device.resets() <= MAX_RESETS + MAX_STREAMS);
}

/// A step of two sides that follow the rules.
#[derive(Debug, Clone)]
enum Tame {
    ToGuest,
    ToHost,
    GuestSend(prop::sample::Index, usize),
    GuestRead(prop::sample::Index, usize),
    GuestEnd(prop::sample::Index),
    HostSend(prop::sample::Index, usize),
    HostRead(prop::sample::Index, usize),
    HostEnd(prop::sample::Index),
    Starve(bool),
    Run,
}

fn any_tame() -> impl Strategy<Value = Tame> {
    let index = any::<prop::sample::Index>;
    let len = || prop_oneof![1..100usize, 1..5000usize, 1..100_000usize];
    prop_oneof![
        1 => Just(Tame::ToGuest),
        1 => Just(Tame::ToHost),
        6 => (index(), len()).prop_map(|(at, len)| Tame::GuestSend(at, len)),
        6 => (index(), len()).prop_map(|(at, len)| Tame::GuestRead(at, len)),
        1 => index().prop_map(Tame::GuestEnd),
        6 => (index(), len()).prop_map(|(at, len)| Tame::HostSend(at, len)),
        6 => (index(), len()).prop_map(|(at, len)| Tame::HostRead(at, len)),
        1 => index().prop_map(Tame::HostEnd),
        1 => any::<bool>().prop_map(Tame::Starve),
        6 => Just(Tame::Run),
    ]
}

/// One stream, with the progress of each direction: bytes sent, bytes received, whether its sender ended it.
struct Pair {
    key: (u32, u32),
    host: UnixStream,
    up: (usize, usize, bool),
    down: (usize, usize, bool),
}

impl Pair {
    fn guest_send(&mut self, guest: &mut Guest, len: usize) {
        if !self.up.2 {
            self.up.0 += guest.send(self.key, &pattern(self.up.0, len));
        }
    }

    fn host_send(&mut self, len: usize) {
        if !self.down.2 {
            self.down.0 += write_now(&mut self.host, &pattern(self.down.0, len));
        }
    }

    fn guest_read(&mut self, guest: &mut Guest, len: usize) {
        let bytes = guest.read(self.key, len);
        assert!(bytes == pattern(self.down.1, bytes.len()));
        self.down.1 += bytes.len();
    }

    /// Reads at the host; returns true at the end of the stream.
    fn host_read(&mut self, len: usize) -> bool {
        let mut bytes = vec![0; len];
        match self.host.read(&mut bytes) {
            Ok(count) => {
                assert!(bytes[..count] == pattern(self.up.1, count));
                self.up.1 += count;
                count == 0
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                false
            }
        }
    }

    fn guest_end(&mut self, guest: &mut Guest) {
        if !self.up.2 {
            self.up.2 = true;
            guest.control(self.key, Operation::Shutdown, 2);
        }
    }

    fn host_end(&mut self) {
        if !self.down.2 {
            self.down.2 = true;
            self.host.shutdown(std::net::Shutdown::Write).unwrap();
        }
    }
}

fn pick<'a>(pairs: &'a mut [Pair], index: &prop::sample::Index) -> Option<&'a mut Pair> {
    let len = pairs.len();
    pairs.get_mut(index.index(len.max(1)))
}

fn tame_step(guest: &mut Guest, channel: &OwnedFd, pairs: &mut Vec<Pair>, step: &Tame) {
    match step {
        Tame::ToGuest | Tame::ToHost => {
            guest.refill = true;
            guest.post_rx(usize::MAX);
            let (host, key) = match step {
                Tame::ToGuest => stream_to_guest(guest, channel),
                _ => stream_to_host(guest, channel, 30_000 + pairs.len() as u32),
            };
            pairs.push(Pair { key, host, up: (0, 0, false), down: (0, 0, false) });
        }
        Tame::GuestSend(index, len) => {
            pick(pairs, index).into_iter().for_each(|pair| pair.guest_send(guest, *len))
        }
        Tame::GuestRead(index, len) => {
            pick(pairs, index).into_iter().for_each(|pair| pair.guest_read(guest, *len))
        }
        Tame::GuestEnd(index) => pick(pairs, index).into_iter().for_each(|pair| pair.guest_end(guest)),
        Tame::HostSend(index, len) => pick(pairs, index).into_iter().for_each(|pair| pair.host_send(*len)),
        Tame::HostRead(index, len) => {
            if let Some(pair) = pick(pairs, index) {
                assert!(!pair.host_read(*len) || pair.up.2 && pair.up.0 == pair.up.1);
            }
        }
        Tame::HostEnd(index) => pick(pairs, index).into_iter().for_each(Pair::host_end),
        Tame::Starve(starve) => guest.refill = !starve,
        Tame::Run => {
            guest.run();
            guest.take_packets();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_guest_breaks_the_device(steps in proptest::collection::vec(any_wild(), 1..200), turns: bool) {
        let (mut guest, channel) = machine_with(turns);
        let mut hosts = Vec::new();
        let mut allowances = std::collections::HashMap::<_, Allowance>::new();
        for step in &steps {
            if let Wild::Packet { header, .. } = step
                && (header.src_cid, header.dst_cid, header.kind) == (GUEST_CID, 2, 1)
            {
                // Answers that are already on their way obey the packets before this one.
                check_received(&mut guest, &mut allowances);
                let allowance = allowances.entry((header.dst_port, header.src_port)).or_default();
                (allowance.buf_alloc, allowance.fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
            }
            wild_step(&mut guest, &channel, &mut hosts, step);
            if matches!(step, Wild::DeviceReset) {
                allowances.clear();
            }
            check_bounds(&guest);
            check_received(&mut guest, &mut allowances);
        }
        // With the hosts gone and the rx queue served, only streams that wait for the guest's answer are left.
        hosts.clear();
        guest.refill = true;
        for _ in 0..20 {
            guest.post_rx(usize::MAX);
            while guest.run() {}
            check_received(&mut guest, &mut allowances);
        }
        prop_assert_eq!(guest.device.waiting(), 0);
        prop_assert_eq!(guest.device.resets(), 0);
        prop_assert_eq!(guest.tx_in_flight(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn everything_sent_arrives_then_its_end(steps in proptest::collection::vec(any_tame(), 1..200), turns: bool) {
        let (mut guest, channel) = machine_with(turns);
        let mut pairs = Vec::new();
        for step in &steps {
            tame_step(&mut guest, &channel, &mut pairs, step);
            check_bounds(&guest);
        }
        guest.refill = true;
        guest.post_rx(usize::MAX);
        for pair in &mut pairs {
            pair.guest_end(&mut guest);
            pair.host_end();
            let mut ended = false;
            for _ in 0..100 {
                guest.settle();
                pair.guest_read(&mut guest, usize::MAX);
                ended |= pair.host_read(1 << 18);
                if ended && (pair.up.1, pair.down.1) == (pair.up.0, pair.down.0) {
                    break;
                }
            }
            prop_assert_eq!((pair.up.1, pair.down.1), (pair.up.0, pair.down.0));
            prop_assert!(ended && guest.sockets[&pair.key].peer_done & 2 == 2);
        }
        for pair in pairs.drain(..) {
            guest.close(pair.key);
        }
        guest.settle();
        prop_assert_eq!(guest.device.streams(), 0);
        prop_assert!(guest.strays.is_empty());
    }
}
