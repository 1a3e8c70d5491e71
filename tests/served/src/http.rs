//! A tiny web server for answers that no real one gives, some of which end too early or never.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The path, with the query.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Asked {
    /// The value of a header, if there is one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first requested byte.
    #[must_use]
    pub fn from(&self) -> usize {
        let from = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        from.and_then(|from| from.parse().ok()).unwrap_or(0)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers beside the length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The connection ends after this many bytes of the body.
    pub cut: Option<usize>,
    /// No byte of the body comes after this many.
    pub stall: Option<usize>,
    /// While the body is stalled, a byte comes as often as this.
    pub drip: Option<Duration>,
}

impl Answer {
    /// The part of the body from this byte on.
    #[must_use]
    pub fn part(self, from: usize) -> Self {
        let len = self.body.len();
        let headers = vec![("Content-Range", format!("bytes {from}-{}/{len}", len.saturating_sub(1)))];
        let body = self.body.get(from..).unwrap_or_default().to_vec();
        Self { status: 206, headers, body, ..self }
    }
}

/// A successful answer.
#[must_use]
pub fn ok(body: &[u8]) -> Answer {
    Answer { status: 200, body: body.to_vec(), ..Answer::default() }
}

/// An answer without a body.
#[must_use]
pub fn status(status: u16) -> Answer {
    Answer { status, ..Answer::default() }
}

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A running server, which ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Host and port.
    pub address: String,
    log: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server whose answers come from `handler`.
    ///
    /// # Errors
    ///
    /// If the host has no port to listen on.
    pub fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let (log, connections) = (Arc::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = {
            let (listener, log, connections) =
                (listener.try_clone()?, Arc::clone(&log), Arc::clone(&connections));
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    locked(&connections).extend(stream.try_clone());
                    let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                    std::thread::spawn(move || serve(&stream, &log, &*handler));
                }
            })
        };
        Ok(Self { address, log, connections, listener, thread: Some(thread) })
    }

    /// Every request so far whose path contains `part`.
    #[must_use]
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        locked(&self.log).iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        locked(&self.log).clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this ends `accept`.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in locked(&self.connections).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers one request a connection.
fn serve(mut stream: &TcpStream, log: &Mutex<Vec<Asked>>, handler: &Handler) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    let asked = Asked { path, headers: headers.collect() };
    locked(log).push(asked.clone());
    let answer = handler(&asked);
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let sent = answer.cut.or(answer.stall).unwrap_or(answer.body.len()).min(answer.body.len());
    let (now, later) = answer.body.split_at(sent);
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(now));
    if answer.stall.is_some() {
        let _ = stream.set_read_timeout(answer.drip);
        let mut drops = later.iter();
        // The client has to give up.
        loop {
            match stream.read(&mut [0; 64]) {
                Ok(1..) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let Some(drop) = drops.next() else { break };
                    let Ok(()) = stream.write_all(&[*drop]) else { break };
                }
                Ok(0) | Err(_) => break,
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
