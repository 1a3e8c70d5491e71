//! Why a registry did not give what it was asked for.

use waiting::GivenUp;

use crate::NameError;

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a name of an image.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No answer.
    #[error("{host}: {why}")]
    Connection {
        /// Which host.
        host: String,
        /// The innermost cause.
        why: String,
    },
    /// 401: no credentials, or wrong ones.
    #[error(
        "{host} wants a login, or does not have it (401): docker login {host}{}",
        why.as_ref().map(|why| format!("; there are no credentials now: {why}")).unwrap_or_default()
    )]
    Unauthorized {
        /// Which host.
        host: String,
        /// Why this host has no credentials for it, where it should have some.
        why: Option<String>,
    },
    /// 401, of a server that the registry redirects to.
    #[error("{host} redirects to {to}, which wants a login (401): credentials are for {host} only")]
    Elsewhere {
        /// Which host.
        host: String,
        /// The other one.
        to: String,
    },
    /// 403.
    #[error("{host} does not allow it (403)")]
    Forbidden {
        /// Which host.
        host: String,
    },
    /// 404.
    #[error("{host} does not have it (404)")]
    NotFound {
        /// Which host.
        host: String,
    },
    /// 429, after waiting as often as is allowed.
    #[error("{host} has had too many requests (429); try again later")]
    TooManyRequests {
        /// Which host.
        host: String,
    },
    /// Any other status.
    #[error("{host} answered with status {status}")]
    Status {
        /// Which host.
        host: String,
        /// What it said.
        status: u16,
    },
    /// More than there may be.
    #[error("{host} sent more than {limit} bytes for a {what}")]
    TooLong {
        /// Which host.
        host: String,
        /// What was asked for.
        what: &'static str,
        /// Its limit.
        limit: u64,
    },
    /// The way to a token makes no sense, or is not safe.
    #[error("{host}: its way to log in: {why}")]
    Login {
        /// Which host.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// No place that it may come from has it: mirrors first, then the registry.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Everywhere(Vec<Error>),
    /// The host's policy demands a signature that is not there.
    #[error("{0}")]
    Unsigned(String),
    /// Whoever wanted it does not any more.
    #[error("the pull was given up")]
    GivenUp,
    /// Certificates or credentials on this host.
    #[error("{0}")]
    Host(String),
}

impl From<GivenUp> for Error {
    fn from(_: GivenUp) -> Self {
        Self::GivenUp
    }
}
