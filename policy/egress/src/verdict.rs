//! Verdicts: a decision and its reason, which audit, error pages, DNS errors and `explain` print as it is.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::address::Class;

/// A decision, and the one reason for it. Its text is the reason's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict<T> {
    /// The decision.
    pub decision: T,
    /// The reason.
    pub reason: Reason,
}

impl<T> fmt::Display for Verdict<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// The rule that decided.
///
/// Its text is its words and, in brackets, its id: `host not in allowlist [default:closed]`. A pattern is identified by
/// its own text, which stays when others come and go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A pattern of the allow list.
    Allowed(Arc<str>),
    /// There is no allow list, so that the public internet is open.
    Open,
    /// A pattern of hosts that are not looked into.
    Passthrough(Arc<str>),
    /// A deny rule.
    Denied(Arc<str>),
    /// The address is of a class that is closed.
    Closed(Class),
    /// No pattern of the allow list matches.
    NotListed,
    /// Patterns match the host, none of them this method and path.
    RequestNotListed,
    /// Patterns match the host for certain methods and paths only, to which a connection is not held once it is
    /// upgraded.
    Upgrade,
    /// The name is allowed, but the connection goes to an address that was not given out for it.
    NotPinned,
    /// The request names another host than its connection.
    Misdirected,
    /// The stated host is neither a name nor an address.
    NotAHost,
    /// Records of this type are not answered.
    RecordType,
    /// The connection has to be looked into, and is not of the kind that this port is for.
    Opaque,
    /// The connection would have to be looked into, which only TCP allows.
    NotTcp,
    /// A rule for requests blocks, by its name or number.
    Rule(Arc<str>),
    /// The placeholder of the secret may become its value.
    Secret(Arc<str>),
    /// The placeholder goes to a host that the secret is not for.
    SecretElsewhere(Arc<str>),
    /// The placeholder goes out without TLS.
    SecretPlain(Arc<str>),
    /// The placeholder stays, at a place where no values are put in.
    SecretStays(Arc<str>),
}

impl Reason {
    /// The rule's id.
    pub fn id(&self) -> impl fmt::Display + '_ {
        Id(self)
    }

    /// The rule in words.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            Self::Allowed(_) => "allowed by the allow list",
            Self::Open => "the public internet is open",
            Self::Passthrough(_) => "passed through without a look",
            Self::Denied(_) => "denied by a deny rule",
            Self::Closed(Class::Host) => "the host's own addresses are closed",
            Self::Closed(_) => "addresses of this class are closed",
            Self::NotListed => "host not in allowlist",
            Self::RequestNotListed => "method or path not in allowlist",
            Self::Upgrade => "an upgraded connection is not held to methods and paths",
            Self::NotPinned => "the address was not given out for this name",
            Self::Misdirected => "the request names another host than its connection",
            Self::NotAHost => "neither a host name nor an address",
            Self::RecordType => "records of this type are not answered",
            Self::Opaque => "neither HTTP nor TLS, or not on the port for it",
            Self::NotTcp => "only TCP can be looked into",
            Self::Rule(_) => "request blocked by policy",
            Self::Secret(_) => "the secret is for this host",
            Self::SecretElsewhere(_) => "secret placeholder sent to unauthorized host",
            Self::SecretPlain(_) => "secret placeholder sent without TLS",
            Self::SecretStays(_) => "secrets are not put in here",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.words(), self.id())
    }
}

struct Id<'a>(&'a Reason);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reason::Allowed(pattern) => write!(f, "allow:{pattern}"),
            Reason::Passthrough(pattern) => write!(f, "passthrough:{pattern}"),
            Reason::Denied(pattern) => write!(f, "deny:{pattern}"),
            Reason::Closed(class) => write!(f, "class:{class}"),
            Reason::Open => f.write_str("default:open"),
            Reason::NotListed | Reason::RequestNotListed | Reason::Upgrade => f.write_str("default:closed"),
            Reason::NotPinned => f.write_str("name:pinned"),
            Reason::Misdirected => f.write_str("name:same"),
            Reason::NotAHost => f.write_str("name:valid"),
            Reason::RecordType => f.write_str("dns:type"),
            Reason::Opaque => f.write_str("look:protocol"),
            Reason::NotTcp => f.write_str("look:tcp"),
            Reason::Rule(name) => write!(f, "rule:{name}"),
            Reason::Secret(name)
            | Reason::SecretElsewhere(name)
            | Reason::SecretPlain(name)
            | Reason::SecretStays(name) => write!(f, "secret:{name}"),
        }
    }
}

/// About a name that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The question may go upstream.
    Answer,
    /// The answer is that there are no such records; nothing goes upstream.
    NoData,
    /// The answer is that there is no such name; nothing goes upstream.
    Deny,
}

/// About the addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Those that the guest gets, each with its class. None: the name is denied.
    pub kept: Vec<(IpAddr, Class)>,
    /// Those that it does not get, each with the reason.
    pub dropped: Vec<(IpAddr, Reason)>,
}

/// About a flow that a guest opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Refused in this way.
    Deny(Refusal),
    /// Carried as it is.
    Direct,
    /// Carried once its first bytes were judged.
    Look(Look),
}

/// A way of refusing that the other side understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The TCP connection is reset.
    Reset,
    /// An ICMP message: administratively prohibited.
    Prohibited,
    /// HTTP status 403 with the reason.
    Forbidden,
    /// The TLS alert `access_denied`.
    Alert,
}

/// First bytes that are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The head of an HTTP request.
    Http,
    /// A TLS `ClientHello`.
    Tls,
    /// One of the two.
    Either,
}

/// About a connection whose first bytes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// Ended.
    Deny,
    /// Carried as it is.
    Pass,
    /// Its requests are judged one by one.
    Intercept,
}

/// About a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Answered with this status.
    Deny(Status),
    /// Sent on.
    Forward(Forward),
}

/// The status of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 403
    Forbidden,
    /// 421, after which clients of HTTP/2 open another connection.
    Misdirected,
}

/// The changes to a request that is sent on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forward {
    /// Numbers of the rules that change it, in order. One that may change the path is the last; afterwards the rules
    /// behind it are asked for.
    pub rules: Vec<usize>,
    /// Numbers of the secrets whose placeholders may become values.
    pub secrets: Vec<usize>,
}

/// About a placeholder that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// Replaced by the value.
    Put,
    /// The request ends here.
    Block,
    /// Sent on as it is.
    Leave,
}

/// About a connection to an address outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dial {
    /// May be opened.
    Allow,
    /// May not.
    Deny,
}
