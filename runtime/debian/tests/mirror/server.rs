//! A web server with files, which misbehaves where it is told to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How a file is served.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    pub(crate) body: Vec<u8>,
    /// Connections end after so many bytes, this often.
    pub(crate) cuts: (usize, u32),
    /// After so many bytes nothing more comes.
    pub(crate) stall: Option<usize>,
    /// Whoever asks for a part gets all of it.
    pub(crate) no_ranges: bool,
}

type Files = Arc<Mutex<HashMap<String, File>>>;

/// A running server. Ends when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) files: Files,
    /// Path and first byte of every request.
    pub(crate) asked: Arc<Mutex<Vec<(String, usize)>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/debian", listener.local_addr().unwrap());
        let files = Files::default();
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let thread = {
            let (listener, connections) = (listener.try_clone().unwrap(), Arc::clone(&connections));
            let (files, asked) = (Arc::clone(&files), Arc::clone(&asked));
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    connections.lock().unwrap().push(stream.try_clone().unwrap());
                    let (files, asked) = (Arc::clone(&files), Arc::clone(&asked));
                    std::thread::spawn(move || serve(stream, &files, &asked));
                }
            })
        };
        Self { url, files, asked, connections, listener, thread: Some(thread) }
    }

    pub(crate) fn put(&self, path: &str, file: File) {
        self.files.lock().unwrap().insert(format!("/debian/{path}"), file);
    }

    /// Changes a file that is there.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut File)) {
        change(self.files.lock().unwrap().get_mut(&format!("/debian/{path}")).unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this ends `accept`.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One request a connection.
fn serve(mut stream: TcpStream, files: &Files, asked: &Mutex<Vec<(String, usize)>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<_> =
        lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let range =
        headers.iter().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let from: usize = range.unwrap_or(0);
    asked.lock().unwrap().push((path.clone(), from));
    let file = files.lock().unwrap().get_mut(&path).map(|file| {
        let served = file.clone();
        file.cuts.1 = file.cuts.1.saturating_sub(1);
        served
    });
    let Some(file) = file else {
        let _ = stream.write_all(b"HTTP/1.1 404 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    let from = if file.no_ranges { 0 } else { from };
    let body = &file.body[from.min(file.body.len())..];
    let status = if from > 0 { 206 } else { 200 };
    let head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let cut = (file.cuts.1 > 0).then_some(file.cuts.0);
    let sent = cut.or(file.stall).unwrap_or(body.len()).min(body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent]));
    if file.stall.is_some() {
        // Until the client gives up.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    let _ = stream.shutdown(Shutdown::Both);
}
