//! Questions to the servers outside: what is asked, how often, and how long is waited.
//!
//! Each question has a random number and a socket of its own, whose port the system chose at random, and takes an answer
//! from the server that it asked alone. Not here: whether a name may be asked for.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::chain::{Chain, Found, Step};
use super::message::{Answer, MAX_DATAGRAM, Outgoing};
use crate::udp;

/// Most questions for which answers are awaited.
const MAX_OUTSTANDING: usize = 32;

/// Questions that may be asked in a second, and at once after a pause.
const RATE: u32 = 100;

/// How long one server may take.
const TRY_LIMIT: Duration = Duration::from_secs(2);

/// How long all servers may take together: guests give up after 5 s, and ask again.
const LIMIT: Duration = Duration::from_secs(8);

/// Answers to other questions until a server is asked by TCP, where nobody else can answer.
const MAX_STRAY: usize = 8;

/// The reason for which there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No server answered in time.
    Silence,
    /// Every server answered with an error.
    Refused,
    /// The aliases of the name do not end.
    Endless,
    /// The guest asks more than is passed on.
    TooMany,
}

impl Failure {
    /// The reason in words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Silence => "no DNS server of the host answered",
            Self::Refused => "the DNS servers of the host could not answer",
            Self::Endless => "the aliases of the name do not end",
            Self::TooMany => "too many DNS questions",
        }
    }
}

/// A name, and the number of a type of records.
type Key = (Name, u16);

/// The answer to a question, once it is there.
type Cell = OnceCell<Result<Found, Failure>>;

/// The servers, and what is being asked.
#[derive(Debug)]
pub(crate) struct Upstream {
    servers: Vec<SocketAddr>,
    outstanding: Semaphore,
    bucket: Mutex<Bucket>,
    /// One question for each name and type: who asks the same waits for its answer.
    asked: Mutex<BTreeMap<Key, Arc<Cell>>>,
}

/// Questions that may be asked now.
#[derive(Debug)]
struct Bucket {
    drops: f64,
    since: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.drops = passed.mul_add(f64::from(RATE), self.drops).min(f64::from(RATE));
        self.since = now;
        let is_left = self.drops >= 1.0;
        if is_left {
            self.drops -= 1.0;
        }
        is_left
    }
}

impl Upstream {
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        let bucket = Bucket { drops: f64::from(RATE), since: Instant::now() };
        Self {
            servers,
            outstanding: Semaphore::new(MAX_OUTSTANDING),
            bucket: Mutex::new(bucket),
            asked: Mutex::default(),
        }
    }

    /// Asks the servers.
    pub(crate) async fn find(&self, name: &Name, record: RecordType) -> Result<Found, Failure> {
        let key = (name.clone(), u16::from(record));
        let cell = locked(&self.asked).entry(key.clone()).or_default().clone();
        let waiting = Waiting { upstream: self, key, cell };
        let found = waiting.cell.get_or_init(|| async {
            let _permit = self.outstanding.try_acquire().map_err(|_| Failure::TooMany)?;
            self.walk(Chain::new(name.clone(), record), record).await
        });
        found.await.clone()
    }

    async fn walk(&self, mut chain: Chain, record: RecordType) -> Result<Found, Failure> {
        let end = Instant::now() + LIMIT;
        loop {
            if !locked(&self.bucket).take(Instant::now()) {
                return Err(Failure::TooMany);
            }
            let query = Query::query(chain.at().clone(), record);
            let answer = timeout_at(end, self.ask(query)).await.map_err(|_| Failure::Silence)??;
            match chain.walk(answer).map_err(|_| Failure::Endless)? {
                Step::Found(found) => return Ok(*found),
                Step::Ask(next) => chain = next,
            }
        }
    }

    /// Asks one server after the other, twice: the second time without EDNS, which some do not know.
    async fn ask(&self, query: Query) -> Result<Answer, Failure> {
        let mut failure = Failure::Silence;
        for with_edns in [true, false] {
            for server in &self.servers {
                let Some(question) = outgoing(&query) else { return Err(Failure::Refused) };
                match one(*server, &question, with_edns).await {
                    Some(answer) if is_final(answer.code) => return Ok(answer),
                    Some(_) => failure = Failure::Refused,
                    None => {}
                }
            }
        }
        Err(failure)
    }
}

/// One of those who wait for an answer: takes the question off the list when nobody does any more.
struct Waiting<'a> {
    upstream: &'a Upstream,
    key: Key,
    cell: Arc<Cell>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut asked = locked(&self.upstream.asked);
        let is_same = asked.get(&self.key).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell));
        // Once answered it is asked anew; without an answer, the last of those who wait takes it off: the list and this
        // value have it.
        if is_same && (self.cell.initialized() || Arc::strong_count(&self.cell) <= 2) {
            asked.remove(&self.key);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No value is left half changed: nothing panics while it is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A question under a random number; `None` if the system has none.
fn outgoing(query: &Query) -> Option<Outgoing> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).ok()?;
    Some(Outgoing { id: u16::from_be_bytes(id), query: query.clone() })
}

fn is_final(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// The answer of one server, by TCP if it is too large for a datagram.
async fn one(server: SocketAddr, question: &Outgoing, with_edns: bool) -> Option<Answer> {
    let bytes = question.encode(with_edns)?;
    let by_datagram = timeout(TRY_LIMIT, datagram(server, question, &bytes)).await.ok()?;
    match by_datagram {
        Some(answer) if !answer.is_truncated => Some(answer),
        Some(_) => timeout(TRY_LIMIT, stream(server, question, &bytes)).await.ok()?,
        None => None,
    }
}

/// The answer by UDP; a truncated one stands for what TCP will tell.
async fn datagram(server: SocketAddr, question: &Outgoing, bytes: &[u8]) -> Option<Answer> {
    let socket = udp::connected(server).ok()?;
    udp::send(&socket, bytes).await.ok()?;
    let mut buffer = vec![0; usize::from(MAX_DATAGRAM) + 1];
    let mut strays = 0;
    while strays < MAX_STRAY {
        udp::heard(&socket).await.ok()?;
        let len = match socket.try_recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        };
        let is_whole = len <= MAX_DATAGRAM.into();
        if let Some(answer) = question.answer(&buffer[..len]).filter(|_| is_whole) {
            return Some(answer);
        }
        strays += 1;
    }
    let (answers, authorities) = (Vec::new(), Vec::new());
    Some(Answer { code: ResponseCode::NoError, is_truncated: true, answers, authorities })
}

async fn stream(server: SocketAddr, question: &Outgoing, bytes: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let len = u16::try_from(bytes.len()).ok()?;
    stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await.ok()?;
    let len = stream.read_u16().await.ok()?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await.ok()?;
    question.answer(&answer).filter(|answer| !answer.is_truncated)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn a_question_for_which_nobody_waits_is_off_the_list() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let upstream = Upstream::new(vec![server.local_addr().unwrap()]);
        let name = Name::from_ascii("ok.test.").unwrap();
        let asked = || locked(&upstream.asked).len();
        let mut first = Box::pin(upstream.find(&name, RecordType::A));
        let mut second = Box::pin(upstream.find(&name, RecordType::A));
        tokio::select! {
            biased;
            _ = &mut first => panic!("an answer"),
            _ = &mut second => panic!("an answer"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(asked(), 1);
        drop(first);
        assert_eq!(asked(), 1, "another waits");
        drop(second);
        assert_eq!(asked(), 0);
    }

    #[test]
    fn the_bucket_holds_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket { drops: f64::from(RATE), since: start };
        let taken = |bucket: &mut Bucket, now| (0..500).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 100);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(500)), 50);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(3600)), 100);
    }
}
