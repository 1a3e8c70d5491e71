//! Tests of policies: what is refused, and what changes.

use super::*;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn allowing(list: &[&str]) -> Policy {
    Policy::new(&WantedPolicy { allow: texts(list), ..WantedPolicy::default() }).expect("a policy")
}

fn allowed(policy: &Policy) -> Vec<&str> {
    policy.allowed().collect()
}

#[test]
fn the_hosts_of_secrets_are_allowed() {
    let secret = |hosts: &[&str]| WantedSecret { name: "A".into(), hosts: texts(hosts), plain: false };
    let policy = |allow: &[&str], secrets: Vec<WantedSecret>| {
        Policy::new(&WantedPolicy { allow: texts(allow), secrets, ..WantedPolicy::default() })
            .expect("a policy")
    };
    let listed = policy(&["a.test"], vec![secret(&["b.test", "a.test"]), secret(&["b.test", "c.test:8443"])]);
    assert_eq!(allowed(&listed), ["a.test", "b.test", "c.test:8443"]);
    assert!(policy(&[], vec![secret(&["b.test"])]).is_closed);
    for hosts in [&[][..], &["*"][..]] {
        assert!(!policy(&[], vec![secret(hosts)]).is_closed);
        assert_eq!(allowed(&policy(&["a.test"], vec![secret(hosts)])), ["a.test"]);
    }
}

#[test]
fn changes_report_what_they_changed() {
    let policy = allowing(&["a.test", "*.b.test"]);
    let (policy, added) =
        policy.change(&Change::Add(texts(&[" c.test ", "a.test", "c.test"]))).expect("added");
    assert_eq!((allowed(&policy), added), (vec!["a.test", "*.b.test", "c.test"], texts(&["c.test"])));
    let delete = Change::Delete(texts(&["A.test", "*.b.test ", "nothing", "not a pattern"]));
    let (policy, removed) = policy.change(&delete).expect("removed");
    assert_eq!((allowed(&policy), removed), (vec!["a.test", "c.test"], texts(&["*.b.test"])));
    let (policy, _) = policy.change(&Change::Delete(texts(&["a.test", "c.test"]))).expect("removed");
    assert!(policy.is_closed && allowed(&policy).is_empty());
    let error = policy.change(&Change::Add(texts(&["d.test", "http://e.test"]))).expect_err("a URL");
    assert_eq!(
        error.to_string(),
        "allow list: invalid host pattern \"http://e.test\": is a URL; write the host alone, or HOST/PATH"
    );
}

#[test]
fn faults_name_their_place_in_one_line() {
    let rule = || WantedRule {
        name: String::new(),
        phase: Phase::Before,
        hosts: Vec::new(),
        methods: Vec::new(),
        path: None,
        effect: Effect::Block,
    };
    let rules = |rule: WantedRule| WantedPolicy { rules: vec![rule], ..WantedPolicy::default() };
    let secret = |hosts: &[&str]| WantedPolicy {
        secrets: vec![WantedSecret { name: "KEY".into(), hosts: texts(hosts), plain: false }],
        ..WantedPolicy::default()
    };
    let many = |count: usize| vec!["a.test".to_owned(); count];
    let default = WantedPolicy::default;
    for (wanted, error) in [
        (
            WantedPolicy { deny: texts(&["a", "b c"]), ..default() },
            "deny list: invalid host pattern \"b c\": methods are",
        ),
        (
            WantedPolicy { passthrough: texts(&["a/b"]), ..default() },
            "passthrough list: invalid host pattern \"a/b\": takes",
        ),
        (WantedPolicy { allow: many(MAX_PATTERNS + 1), ..default() }, "allow list: more than 16384 entries"),
        (
            WantedPolicy { secrets: vec![WantedSecret::default(); 257], ..default() },
            "secrets: more than 256 entries",
        ),
        (secret(&["a b"]), "secret \"KEY\": invalid host pattern \"a b\": "),
        (secret(&["GET a"]), "secret \"KEY\": invalid host pattern \"GET a\": takes no methods"),
        (rules(WantedRule { path: Some("/[".into()), ..rule() }), "rule \"1\": \"/[\" is no glob"),
        (
            rules(WantedRule { methods: texts(&["G T"]), name: "r".into(), ..rule() }),
            "rule \"r\": \"G T\" is no method",
        ),
        (rules(WantedRule { hosts: texts(&["[x"]), ..rule() }), "rule \"1\": invalid host pattern \"[x\": "),
        (
            rules(WantedRule { hosts: many(MAX_PATTERNS + 1), ..rule() }),
            "rule \"1\": more than 16384 entries",
        ),
    ] {
        let text = Policy::new(&wanted).expect_err(error).to_string();
        assert!(text.starts_with(error) && text.lines().count() == 1, "{text}");
    }
    assert!(Policy::new(&WantedPolicy { allow: many(MAX_PATTERNS), ..default() }).is_ok());
}

#[test]
fn a_closed_list_of_names_has_domains() {
    let domains = |list: &[&str]| {
        let policy = allowing(list);
        policy.domains().map(|names| names.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>())
    };
    assert_eq!(domains(&["b.test", "*.A.test", "GET b.test:8443/v1/**"]), Some(texts(&["a.test", "b.test"])));
    for open in [&[][..], &["a.test", "*"], &["a.*"], &["api-*.a.test"], &["a.test", "203.0.113.0/24"]] {
        assert_eq!(domains(open), None, "{open:?}");
    }
    let (emptied, _) = allowing(&["a.test"]).change(&Change::Delete(texts(&["a.test"]))).expect("removed");
    assert_eq!(emptied.domains(), Some(BTreeSet::new()));
}
