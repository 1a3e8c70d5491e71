//! DNS messages as bytes: a guest's questions, our replies, questions to servers and their answers.
//!
//! Bytes are bounded before they are decoded; afterwards there are typed values. Not here: sockets and decisions.

use std::net::IpAddr;

use egress_policy::Reason;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// Largest datagram that is sent either way, so that none is fragmented.
pub(crate) const MAX_DATAGRAM: u16 = 1232;

/// Largest question of a guest's: names and options need a small part of it.
pub(crate) const MAX_QUESTION: usize = 4096;

/// Largest message by TCP.
pub(crate) const MAX_MESSAGE: usize = u16::MAX as usize;

/// Size of a header.
const HEADER: usize = 12;

/// Most records of an answer, its three sections together.
const MAX_RECORDS: u64 = 512;

/// Longest text of an extended error.
const MAX_TEXT: usize = 200;

/// The option for extended errors (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;

/// A guest's question.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    query: Query,
    recursion: bool,
    has_edns: bool,
    /// Largest datagram that the guest takes.
    datagram: u16,
}

/// A guest's bytes.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A question.
    Question(Question),
    /// An error is answered, whatever the policy is.
    Refused(Vec<u8>),
    /// Nothing is answered.
    Nothing,
}

/// An extended error: a code (RFC 8914 §4) and words.
#[derive(Debug, Clone)]
pub(crate) enum Extended {
    /// 15, Blocked: the policy denies the name.
    Blocked(Reason),
    /// 17, Filtered: the policy denies every address.
    Filtered(Reason),
    /// 23, Network Error.
    Network(&'static str),
    /// 0, Other.
    Other(&'static str),
}

impl Extended {
    fn option(&self) -> EdnsOption {
        let (code, text) = match self {
            Self::Blocked(reason) => (15_u16, reason.to_string()),
            Self::Filtered(reason) => (17, reason.to_string()),
            Self::Network(words) => (23, (*words).to_owned()),
            Self::Other(words) => (0, (*words).to_owned()),
        };
        let end = text.floor_char_boundary(MAX_TEXT);
        EdnsOption::Unknown(EXTENDED_ERROR, [&code.to_be_bytes(), &text.as_bytes()[..end]].concat())
    }
}

/// A reply to a guest.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authority: Option<Record>,
    pub(crate) extended: Option<Extended>,
}

impl Reply {
    /// There are no such records.
    pub(crate) fn no_data() -> Self {
        Self { code: ResponseCode::NoError, answers: Vec::new(), authority: None, extended: None }
    }

    /// An error with its extended one.
    pub(crate) fn error(code: ResponseCode, extended: Extended) -> Self {
        Self { code, answers: Vec::new(), authority: None, extended: Some(extended) }
    }
}

/// The numbers of questions and records that a header states.
struct Counts {
    questions: u16,
    /// Answers, authorities, additional ones.
    records: [u16; 3],
}

fn counts(bytes: &[u8]) -> Option<Counts> {
    let at = |index: usize| Some(u16::from_be_bytes(bytes.get(index..index + 2)?.try_into().ok()?));
    Some(Counts { questions: at(4)?, records: [at(6)?, at(8)?, at(10)?] })
}

/// Reads a guest's bytes.
pub(crate) fn asked(bytes: &[u8]) -> Asked {
    let (Some(counts), Some(head)) = (counts(bytes), bytes.get(..HEADER)) else { return Asked::Nothing };
    let id = u16::from_be_bytes([head[0], head[1]]);
    let is_answer = head[2] & 0x80 != 0;
    let operation = OpCode::from_u8(head[2] >> 3 & 0x0f);
    if is_answer {
        return Asked::Nothing;
    }
    let refused = |code| {
        let bytes = Message::error_msg(id, operation, code).to_vec();
        bytes.map_or(Asked::Nothing, Asked::Refused)
    };
    if operation != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let is_question = counts.questions == 1 && counts.records[..2] == [0, 0] && counts.records[2] <= 2;
    if !is_question || bytes.len() > MAX_QUESTION {
        return refused(ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(bytes) else { return refused(ResponseCode::FormErr) };
    let Some(query) = message.queries.pop() else { return refused(ResponseCode::FormErr) };
    let question = Question {
        id,
        query,
        recursion: message.metadata.recursion_desired,
        has_edns: message.edns.is_some(),
        datagram: message.edns.as_ref().map_or(512, |edns| edns.max_payload().clamp(512, MAX_DATAGRAM)),
    };
    let refused = |code| {
        let reply = Reply { code, ..Reply::no_data() };
        question.encode(&reply, MAX_MESSAGE).map_or(Asked::Nothing, Asked::Refused)
    };
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return refused(ResponseCode::BADVERS);
    }
    let record = u16::from(question.record());
    // NULL, and from 249 on types of questions (ANY, transfers of zones and so on) that are of no record (RFC 6895 §3.1)
    if question.query.query_class != DNSClass::IN || matches!(record, 0 | 10 | 249..=255) {
        return refused(ResponseCode::NotImp);
    }
    Asked::Question(question)
}

impl Question {
    pub(crate) fn record(&self) -> RecordType {
        self.query.query_type
    }

    /// The name, as the guest wrote it.
    pub(crate) fn name(&self) -> &Name {
        &self.query.name
    }

    /// The name, if it can be a host's.
    pub(crate) fn host(&self) -> Result<egress_policy::Name, egress_policy::NotAName> {
        host(&self.query.name)
    }

    /// Largest datagram that the guest takes.
    pub(crate) fn datagram(&self) -> usize {
        self.datagram.into()
    }

    /// The reply in no more than `most` bytes; what does not fit is left out, and the guest told to ask by TCP.
    pub(crate) fn encode(&self, reply: &Reply, most: usize) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.metadata.response_code = reply.code;
        message.add_query(self.query.clone());
        message.insert_answers(reply.answers.clone());
        message.insert_authorities(reply.authority.iter().cloned().collect());
        if self.has_edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DATAGRAM);
            if let Some(extended) = &reply.extended {
                edns.options_mut().insert(extended.option());
            }
            message.set_edns(edns);
        }
        let bytes = message.to_vec().ok().filter(|bytes| bytes.len() <= MAX_MESSAGE);
        match bytes {
            Some(bytes) if bytes.len() <= most => Some(bytes),
            _ => message.truncate().to_vec().ok().filter(|bytes| bytes.len() <= most),
        }
    }
}

/// A name of a message, if it can be a host's.
pub(crate) fn host(name: &Name) -> Result<egress_policy::Name, egress_policy::NotAName> {
    let mut text = String::new();
    for label in name.iter() {
        // A dot within a label would become one between two, and bytes beyond ASCII have no one meaning.
        let bad = label.iter().find(|byte| **byte == b'.' || !byte.is_ascii_graphic());
        if let Some(bad) = bad {
            return Err(egress_policy::NotAName::Character(char::from(*bad)));
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().copied().map(char::from));
    }
    egress_policy::Name::parse(&text)
}

/// The name in messages for a host's name.
pub(crate) fn name(host: &egress_policy::Name) -> Option<Name> {
    let mut name = Name::from_ascii(host.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// A question to a server.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) id: u16,
    pub(crate) query: Query,
}

/// A server's answer to a question.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) is_truncated: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Outgoing {
    pub(crate) fn encode(&self, with_edns: bool) -> Option<Vec<u8>> {
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        if with_edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DATAGRAM);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// The answer to this very question in a server's bytes.
    pub(crate) fn answer(&self, bytes: &[u8]) -> Option<Answer> {
        let counts = counts(bytes)?;
        let records: u64 = counts.records.iter().copied().map(u64::from).sum();
        if counts.questions != 1 || records > MAX_RECORDS {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let metadata = message.metadata;
        let is_ours = metadata.message_type == MessageType::Response
            && metadata.op_code == OpCode::Query
            && metadata.id == self.id
            && message.queries.first() == Some(&self.query);
        is_ours.then_some(Answer {
            code: metadata.response_code,
            is_truncated: metadata.truncation,
            answers: message.answers,
            authorities: message.authorities,
        })
    }
}

/// The address of a record of addresses.
pub(crate) fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}
