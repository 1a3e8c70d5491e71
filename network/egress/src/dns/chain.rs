//! Answers of servers, taken apart: the records that answer a question, at the end of a chain of aliases. All else that an
//! answer holds is left out.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::message::Answer;

/// Most aliases on the way to records.
pub(crate) const MAX_LINKS: usize = 8;

/// Most records that answer a question.
pub(crate) const MAX_ANSWERS: usize = 64;

/// The answer that servers give to a question.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The aliases on the way.
    pub(crate) links: Vec<Record>,
    /// Records of the type that was asked for.
    pub(crate) records: Vec<Record>,
    /// Whether there is such a name.
    pub(crate) exists: bool,
    /// How long nothing will be found, as a record that says so.
    pub(crate) negative: Option<Record>,
}

/// A walk along a chain.
#[derive(Debug)]
pub(crate) struct Chain {
    at: Name,
    record: RecordType,
    links: Vec<Record>,
}

/// A chain that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endless;

/// A step on a walk.
#[derive(Debug)]
pub(crate) enum Step {
    /// Arrived.
    Found(Box<Found>),
    /// The next name has to be asked for.
    Ask(Chain),
}

impl Chain {
    pub(crate) fn new(name: Name, record: RecordType) -> Self {
        Self { at: name, record, links: Vec::new() }
    }

    /// The name that is asked for.
    pub(crate) fn at(&self) -> &Name {
        &self.at
    }

    /// Walks on through an answer to the question for [`Self::at`].
    pub(crate) fn walk(mut self, answer: Answer) -> Result<Step, Endless> {
        let asked = self.at.clone();
        let is_class = |record: &&Record| record.dns_class == DNSClass::IN;
        while self.record != RecordType::CNAME {
            let link = answer.answers.iter().filter(is_class).find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == self.at => Some((record, target.0.clone())),
                _ => None,
            });
            let Some((link, target)) = link else { break };
            if self.links.len() == MAX_LINKS {
                return Err(Endless);
            }
            self.links.push(link.clone());
            self.at = target;
        }
        let is_answer = |record: &&Record| record.name == self.at && record.record_type() == self.record;
        let records: Vec<Record> =
            answer.answers.iter().filter(is_class).filter(is_answer).take(MAX_ANSWERS).cloned().collect();
        let exists = answer.code != ResponseCode::NXDomain;
        let mut authorities = answer.authorities.iter().filter(is_class);
        let negative = authorities.find(|record| record.record_type() == RecordType::SOA).cloned();
        let is_end = !records.is_empty() || !exists || negative.is_some() || self.at == asked;
        if is_end {
            let negative = negative.filter(|_| records.is_empty());
            Ok(Step::Found(Box::new(Found { links: self.links, records, exists, negative })))
        } else {
            Ok(Step::Ask(self))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn alias(from: &str, to: &str) -> Record {
        Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))))
    }

    fn a(owner: &str, last: u8) -> Record {
        Record::from_rdata(name(owner), 60, RData::A(A(Ipv4Addr::new(203, 0, 113, last))))
    }

    fn walk(chain: Chain, answers: Vec<Record>) -> Result<Step, Endless> {
        let code = ResponseCode::NoError;
        chain.walk(Answer { code, is_truncated: false, answers, authorities: Vec::new() })
    }

    #[test]
    fn only_what_answers_is_taken() {
        let chain = Chain::new(name("a.test."), RecordType::A);
        // Out of order, with records of others.
        let answers = vec![
            a("evil.test.", 9),
            a("c.test.", 1),
            alias("b.test.", "c.test."),
            alias("A.test.", "b.test."),
        ];
        let Ok(Step::Found(found)) = walk(chain, answers) else { panic!() };
        assert_eq!((found.links.len(), found.records), (2, vec![a("c.test.", 1)]));
    }

    #[test]
    fn a_chain_goes_on_in_the_next_answer() {
        let chain = Chain::new(name("a.test."), RecordType::A);
        let Ok(Step::Ask(chain)) = walk(chain, vec![alias("a.test.", "b.test.")]) else { panic!() };
        assert_eq!(*chain.at(), name("b.test."));
        let Ok(Step::Found(found)) = walk(chain, vec![a("b.test.", 1)]) else { panic!() };
        assert_eq!((found.links.len(), found.records.len()), (1, 1));
    }

    #[test]
    fn a_circle_ends() {
        let chain = Chain::new(name("a.test."), RecordType::A);
        let circle = vec![alias("a.test.", "b.test."), alias("b.test.", "a.test.")];
        assert!(matches!(walk(chain, circle), Err(Endless)));
        let mut chain = Chain::new(name("a.test."), RecordType::A);
        for link in 0.. {
            let at = chain.at().to_ascii();
            match walk(chain, vec![alias(&at, &format!("n{link}.test."))]) {
                Ok(Step::Ask(next)) => chain = next,
                end => {
                    assert!(matches!(end, Err(Endless)) && link == MAX_LINKS);
                    break;
                }
            }
        }
    }

    #[test]
    fn an_alias_that_is_asked_for_is_an_answer() {
        let chain = Chain::new(name("a.test."), RecordType::CNAME);
        let Ok(Step::Found(found)) = walk(chain, vec![alias("a.test.", "b.test.")]) else { panic!() };
        assert_eq!((found.links.len(), found.records.len()), (0, 1));
    }
}
