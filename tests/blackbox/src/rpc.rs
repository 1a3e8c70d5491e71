//! `matchlock rpc` under test: raw lines in, raw lines out, and the steps that every test takes with them.
//!
//! Every line from the server must be one JSON object in ASCII, and no notification may follow its request's answer;
//! this is checked for all lines. Not here: the lines' meaning.

use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Home, IMAGE, machine};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A server and its client.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    lines: Option<Receiver<Value>>,
    /// Messages that were read, but not asked for yet.
    waiting: VecDeque<Value>,
    answered: HashSet<u64>,
    last: u64,
}

/// A request's answer: its result, or code and message of its error.
pub type Answer = Result<Value, (i64, String)>;

impl Server {
    /// Starts a server; `auto` is the machine under test.
    #[must_use]
    pub fn start(home: &Home) -> Self {
        let mut server = Self::unread(home);
        server.read();
        server
    }

    /// Starts a server whose output is not read until [`Server::read`].
    #[must_use]
    pub fn unread(home: &Home) -> Self {
        let mut command = home.matchlock(["rpc"]);
        command.env("MATCHLOCK_MACHINE", machine());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (waiting, answered) = (VecDeque::new(), HashSet::new());
        Self { child, stdin, stdout, lines: None, waiting, answered, last: 0 }
    }

    /// Starts reading.
    pub fn read(&mut self) {
        let stdout = BufReader::new(self.stdout.take().unwrap());
        let (sender, lines) = channel();
        self.lines = Some(lines);
        std::thread::spawn(move || {
            for line in stdout.split(b'\n') {
                let line = line.unwrap();
                assert!(line.is_ascii(), "{}", String::from_utf8_lossy(&line));
                let value: Value = serde_json::from_slice(&line).unwrap();
                assert!(value.is_object() && value["jsonrpc"] == "2.0", "{value}");
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
    }

    /// Closes the pipe of answers.
    pub fn stop_reading(&mut self) {
        drop(self.stdout.take());
    }

    /// Sends bytes unchanged.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Sends a request, and returns its id.
    pub fn send(&mut self, method: &str, params: Value) -> u64 {
        self.last += 1;
        let mut request = json!({"jsonrpc": "2.0", "method": method, "id": self.last});
        if !params.is_null() {
            request["params"] = params;
        }
        self.raw(format!("{request}\n").as_bytes());
        self.last
    }

    /// The next message; `None` at the end.
    pub fn line(&mut self) -> Option<Value> {
        match self.waiting.pop_front() {
            Some(line) => Some(line),
            None => self.fresh(),
        }
    }

    fn fresh(&mut self) -> Option<Value> {
        match self.lines.as_ref().unwrap().recv_timeout(ANSWER_LIMIT) {
            Ok(line) => {
                if let Some(id) = line["id"].as_u64() {
                    self.answered.insert(id);
                }
                let about = line["params"]["id"].as_u64();
                assert!(about.is_none_or(|id| !self.answered.contains(&id)), "after the answer: {line}");
                Some(line)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("nothing more came"),
        }
    }

    fn find(&mut self, which: impl Fn(&Value) -> bool) -> Value {
        if let Some(place) = self.waiting.iter().position(&which) {
            return self.waiting.remove(place).unwrap();
        }
        loop {
            let line = self.fresh().expect("the server ended");
            if which(&line) {
                return line;
            }
            self.waiting.push_back(line);
        }
    }

    /// Waits for the answer to a request.
    pub fn answer(&mut self, id: u64) -> Answer {
        let mut line = self.find(|line| line["id"] == id);
        assert!(line.get("result").is_some() != line.get("error").is_some(), "{line}");
        match line.get("error") {
            None => {
                assert!(line["result"].is_object(), "{line}");
                Ok(line["result"].take())
            }
            Some(error) => {
                let message = error["message"].as_str().unwrap().to_owned();
                Err((error["code"].as_i64().unwrap(), message))
            }
        }
    }

    /// Waits for a notification about a request.
    pub fn notification(&mut self, method: &str, id: u64) -> Value {
        self.find(|line| line["method"] == method && line["params"]["id"] == id)["params"].take()
    }

    /// All bytes of these notifications, among the messages that were read while waiting for others.
    pub fn data(&mut self, method: &str, id: u64) -> Vec<Vec<u8>> {
        let about = |line: &Value| line["method"] == method && line["params"]["id"] == id;
        let (ours, others) = self.waiting.drain(..).partition(about);
        self.waiting = others;
        let ours: VecDeque<Value> = ours;
        ours.iter().map(|line| decode(&line["params"]["data"])).collect()
    }

    /// Sends a request and waits for its answer.
    pub fn call(&mut self, method: &str, params: Value) -> Answer {
        let id = self.send(method, params);
        self.answer(id)
    }

    /// Makes a sandbox of the built-in image, and returns its id.
    pub fn create(&mut self, params: Value) -> String {
        let id = self.send_create(params);
        self.answer(id).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Requests a sandbox of the built-in image, and returns the request's id.
    pub fn send_create(&mut self, params: Value) -> u64 {
        let mut all = json!({"image": IMAGE, "resources": {"memory_mb": 256, "disk_size_mb": 256}});
        let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
        if !kernel.is_empty() {
            all["kernel"] = json!({"ref": kernel});
        }
        for (name, value) in params.as_object().into_iter().flatten() {
            match (&mut all[name], value) {
                (Value::Object(there), Value::Object(more)) => there.extend(more.clone()),
                (there, value) => *there = value.clone(),
            }
        }
        self.send("create", all)
    }

    /// Runs a command; returns status, output, error output.
    pub fn exec(&mut self, command: &str) -> (i64, String, String) {
        let result = self.call("exec", json!({"command": command})).unwrap();
        let text = |name: &str| String::from_utf8(decode(&result[name])).unwrap();
        assert!(result["duration_ms"].is_u64(), "{result}");
        (result["exit_code"].as_i64().unwrap(), text("stdout"), text("stderr"))
    }

    /// Closes the client's side of the conversation.
    pub fn hang_up(&mut self) {
        drop(self.stdin.take());
    }

    /// Hangs up, reads the rest, and waits for the process.
    pub fn end(mut self) -> (ExitStatus, Vec<Value>) {
        self.hang_up();
        let mut rest = Vec::new();
        while self.lines.is_some()
            && let Some(line) = self.line()
        {
            rest.push(line);
        }
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that failed must leave nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number =
            group.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = (number >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= group.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    text
}

/// Decodes the output of [`encode`].
#[must_use]
pub fn decode(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    assert_eq!(text.len() % 4, 0, "no whole groups");
    let mut digits = [0; 256];
    for (digit, character) in (0..).zip(ALPHABET) {
        digits[usize::from(*character)] = digit;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.as_bytes().chunks(4) {
        let number =
            group.iter().fold(0u32, |number, character| number << 6 | digits[usize::from(*character)]);
        bytes.extend_from_slice(&number.to_be_bytes()[1..]);
    }
    bytes.truncate(bytes.len() - text.bytes().rev().take_while(|character| *character == b'=').count());
    bytes
}
