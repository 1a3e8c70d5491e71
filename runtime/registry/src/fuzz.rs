//! Fuzz bodies: names of images, answers of registries, and a host's configuration of registries. Each takes any
//! bytes, and panics only on a defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer. Not here:
//! HTTP; manifests (`images`); Docker's configuration, which names programs to run.

use std::path::Path;

use images::Digest;
use web::header::HeaderValue;

use crate::Name;
use crate::auth::{self, Challenge};
use crate::mirrors::{self, MAX_MIRRORS, Place};
use crate::signatures::{self, Identity};

/// Parses a name: it fits into a URL unchanged, and is the same name when it is parsed again.
pub fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(name) = Name::parse(text) else { return };
    let whole = name.to_string();
    let again = Name::parse(&whole);
    assert!(again.as_ref().is_ok_and(|again| again.to_string() == whole), "{text:?}: {again:?}");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/[]@".contains(&byte);
    assert!(whole.bytes().all(plain), "{whole:?}");
    let parts = name.repository().split('/').chain([name.registry(), name.version()]);
    assert!(parts.into_iter().all(|part| !matches!(part, "" | "." | "..")), "{whole:?}");
    assert!(!name.registry().contains('/') && !name.version().contains('/'), "{whole:?}");
    let url = web::Url::parse(&format!(
        "https://{}/v2/{}/manifests/{}",
        name.host(),
        name.repository(),
        name.version()
    ));
    let Ok(url) = url else { return };
    let path = format!("/v2/{}/manifests/{}", name.repository(), name.version());
    assert_eq!((url.path(), url.username(), url.query(), url.fragment()), (path.as_str(), "", None, None));
}

/// Parses answers of a registry: challenges, a line each, then the answer of a token service, or a list of
/// signatures.
pub fn answers(data: &[u8]) {
    let headers: Vec<_> =
        data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()).collect();
    if let Some(Challenge::Bearer { realm, service, scope }) = auth::challenge(headers.iter()) {
        let texts = [Some(realm), service, scope];
        assert!(texts.iter().flatten().all(|text| text.len() <= data.len()));
    }
    if let Some(token) = auth::token(data) {
        assert!(!token.is_empty() && token.len() <= data.len());
        assert!(auth::bearer(&token).is_none_or(|header| header.is_sensitive()), "a token that is shown");
    }
    let listed = signatures::listed(data);
    assert!(listed.len() <= signatures::MAX_SIGNATURES, "{} signatures", listed.len());
    let manifest = Digest::of_content(b"manifest");
    let identities = [Identity::MatchRepoDigestOrExact, Identity::MatchExact, Identity::MatchRepository];
    for (name, identity) in names().iter().zip(identities) {
        let says = |manifest| signatures::says(data, name, manifest, &identity);
        assert!(!(says(&manifest) && says(&Digest::of_content(b"other"))), "a payload about two manifests");
    }
}

/// Parses a policy, or a configuration of registries. Rules that are not understood refuse; a place is always a name.
pub fn rules(data: &[u8]) {
    let path = Path::new("fuzz");
    for name in names() {
        if let Ok(demands) = signatures::demands_of(data, path, &name) {
            let unsigned = demands.met(&name, &Digest::of_content(b""), &[]);
            assert_eq!(unsigned.is_ok(), !demands.any(), "unsigned is as good as signed");
        }
        let file = std::iter::once(Ok((path, data.to_vec())));
        let places = mirrors::places_in(file, &name).unwrap_or_default();
        assert!(places.len() <= MAX_MIRRORS + 1, "{} places", places.len());
        for Place { name, .. } in places {
            assert!(Name::parse(&name.to_string()).is_ok_and(|again| again.host() == name.host()), "{name}");
        }
    }
}

fn names() -> Vec<Name> {
    let digest = Digest::of_content(b"manifest");
    let texts = ["alpine".to_owned(), "a.example.org:5000/b/c:1".to_owned(), format!("r.io/x@{digest}")];
    texts.iter().filter_map(|text| Name::parse(text).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn name() {
        let digest = format!("r.io:1/x:1@sha256:{}", "0".repeat(64));
        let examples =
            bytes(&["alpine", "localhost/x", "[::1]:5000/a/b__c:V_1", "ghcr.io/a/b---c.d", &digest]);
        let words = [
            "index.docker.io/",
            "docker.io/",
            "library/",
            "..",
            ":",
            "@",
            "[",
            "]",
            "/",
            "-",
            "__",
            "%2e",
            "?",
        ];
        fuzzed::run("registry_name", 4000, &examples, &words, super::name);
    }

    #[test]
    fn answers() {
        let manifest = Digest::of_content(b"manifest");
        let payload = format!(
            r#"{{"critical": {{"type": "cosign container image signature", "image": {{"docker-manifest-digest":
                "{manifest}"}}, "identity": {{"docker-reference": "alpine"}}}}}}"#
        );
        let list = format!(
            r#"{{"layers": [{{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest":
                "{manifest}", "annotations": {{"dev.cosignproject.cosign/signature": "MEUC"}}}}]}}"#
        );
        let challenge =
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull""#;
        assert_eq!(signatures::listed(list.as_bytes()).len(), 1);
        assert!(signatures::says(payload.as_bytes(), &names()[0], &manifest, &Identity::MatchExact));
        let examples =
            bytes(&[challenge, "Basic realm=\"x\"", r#"{"token":"a","access_token":"b"}"#, &payload, &list]);
        let words =
            ["Bearer ", "Basic ", "realm=", "\"", "\\", ",", "\n", "{", "[", "}", "null", "\"token\":"];
        fuzzed::run("registry_answers", 3000, &examples, &words, super::answers);
    }

    #[test]
    fn rules() {
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {
            "docker.io/library": [{"type": "sigstoreSigned", "keyData": "eA=="}], "": [{"type": "reject"}],
            "*.example.org:5000": [{"type": "signedBy"}]}}}"#;
        let registries = r#"
            [[registry]]
            prefix = "*.example.org:5000"
            location = "hub.example.org"
            [[registry]]
            location = "docker.io"
            insecure = true
            [[registry.mirror]]
            location = "localhost:5000"
            pull-from-mirror = "tag-only"
        "#;
        let words = [
            "[[registry]]\n",
            "[[registry.mirror]]\n",
            "\"docker.io\"",
            "*.",
            "\"type\":",
            "[",
            "]",
            "{",
            "}",
        ];
        fuzzed::run("registry_rules", 2000, &bytes(&[policy, registries]), &words, super::rules);
    }
}
