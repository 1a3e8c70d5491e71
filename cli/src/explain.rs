//! `matchlock explain`: whether a request may leave a sandbox, in the policy's own words.
//!
//! Nothing is asked of anybody: a name is taken as one of the public internet, whatever its addresses are. Not here:
//! decisions (`egress_policy`).

use std::net::{IpAddr, Ipv4Addr};

use egress_policy::{
    Change, Connection, FirstBytes, Flow, Head, Hello, Host, Lookup, Name, Path, Phase, Policy, Protocol,
    Reason, Request, Transport, WantedPolicy,
};
use policy::network::Access;
use sandbox::{Home, Id, ListChange, NetworkConfig, RecordsError, Status};
use serde::Serialize;

use crate::args::{AccessArgs, ExplainArgs};
use crate::say::{self, say};
use crate::{block_on, state};

/// The type of DNS records with addresses of IPv4.
const A: u16 = 1;

/// An address that stands for any of the public internet (RFC 5737).
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// A request in question.
#[derive(Debug)]
struct Asked {
    method: String,
    is_tls: bool,
    host: Host,
    port: u16,
    path: Path,
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Answer {
    allowed: bool,
    /// The policy's answers, in the order in which a guest meets them.
    steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Step {
    /// `name`, `connection`, `request`.
    what: &'static str,
    allowed: bool,
    reason: &'static str,
    rule: String,
}

/// Prints the answer; the status is 0 if the request may leave.
pub(crate) fn explain(args: &ExplainArgs, home: impl FnOnce() -> anyhow::Result<Home>) -> anyhow::Result<u8> {
    let asked = asked(&args.method, &args.url)?;
    let policy = match &args.sandbox {
        Some(id) => of_sandbox(&home()?, &id.parse()?)?,
        None => of_options(&args.access)?,
    };
    let answer = answer(&policy, &asked);
    if args.json {
        say::json(&answer)?;
    } else {
        for Step { what, allowed, reason, rule } in &answer.steps {
            say!("{what} {}: {reason} [{rule}]", if *allowed { "allowed" } else { "denied" });
        }
    }
    Ok(u8::from(!answer.allowed))
}

fn asked(method: &str, url: &str) -> anyhow::Result<Asked> {
    let scheme = |name| url.get(..str::len(name)).filter(|start| start.eq_ignore_ascii_case(name));
    let (is_tls, rest) = match (scheme("http://"), scheme("https://")) {
        (Some(start), _) => (false, &url[start.len()..]),
        (_, Some(start)) => (true, &url[start.len()..]),
        _ => anyhow::bail!("{url:?} is no address of the form http://HOST/PATH or https://HOST/PATH"),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let target = target.split('#').next().unwrap_or_default();
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let host =
        Host::of_authority(authority).map_err(|error| anyhow::anyhow!("host {authority:?} {error}"))?;
    let port = authority.rsplit_once(':').filter(|(host, _)| host.ends_with(']') || !host.contains(':'));
    let port = port.and_then(|(_, port)| port.parse().ok()).unwrap_or(if is_tls { 443 } else { 80 });
    let path = Path::parse(&target).map_err(|error| anyhow::anyhow!("{url:?} has {error}"))?;
    Ok(Asked { method: method.to_ascii_uppercase(), is_tls, host, port, path })
}

/// The policy that `run` with these options makes.
fn of_options(args: &AccessArgs) -> anyhow::Result<Policy> {
    let AccessArgs { allow_host, deny_host, passthrough_host, allow_private_ips } = args;
    let access = Access {
        allowed: allow_host.clone(),
        denied: deny_host.clone(),
        passthrough: passthrough_host.clone(),
        intercept: false,
        private_open: *allow_private_ips,
    };
    of_access(access)
}

fn of_access(access: Access) -> anyhow::Result<Policy> {
    let Access { allowed: allow, denied: deny, passthrough, intercept, private_open } = access;
    Ok(Policy::new(&WantedPolicy {
        allow,
        deny,
        passthrough,
        intercept,
        private_open,
        ..WantedPolicy::default()
    })?)
}

/// The policy of a sandbox: as it is now, if the sandbox runs.
fn of_sandbox(home: &Home, id: &Id) -> anyhow::Result<Policy> {
    let record = state::open(home)?.get(id)?.ok_or_else(|| RecordsError::UnknownVm(id.to_string()))?;
    let NetworkConfig { arrival, allowed, denied, passthrough, intercept, private_open, .. } =
        record.config.network;
    anyhow::ensure!(!matches!(arrival.as_str(), "" | "none"), "VM {id} has no network");
    let recorded = Access { allowed, denied, passthrough, intercept, private_open };
    if record.status != Status::Running {
        return of_access(recorded);
    }
    let now = block_on(sandbox::change_allow_list(home, id, ListChange::Nothing))??;
    if !now.is_closed || !now.allowed.is_empty() {
        return of_access(Access { allowed: now.allowed, ..recorded });
    }
    // A list that was emptied stays closed.
    let gone = vec!["gone.invalid".to_owned()];
    let policy = of_access(Access { allowed: gone.clone(), ..recorded })?;
    Ok(policy.change(&Change::Delete(gone))?.0)
}

/// The answers to each thing that a guest does for the request, up to the first denial.
fn answer(policy: &Policy, asked: &Asked) -> Answer {
    let mut steps = Vec::new();
    let allowed = judged(policy, asked, |what, allowed, reason| {
        steps.push(Step { what, allowed, reason: reason.words(), rule: reason.id().to_string() });
        allowed
    });
    Answer { allowed, steps }
}

fn judged(policy: &Policy, asked: &Asked, mut tell: impl FnMut(&'static str, bool, &Reason) -> bool) -> bool {
    let names: Vec<Name> = asked.host.name().cloned().into_iter().collect();
    let address = match asked.host {
        Host::Address(address) => address,
        Host::Name(_) => SOMEWHERE,
    };
    if let Some(name) = names.first() {
        let verdict = policy.name(name, A);
        if !tell("name", verdict.decision == Lookup::Answer, &verdict.reason) {
            return false;
        }
    }
    let connection = Connection { address, port: asked.port, names: &names };
    let flow = policy.flow(Protocol::Tcp, connection);
    let look = match flow.decision {
        Flow::Deny(_) => return tell("connection", false, &flow.reason),
        Flow::Direct => return tell("connection", true, &flow.reason),
        Flow::Look(_) => flow,
    };
    let stated = asked.host.name();
    let first = if asked.is_tls { FirstBytes::Tls(stated) } else { FirstBytes::Http(&asked.host) };
    let hello = policy.hello(connection, first);
    match hello.decision {
        Hello::Deny => return tell("connection", false, &hello.reason),
        Hello::Pass => return tell("connection", true, &hello.reason),
        Hello::Intercept => tell("connection", true, &look.reason),
    };
    let transport = if asked.is_tls { Transport::Tls(stated) } else { Transport::Plain };
    let head = Head {
        host: &asked.host,
        method: &asked.method,
        path: &asked.path,
        upgrade: false,
        http2: false,
        phase: Phase::Before,
        from: 0,
    };
    let request = policy.request(connection, transport, head);
    tell("request", matches!(request.decision, Request::Forward(_)), &request.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(allow: &[&str], deny: &[&str], method: &str, url: &str) -> String {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let access = Access { allowed: texts(allow), denied: texts(deny), ..Access::default() };
        let answer = answer(&of_access(access).unwrap(), &asked(method, url).unwrap());
        let Step { what, allowed, rule, .. } = answer.steps.last().unwrap();
        assert_eq!(answer.allowed, *allowed);
        format!("{} {what} {rule}", if *allowed { "yes" } else { "no" })
    }

    #[test]
    fn the_policy_answers_in_its_own_words() {
        let listed: &[&str] = &["ok.test", "GET api.test/v1/**", "ssh.test:22", "203.0.113.7"];
        for (allow, method, url, expected) in [
            (&[][..], "GET", "http://x.test/", "yes connection default:open"),
            (listed, "GET", "https://ok.test", "yes request allow:ok.test"),
            (listed, "GET", "http://OK.test./a?b#c", "yes request allow:ok.test"),
            (listed, "GET", "https://evil.test/", "no name default:closed"),
            (listed, "GET", "https://ok.test:8443/", "no connection default:closed"),
            (listed, "get", "https://api.test/v1/x", "yes request allow:GET api.test/v1/**"),
            (listed, "POST", "https://api.test/v1/x", "no request default:closed"),
            (listed, "GET", "https://api.test/v1/../x", "no request default:closed"),
            (listed, "GET", "http://ssh.test:22/", "yes connection allow:ssh.test:22"),
            (listed, "GET", "http://203.0.113.7:8080/", "yes connection allow:203.0.113.7"),
            (&[], "GET", "http://10.0.0.1/", "no connection class:private"),
            (&[], "GET", "http://[::1]:80/", "no connection class:loopback"),
        ] {
            assert_eq!(said(allow, &[], method, url), expected, "{method} {url}");
        }
        assert_eq!(said(&[], &["evil.test"], "GET", "http://evil.test/"), "no name deny:evil.test");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in
            ["ok.test", "ftp://ok.test/", "http://", "http://a b/", "https://ok.test:x/", "http:///x", "é"]
        {
            assert!(asked("GET", url).is_err(), "{url}");
        }
        let asked = asked("get", "https://me:pw@[2001:db8::1]:8443?q=1").unwrap();
        assert_eq!((asked.port, asked.is_tls, asked.method.as_str()), (8443, true, "GET"));
        assert_eq!(asked.host, Host::Address("2001:db8::1".parse().unwrap()));
    }
}
