//! A mirror's files, served by a web server that misbehaves on request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use served::http::{self, Answer, Asked, ok, status};

/// A file, and the way in which it is served.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    pub(crate) body: Vec<u8>,
    /// Connections end after this many bytes, this many times.
    pub(crate) cuts: (usize, u32),
    /// No byte comes after this many.
    pub(crate) stall: Option<usize>,
    /// A request for a part gets the whole.
    pub(crate) no_ranges: bool,
}

impl File {
    /// The answer to one request.
    fn answer(&mut self, asked: &Asked) -> Answer {
        let cut = (self.cuts.1 > 0).then_some(self.cuts.0);
        self.cuts.1 = self.cuts.1.saturating_sub(1);
        let whole = Answer { cut, stall: self.stall, ..ok(&self.body) };
        match asked.from() {
            from @ 1.. if !self.no_ranges => whole.part(from),
            _ => whole,
        }
    }
}

type Files = Arc<Mutex<HashMap<String, File>>>;

/// A running server, which ends when it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) files: Files,
    pub(crate) http: http::Server,
}

impl Server {
    pub(crate) fn start() -> Self {
        let files = Files::default();
        let served = Arc::clone(&files);
        let answer = move |asked: &Asked| match served.lock().unwrap().get_mut(&asked.path) {
            Some(file) => file.answer(asked),
            None => status(404),
        };
        let http = http::Server::start(answer).unwrap();
        Self { url: format!("http://{}/debian", http.address), files, http }
    }

    pub(crate) fn put(&self, path: &str, file: File) {
        self.files.lock().unwrap().insert(format!("/debian/{path}"), file);
    }

    /// Changes a file that is there.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut File)) {
        change(self.files.lock().unwrap().get_mut(&format!("/debian/{path}")).unwrap());
    }
}
