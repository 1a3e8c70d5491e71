//! The DNS servers of a host, as its `resolv.conf` names them.

use std::net::{IpAddr, SocketAddr};

/// Most servers that are asked, as in libc.
const MAX_SERVERS: usize = 3;

/// The port of DNS.
const PORT: u16 = 53;

/// The servers in the text of a `resolv.conf`, in order.
#[must_use]
pub fn resolvers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let word = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // A zone names an interface, which a process without files does not look up.
        word.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT))
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_name_servers() {
        let text = "# nameserver 192.0.2.9\nsearch a.test\nnameserver 127.0.0.53\n nameserver\t::1 # x\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0";
        let expected = ["127.0.0.53:53", "[::1]:53", "192.0.2.1:53"].map(|text| text.parse().unwrap());
        assert_eq!(resolvers(text), expected);
    }
}
