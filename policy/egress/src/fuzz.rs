//! Fuzz bodies: what users write into lists, and what guests state. Each takes any bytes, and panics only on a defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer.

use std::net::IpAddr;

use crate::policy::{Change, Effect, Phase, Policy, WantedPolicy, WantedRule, WantedSecret};
use crate::questions::{Connection, FirstBytes, Head, Part, Place, Protocol, Transport};
use crate::verdict::{Dial, Flow, Hello, Lookup, Placeholder, Reason, Request};
use crate::{Class, Host, MAX_NAME, Name, Path, Pattern, class};

/// Most lines of a policy and of questions.
const MAX_LINES: usize = 64;

/// Patterns, one a line: what is taken means the same when it is read again, what is not is refused in one line.
pub fn patterns(data: &[u8]) {
    for line in String::from_utf8_lossy(data).split('\n').take(MAX_LINES) {
        match Pattern::parse(line) {
            Ok(pattern) => assert_eq!(Pattern::parse(pattern.as_str()), Ok(pattern)),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
            }
        }
    }
}

/// Authorities and paths, one a line: a name has one form, and so has what a server makes of a path.
pub fn heads(data: &[u8]) {
    for line in String::from_utf8_lossy(data).split('\n').take(MAX_LINES) {
        if let Ok(name) = Name::parse(line) {
            let text = name.as_str();
            let plain =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
            assert!(text.len() <= MAX_NAME && text.chars().all(plain), "{text:?}");
            assert_eq!(Name::parse(text), Ok(name.clone()));
            assert_eq!(Host::of_authority(&format!("{line}:443")), Ok(Host::Name(name)));
        }
        if let Ok(Host::Address(address)) = Host::of_authority(line) {
            assert_eq!(address, address.to_canonical());
        }
        if let Ok(path) = Path::parse(line) {
            for form in path.forms().skip(1) {
                let resolved = |segment: &str| !matches!(segment, "." | "..");
                assert!(!form.contains("//") && form.split(['/', '\\']).all(resolved), "{form:?}");
            }
        }
    }
}

/// A policy of lines such as `allow *.ok.test`, and questions of lines such as `ask 192.0.2.1 443 ok.test / GET`: what is
/// closed by its class is never reached, and no secret leaves its hosts.
pub fn questions(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut wanted = WantedPolicy::default();
    let mut asked = Vec::new();
    for line in text.split('\n').take(MAX_LINES) {
        let Some((word, rest)) = line.split_once(' ') else { continue };
        let rest = rest.to_owned();
        match word {
            "allow" => wanted.allow.push(rest),
            "deny" => wanted.deny.push(rest),
            "passthrough" => wanted.passthrough.push(rest),
            "secret" => {
                wanted.secrets.push(WantedSecret { name: "S".into(), hosts: vec![rest], plain: false })
            }
            "block" => wanted.rules.push(WantedRule {
                name: String::new(),
                phase: Phase::Before,
                hosts: Vec::new(),
                methods: Vec::new(),
                path: Some(rest),
                effect: Effect::Block,
            }),
            "private" => wanted.private_open = true,
            "ask" => asked.push(rest),
            _ => {}
        }
    }
    let Ok(policy) = Policy::new(&wanted) else { return };
    for line in &asked {
        ask(&policy, wanted.private_open, line);
    }
    let all = policy.allowed().map(ToOwned::to_owned).collect();
    let (closed, _) = policy.change(&Change::Delete(all)).expect("nothing is parsed");
    if !wanted.allow.is_empty() {
        let dial = closed.dial(None, [192, 0, 2, 1].into(), 443);
        assert_eq!(dial.decision, Dial::Deny, "{dial}");
    }
}

fn ask(policy: &Policy, private_open: bool, line: &str) {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (Ok(address), Ok(port)) = (word().parse::<IpAddr>(), word().parse::<u16>()) else { return };
    let (Ok(host), Ok(path)) = (Host::of_authority(word()), Path::parse(word())) else { return };
    let method = word();
    let names: Vec<Name> = host.name().cloned().into_iter().collect();
    let class = class(address);
    let is_open = class == Class::Public || (private_open && matches!(class, Class::Private | Class::Shared));
    let connection = Connection { address, port, names: &names };
    let transport = Transport::Tls(host.name());
    let head = Head {
        host: &host,
        method,
        path: &path,
        upgrade: false,
        http2: false,
        phase: Phase::Before,
        from: 0,
    };

    let flow = policy.flow(Protocol::Tcp, connection);
    let dial = policy.dial(host.name(), address, port);
    assert!(
        is_open || (matches!(flow.decision, Flow::Deny(_)) && dial.decision == Dial::Deny),
        "{flow}, {dial}"
    );
    let hello = policy.hello(connection, FirstBytes::Tls(host.name()));
    assert!(is_open || hello.decision == Hello::Deny, "{hello}");
    let request = policy.request(connection, transport, head);
    assert!(
        matches!(request.decision, Request::Deny(_)) || dial.decision == Dial::Allow,
        "{request}, {dial}"
    );
    if let Some(name) = host.name() {
        let lookup = policy.name(name, 1);
        let kept = policy.answers(name, &[address]).decision.kept.len();
        assert!(kept == 0 || (is_open && lookup.decision == Lookup::Answer), "{lookup}");
    }
    if let Request::Forward(forward) = &request.decision {
        for secret in &forward.secrets {
            let place = |part| Place::Request { connection, transport, host: &host, part };
            let put = policy.secret(*secret, place(Part::Query)).expect("a secret");
            assert_eq!((put.decision, put.reason), (Placeholder::Put, Reason::Secret("S".into())));
            let unpinned = Connection { names: &[], ..connection };
            let part = Place::Request { connection: unpinned, transport, host: &host, part: Part::Query };
            let blocked = policy.secret(*secret, part).expect("a secret");
            assert!(names.is_empty() || blocked.decision == Placeholder::Block, "{blocked}");
        }
    }
}

#[cfg(test)]
mod tests {
    const POLICY: &str = "allow *.ok.test\nallow GET api.test/v1/**\nallow 198.51.100.0/24:22\nallow a*b.test\n\
        deny evil.ok.test\ndeny DELETE *\npassthrough p.ok.test\nsecret ok.test\nblock /admin*\nask 203.0.113.10 443 ok.test / GET\n\
        ask 203.0.113.10 443 api.test /v1/a/../b GET\nask 198.51.100.1 22 198.51.100.1 / GET\nask ::ffff:127.0.0.1 443 a.ok.test / GET";

    #[test]
    fn patterns() {
        let lines = "*.ok.test\nGET,POST api.test:443/v1/[a-z]*/**\n[2001:db8::/32]:22\nexample.*\n10.0.0.0/8:1-1024\nb\u{fc}cher.*x*";
        let words = ["*", ".", ":", "/", "[", "]", "xn--", "\u{3002}", "\n", "\u{1b}", "::", "/**", "GET "];
        fuzzed::run("egress_policy_patterns", 4000, &[lines.into()], &words, super::patterns);
    }

    #[test]
    fn heads() {
        let lines =
            "OK.test.:443\n[::ffff:127.0.0.1]:80\nxn--bcher-kva.test\n/a/%2e%2e//b\\c/?x=/../\n0x7f.1";
        let words = ["%2f", "%2e", "/../", "//", "\\", "xn--", "\u{3002}", ".", ":", "]", "\n"];
        fuzzed::run("egress_policy_heads", 4000, &[lines.into()], &words, super::heads);
    }

    #[test]
    fn questions() {
        let words = [
            "allow ",
            "deny ",
            "secret ",
            "block /",
            "private x\n",
            "ask ",
            "127.0.0.1",
            "64:ff9b::",
            "*",
            "\n",
            " ",
        ];
        fuzzed::run("egress_policy_questions", 1500, &[POLICY.into()], &words, super::questions);
    }
}
