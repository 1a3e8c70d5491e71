//! Facts of the host, which the supervisor reads: the process itself opens nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;

/// The file that names the host's DNS servers.
const RESOLVERS: &str = "/etc/resolv.conf";

/// The host's DNS servers, in order; none where the host has no `/etc/resolv.conf`. An answer to the question which they
/// are now: changes are not noticed.
pub fn resolvers() -> io::Result<Vec<SocketAddr>> {
    match std::fs::read(RESOLVERS) {
        Ok(bytes) => Ok(egress::resolvers(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The addresses of this network namespace's interfaces. Changes are not noticed: an address that the host gets later is
/// closed only if it is of a class that is.
pub fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect::<BTreeSet<_>>().into_iter().collect())
}
