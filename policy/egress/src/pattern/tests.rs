//! Tests of patterns: what each text means, and what is refused.

use super::*;

fn hosts_of(text: &str) -> Hosts {
    Pattern::parse(text).expect(text).hosts
}

fn fault(text: &str) -> Fault {
    Pattern::parse(text).expect_err(text).fault
}

#[test]
fn hosts_as_documented() {
    let name = |text: &str| Hosts::Name(Name::parse(text).expect(text));
    let pieces = |list: &[&str]| Hosts::Pieces(list.iter().map(|piece| (*piece).to_owned()).collect());
    for (text, expected) in [
        ("*", Hosts::Any),
        ("**", Hosts::Any),
        (" ok.test ", name("ok.test")),
        ("OK.test.", name("ok.test")),
        ("bücher.test", name("xn--bcher-kva.test")),
        ("*.Example.com", Hosts::Below("example.com".into())),
        ("**.example.com", Hosts::Below("example.com".into())),
        ("*.bücher.test.", Hosts::Below("xn--bcher-kva.test".into())),
        ("example.*", Hosts::Before("example".into())),
        ("api.v1.*", Hosts::Before("api.v1".into())),
        ("api-*.example.com", pieces(&["api-", ".example.com"])),
        ("*.a.*", pieces(&["", ".a.", ""])),
        ("*.*", pieces(&["", ".", ""])),
        ("*api*", pieces(&["", "api", ""])),
        ("exam*", pieces(&["exam", ""])),
        ("1*.test", pieces(&["1", ".test"])),
    ] {
        assert_eq!(hosts_of(text), expected, "{text}");
    }
    for (text, address, inside) in [
        ("10.0.0.0/8", "10.255.255.255", true),
        ("10.0.0.0/8", "11.0.0.0", false),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
        ("[2001:db8::]:443", "2001:db8::", true),
        ("2001:db8::/32", "2001:db8:ffff::1", true),
        ("::ffff:10.0.0.0/104", "10.1.2.3", true),
        ("0.0.0.0/0", "2001:db8::", false),
        ("::/0", "10.0.0.1", false),
        ("::/0", "2001:db8::", true),
    ] {
        let Hosts::Network(network) = hosts_of(text) else { panic!("{text}") };
        let address: IpAddr = address.parse().expect(address);
        let is_in =
            network.is_v4 == address.is_ipv4() && (network.first..=network.last).contains(&number(address));
        assert_eq!(is_in, inside, "{text} {address}");
    }
}

#[test]
fn ports_methods_and_paths() {
    let ports = |text: &str| Pattern::parse(text).expect(text).ports.map(|ports| (ports.first, ports.last));
    for (text, expected) in [
        ("ok.test", None),
        ("ok.test:443", Some((443, 443))),
        ("*:1-65535", Some((1, 65_535))),
        ("10.0.0.0/8:22", Some((22, 22))),
        ("10.0.0.1:22", Some((22, 22))),
        ("[2001:db8::/32]:443", Some((443, 443))),
        ("[::1]", None),
        ("::1:443", None),
        ("ok.test:8443/v1/*", Some((8443, 8443))),
    ] {
        assert_eq!(ports(text), expected, "{text}");
    }
    let requests = |text: &str| Pattern::parse(text).expect(text).requests;
    assert_eq!(requests("ok.test"), None);
    let read = requests("GET,HEAD  ok.test/v1/**").expect("requests");
    for (method, path, expected) in [
        ("GET", "/v1/a/b", true),
        ("Head", "/v1/", true),
        ("GET", "/v1", false),
        ("GET", "/v2/v1/a", false),
        ("POST", "/v1/a", false),
    ] {
        assert_eq!(read.has_method(method) && read.has_path(path), expected, "{method} {path}");
    }
    let one = requests("ok.test/v1/*").expect("requests");
    assert!(one.has_method("ANY") && one.has_path("/v1/a") && !one.has_path("/v1/a/b"));
}

#[test]
fn patterns_that_are_refused() {
    for (text, expected) in [
        ("", Fault::Empty),
        (":80", Fault::Empty),
        ("/v1", Fault::Empty),
        ("https://ok.test", Fault::Url),
        ("ok.test:", Fault::Port),
        ("ok.test:0", Fault::Port),
        ("ok.test:+1", Fault::Port),
        ("ok.test:65536", Fault::Port),
        ("ok.test:2-1", Fault::Port),
        ("ok.test:http", Fault::Port),
        ("[::1]x", Fault::Port),
        ("a:b:1", Fault::Port),
        ("10.0.*", Fault::AddressWildcard),
        ("10.0.*.1", Fault::AddressWildcard),
        ("10.0.0.1/8", Fault::HostBits("10.0.0.0/8".parse().expect("a network"))),
        ("10.0.0.0/33", Fault::RequestOfAddress),
        ("10.0.0", Fault::Name(NotAName::Number)),
        ("010.0.0.1", Fault::Name(NotAName::Number)),
        ("*.1", Fault::AddressWildcard),
        ("*.0x1", Fault::Name(NotAName::Number)),
        ("fe80::1%eth0", Fault::Port),
        ("[fe80::1%eth0]", Fault::Name(NotAName::Character('['))),
        ("[ok.test]", Fault::Name(NotAName::Character('['))),
        ("ok..test", Fault::Name(NotAName::Empty)),
        ("*..test", Fault::Name(NotAName::Empty)),
        ("ok..*", Fault::Name(NotAName::Empty)),
        ("a,b", Fault::Name(NotAName::Character(','))),
        ("ok.test\u{7}", Fault::Name(NotAName::Character('\u{7}'))),
        ("bü*.test", Fault::International),
        ("GET! ok.test", Fault::Method),
        ("a.test b.test", Fault::Method),
        ("a b.test", Fault::Method),
        (", ok.test", Fault::Method),
        ("ok.test/[", Fault::Path),
        ("ok.test/a/**/b", Fault::Path),
        ("GET 10.0.0.1", Fault::RequestOfAddress),
        ("[10.0.0.1]/v1", Fault::RequestOfAddress),
        (&"a".repeat(2_000), Fault::TooLong),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
    let error = Pattern::parse("ok test\n\u{1b}[31m.test").expect_err("no pattern").to_string();
    assert_eq!(error.lines().count(), 1);
    assert!(!error.contains('\u{1b}'), "{error}");
}

#[test]
fn pieces_do_not_share_characters() {
    let pieces = |text: &str| text.split('*').map(ToOwned::to_owned).collect::<Vec<_>>();
    for (pattern, text, expected) in [
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("*ab*ba*", "aba", false),
        ("*ab*ba*", "abba", true),
        ("a*b*c", "a.b.c", true),
        ("a*b*c", "acb", false),
    ] {
        assert_eq!(has_pieces(&pieces(pattern), text), expected, "{pattern} {text}");
    }
}
