//! `port_forward`: ports of the host that lead into the guest, in place of all earlier ones.

use std::net::IpAddr;

use sandbox::{Forward, Forwards, GuestError};
use wire::rpc::{Binding, PortForwardParams, PortForwardResult};

use super::{Answer, Call, Inside, Result};
use crate::failure::Failure;

/// The address of listeners if the client names none.
const LOCALHOST: &str = "127.0.0.1";

/// Most listeners.
const MAX_LISTENERS: usize = 256;

pub(super) async fn run(mut call: Call, inside: Inside) -> Result<Answer> {
    let params: PortForwardParams = std::mem::take(&mut call.params).parse()?;
    let asked = params.forwards.unwrap_or_default();
    if asked.is_empty() {
        return Err(Failure::params("forwards is required"));
    }
    let mut forwards = Vec::new();
    for forward in asked {
        let remote = forward.remote_port.unwrap_or_default();
        let remote_port = u16::try_from(remote).ok().filter(|port| *port != 0);
        let remote_port =
            remote_port.ok_or_else(|| Failure::params(format!("remote_port {remote} is not in 1..65535")))?;
        forwards.push((forward.local_port.unwrap_or_default(), remote_port));
    }
    let mut addresses = params.addresses.unwrap_or_default();
    if addresses.is_empty() {
        addresses.push(LOCALHOST.to_owned());
    }
    if forwards.len().saturating_mul(addresses.len()) > MAX_LISTENERS {
        return Err(Failure::params(format!("more than {MAX_LISTENERS} listeners")));
    }
    // One call at a time. The old listeners are closed first, whether or not the new ones can be opened.
    let mut current = inside.vm.sandbox.forwards().lock().await;
    if let Some(old) = current.take() {
        old.close().await;
    }
    let (forwards, addresses) = ports(&forwards, &addresses)?;
    // Nobody would close listeners of a sandbox that has ended meanwhile.
    inside.vm.running()?;
    match Forwards::bind(&inside.guest, &forwards, &addresses) {
        Ok((new, bindings)) => {
            *current = Some(new);
            let binding = |binding: sandbox::Binding| Binding {
                address: binding.address.to_string(),
                local_port: binding.local_port,
                remote_port: binding.remote_port,
            };
            Ok(call.answer(&PortForwardResult { bindings: bindings.into_iter().map(binding).collect() }))
        }
        Err(error @ GuestError::Listener { .. }) => Err(Failure::vm(error.to_string())),
        Err(error) => Err(Failure::vm(inside.vm.explain(error).await)),
    }
}

/// An address or port that cannot be listened on fails like a listener, not like a wrong parameter.
fn ports(forwards: &[(i64, u16)], addresses: &[String]) -> Result<(Vec<Forward>, Vec<IpAddr>)> {
    let failed = |what: String| Failure::vm(format!("bind local port-forward listener {what}"));
    let forward = |&(local, remote_port): &(i64, u16)| match u16::try_from(local) {
        Ok(local_port) => Ok(Forward { address: None, local_port, remote_port }),
        Err(_) => Err(failed(format!("port {local}: not in 0..65535"))),
    };
    let address = |text: &String| match text.trim() {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        text => text.parse().map_err(|_| failed(format!("{text:?}: no IP address"))),
    };
    let forwards = forwards.iter().map(forward).collect::<Result<_>>()?;
    Ok((forwards, addresses.iter().map(address).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use wire::rpc::ErrorCode;

    use super::*;

    #[test]
    fn what_cannot_be_listened_on() {
        let addresses = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let (forwards, ips) = ports(&[(0, 80), (65_535, 1)], &addresses(&["localhost", " ::1 "])).unwrap();
        assert_eq!(forwards[1], Forward { address: None, local_port: 65_535, remote_port: 1 });
        assert_eq!(ips, ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        for (local, address) in [(65_536, "::1"), (-1, "::1"), (1, "host.example"), (1, "")] {
            let failure = ports(&[(local, 80)], &addresses(&[address])).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Vm);
            assert!(failure.message.starts_with("bind local port-forward listener "), "{}", failure.message);
        }
    }
}
