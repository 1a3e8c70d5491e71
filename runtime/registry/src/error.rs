//! Errors of registries.

use waiting::GivenUp;

use crate::NameError;

/// An error of a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no name of an image.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The registry did not answer.
    #[error("{host}: {why}")]
    Connection {
        /// The registry's host.
        host: String,
        /// The innermost cause.
        why: String,
    },
    /// 401: there are no credentials, or wrong ones.
    #[error(
        "{host} wants a login, or does not have it (401): docker login {host}{}",
        why.as_ref().map(|why| format!("; there are no credentials now: {why}")).unwrap_or_default()
    )]
    Unauthorized {
        /// The registry's host.
        host: String,
        /// The reason why the credentials that this host should have are missing.
        why: Option<String>,
    },
    /// 401 from a server that the registry redirects to.
    #[error("{host} redirects to {to}, which wants a login (401): credentials are for {host} only")]
    Elsewhere {
        /// The registry's host.
        host: String,
        /// The other server.
        to: String,
    },
    /// 403.
    #[error("{host} does not allow it (403)")]
    Forbidden {
        /// The registry's host.
        host: String,
    },
    /// 404.
    #[error("{host} does not have it (404)")]
    NotFound {
        /// The registry's host.
        host: String,
    },
    /// 429, after the allowed number of waits.
    #[error("{host} has had too many requests (429); try again later")]
    TooManyRequests {
        /// The registry's host.
        host: String,
    },
    /// Any other status.
    #[error("{host} answered with status {status}")]
    Status {
        /// The registry's host.
        host: String,
        /// The status.
        status: u16,
    },
    /// The answer is longer than allowed.
    #[error("{host} sent more than {limit} bytes for a {what}")]
    TooLong {
        /// The registry's host.
        host: String,
        /// The requested document.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The token service is missing, or not safe to use.
    #[error("{host}: its way to log in: {why}")]
    Login {
        /// The registry's host.
        host: String,
        /// The reason.
        why: String,
    },
    /// No place has the image; mirrors come first, then the registry.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Everywhere(Vec<Error>),
    /// The host's policy demands a signature that does not exist.
    #[error("{0}")]
    Unsigned(String),
    /// The work was given up.
    #[error("the pull was given up")]
    GivenUp,
    /// Certificates, credentials or rules on this host are wrong.
    #[error("{0}")]
    Host(String),
}

impl From<GivenUp> for Error {
    fn from(_: GivenUp) -> Self {
        Self::GivenUp
    }
}
