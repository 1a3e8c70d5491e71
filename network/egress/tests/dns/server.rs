//! A DNS server on the loopback interface that says what a test tells it to, by UDP and TCP on one port.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// A running server; it ends with this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

type Edit = Arc<dyn Fn(&mut Message) + Send + Sync>;

/// An answer to a question.
#[derive(Clone)]
pub(crate) struct Answer {
    code: ResponseCode,
    records: Vec<Record>,
    edit: Edit,
    noise: Option<Vec<u8>>,
    /// Sent before it, by UDP alone.
    before: Vec<Answer>,
    tcp_only: bool,
}

impl Answer {
    pub(crate) fn records(records: Vec<Record>) -> Self {
        let (edit, before): (Edit, _) = (Arc::new(|_| {}), Vec::new());
        Self { code: ResponseCode::NoError, records, edit, noise: None, before, tcp_only: false }
    }

    pub(crate) fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::records(Vec::new()) }
    }

    pub(crate) fn noise(bytes: &[u8]) -> Self {
        Self { noise: Some(bytes.to_vec()), ..Self::records(Vec::new()) }
    }

    /// Changes the message before it is sent.
    pub(crate) fn with(self, edit: impl Fn(&mut Message) + Send + Sync + 'static) -> Self {
        Self { edit: Arc::new(edit), ..self }
    }

    pub(crate) fn after(self, before: Vec<Self>) -> Self {
        Self { before, ..self }
    }

    /// By UDP only the news that it is too large.
    pub(crate) fn by_tcp_only(self) -> Self {
        Self { tcp_only: true, ..self }
    }

    fn bytes(&self, asked: &Message, tcp: bool) -> Vec<u8> {
        if let Some(noise) = &self.noise {
            return noise.clone();
        }
        let mut message = Message::response(asked.metadata.id, OpCode::Query);
        message.metadata.response_code = self.code;
        message.add_query(asked.queries[0].clone());
        if self.tcp_only && !tcp {
            message.metadata.truncation = true;
        } else {
            message.insert_answers(self.records.clone());
        }
        (self.edit)(&mut message);
        message.to_vec().unwrap()
    }
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Query) -> Answer + Send + Sync + 'static) -> Self {
        let (datagrams, connections) = sockets().await;
        let address = datagrams.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        let (log, by_udp) = (asked.clone(), answer.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (len, from) = datagrams.recv_from(&mut buffer).await.unwrap();
                let message = Message::from_vec(&buffer[..len]).unwrap();
                note(&log, "", &message);
                let last = by_udp(&message.queries[0]);
                for answer in last.before.iter().chain([&last]) {
                    // Nobody may be there to take it any more.
                    let _ = datagrams.send_to(&answer.bytes(&message, false), from).await;
                }
            }
        });
        let log = asked.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = connections.accept().await.unwrap();
                let message = read(&mut stream).await;
                note(&log, "tcp ", &message);
                let bytes = answer(&message.queries[0]).bytes(&message, true);
                stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    /// The questions so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn note(asked: &Mutex<Vec<String>>, via: &str, message: &Message) {
    let query = &message.queries[0];
    asked.lock().unwrap().push(format!("{via}{} {}", query.name.to_ascii(), query.query_type));
}

async fn read(stream: &mut TcpStream) -> Message {
    let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// One port for both.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = datagrams.local_addr().unwrap();
        if let Ok(connections) = TcpListener::bind(address).await {
            return (datagrams, connections);
        }
    }
}
