//! Who we are to a registry: credentials of Docker's configuration, and tokens that a registry's own service gives.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use waiting::CancellationToken;
use web::header::HeaderValue;

use crate::Error;

/// Longest answer of a token service.
pub(crate) const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// What Docker's configuration has for Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What a helper of Docker's says, with a status that is not 0, of a registry it has nothing for. Docker then goes
/// without; where one helper is set for every registry, that is how most of them are asked.
const UNKNOWN_TO_HELPER: &str = "credentials not found in native keychain";

/// A way to log in that a registry has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// RFC 7617.
    Basic,
    /// A token of this service, for this scope.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The first challenge of these headers that is understood.
pub(crate) fn challenge<'a>(headers: impl Iterator<Item = &'a HeaderValue>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.filter_map(|value| value.to_str().ok()) {
        for challenge in http_auth::parse_challenges(header).unwrap_or_default() {
            let of = |name: &str| {
                let mut all = challenge.params.iter();
                all.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("Bearer") {
                let realm = of("realm")?;
                return Some(Challenge::Bearer { realm, service: of("service"), scope: of("scope") });
            }
            if challenge.scheme.eq_ignore_ascii_case("Basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// User and password for a registry. Debug does not show them.
#[derive(Clone)]
pub(crate) struct Credentials {
    user: String,
    password: String,
    /// An identity token instead (OAuth 2 refresh token).
    identity: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// What Docker's configuration has for this registry, by its helpers too. One that asks a person may take for ever.
    pub(crate) fn find(
        config: Vec<u8>,
        registry: &str,
        given_up: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        let key = if registry == "docker.io" { HUB_KEY } else { registry }.to_owned();
        let find = move || docker_credential::get_credential_from_reader(config.as_slice(), &key);
        match waiting::on_thread(given_up, find) {
            Ok(found) => Self::of(found, registry),
            Err(error) if waiting::is_given_up(&error) => Err(Error::GivenUp),
            Err(error) => Err(Error::Host(format!("credentials for {registry}: {error}"))),
        }
    }

    fn of(
        found: Result<DockerCredential, CredentialRetrievalError>,
        registry: &str,
    ) -> Result<Option<Self>, Error> {
        match found {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                Ok(Some(Self { user, password, identity: false }))
            }
            Ok(DockerCredential::IdentityToken(password)) => {
                Ok(Some(Self { user: String::new(), password, identity: true }))
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.trim() == UNKNOWN_TO_HELPER =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::Host(format!("credentials for {registry}: {error}"))),
        }
    }

    /// An identity token is for token services that speak OAuth 2 only.
    pub(crate) fn is_identity(&self) -> bool {
        self.identity
    }

    /// The identity token.
    pub(crate) fn token(&self) -> &str {
        &self.password
    }

    /// RFC 7617 §2: "user-id and password MUST NOT contain any control characters"; a header cannot have them.
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let text = format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)));
        secret(&text)
    }
}

/// A token as a header.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a token service answers.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token in an answer.
pub(crate) fn token(answer: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.token.or(answer.access_token).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let of = |texts: &[&'static str]| {
            let headers: Vec<_> = texts.iter().map(|text| HeaderValue::from_static(text)).collect();
            challenge(headers.iter())
        };
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("r.example".into()),
            scope: Some("repository:a/b:pull".into()),
        };
        let header =
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull""#;
        assert_eq!(of(&[header]), Some(bearer.clone()));
        assert_eq!(of(&[r#"Basic realm="x""#, header]), Some(bearer));
        assert_eq!(of(&[r#"basic realm="Registry""#]), Some(Challenge::Basic));
        for nothing in ["", "Negotiate", "Bearer service=\"x\"", "Bearer realm", ",,,", "\"\\"] {
            assert_eq!(of(&[nothing]), None, "{nothing}");
        }
    }

    #[test]
    fn a_helper_that_has_nothing_is_no_error() {
        let said = |stdout: &str| {
            let (helper, stdout) = ("docker-credential-x".to_owned(), stdout.to_owned());
            let failed = CredentialRetrievalError::HelperFailure { helper, stdout, stderr: String::new() };
            Credentials::of(Err(failed), "r.example").map(|found| found.is_some())
        };
        assert!(matches!(said("credentials not found in native keychain\n"), Ok(false)));
        for other in ["", "the keychain is locked", "error: credentials not found in native keychain?"] {
            let error = said(other).unwrap_err().to_string();
            assert!(error.starts_with("credentials for r.example: "), "{error}");
        }
    }

    #[test]
    fn tokens() {
        assert_eq!(token(br#"{"token":"a","access_token":"b"}"#).as_deref(), Some("a"));
        assert_eq!(token(br#"{"access_token":"b"}"#).as_deref(), Some("b"));
        for nothing in [&b"{}"[..], b"", b"[]", br#"{"token":""}"#, br#"{"token":1}"#] {
            assert_eq!(token(nothing), None);
        }
        assert_eq!(bearer("a\nb"), None);
        assert!(!format!("{:?}", bearer("s3cr3t")).contains("s3cr3t"));
    }
}
