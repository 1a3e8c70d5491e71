//! Logging in to a registry: credentials of Docker's configuration, and tokens of a registry's token service.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use waiting::CancellationToken;
use web::header::HeaderValue;

use crate::{Error, Trust};

/// Longest answer of a token service.
pub(crate) const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// The key of Docker Hub in Docker's configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The message of Docker's helpers, along with a status other than 0, for a registry without credentials. Docker then
/// goes on without; with one helper for every registry, most registries have none.
const UNKNOWN_TO_HELPER: &str = "credentials not found in native keychain";

/// Longest part of a helper's message that is repeated.
const MAX_SAID: usize = 200;

/// A way to log in that a registry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// RFC 7617.
    Basic,
    /// A token of this service, for this scope.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The first challenge in these headers that is understood.
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

/// User and password for a registry. Debug output hides them.
#[derive(Clone)]
pub(crate) struct Credentials {
    user: String,
    password: String,
    /// The password is an identity token (OAuth 2 refresh token).
    identity: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// The credentials that a host has for a registry.
#[derive(Debug)]
pub(crate) enum Found {
    Credentials(Credentials),
    Nothing,
    /// None, because of a fault on the host. Requests that need no login go on without, as in Docker.
    Trouble(String),
}

impl Credentials {
    /// The credentials for this registry, from Docker's configuration or its helpers. A helper that asks a person may
    /// take for ever.
    pub(crate) fn of_host(
        trust: &Trust,
        registry: &str,
        given_up: &CancellationToken,
    ) -> Result<Found, Error> {
        let config = match trust.docker_config() {
            Ok(Some(config)) => config,
            Ok(None) => return Ok(Found::Nothing),
            Err(error) => return Ok(trouble(error.to_string())),
        };
        // Windows editors put a mark before the text.
        let config = config.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&config).trim_ascii().to_owned();
        if config.is_empty() {
            return Ok(Found::Nothing);
        }
        let key = if registry == "docker.io" { HUB_KEY } else { registry }.to_owned();
        let helper = helper(&config, &key);
        let find = move || docker_credential::get_credential_from_reader(config.as_slice(), &key);
        match waiting::on_thread(given_up, find) {
            Ok(found) => Ok(Self::of(found, trust, helper)),
            Err(error) if waiting::is_given_up(&error) => Err(Error::GivenUp),
            Err(error) => Err(Error::Host(format!("credentials for {registry}: {error}"))),
        }
    }

    fn of(
        found: Result<DockerCredential, CredentialRetrievalError>,
        trust: &Trust,
        helper: Option<String>,
    ) -> Found {
        let why = match found {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Found::Credentials(Self { user, password, identity: false });
            }
            Ok(DockerCredential::IdentityToken(password)) => {
                return Found::Credentials(Self { user: String::new(), password, identity: true });
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => return Found::Nothing,
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.trim() == UNKNOWN_TO_HELPER =>
            {
                return Found::Nothing;
            }
            Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. }) => {
                let said = [stdout.trim(), stderr.trim()].join(" ");
                format!("failed: {}", said.trim().chars().take(MAX_SAID).collect::<String>())
            }
            Err(CredentialRetrievalError::HelperCommunicationError) => "cannot be run".to_owned(),
            Err(CredentialRetrievalError::ConfigReadError) => "is not Docker's configuration".to_owned(),
            Err(other) => other.to_string().to_lowercase(),
        };
        let file = trust.docker_config.as_deref().unwrap_or(Path::new("")).display();
        let by = helper.map(|helper| format!(" its helper docker-credential-{helper}")).unwrap_or_default();
        trouble(format!("{file}:{by} {why}"))
    }

    /// Whether the password is an identity token, which only token services with OAuth 2 take.
    pub(crate) fn is_identity(&self) -> bool {
        self.identity
    }

    /// The identity token.
    pub(crate) fn token(&self) -> &str {
        &self.password
    }

    /// RFC 7617 §2: "user-id and password MUST NOT contain any control characters"; nor may a header.
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let text = format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)));
        secret(&text)
    }
}

/// The helper that Docker's configuration names for a registry, chosen as Docker does.
fn helper(config: &[u8], key: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Helpers {
        creds_store: Option<String>,
        cred_helpers: Option<HashMap<String, String>>,
    }
    let helpers: Helpers = serde_json::from_slice(config).ok()?;
    helpers.cred_helpers.and_then(|mut all| all.remove(key)).or(helpers.creds_store)
}

fn trouble(why: String) -> Found {
    tracing::info!("no credentials: {why}");
    Found::Trouble(why)
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

/// The answer of a token service.
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

    /// Looks up a registry's credentials in this configuration.
    fn found(directory: &Path, config: &[u8]) -> Found {
        std::fs::write(directory.join("config.json"), config).unwrap();
        let mut trust = Trust::of_user(directory);
        trust.docker_config = Some(directory.join("config.json"));
        Credentials::of_host(&trust, "r.example", &CancellationToken::new()).unwrap()
    }

    #[test]
    fn a_configuration_that_has_nothing_is_none() {
        let directory = tempfile::tempdir().unwrap();
        for nothing in [&b""[..], b" \n", b"{}", b"\xef\xbb\xbf", b"\xef\xbb\xbf{}", br#"{"auths":{}}"#] {
            assert!(matches!(found(directory.path(), nothing), Found::Nothing), "{nothing:?}");
        }
        let user = STANDARD.encode("me:secret");
        let marked = format!("\u{feff}{{\"auths\":{{\"r.example\":{{\"auth\":\"{user}\"}}}}}}");
        let Found::Credentials(credentials) = found(directory.path(), marked.as_bytes()) else { panic!() };
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("me", "secret"));
    }

    #[test]
    fn trouble_names_file_and_helper() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json").display().to_string();
        for (config, why) in [
            (&br#"{"credsStore":"not-there"}"#[..], ": its helper docker-credential-not-there cannot be run"),
            (
                br#"{"credsStore":"x","credHelpers":{"r.example":"not-there"}}"#,
                ": its helper docker-credential-not-there cannot be run",
            ),
            (b"{", ": is not Docker's configuration"),
            (br#"{"auths":{"r.example":{"auth":"%"}}}"#, ": unable to decode credential"),
        ] {
            let Found::Trouble(said) = found(directory.path(), config) else { panic!("{why}") };
            assert_eq!(said, format!("{file}{why}"));
        }
    }

    #[test]
    fn a_helper_that_has_nothing_is_no_trouble() {
        let trust = Trust::of_user(Path::new("/home/me"));
        let said = |stdout: &str| {
            let (helper, stdout) = ("docker-credential-x".to_owned(), stdout.to_owned());
            let failed = CredentialRetrievalError::HelperFailure { helper, stdout, stderr: "e".to_owned() };
            Credentials::of(Err(failed), &trust, Some("x".to_owned()))
        };
        assert!(matches!(said("credentials not found in native keychain\n"), Found::Nothing));
        for other in ["", "the keychain is locked", "error: credentials not found in native keychain?"] {
            let Found::Trouble(why) = said(other) else { panic!("{other}") };
            assert!(why.contains("its helper docker-credential-x failed: "), "{why}");
            assert!(why.ends_with(format!("{other} e").trim()), "{why}");
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
