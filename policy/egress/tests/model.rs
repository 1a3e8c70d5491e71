//! The policy held against a second one that looks at every pattern, on random lists and questions; and what must be true
//! of any policy.

use std::net::IpAddr;

use egress_policy::{
    Change, Class, Connection, Dial, Effect, FirstBytes, Flow, Head, Hello, Host, Look, Lookup, Name, Path,
    Phase, Policy, Protocol, Reason, Request, Transport, WantedPolicy, WantedRule, WantedSecret, class,
};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Has proofs run at their full length, which takes minutes: `cargo xtask conformance network` sets it.
const LONG: &str = "LONG_PROOFS";

const NAMES: [&str; 10] = [
    "ok.test",
    "a.ok.test",
    "b.a.ok.test",
    "evil.test",
    "ok.evil.test",
    "a.b",
    "api-1.ok.test",
    "ok",
    "test",
    "x-api.b",
];
const ADDRESSES: [&str; 11] = [
    "203.0.113.10",
    "203.0.113.20",
    "203.0.113.7",
    "198.51.100.9",
    "::ffff:203.0.113.10",
    "64:ff9b::cb00:710a",
    "2001:db8::1",
    "2001:db8:1::1",
    "10.0.0.1",
    "127.0.0.1",
    "::ffff:169.254.169.254",
];
const HOST_ADDRESS: &str = "203.0.113.7";
const PORTS: [u16; 5] = [22, 80, 443, 8443, 65_535];
/// Ports beside which the entries' ranges begin and end.
const EDGES: [u16; 16] = [1, 21, 22, 23, 79, 80, 81, 100, 101, 442, 443, 444, 8442, 8443, 8444, 65_535];
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
/// Paths as they are sent, and each form in which a server may see them.
const PATHS: [(&str, &[&str]); 6] = [
    ("/", &["/"]),
    ("/v1/a", &["/v1/a"]),
    ("/v1/%61/b", &["/v1/a/b"]),
    ("/v1/../v2", &["/v1/../v2", "/v2"]),
    ("/v2//a", &["/v2//a", "/v2/a"]),
    ("/v2/a", &["/v2/a"]),
];

/// A pattern, in parts.
#[derive(Debug, Clone)]
struct Entry {
    host: &'static str,
    ports: Option<(u16, u16)>,
    methods: Vec<&'static str>,
    path: Option<&'static str>,
}

impl Entry {
    fn is_network(&self) -> bool {
        self.network().is_some()
    }

    fn network(&self) -> Option<IpNet> {
        self.host.parse::<IpNet>().ok().or_else(|| self.host.parse::<IpAddr>().ok().map(IpNet::from))
    }

    /// As a user would write it.
    fn text(&self) -> String {
        let host = if self.host.contains(':') && self.ports.is_some() {
            format!("[{}]", self.host)
        } else {
            self.host.into()
        };
        let ports = match self.ports {
            None => String::new(),
            Some((first, last)) if first == last => format!(":{first}"),
            Some((first, last)) => format!(":{first}-{last}"),
        };
        let methods = if self.methods.is_empty() { String::new() } else { self.methods.join(",") + " " };
        format!("{methods}{host}{ports}{}", self.path.unwrap_or_default())
    }

    fn is_for_requests(&self) -> bool {
        !self.methods.is_empty() || self.path.is_some()
    }

    fn is_on(&self, port: u16, usual: &[u16]) -> bool {
        match self.ports {
            Some((first, last)) => first <= port && port <= last,
            None => usual.is_empty() || usual.contains(&port),
        }
    }

    fn is_of(&self, name: Option<&str>, addresses: &[IpAddr]) -> bool {
        let star = self.host == "*";
        let by_address =
            self.network().is_some_and(|network| addresses.iter().any(|address| network.contains(address)));
        let by_name = !self.is_network() && name.is_some_and(|name| text_matches(self.host, name));
        star || by_address || by_name
    }

    fn is_for(&self, method: &str, path: &str) -> bool {
        let method = self.methods.is_empty() || self.methods.contains(&method);
        method
            && self.path.is_none_or(|glob| match glob.strip_suffix("/**") {
                Some(above) => {
                    (0..path.len()).any(|at| path[at..].starts_with('/') && path_matches(above, &path[..at]))
                }
                None => path_matches(glob, path),
            })
    }
}

/// `*` is any text.
fn text_matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text
            .strip_prefix(before)
            .is_some_and(|behind| (0..=behind.len()).any(|skipped| text_matches(rest, &behind[skipped..]))),
    }
}

/// `*` is any text without a slash.
fn path_matches(pattern: &str, text: &str) -> bool {
    let (patterns, texts): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), text.split('/').collect());
    patterns.len() == texts.len()
        && patterns.iter().zip(texts).all(|(pattern, text)| text_matches(pattern, text))
}

/// The policy, as lists.
#[derive(Debug, Clone)]
struct Model {
    allow: Vec<Entry>,
    deny: Vec<Entry>,
    passthrough: Vec<Entry>,
    secrets: Vec<Entry>,
    blocked: Vec<(Vec<Entry>, &'static str)>,
    private_open: bool,
    intercept: bool,
}

/// A question: a host that is stated, where its connection goes, and what is asked for.
#[derive(Debug, Clone)]
struct Question {
    address: &'static str,
    port: u16,
    names: Vec<&'static str>,
    stated: Option<&'static str>,
    method: &'static str,
    path: usize,
    udp: bool,
    upgrade: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Allowed,
    Denied,
    Closed,
    NotListed,
}

impl Model {
    fn policy(&self) -> Policy {
        let texts = |list: &[Entry]| list.iter().map(Entry::text).collect::<Vec<_>>();
        Policy::new(&WantedPolicy {
            allow: texts(&self.allow),
            deny: texts(&self.deny),
            passthrough: texts(&self.passthrough),
            secrets: self
                .secrets
                .iter()
                .map(|entry| WantedSecret { name: "S".into(), hosts: vec![entry.text()], plain: false })
                .collect(),
            rules: self
                .blocked
                .iter()
                .map(|(hosts, path)| WantedRule {
                    name: String::new(),
                    phase: Phase::Before,
                    hosts: texts(hosts),
                    methods: Vec::new(),
                    path: Some((*path).to_owned()),
                    effect: Effect::Block,
                })
                .collect(),
            intercept: self.intercept,
            private_open: self.private_open,
            host_addresses: vec![HOST_ADDRESS.parse().expect("an address")],
        })
        .expect("every pattern is valid")
    }

    /// The allow list with the hosts of secrets.
    fn allowed(&self) -> impl Iterator<Item = &Entry> {
        self.allow.iter().chain(self.secrets.iter().filter(|entry| entry.host != "*"))
    }

    fn usual(entry: &Entry) -> &'static [u16] {
        if !entry.is_for_requests() && (entry.host == "*" || entry.is_network()) { &[] } else { &[80, 443] }
    }

    fn is_closed(&self, address: IpAddr) -> bool {
        let own: IpAddr = HOST_ADDRESS.parse().expect("an address");
        let private = matches!(class(address), Class::Private | Class::Shared) && self.private_open;
        forms(address).contains(&own) || !(class(address) == Class::Public || private)
    }

    fn denied(&self, name: Option<&str>, address: IpAddr, port: u16, ask: Option<(&str, &[&str])>) -> bool {
        self.deny.iter().filter(|entry| entry.is_of(name, &forms(address)) && entry.is_on(port, &[])).any(
            |entry| {
                !entry.is_for_requests()
                    || ask.is_some_and(|(method, paths)| paths.iter().any(|path| entry.is_for(method, path)))
            },
        )
    }

    fn decide(
        &self,
        name: Option<&str>,
        address: IpAddr,
        port: u16,
        ask: Option<(&str, &[&str])>,
        upgrade: bool,
    ) -> Kind {
        if self.denied(name, address, port, ask) {
            return Kind::Denied;
        }
        if self.is_closed(address) {
            return Kind::Closed;
        }
        let mut list = self.allowed().peekable();
        if list.peek().is_none() {
            return Kind::Allowed;
        }
        let allows = |entry: &Entry| {
            let here = entry.is_of(name, &[address.to_canonical()]) && entry.is_on(port, Self::usual(entry));
            let asked = ask.is_none_or(|(method, paths)| {
                !upgrade && paths.iter().all(|path| entry.is_for(method, path))
            });
            here && (!entry.is_for_requests() || asked)
        };
        if list.any(allows) { Kind::Allowed } else { Kind::NotListed }
    }

    fn lookup(&self, name: &str) -> Lookup {
        if self.denies_every_port(Some(name), &[]) {
            return Lookup::Deny;
        }
        let is_open = self.allowed().next().is_none();
        if is_open || self.allowed().any(|entry| entry.is_of(Some(name), &[])) {
            Lookup::Answer
        } else {
            Lookup::Deny
        }
    }

    fn denies_every_port(&self, name: Option<&str>, addresses: &[IpAddr]) -> bool {
        let denies = |entry: &Entry, port| {
            !entry.is_for_requests() && entry.is_of(name, addresses) && entry.is_on(port, &[])
        };
        EDGES.iter().all(|port| self.deny.iter().any(|entry| denies(entry, *port)))
    }

    fn look(&self, question: &Question) -> Option<Look> {
        let address = question.to();
        let look = match question.port {
            80 => Look::Http,
            443 => Look::Tls,
            port => {
                let names: Vec<_> =
                    std::iter::once(None).chain(question.names.iter().map(|name| Some(*name))).collect();
                let there = [address.to_canonical()];
                let secret = |entry: &Entry, name| entry.is_of(name, &there) && entry.is_on(port, &[443]);
                let named = |entry: &Entry, name: Option<&str>| {
                    entry.ports.is_some() && entry.is_of(name, &there) && entry.is_on(port, &[])
                };
                let asked = |entry: &Entry, name| entry.is_for_requests() && named(entry, name);
                let looked = names.iter().any(|name| {
                    self.secrets.iter().any(|entry| secret(entry, *name))
                        || self.blocked.iter().any(|(hosts, _)| hosts.iter().any(|entry| named(entry, *name)))
                        || self.deny.iter().any(|entry| asked(entry, *name))
                });
                let looked = looked || !names.iter().any(|name| self.is_whole(*name, question));
                return looked.then_some(Look::Either);
            }
        };
        let names = |entry: &Entry| entry.is_for_requests() || !(entry.host == "*" || entry.is_network());
        let inside = self.intercept
            || !self.secrets.is_empty()
            || !self.blocked.is_empty()
            || self.deny.iter().any(names);
        (inside || !self.is_whole(None, question)).then_some(look)
    }

    /// Whether everything is allowed, and not only certain requests.
    fn is_whole(&self, name: Option<&str>, question: &Question) -> bool {
        let (address, port) = (question.to(), question.port);
        let whole = |entry: &Entry| {
            let here = entry.is_of(name, &[address.to_canonical()]) && entry.is_on(port, Self::usual(entry));
            here && !entry.is_for_requests()
        };
        let is_open = self.allowed().next().is_none() || self.allowed().any(whole);
        is_open && !self.denied(name, address, port, None) && !self.is_closed(address)
    }

    fn flow(&self, question: &Question) -> Option<Option<Look>> {
        let names: Vec<_> = question.names.iter().map(|name| Some(*name)).collect();
        let names = if names.is_empty() { vec![None] } else { names };
        let kinds: Vec<_> = names
            .into_iter()
            .map(|name| self.decide(name, question.to(), question.port, None, false))
            .collect();
        let is_allowed = kinds.contains(&Kind::Allowed);
        let is_unclear = is_allowed && kinds.contains(&Kind::Denied);
        let look = self.look(question).or(is_unclear.then_some(Look::Either));
        let carried = is_allowed && !(question.udp && look.is_some());
        carried.then_some(look)
    }

    fn reach(&self, question: &Question, ask: Option<(&str, &[&str])>) -> Kind {
        let (address, port) = (question.to(), question.port);
        let decide = |name| self.decide(name, address, port, ask, question.upgrade && ask.is_some());
        if let Some(stated) = question.stated.filter(|stated| question.names.contains(stated)) {
            return decide(Some(stated));
        }
        let mut others = question.stated.into_iter().chain(question.names.iter().copied());
        if others.any(|name| self.denied(Some(name), address, port, ask)) {
            Kind::Denied
        } else {
            decide(None)
        }
    }

    fn hello(&self, question: &Question) -> Hello {
        let expected = self.look(question).unwrap_or(Look::Either);
        if expected == Look::Http || self.reach(question, None) != Kind::Allowed {
            return Hello::Deny;
        }
        let pinned = question.stated.filter(|stated| question.names.contains(stated));
        let there = [question.to().to_canonical()];
        let passes = |entry: &Entry| entry.is_of(pinned, &there) && entry.is_on(question.port, &[443]);
        let asked = |entry: &Entry| entry.is_for_requests() && entry.is_of(pinned, &forms(question.to()));
        let is_judged = self.deny.iter().any(|entry| asked(entry) && entry.is_on(question.port, &[]));
        let may_pass = self.is_whole(pinned, question) && !is_judged;
        if may_pass && self.passthrough.iter().any(passes) { Hello::Pass } else { Hello::Intercept }
    }

    /// The secrets that a request over TLS carries; `None` if it is denied.
    fn request(&self, question: &Question) -> Option<Vec<usize>> {
        let paths = PATHS[question.path].1;
        if self.reach(question, Some((question.method, paths))) != Kind::Allowed {
            return None;
        }
        let address = question.to().to_canonical();
        let blocks = |(hosts, glob): &(Vec<Entry>, &str)| {
            let here =
                |entry: &Entry| entry.is_of(question.stated, &[address]) && entry.is_on(question.port, &[]);
            (hosts.is_empty() || hosts.iter().any(here)) && paths.iter().any(|path| path_matches(glob, path))
        };
        if self.blocked.iter().any(blocks) {
            return None;
        }
        let carried = |entry: &Entry| {
            let bound = match question.stated {
                Some(stated) => question.names.contains(&stated) && entry.is_of(Some(stated), &[]),
                None => entry.is_of(None, &[address]),
            };
            bound && entry.is_on(question.port, &[443])
        };
        Some((0..).zip(&self.secrets).filter(|(_, entry)| carried(entry)).map(|(number, _)| number).collect())
    }
}

impl Question {
    fn to(&self) -> IpAddr {
        self.address.parse().expect("an address")
    }
}

/// An address in all its forms, for those that are asked about.
fn forms(address: IpAddr) -> Vec<IpAddr> {
    let mut forms = vec![address.to_canonical()];
    if let Some(text) = address.to_string().strip_prefix("64:ff9b::") {
        assert_eq!(text, "cb00:710a");
        forms.push([203, 0, 113, 10].into());
    }
    forms
}

/// Every answer of a policy to a question: about a name, an address that is dialled, a flow, a hello and a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answered {
    lookup: Option<Lookup>,
    kept: bool,
    dial: bool,
    flow: Option<Option<Look>>,
    hello: Hello,
    request: Option<Vec<usize>>,
}

fn answered(policy: &Policy, question: &Question) -> Answered {
    let names: Vec<Name> = question.names.iter().map(|name| name.parse().expect("a name")).collect();
    let stated: Option<Name> = question.stated.map(|name| name.parse().expect("a name"));
    let address = question.to();
    let connection = Connection { address, port: question.port, names: &names };
    let protocol = if question.udp { Protocol::Udp } else { Protocol::Tcp };
    let host = stated.clone().map_or(Host::Address(address.to_canonical()), Host::Name);
    let path = Path::parse(PATHS[question.path].0).expect("a path");
    let head = Head {
        host: &host,
        method: question.method,
        path: &path,
        upgrade: question.upgrade,
        http2: false,
        phase: Phase::Before,
        from: 0,
    };
    let asked = names.first();
    Answered {
        lookup: asked.map(|name| policy.name(name, 1).decision),
        kept: asked.is_some_and(|name| !policy.answers(name, &[address]).decision.kept.is_empty()),
        dial: policy.dial(stated.as_ref(), address, question.port).decision == Dial::Allow,
        flow: match policy.flow(protocol, connection).decision {
            Flow::Deny(_) => None,
            Flow::Direct => Some(None),
            Flow::Look(look) => Some(Some(look)),
        },
        hello: policy.hello(connection, FirstBytes::Tls(stated.as_ref())).decision,
        request: match policy.request(connection, Transport::Tls(stated.as_ref()), head).decision {
            Request::Deny(_) => None,
            Request::Forward(forward) => Some(forward.secrets),
        },
    }
}

impl Answered {
    /// Whether everything that the other one lets through is let through here.
    fn covers(&self, other: &Self) -> bool {
        (self.lookup == other.lookup || self.lookup == Some(Lookup::Answer))
            && self.kept >= other.kept
            && self.dial >= other.dial
            && self.flow.is_some() >= other.flow.is_some()
            && (self.hello != Hello::Deny || other.hello == Hello::Deny)
            && self.request.is_some() >= other.request.is_some()
    }
}

fn entry(is_list: bool) -> impl Strategy<Value = Entry> {
    let hosts = [
        "*",
        "ok.test",
        "a.ok.test",
        "*.ok.test",
        "*.test",
        "ok.*",
        "a.*",
        "a*.ok.test",
        "*api*",
        "a*test",
        "*-*.*",
        "evil.test",
        "203.0.113.0/24",
        "203.0.113.10",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::/48",
        "10.0.0.0/8",
        "198.51.100.9",
    ];
    let some =
        [22, 80, 443, 8443].map(|port| (port, port)).into_iter().chain([(1, 100), (80, 443), (1, u16::MAX)]);
    let ports = option::weighted(0.3, select(some.collect::<Vec<_>>()));
    let requests = (methods(), option::of(path()));
    let requests = if is_list { option::weighted(0.3, requests).boxed() } else { Just(None).boxed() };
    (select(hosts.to_vec()), ports, requests).prop_map(|(host, ports, requests)| {
        let mut entry = Entry { host, ports, methods: Vec::new(), path: None };
        if let Some((methods, path)) = requests.filter(|_| !entry.is_network()) {
            (entry.methods, entry.path) = (methods, path);
        }
        entry
    })
}

fn methods() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(METHODS.to_vec()), 0..3)
}

fn path() -> impl Strategy<Value = &'static str> {
    select(vec!["/", "/v1/*", "/v1/a", "/v1/**", "/**", "/*", "/v2/a", "/v2"])
}

fn model() -> impl Strategy<Value = Model> {
    let blocked = (vec(entry(false), 0..3), select(vec!["/v1/*", "/v2", "/v2/a", "/*"]));
    let few = |is_list| prop_oneof![2 => Just(Vec::new()), 1 => vec(entry(is_list), 1..3)];
    let lists = (vec(entry(true), 0..6), few(true), few(false), few(false));
    let rest = (prop_oneof![3 => Just(Vec::new()), 1 => vec(blocked, 1..3)], any::<bool>(), any::<bool>());
    (lists, rest).prop_map(|((allow, deny, passthrough, secrets), (blocked, private_open, intercept))| {
        Model { allow, deny, passthrough, secrets, blocked, private_open, intercept }
    })
}

fn question() -> impl Strategy<Value = Question> {
    let name = || select(NAMES.to_vec());
    let places = (select(ADDRESSES.to_vec()), select(PORTS.to_vec()), vec(name(), 0..3), option::of(name()));
    let asked = (select(METHODS.to_vec()), 0..PATHS.len(), any::<bool>(), any::<bool>(), any::<bool>());
    (places, asked).prop_map(|((address, port, names, stated), (method, path, udp, upgrade, pinned))| {
        // Half of the questions state a name of the address's.
        let stated = if pinned { names.first().copied() } else { stated };
        Question { address, port, names, stated, method, path, udp, upgrade }
    })
}

/// Runs a property on always the same inputs, on more of them in a long run.
fn hold<T: std::fmt::Debug>(cases: u32, input: impl Strategy<Value = T>, property: impl Fn(T)) {
    let cases = if std::env::var_os(LONG).is_some() { cases * 100 } else { cases };
    let config =
        Config { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&input, |input| {
        property(input);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

fn questions() -> impl Strategy<Value = Vec<Question>> {
    vec(question(), 20)
}

#[test]
fn the_index_decides_as_the_list_does() {
    hold(500, (model(), questions()), |(model, questions)| {
        let policy = model.policy();
        for question in questions {
            let first = question.names.first();
            let address = question.to();
            let lookup = first.map(|name| model.lookup(name));
            let is_dropped = model.denies_every_port(None, &forms(address));
            let expected = Answered {
                lookup,
                kept: lookup == Some(Lookup::Answer) && !is_dropped && !model.is_closed(address),
                dial: model.decide(question.stated, address, question.port, None, false) == Kind::Allowed,
                flow: model.flow(&question),
                hello: model.hello(&question),
                request: model.request(&question),
            };
            assert_eq!(answered(&policy, &question), expected, "{question:?}");
        }
    });
}

/// A connection that nobody looks into is one of which everything is allowed, under each of its names that is not denied.
#[test]
fn what_is_carried_as_it_is_is_allowed_as_a_whole() {
    hold(1000, (model(), questions()), |(model, questions)| {
        let policy = model.policy();
        for question in questions {
            let answered = answered(&policy, &question);
            let any_name = std::iter::once(None).chain(question.names.iter().map(|name| Some(*name)));
            let mut whole = any_name.filter(|name| model.is_whole(*name, &question));
            if answered.flow == Some(None) || answered.hello == Hello::Pass {
                assert!(whole.next().is_some(), "{question:?}");
            }
        }
    });
}

/// A reason names a pattern that is in its list and matches.
#[test]
fn reasons_are_those_of_the_decision() {
    hold(1000, (model(), questions()), |(model, questions)| {
        let policy = model.policy();
        for question in questions {
            let address = question.to();
            let stated: Option<Name> = question.stated.map(|name| name.parse().expect("a name"));
            let dial = policy.dial(stated.as_ref(), address, question.port);
            let kind = model.decide(question.stated, address, question.port, None, false);
            let named =
                |mut list: Box<dyn Iterator<Item = &Entry> + '_>, text: &str, addresses: &[IpAddr]| {
                    list.any(|entry| entry.text() == text && entry.is_of(question.stated, addresses))
                };
            match &dial.reason {
                Reason::Allowed(text) => {
                    assert!(
                        kind == Kind::Allowed
                            && named(Box::new(model.allowed()), text, &[address.to_canonical()])
                    );
                }
                Reason::Open => assert!(kind == Kind::Allowed && model.allowed().next().is_none()),
                Reason::Denied(text) => {
                    assert!(
                        kind == Kind::Denied && named(Box::new(model.deny.iter()), text, &forms(address))
                    );
                }
                Reason::Closed(_) => assert_eq!(kind, Kind::Closed),
                Reason::NotListed => assert_eq!(kind, Kind::NotListed),
                other => panic!("{other}"),
            }
        }
    });
}

#[test]
fn adding_never_denies_and_deleting_never_allows() {
    hold(1000, (model(), entry(true), questions()), |(model, added, questions)| {
        let policy = model.policy();
        if policy.allowed().next().is_none() {
            return;
        }
        let (more, _) = policy.change(&Change::Add(vec![added.text()])).expect("a valid pattern");
        let taken: Vec<String> = policy.allowed().take(1).map(ToOwned::to_owned).collect();
        let (fewer, _) = policy.change(&Change::Delete(taken)).expect("no pattern");
        for question in questions {
            let before = answered(&policy, &question);
            assert!(answered(&more, &question).covers(&before), "{question:?}");
            assert!(before.covers(&answered(&fewer, &question)), "{question:?}");
        }
    });
}

#[test]
fn the_order_of_a_list_says_nothing() {
    hold(500, (model(), questions()), |(model, questions)| {
        let mut turned = model.clone();
        for list in [&mut turned.allow, &mut turned.deny, &mut turned.passthrough] {
            list.reverse();
        }
        let (policy, turned) = (model.policy(), turned.policy());
        for question in questions {
            assert_eq!(answered(&policy, &question), answered(&turned, &question), "{question:?}");
        }
    });
}

#[test]
fn a_list_that_was_ever_set_denies_all_when_it_is_empty() {
    hold(300, (model(), questions()), |(model, questions)| {
        let policy = model.policy();
        let all: Vec<String> = policy.allowed().map(ToOwned::to_owned).collect();
        if all.is_empty() {
            return;
        }
        let (empty, _) = policy.change(&Change::Delete(all)).expect("no pattern");
        for question in questions {
            let denied = Answered {
                lookup: question.names.first().map(|_| Lookup::Deny),
                kept: false,
                dial: false,
                flow: None,
                hello: Hello::Deny,
                request: None,
            };
            assert_eq!(answered(&empty, &question), denied, "{question:?}");
        }
    });
}

#[test]
fn an_address_is_no_better_in_another_form() {
    hold(20_000, any::<(u32, u16, u16)>(), |(four, high, low)| {
        let four = std::net::Ipv4Addr::from(four);
        let inner = class(IpAddr::V4(four));
        let mapped = IpAddr::V6(four.to_ipv6_mapped());
        assert_eq!((class(mapped), class(mapped.to_canonical())), (inner, inner));
        let [a, b, c, d] = four.octets().map(u16::from);
        let (first, second) = (a << 8 | b, c << 8 | d);
        for outer in [
            [0, 0, 0, 0, 0, 0, first, second],
            [0x64, 0xff9b, 0, 0, 0, 0, first, second],
            [0x64, 0xff9b, 1, high, low, 0, first, second],
            [0x2002, first, second, high, low, high, low, high],
            [0x2001, 0, 0x0808, 0x0808, high, low, !first, !second],
            [0x2600, high, low, high, 0, 0x5efe, first, second],
        ] {
            assert!(class(IpAddr::from(outer)) >= inner, "{}", IpAddr::from(outer));
        }
    });
}
