//! Tests of the eight questions, by the cases of guests that try to get around a policy.

use super::*;
use crate::policy::{Change, WantedPolicy, WantedRule, WantedSecret};

const OK: &str = "203.0.113.10";
const EVIL: &str = "203.0.113.20";
const CDN: &str = "203.0.113.30";

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn policy(wanted: WantedPolicy) -> Policy {
    Policy::new(&wanted).expect("a policy")
}

fn allowing(list: &[&str]) -> Policy {
    policy(WantedPolicy { allow: texts(list), ..WantedPolicy::default() })
}

/// The list of the cases: one host, with a secret.
fn with_secret() -> WantedPolicy {
    let secret = WantedSecret { name: "KEY".into(), hosts: texts(&["ok.test"]), plain: false };
    WantedPolicy { secrets: vec![secret], ..WantedPolicy::default() }
}

fn name(text: &str) -> Name {
    Name::parse(text).expect(text)
}

fn host(text: &str) -> Host {
    Host::of_authority(text).expect(text)
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|text| name(text)).collect()
}

fn to<'a>(address: &str, port: u16, names: &'a [Name]) -> Connection<'a> {
    Connection { address: address.parse().expect(address), port, names }
}

fn head<'a>(host: &'a Host, path: &'a Path) -> Head<'a> {
    Head { host, method: "GET", path, upgrade: false, http2: false, phase: Phase::Before, from: 0 }
}

/// The verdict on a GET over TLS, whose server name is its host.
fn get(policy: &Policy, url_host: &str, path: &str, connection: Connection<'_>) -> Verdict<Request> {
    let (host, path) = (host(url_host), Path::parse(path).expect(path));
    policy.request(connection, Transport::Tls(host.name()), head(&host, &path))
}

fn is_forwarded(verdict: &Verdict<Request>) -> bool {
    matches!(verdict.decision, Request::Forward(_))
}

#[test]
fn one_text_for_each_verdict() {
    let policy = policy(WantedPolicy {
        allow: texts(&["*.ok.test"]),
        deny: texts(&["bad.ok.test"]),
        ..WantedPolicy::default()
    });
    for (asked, text) in [
        ("a.ok.test", "allowed by the allow list [allow:*.ok.test]"),
        ("ok.test", "host not in allowlist [default:closed]"),
        ("bad.ok.test", "denied by a deny rule [deny:bad.ok.test]"),
    ] {
        assert_eq!(policy.name(&name(asked), 1).to_string(), text);
    }
    let dial = policy.dial(Some(&name("a.ok.test")), "::ffff:169.254.169.254".parse().expect("metadata"), 80);
    assert_eq!(dial.to_string(), "addresses of this class are closed [class:link-local]");
}

#[test]
fn names_that_may_be_asked_for() {
    let closed = allowing(&["ok.test", "db.test:5432", "GET api.test/v1", "198.51.100.0/24"]);
    for (asked, decision) in [
        ("ok.test", Lookup::Answer),
        ("db.test", Lookup::Answer),
        ("api.test", Lookup::Answer),
        ("deadbeef.evil.test", Lookup::Deny),
        ("a.ok.test", Lookup::Deny),
    ] {
        assert_eq!(closed.name(&name(asked), 28).decision, decision, "{asked}");
    }
    assert_eq!(closed.name(&name("ok.test"), 65), verdict(Lookup::NoData, Reason::RecordType));
    assert_eq!(closed.name(&name("evil.test"), 65).decision, Lookup::Deny);
    let open = policy(WantedPolicy {
        deny: texts(&["evil.test", "*.evil.test", "mail.test:25"]),
        ..WantedPolicy::default()
    });
    for (asked, decision) in [
        ("any.test", Lookup::Answer),
        ("mail.test", Lookup::Answer),
        ("evil.test", Lookup::Deny),
        ("a.evil.test", Lookup::Deny),
    ] {
        assert_eq!(open.name(&name(asked), 1).decision, decision, "{asked}");
    }
}

#[test]
fn private_answers_are_taken_out() {
    let addresses =
        |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|text| text.parse().expect(text)).collect() };
    let denying = policy(WantedPolicy {
        allow: texts(&["ok.test"]),
        deny: texts(&["203.0.113.66", "203.0.113.67:22"]),
        host_addresses: addresses(&["203.0.113.7"]),
        ..WantedPolicy::default()
    });
    let mixed =
        ["203.0.113.10", "127.0.0.1", "::ffff:10.0.0.1", "203.0.113.66", "203.0.113.67", "203.0.113.7"];
    let answers = denying.answers(&name("ok.test"), &addresses(&mixed));
    let kept: Vec<_> = answers.decision.kept.iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(kept, ["203.0.113.10", "203.0.113.67"]);
    let reasons: Vec<_> =
        answers.decision.dropped.iter().map(|(_, reason)| reason.id().to_string()).collect();
    assert_eq!(reasons, ["class:loopback", "class:private", "deny:203.0.113.66", "class:host"]);
    assert_eq!(answers.reason.id().to_string(), "allow:ok.test");
    let none = denying.answers(&name("ok.test"), &addresses(&["192.168.1.1"]));
    assert_eq!((none.decision.kept.len(), none.reason), (0, Reason::Closed(crate::Class::Private)));
    assert_eq!(denying.answers(&name("evil.test"), &addresses(&[OK])).decision.kept, []);
}

#[test]
fn flows_without_a_policy_are_carried_as_they_are() {
    let open = policy(WantedPolicy::default());
    for (address, port, protocol, decision) in [
        (EVIL, 443, Protocol::Tcp, Flow::Direct),
        (EVIL, 443, Protocol::Udp, Flow::Direct),
        (EVIL, 22, Protocol::Tcp, Flow::Direct),
        ("2001:db8::1", 80, Protocol::Tcp, Flow::Direct),
        ("10.0.0.1", 80, Protocol::Tcp, Flow::Deny(Refusal::Forbidden)),
        ("169.254.169.254", 443, Protocol::Tcp, Flow::Deny(Refusal::Alert)),
        ("127.0.0.1", 22, Protocol::Tcp, Flow::Deny(Refusal::Reset)),
        ("224.0.0.251", 5353, Protocol::Udp, Flow::Deny(Refusal::Prohibited)),
        ("64:ff9b::7f00:1", 22, Protocol::Tcp, Flow::Deny(Refusal::Reset)),
    ] {
        assert_eq!(open.flow(protocol, to(address, port, &[])).decision, decision, "{address} {port}");
    }
    let private = policy(WantedPolicy { private_open: true, ..WantedPolicy::default() });
    for (address, decision) in [
        ("10.0.0.1", Flow::Direct),
        ("fd00::1", Flow::Direct),
        ("100.64.0.1", Flow::Direct),
        ("127.0.0.1", Flow::Deny(Refusal::Reset)),
        ("169.254.169.254", Flow::Deny(Refusal::Reset)),
        ("2002:7f00:1::", Flow::Deny(Refusal::Reset)),
    ] {
        assert_eq!(private.flow(Protocol::Tcp, to(address, 22, &[])).decision, decision, "{address}");
    }
}

#[test]
fn flows_under_a_list() {
    let closed = allowing(&["ok.test", "db.test:5432", "198.51.100.0/24", "192.0.2.1:22"]);
    let (ok, db, both) = (names(&["ok.test"]), names(&["db.test"]), names(&["evil.test", "ok.test"]));
    for (address, port, names, decision) in [
        (OK, 443, &ok[..], Flow::Look(Look::Tls)),
        (OK, 80, &ok, Flow::Look(Look::Http)),
        (OK, 443, &both, Flow::Look(Look::Tls)),
        (OK, 8443, &ok, Flow::Deny(Refusal::Reset)),
        (OK, 22, &ok, Flow::Deny(Refusal::Reset)),
        (CDN, 443, &[], Flow::Deny(Refusal::Alert)),
        (CDN, 5432, &db, Flow::Direct),
        (CDN, 443, &db, Flow::Deny(Refusal::Alert)),
        ("198.51.100.9", 443, &[], Flow::Direct),
        ("198.51.100.9", 25, &[], Flow::Direct),
        ("192.0.2.1", 22, &[], Flow::Direct),
        ("::ffff:192.0.2.1", 22, &[], Flow::Direct),
        ("192.0.2.1", 80, &[], Flow::Deny(Refusal::Forbidden)),
        ("10.0.0.1", 80, &ok, Flow::Deny(Refusal::Forbidden)),
    ] {
        assert_eq!(
            closed.flow(Protocol::Tcp, to(address, port, names)).decision,
            decision,
            "{address}:{port}"
        );
    }
    let quic = closed.flow(Protocol::Udp, to(OK, 443, &ok));
    assert_eq!(quic, verdict(Flow::Deny(Refusal::Prohibited), Reason::NotTcp));
    assert_eq!(closed.flow(Protocol::Udp, to("198.51.100.9", 443, &[])).decision, Flow::Direct);
    for open in [&["*"][..], &["*", "ok.test"], &["*:443"]] {
        assert_eq!(allowing(open).flow(Protocol::Tcp, to(EVIL, 443, &ok)).decision, Flow::Direct, "{open:?}");
    }
}

#[test]
fn flows_that_something_is_to_be_found_in() {
    let ok = names(&["ok.test"]);
    let look = |wanted: WantedPolicy, port| policy(wanted).flow(Protocol::Tcp, to(OK, port, &ok)).decision;
    let default = WantedPolicy::default;
    let deny = WantedPolicy { deny: texts(&["evil.test"]), ..default() };
    assert_eq!(look(deny.clone(), 443), Flow::Look(Look::Tls));
    assert_eq!(look(deny, 22), Flow::Direct);
    assert_eq!(look(WantedPolicy { deny: texts(&["192.0.2.1"]), ..default() }, 443), Flow::Direct);
    assert_eq!(look(WantedPolicy { intercept: true, ..default() }, 80), Flow::Look(Look::Http));
    let mut secret = with_secret();
    assert_eq!(look(secret.clone(), 443), Flow::Look(Look::Tls));
    assert_eq!(look(secret.clone(), 8443), Flow::Deny(Refusal::Reset));
    secret.secrets[0].hosts = texts(&["ok.test:8443"]);
    assert_eq!(look(secret, 8443), Flow::Look(Look::Either));
}

/// Where only certain requests are allowed or denied, no connection is carried as it is.
#[test]
fn patterns_for_requests_have_connections_looked_into() {
    let ok = names(&["ok.test"]);
    let flow =
        |wanted: &WantedPolicy, port| policy(wanted.clone()).flow(Protocol::Tcp, to(OK, port, &ok)).decision;
    let allow = |list: &[&str]| WantedPolicy { allow: texts(list), ..WantedPolicy::default() };
    let deny = |list: &[&str]| WantedPolicy { deny: texts(list), ..WantedPolicy::default() };
    let rule = |host: &str| WantedRule {
        name: String::new(),
        phase: Phase::Before,
        hosts: texts(&[host]),
        methods: Vec::new(),
        path: None,
        effect: Effect::Block,
    };
    let rules = |host: &str| WantedPolicy { rules: vec![rule(host)], ..WantedPolicy::default() };
    for (wanted, port, decision) in [
        (allow(&["GET *"]), 443, Flow::Look(Look::Tls)),
        (allow(&["GET *"]), 22, Flow::Deny(Refusal::Reset)),
        (allow(&["GET *"]), 80, Flow::Look(Look::Http)),
        (allow(&["GET *:8080"]), 8080, Flow::Look(Look::Either)),
        (allow(&["ok.test:8080/v1"]), 8080, Flow::Look(Look::Either)),
        (allow(&["ok.test:8080/v1"]), 443, Flow::Deny(Refusal::Alert)),
        (allow(&["ok.test:8080/v1", "ok.test:8080"]), 8080, Flow::Direct),
        (allow(&["ok.test:8080/v1", "203.0.113.0/24"]), 8080, Flow::Direct),
        (deny(&["DELETE *:8080"]), 8080, Flow::Look(Look::Either)),
        (deny(&["DELETE *:8080"]), 22, Flow::Direct),
        (deny(&["DELETE *"]), 22, Flow::Direct),
        (deny(&["DELETE *"]), 443, Flow::Look(Look::Tls)),
        (rules("ok.test:8080"), 8080, Flow::Look(Look::Either)),
        (rules("ok.test:8080"), 8081, Flow::Direct),
        (rules("ok.test"), 8080, Flow::Direct),
    ] {
        assert_eq!(flow(&wanted, port), decision, "{wanted:?} {port}");
    }
    let hello = |mut wanted: WantedPolicy| {
        wanted.passthrough = texts(&["ok.test"]);
        policy(wanted).hello(to(OK, 443, &ok), FirstBytes::Tls(Some(&ok[0]))).decision
    };
    assert_eq!(hello(allow(&["ok.test"])), Hello::Pass);
    assert_eq!(hello(allow(&["GET ok.test"])), Hello::Intercept);
    assert_eq!(hello(deny(&["DELETE ok.test"])), Hello::Intercept);
    assert_eq!(hello(rules("ok.test")), Hello::Pass);
}

#[test]
fn one_denied_name_of_an_address_denies_what_does_not_state_another() {
    let denying = policy(WantedPolicy { deny: texts(&["evil.test"]), ..WantedPolicy::default() });
    let both = names(&["ok.test", "evil.test"]);
    assert_eq!(denying.flow(Protocol::Tcp, to(CDN, 22, &both)).decision, Flow::Look(Look::Either));
    assert_eq!(denying.flow(Protocol::Udp, to(CDN, 22, &both)).decision, Flow::Deny(Refusal::Prohibited));
    let ssh = denying.hello(to(CDN, 22, &both), FirstBytes::Other);
    assert_eq!(
        (ssh.decision, ssh.to_string()),
        (Hello::Deny, "denied by a deny rule [deny:evil.test]".into())
    );
    assert_eq!(denying.flow(Protocol::Tcp, to(CDN, 443, &both)).decision, Flow::Look(Look::Tls));
    for (stated, decision) in [
        (Some("ok.test"), Hello::Intercept),
        (Some("evil.test"), Hello::Deny),
        (Some("other.test"), Hello::Deny),
        (None, Hello::Deny),
    ] {
        let stated = stated.map(name);
        let hello = denying.hello(to(CDN, 443, &both), FirstBytes::Tls(stated.as_ref()));
        assert_eq!(hello.decision, decision, "{stated:?}");
    }
}

#[test]
fn first_bytes() {
    let closed = policy(WantedPolicy {
        allow: texts(&["ok.test", "pinned.test"]),
        passthrough: texts(&["pinned.test"]),
        ..WantedPolicy::default()
    });
    let (ok, pinned, both) =
        (names(&["ok.test"]), names(&["pinned.test"]), names(&["ok.test", "pinned.test"]));
    let tls = |address, names, stated: Option<&str>| {
        let stated = stated.map(name);
        let hello = closed.hello(to(address, 443, names), FirstBytes::Tls(stated.as_ref()));
        (hello.decision, hello.reason.id().to_string())
    };
    let deny = |id: &str| (Hello::Deny, id.to_owned());
    assert_eq!(tls(OK, &ok, Some("ok.test")), (Hello::Intercept, "allow:ok.test".into()));
    assert_eq!(tls(CDN, &both, Some("pinned.test")), (Hello::Pass, "passthrough:pinned.test".into()));
    assert_eq!(tls(CDN, &pinned, Some("ok.test")), deny("name:pinned"));
    assert_eq!(tls(EVIL, &[], Some("ok.test")), deny("name:pinned"));
    assert_eq!(tls(OK, &ok, Some("evil.test")), deny("default:closed"));
    assert_eq!(tls(OK, &ok, None), deny("default:closed"));
    let http = |stated: &str| closed.hello(to(OK, 80, &ok), FirstBytes::Http(&host(stated))).decision;
    for (stated, decision) in [
        ("OK.test.:8080", Hello::Intercept),
        ("evil.test", Hello::Deny),
        ("203.0.113.10", Hello::Deny),
        ("127.0.0.1", Hello::Deny),
    ] {
        assert_eq!(http(stated), decision, "{stated}");
    }
    for (port, bytes) in [
        (80, FirstBytes::Tls(Some(&ok[0]))),
        (80, FirstBytes::Other),
        (443, FirstBytes::Http(&host("ok.test"))),
        (443, FirstBytes::NoHost),
    ] {
        assert_eq!(closed.hello(to(OK, port, &ok), bytes).decision, Hello::Deny, "{port} {bytes:?}");
    }
}

#[test]
fn addresses_without_names() {
    let wanted = WantedPolicy { allow: texts(&["198.51.100.9"]), intercept: true, ..WantedPolicy::default() };
    let policy = policy(wanted);
    let there = to("198.51.100.9", 443, &[]);
    assert_eq!(policy.hello(there, FirstBytes::Tls(None)).decision, Hello::Intercept);
    assert_eq!(policy.hello(there, FirstBytes::Tls(Some(&name("any.test")))).decision, Hello::Intercept);
    assert!(is_forwarded(&get(&policy, "198.51.100.9", "/", there)));
    assert!(!is_forwarded(&get(&policy, "198.51.100.8", "/", there)));
    let at = |stated| policy.hello(to("198.51.100.9", 80, &[]), FirstBytes::Http(&host(stated))).decision;
    assert_eq!((at("198.51.100.9"), at("198.51.100.8")), (Hello::Intercept, Hello::Deny));
}

#[test]
fn requests_are_for_the_host_of_their_connection() {
    let policy = policy(with_secret());
    let ok = names(&["ok.test"]);
    let shared = names(&["ok.test", "evil.test"]);
    let path = Path::parse("/").expect("a path");
    let request = |names, server: Option<&str>, authority: &str, http2| {
        let (host, server) = (host(authority), server.map(name));
        let head = Head { http2, ..head(&host, &path) };
        let verdict = policy.request(to(OK, 443, names), Transport::Tls(server.as_ref()), head);
        (verdict.decision, verdict.reason.id().to_string())
    };
    let forward = Request::Forward(Forward { rules: Vec::new(), secrets: vec![0] });
    assert_eq!(request(&ok, Some("ok.test"), "OK.test:443", true), (forward, "allow:ok.test".into()));
    let refused = |status, id: &str| (Request::Deny(status), id.to_owned());
    assert_eq!(request(&ok, Some("ok.test"), "evil.test", false), refused(Status::Forbidden, "name:same"));
    assert_eq!(
        request(&shared, Some("ok.test"), "evil.test", true),
        refused(Status::Misdirected, "name:same")
    );
    assert_eq!(
        request(&shared, Some("evil.test"), "evil.test", false),
        refused(Status::Forbidden, "default:closed")
    );
    assert_eq!(request(&ok, None, "ok.test", false), refused(Status::Forbidden, "name:same"));
    assert_eq!(request(&[], Some("ok.test"), "ok.test", false), refused(Status::Forbidden, "name:pinned"));
    let plain = |authority: &str| {
        let host = host(authority);
        policy.request(to(OK, 80, &ok), Transport::Plain, head(&host, &path)).decision
    };
    assert_eq!(plain("ok.test"), Request::Forward(Forward::default()));
    assert_eq!(plain("evil.test"), Request::Deny(Status::Forbidden));
}

#[test]
fn methods_and_paths() {
    let policy = policy(WantedPolicy {
        allow: texts(&["GET,HEAD api.test/v1/*", "POST api.test/v1/jobs", "api.test/open/**", "full.test"]),
        deny: texts(&["DELETE *", "full.test/admin/**"]),
        ..WantedPolicy::default()
    });
    let bound = names(&["api.test", "full.test"]);
    let ask = |method: &str, host_name: &str, path: &str, upgrade: bool| {
        let (host, path) = (host(host_name), Path::parse(path).expect(path));
        let head = Head { method, upgrade, ..head(&host, &path) };
        let verdict = policy.request(to(OK, 443, &bound), Transport::Tls(host.name()), head);
        if is_forwarded(&verdict) { String::new() } else { verdict.reason.to_string() }
    };
    for (method, host, path) in [
        ("GET", "api.test", "/v1/a?q=/../x"),
        ("get", "api.test", "/v1/%61"),
        ("POST", "api.test", "/v1/jobs"),
        ("PUT", "api.test", "/open/a/b"),
        ("GET", "full.test", "/any//where"),
        ("GET", "full.test", "/admin"),
    ] {
        assert_eq!(ask(method, host, path, false), "", "{method} {host}{path}");
    }
    let not_listed = "method or path not in allowlist [default:closed]";
    for (method, host, path, text) in [
        ("POST", "api.test", "/v1/a", not_listed),
        ("GET", "api.test", "/v1/a/b", not_listed),
        ("GET", "api.test", "/v1/a%2fb", not_listed),
        ("GET", "api.test", "/v1/..", not_listed),
        ("PUT", "api.test", "/open/../v1/a", not_listed),
        ("PUT", "api.test", "/open/%2e%2e/v1/a", not_listed),
        ("DELETE", "full.test", "/", "denied by a deny rule [deny:DELETE *]"),
        ("GET", "full.test", "/admin/", "denied by a deny rule [deny:full.test/admin/**]"),
        ("GET", "full.test", "/x/../admin/a", "denied by a deny rule [deny:full.test/admin/**]"),
        ("GET", "full.test", "//admin/a", "denied by a deny rule [deny:full.test/admin/**]"),
        ("GET", "full.test", "/%61dmin\\a", "denied by a deny rule [deny:full.test/admin/**]"),
    ] {
        assert_eq!(ask(method, host, path, false), text, "{method} {host}{path}");
    }
    assert_eq!(ask("GET", "full.test", "/ws", true), "");
    assert!(ask("GET", "api.test", "/v1/ws", true).starts_with("an upgraded connection is not held to"));
    let lookup = policy.name(&bound[0], 1).decision;
    assert_eq!(
        (lookup, policy.dial(Some(&bound[0]), OK.parse().expect(OK), 443).decision),
        (Lookup::Answer, Dial::Allow)
    );
}

#[test]
fn rules_for_requests_in_their_order() {
    let rule = |phase, hosts: &[&str], path: &str, effect| WantedRule {
        name: String::new(),
        phase,
        hosts: texts(hosts),
        methods: texts(&["GET"]),
        path: Some(path.to_owned()).filter(|path| !path.is_empty()),
        effect,
    };
    let policy = policy(WantedPolicy {
        rules: vec![
            rule(Phase::Before, &["*.test", "ok.test"], "", Effect::Change),
            rule(Phase::Before, &["ok.test"], "/a/*", Effect::Redirect),
            rule(Phase::After, &[], "", Effect::Change),
            rule(Phase::Before, &[], "/blocked", Effect::Block),
            rule(Phase::Before, &["*"], "/a/../b", Effect::Change),
        ],
        ..WantedPolicy::default()
    });
    let ok = names(&["ok.test"]);
    let ask = |path: &str, phase, from| {
        let (host, path) = (host("ok.test"), Path::parse(path).expect(path));
        let head = Head { phase, from, ..head(&host, &path) };
        let verdict = policy.request(to(OK, 443, &ok), Transport::Tls(host.name()), head);
        match verdict.decision {
            Request::Forward(forward) => Ok(forward.rules),
            Request::Deny(_) => Err(verdict.reason.to_string()),
        }
    };
    let blocked = Err("request blocked by policy [rule:4]".to_owned());
    assert_eq!(ask("/", Phase::Before, 0), Ok(vec![0]));
    assert_eq!(ask("/a/b", Phase::Before, 0), Ok(vec![0, 1]));
    assert_eq!(ask("/blocked", Phase::Before, 2), blocked);
    assert_eq!(ask("//blocked", Phase::Before, 0), blocked);
    assert_eq!(ask("/blocked", Phase::Before, 4), Ok(vec![]));
    assert_eq!(ask("/blocked", Phase::After, 0), Ok(vec![2]));
    assert_eq!(ask("/a/../b", Phase::Before, 2), Ok(vec![4]));
    assert_eq!(ask("/c/../a/b", Phase::Before, 0), Ok(vec![0]));
}

#[test]
fn secrets_go_where_they_are_bound() {
    let ok = names(&["ok.test"]);
    let both = names(&["evil.test", "ok.test"]);
    let ask = |plain: bool, names: &[Name], tls: bool, authority: &str, part: Part| {
        let mut wanted = with_secret();
        wanted.secrets[0].plain = plain;
        let host = host(authority);
        let connection = to(OK, if tls { 443 } else { 80 }, names);
        let transport = if tls { Transport::Tls(host.name()) } else { Transport::Plain };
        let verdict = policy(wanted).secret(0, Place::Request { connection, transport, host: &host, part });
        verdict.expect("a secret")
    };
    for (part, decision) in [
        (Part::HeaderValue, Placeholder::Put),
        (Part::Basic, Placeholder::Put),
        (Part::Query, Placeholder::Put),
        (Part::Path, Placeholder::Leave),
        (Part::HeaderName, Placeholder::Leave),
        (Part::Body, Placeholder::Leave),
        (Part::Upgraded, Placeholder::Leave),
    ] {
        assert_eq!(ask(false, &ok, true, "ok.test", part).decision, decision, "{part:?}");
        assert_eq!(ask(true, &ok, false, "ok.test", part).decision, decision, "{part:?}");
        let elsewhere = if part == Part::Upgraded { Placeholder::Leave } else { Placeholder::Block };
        for (names, authority) in [(&both[..], "evil.test"), (&[], "ok.test"), (&ok, "203.0.113.10")] {
            assert_eq!(ask(false, names, true, authority, part).decision, elsewhere, "{part:?} {authority}");
        }
        let plain = if matches!(part, Part::HeaderValue | Part::Basic | Part::Query | Part::Path) {
            Placeholder::Block
        } else {
            Placeholder::Leave
        };
        assert_eq!(ask(false, &ok, false, "ok.test", part).decision, plain, "{part:?}");
    }
    let text = |verdict: Verdict<Placeholder>| verdict.to_string();
    assert_eq!(
        text(ask(false, &both, true, "evil.test", Part::Body)),
        "secret placeholder sent to unauthorized host [secret:KEY]"
    );
    assert_eq!(
        text(ask(false, &ok, false, "ok.test", Part::Query)),
        "secret placeholder sent without TLS [secret:KEY]"
    );
    let policy = policy(with_secret());
    assert_eq!(policy.secret(0, Place::DnsQuestion).expect("a secret").decision, Placeholder::Block);
    assert!(policy.secret(1, Place::DnsQuestion).is_none());
}

#[test]
fn a_list_that_is_emptied_stays_closed() {
    let policy = allowing(&["ok.test"]);
    let ok = names(&["ok.test"]);
    let (emptied, _) = policy.change(&Change::Delete(texts(&["ok.test"]))).expect("a change");
    assert_eq!(emptied.name(&ok[0], 1).decision, Lookup::Deny);
    assert_eq!(emptied.flow(Protocol::Tcp, to(EVIL, 22, &[])).decision, Flow::Deny(Refusal::Reset));
    assert_eq!(emptied.dial(None, EVIL.parse().expect(EVIL), 443), verdict(Dial::Deny, Reason::NotListed));
    let (again, _) = emptied.change(&Change::Add(texts(&["ok.test"]))).expect("a change");
    assert!(is_forwarded(&get(&again, "ok.test", "/", to(OK, 443, &ok))));
}

#[test]
fn the_hosts_addresses_may_change() {
    let policy = policy(WantedPolicy::default());
    let moved = policy.on_host(&["::ffff:203.0.113.20".parse().expect(EVIL)]);
    let evil = EVIL.parse().expect(EVIL);
    assert_eq!(policy.dial(None, evil, 22).decision, Dial::Allow);
    assert_eq!(moved.dial(None, evil, 22).to_string(), "the host's own addresses are closed [class:host]");
}
