//! Requests to one registry for one repository: logging in, trying again, and telling errors by an answer's status.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use waiting::CancellationToken;
use web::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use web::{Answer, Client, Connections, Download, RequestBuilder, StatusCode, Url};

use crate::auth::{self, Challenge, Credentials, Found, MAX_TOKEN_BYTES};
use crate::mirrors::Place;
use crate::{Error, Name, Trust};

/// How often a request is repeated after an answer that may be temporary.
const MAX_RETRIES: u32 = 3;

/// Longest wait that a registry may ask for before the next try.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The wait before the first repetition; each later wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A repository of a registry.
pub(crate) struct Repository {
    client: Client,
    connections: Arc<Connections>,
    given_up: CancellationToken,
    /// `https://host[:port]/v2/<repository>/`
    base: Url,
    host: String,
    name: Name,
    credentials: Option<Credentials>,
    /// The reason why there are no credentials, once the host was searched for them.
    no_credentials: Option<String>,
    /// The header that was accepted last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Repository {
    /// Prepares for requests; none is made yet.
    pub(crate) fn new(
        place: Place,
        trust: &Trust,
        connections: Arc<Connections>,
        given_up: CancellationToken,
    ) -> Result<Self, Error> {
        let Place { name, insecure } = place;
        let authorities = trust.authorities(name.registry())?;
        // As in dockerd: a registry on this host may speak plain HTTP, unless its authority is known.
        let plain = (name.is_loopback() || insecure) && authorities.is_empty();
        let host = name.host().to_owned();
        let scheme = if plain { "http" } else { "https" };
        let base = format!("{scheme}://{host}/v2/{}/", name.repository());
        let base = Url::parse(&base).map_err(|error| Error::Host(format!("{base}: {error}")))?;
        let client = Client::new(&base, trust.silence, authorities);
        let client = client.map_err(|error| Error::Host(error.to_string()))?;
        let (credentials, no_credentials) = match Credentials::of_host(trust, name.registry(), &given_up)? {
            Found::Credentials(credentials) => (Some(credentials), None),
            Found::Nothing => (None, None),
            Found::Trouble(why) => (None, Some(why)),
        };
        let authorization = Mutex::default();
        Ok(Self {
            client,
            connections,
            given_up,
            base,
            host,
            name,
            credentials,
            no_credentials,
            authorization,
        })
    }

    /// The registry's host.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Waits for `what`, unless the pull is given up first.
    pub(crate) fn wait_for<T>(&self, what: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.connections.wait_for(&self.given_up, what)?
    }

    /// A manifest by tag or digest, and its media type.
    pub(crate) fn manifest(&self, version: &str, max_bytes: u64) -> Result<(Vec<u8>, Option<String>), Error> {
        let url = self.url(&format!("manifests/{version}"))?;
        self.wait_for(async {
            let response = self.get(&url, |request| request.header(ACCEPT, MANIFESTS)).await?;
            let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let media_type = media_type.map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
            Ok((self.whole(response, "manifest", max_bytes).await?, media_type))
        })
    }

    /// A short blob.
    pub(crate) fn blob(&self, digest: &str, what: &'static str, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let url = self.url(&format!("blobs/{digest}"))?;
        self.wait_for(async {
            let response = self.get(&url, |request| request).await?;
            self.whole(response, what, max_bytes).await
        })
    }

    /// Requests the rest of a blob; the answer may still be the whole of it.
    pub(crate) fn open(&self, digest: &str, download: &Download) -> Result<Answer, Error> {
        let url = self.url(&format!("blobs/{digest}"))?;
        self.wait_for(self.get(&url, |request| download.rest(request)))
    }

    fn url(&self, rest: &str) -> Result<Url, Error> {
        self.base.join(rest).map_err(|error| Error::Host(format!("{}{rest}: {error}", self.base)))
    }

    /// The answer to a request that succeeds, after one login if need be.
    async fn get(&self, url: &Url, with: impl Fn(RequestBuilder) -> RequestBuilder) -> Result<Answer, Error> {
        let mut logged_in = false;
        let mut tries = 0;
        let mut wait = FIRST_WAIT;
        loop {
            let request = with(self.client.get(url.clone()));
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let request = match authorization {
                Some(authorization) => request.header(AUTHORIZATION, authorization),
                None => request,
            };
            let response = self.client.send(request).await.map_err(|error| self.connection(&error))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !logged_in {
                logged_in = true;
                self.log_in(&response).await?;
                continue;
            }
            let again = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if !again || tries == MAX_RETRIES {
                return Err(self.status(status));
            }
            tries += 1;
            let asked = retry_after(&response);
            if asked.is_some_and(|asked| asked > MAX_WAIT) {
                return Err(self.status(status));
            }
            tracing::info!("{}: status {status}, try {tries} of {MAX_RETRIES} follows", self.host);
            tokio::time::sleep(asked.unwrap_or(wait)).await;
            wait *= 2;
        }
    }

    /// Logs in as the answer 401 demands. Only the registry's own demand counts: a server that it redirects to is
    /// given no credentials.
    async fn log_in(&self, refused: &Answer) -> Result<(), Error> {
        if refused.url().origin() != self.base.origin() {
            let to = refused.url().host_str().unwrap_or_default().to_owned();
            return Err(Error::Elsewhere { host: self.host.clone(), to });
        }
        let unauthorized = || self.status(StatusCode::UNAUTHORIZED);
        let headers = refused.headers().get_all(WWW_AUTHENTICATE);
        let authorization = match auth::challenge(headers.iter()).ok_or_else(unauthorized)? {
            Challenge::Basic => {
                let credentials = self.credentials.as_ref().filter(|credentials| !credentials.is_identity());
                credentials.and_then(Credentials::basic).ok_or_else(unauthorized)?
            }
            Challenge::Bearer { realm, service, scope } => {
                let token = self.token(&realm, service.as_deref(), scope.as_deref()).await?;
                auth::bearer(&token).ok_or_else(|| self.login("a token that no header can have"))?
            }
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(())
    }

    async fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, Error> {
        let mut url = Url::parse(realm).map_err(|error| self.login(&format!("{realm:?}: {error}")))?;
        let wanted = format!("repository:{}:pull", self.name.repository());
        let scope = scope.unwrap_or(&wanted);
        let identity = self.credentials.as_ref().filter(|credentials| credentials.is_identity());
        let request = match identity {
            // Docker's token specification, OAuth 2: a refresh token is exchanged by a POST.
            Some(identity) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", "matchlock"),
                    ("scope", scope),
                    ("refresh_token", identity.token()),
                ];
                form.extend(service.map(|service| ("service", service)));
                let mut body = Url::parse("form:").map_err(|error| self.login(&error.to_string()))?;
                body.query_pairs_mut().extend_pairs(form);
                let body = body.query().unwrap_or_default().to_owned();
                let kind = "application/x-www-form-urlencoded";
                self.client.post(url).header(CONTENT_TYPE, kind).body(body)
            }
            None => {
                let mut pairs = url.query_pairs_mut();
                pairs.append_pair("scope", scope);
                pairs.extend_pairs(service.map(|service| ("service", service)));
                drop(pairs);
                let request = self.client.get(url);
                match self.credentials.as_ref().and_then(Credentials::basic) {
                    Some(basic) => request.header(AUTHORIZATION, basic),
                    None => request,
                }
            }
        };
        let response = self.client.send(request).await.map_err(|error| self.connection(&error))?;
        match response.status() {
            StatusCode::OK => {}
            // The login server is missing, not the image.
            StatusCode::NOT_FOUND => return Err(self.login("nothing gives tokens there (404)")),
            other => return Err(self.status(other)),
        }
        let answer = self.whole(response, "token", MAX_TOKEN_BYTES).await?;
        auth::token(&answer).ok_or_else(|| self.login("an answer without a token"))
    }

    /// The whole body of a short answer.
    async fn whole(&self, mut response: Answer, what: &'static str, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.connection(&error))? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(Error::TooLong { host: self.host.clone(), what, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn status(&self, status: StatusCode) -> Error {
        let host = self.host.clone();
        match status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized { host, why: self.no_credentials.clone() },
            StatusCode::FORBIDDEN => Error::Forbidden { host },
            StatusCode::NOT_FOUND => Error::NotFound { host },
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests { host },
            _ => Error::Status { host, status: status.as_u16() },
        }
    }

    fn login(&self, why: &str) -> Error {
        Error::Login { host: self.host.clone(), why: why.to_owned() }
    }

    pub(crate) fn connection(&self, error: &web::Error) -> Error {
        Error::Connection { host: self.host.clone(), why: error.to_string() }
    }
}

/// RFC 9110 §10.2.3: a number of seconds. A date is ignored.
fn retry_after(response: &Answer) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
