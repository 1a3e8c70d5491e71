//! Sessions with a guest that is played: the answers, their number and their order.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex};

use guest_protocol::frame::{self, Head, Kind as Frame};
use guest_protocol::{
    Answer, Exit, FileFailure, FileReply, Program, ProgramEvent, Request as GuestRequest, Usage,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use sandbox::{Guest, Why};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::line::Line;
use crate::request;
use crate::vm::{Fake, MAX_STREAMS};

const LIMIT: Duration = Duration::from_secs(30);

/// The state that the played guest and the test share.
#[derive(Default)]
struct Stage {
    /// Programs whose stream the host has dropped.
    hung_up: Mutex<Vec<String>>,
    changed: Notify,
    /// Delays every sandbox until it is notified, if it is set.
    ready: Option<Notify>,
    fakes: Mutex<Vec<Fake>>,
    /// Whether the client reads.
    reads: (Mutex<bool>, Condvar),
    /// The client can send nothing more.
    hang_up: Notify,
    stall_limit: Option<Duration>,
    /// Lets the program `late` begin to read.
    go: Notify,
}

/// Gives lines to the test while the client reads.
struct Output {
    lines: mpsc::UnboundedSender<Value>,
    stage: Arc<Stage>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut reads = self.stage.reads.0.lock().unwrap();
        while !*reads {
            reads = self.stage.reads.1.wait(reads).unwrap();
        }
        assert!(bytes.ends_with(b"\n") && bytes.is_ascii());
        let line = serde_json::from_slice(bytes).unwrap();
        match self.lines.send(line) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Client {
    requests: Option<mpsc::Sender<Result<Request, Refused>>>,
    lines: mpsc::UnboundedReceiver<Value>,
    session: JoinHandle<()>,
    stage: Arc<Stage>,
    last: u64,
}

impl Client {
    fn new(stage: Stage) -> Self {
        let stage = Arc::new(stage);
        *stage.reads.0.lock().unwrap() = true;
        let (sender, lines) = mpsc::unbounded_channel();
        let outbox = Outbox::start(Output { lines: sender, stage: Arc::clone(&stage) });
        let theirs = Arc::clone(&stage);
        let make = move |_: &Spec| Ok(make(&theirs));
        let home = Home::at(std::path::Path::new("/no/such/home"));
        let mut session = Session::with(home, WantedMachine::Auto, Box::new(make), outbox);
        session.max_ahead = 1 << 20;
        session.stall_limit = stage.stall_limit.unwrap_or(STALL_LIMIT);
        let (requests, receiver) = mpsc::channel(1);
        let theirs = Arc::clone(&stage);
        let hang_up = async move { theirs.hang_up.notified().await };
        let session = tokio::spawn(session.run(receiver, hang_up, std::future::pending()));
        Self { requests: Some(requests), lines, session, stage, last: 0 }
    }

    async fn with_vm() -> Self {
        let mut client = Self::new(Stage::default());
        let created = client.call("create", json!({"image": "any"})).await;
        assert_eq!(created.unwrap()["id"], "vm-00000000");
        client
    }

    async fn send(&mut self, method: &str, params: Value) -> u64 {
        self.last += 1;
        let text = json!({"id": self.last, "method": method, "params": params}).to_string();
        let request = request::read(&Line::Whole(text.into_bytes()));
        timeout(LIMIT, self.requests.as_ref().unwrap().send(request)).await.expect("taken").unwrap();
        self.last
    }

    async fn line(&mut self) -> Value {
        timeout(LIMIT, self.lines.recv()).await.expect("nothing came").expect("the session ended")
    }

    /// The next line, which must be the answer to this request.
    async fn answer(&mut self, id: u64) -> Result<Value, i64> {
        let mut line = self.line().await;
        assert_eq!(line["id"], id, "{line}");
        match line.get("error") {
            Some(error) => Err(error["code"].as_i64().unwrap()),
            None => Ok(line["result"].take()),
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value, i64> {
        let id = self.send(method, params).await;
        self.answer(id).await
    }

    async fn run(&mut self, command: &str) -> Result<Value, i64> {
        self.call("exec", json!({"command": command})).await
    }

    /// Waits until the guest has seen the end of this program's stream.
    async fn hung_up(&self, command: &str) {
        let seen = async {
            loop {
                let changed = self.stage.changed.notified();
                if self.stage.hung_up.lock().unwrap().iter().any(|seen| seen == command) {
                    return;
                }
                changed.await;
            }
        };
        timeout(LIMIT, seen).await.expect("the guest sees the end of the stream");
    }

    fn read(&self, reads: bool) {
        *self.stage.reads.0.lock().unwrap() = reads;
        self.stage.reads.1.notify_all();
    }

    /// Hangs up; returns the lines that still come.
    async fn end(mut self) -> Vec<Value> {
        drop(self.requests.take());
        let mut rest = Vec::new();
        while let Some(line) = timeout(LIMIT, self.lines.recv()).await.expect("the session ends") {
            rest.push(line);
        }
        self.session.await.unwrap();
        for fake in self.stage.fakes.lock().unwrap().iter() {
            assert!(fake.vm.is_gone());
        }
        rest
    }
}

fn make(stage: &Arc<Stage>) -> Arc<Vm> {
    let mut fakes = stage.fakes.lock().unwrap();
    let theirs = Arc::clone(stage);
    let guest = async move {
        if let Some(ready) = &theirs.ready {
            ready.notified().await;
        }
        guest(theirs)
    };
    let fake = Fake::new(u32::try_from(fakes.len()).unwrap(), guest);
    let vm = Arc::clone(&fake.vm);
    fakes.push(fake);
    vm
}

fn guest(stage: Arc<Stage>) -> Guest {
    sandbox::stand_in::guest(move |stream| {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            let mut stream = stream;
            let Some(request) = request(&mut stream).await else { return };
            match request {
                GuestRequest::Exec(exec) => {
                    let Program::Shell(command) = exec.program else { panic!("{:?}", exec.program) };
                    if command == "late" {
                        say(&mut stream, &ProgramEvent::Started).await.unwrap();
                        stage.go.notified().await;
                    }
                    if play(&mut stream, &command).await.is_err() {
                        stage.hung_up.lock().unwrap().push(command);
                        stage.changed.notify_waiters();
                    }
                }
                GuestRequest::File(_) => {
                    say(&mut stream, &FileReply::<()>::Err(FileFailure::NotRegular)).await.unwrap()
                }
                other => panic!("{other:?}"),
            }
        });
    })
}

async fn play(stream: &mut UnixStream, command: &str) -> io::Result<()> {
    let (name, argument) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "garbage" => return stream.write_all(b"\xff\xff\xff\xff\xff\xff").await,
        "vanish" => return Ok(()),
        "late" => {}
        _ => say(stream, &ProgramEvent::Started).await?,
    }
    match name {
        "echo" => data(stream, Frame::Stdout, argument.as_bytes()).await?,
        "lines" => {
            for number in 0..argument.parse::<u32>().unwrap() {
                let kind = if number % 2 == 0 { Frame::Stdout } else { Frame::Stderr };
                data(stream, kind, format!("{number}\n").as_bytes()).await?;
            }
        }
        "split" => {
            for byte in "aü😀".as_bytes() {
                data(stream, Frame::Stdout, &[*byte]).await?;
            }
            data(stream, Frame::Stdout, b"\xf0\x9f").await?;
        }
        "cat" => loop {
            match frame(stream).await? {
                Some((Frame::Stdin, bytes)) if bytes.is_empty() => break,
                Some((Frame::Stdin, bytes)) => data(stream, Frame::Stdout, &bytes).await?,
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        },
        "late" => {
            let mut count = 0;
            loop {
                match frame(stream).await? {
                    Some((Frame::Stdin, bytes)) if bytes.is_empty() => break,
                    Some((Frame::Stdin, bytes)) => count += bytes.len(),
                    _ => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
            data(stream, Frame::Stdout, count.to_string().as_bytes()).await?;
        }
        "hang" => {
            while frame(stream).await?.is_some() {}
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        "flood" => loop {
            data(stream, Frame::Stdout, &vec![b'x'; frame::DATA_CHUNK]).await?;
        },
        "die" => return Ok(()),
        other => panic!("{other}"),
    }
    say(stream, &ProgramEvent::Exited(Exit::Code(7), Usage::default())).await?;
    // The host hangs up once it has the answer.
    frame(stream).await.map(drop)
}

async fn say(stream: &mut UnixStream, answer: &impl Answer) -> io::Result<()> {
    stream.write_all(&frame::encode_reply(answer).unwrap()).await
}

async fn data(stream: &mut UnixStream, kind: Frame, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&[&Head::bytes(kind, bytes.len()).unwrap()[..], bytes].concat()).await
}

async fn frame(stream: &mut UnixStream) -> io::Result<Option<(Frame, Vec<u8>)>> {
    let mut head = [0; frame::HEAD];
    if let Err(error) = stream.read_exact(&mut head).await {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let head = Head::parse(head).unwrap();
    let mut payload = vec![0; head.len];
    stream.read_exact(&mut payload).await?;
    Ok(Some((head.kind, payload)))
}

async fn request(stream: &mut UnixStream) -> Option<GuestRequest> {
    let (kind, payload) = frame(stream).await.ok()??;
    assert_eq!(kind, Frame::Message);
    Some(frame::decode(&payload).unwrap())
}

fn text(data: &Value) -> String {
    String::from_utf8(bytes::decode(data.as_str().unwrap()).unwrap()).unwrap()
}

const EXEC: i64 = -32001;
const CANCELLED: i64 = -32003;
const VM: i64 = -32000;

#[tokio::test]
async fn output_comes_first_and_whole() {
    let mut client = Client::with_vm().await;
    let result = client.run("echo hi").await.unwrap();
    assert_eq!((text(&result["stdout"]).as_str(), &result["exit_code"]), ("hi", &json!(7)));
    let id = client.send("exec_stream", json!({"command": "lines 200"})).await;
    let mut seen =
        HashMap::from([("exec_stream.stdout", String::new()), ("exec_stream.stderr", String::new())]);
    for _ in 0..200 {
        let line = client.line().await;
        assert_eq!(line["params"]["id"], id);
        seen.get_mut(line["method"].as_str().unwrap()).unwrap().push_str(&text(&line["params"]["data"]));
    }
    assert_eq!(client.answer(id).await.unwrap()["exit_code"], 7);
    let even: String = (0..200).step_by(2).map(|number| format!("{number}\n")).collect();
    assert_eq!(seen["exec_stream.stdout"], even);

    let id = client.send("exec_tty", json!({"command": "split"})).await;
    assert_eq!(client.line().await["method"], "exec_tty.ready");
    for expected in ["a", "ü", "😀"] {
        assert_eq!(text(&client.line().await["params"]["data"]), expected);
    }
    // Bytes that never become a character are sent at the end.
    assert_eq!(client.line().await["params"]["data"], "8J8=");
    client.answer(id).await.unwrap();
    assert!(client.end().await.is_empty());
}

#[tokio::test]
async fn requests_wait_for_a_stream_and_can_be_cancelled_meanwhile() {
    let mut client = Client::with_vm().await;
    let mut hanging = Vec::new();
    for number in 0..MAX_STREAMS {
        hanging.push(client.send("exec", json!({"command": format!("hang {number}")})).await);
    }
    let waits = client.send("exec", json!({"command": "echo waits"})).await;
    let cancelled = client.send("exec", json!({"command": "echo cancelled"})).await;
    // Calls without a stream do not wait; by now the other calls would have been answered.
    assert_eq!(client.call("process_list", json!({})).await.unwrap()["processes"], json!([]));
    client.send("cancel", json!({"id": cancelled})).await;
    assert_eq!(client.answer(cancelled).await, Err(CANCELLED));
    client.line().await;
    client.send("cancel", json!({"id": hanging[0]})).await;
    assert_eq!(client.answer(hanging[0]).await, Err(CANCELLED));
    client.line().await;
    assert_eq!(text(&client.answer(waits).await.unwrap()["stdout"]), "waits");
    assert_eq!(client.end().await.len(), MAX_STREAMS - 1);
}

#[tokio::test]
async fn how_much_input_was_taken_is_told_to_those_who_ask() {
    let mut client = Client::with_vm().await;
    let id = client.send("exec_pipe", json!({"command": "cat", "stdin_ack": true})).await;
    assert_eq!(client.line().await["method"], "exec_pipe.ready");
    for _ in 0..3 {
        client.send("exec_pipe.stdin", json!({"id": id, "data": bytes::encode(b"hello")})).await;
    }
    let (mut acks, mut seen) = (Vec::new(), String::new());
    while acks.len() < 3 || seen.len() < 15 {
        let line = client.line().await;
        assert_eq!(line["params"]["id"], id);
        match line["method"].as_str().unwrap() {
            "exec_pipe.stdin_ack" => acks.push(line["params"]["bytes"].as_u64().unwrap()),
            _ => seen.push_str(&text(&line["params"]["data"])),
        }
    }
    assert_eq!((acks, seen.as_str()), (vec![5, 10, 15], "hellohellohello"));
    client.send("exec_pipe.stdin_eof", json!({"id": id})).await;
    client.answer(id).await.unwrap();
}

#[tokio::test]
async fn input_arrives_in_order_until_its_end() {
    let mut client = Client::with_vm().await;
    let id = client.send("exec_pipe", json!({"command": "cat"})).await;
    assert_eq!(client.line().await["method"], "exec_pipe.ready");
    for number in 0..500 {
        client
            .send(
                "exec_pipe.stdin",
                json!({"id": id, "data": bytes::encode(format!("{number} ").as_bytes())}),
            )
            .await;
    }
    for nothing in
        [json!({"id": id, "data": "?"}), json!({"id": 999, "data": ""}), json!({"id": "7"}), json!([])]
    {
        client.send("exec_pipe.stdin", nothing).await;
    }
    client.send("exec_pipe.stdin_eof", json!({"id": id})).await;
    let mut seen = String::new();
    let expected: String = (0..500).map(|number| format!("{number} ")).collect();
    while seen.len() < expected.len() {
        seen.push_str(&text(&client.line().await["params"]["data"]));
    }
    assert_eq!(seen, expected);
    client.answer(id).await.unwrap();
}

/// A client that has sent a program, which takes nothing yet, more than is kept for it; returns the number of bytes.
async fn far_ahead(stage: Stage) -> (Client, u64, usize) {
    let mut client = Client::new(stage);
    client.call("create", json!({"image": "any"})).await.unwrap();
    let id = client.send("exec_pipe", json!({"command": "late"})).await;
    assert_eq!(client.line().await["method"], "exec_pipe.ready");
    let piece = bytes::encode(&vec![b'x'; 128 << 10]);
    let mut sent = 0;
    // Sends until nothing is read any more.
    while timeout(
        Duration::from_millis(300),
        client.send("exec_pipe.stdin", json!({"id": id, "data": piece})),
    )
    .await
    .is_ok()
    {
        sent += 128 << 10;
    }
    assert!(sent > 1 << 20, "{sent}");
    (client, id, sent)
}

#[tokio::test]
async fn a_program_that_is_far_behind_gets_all_of_its_input() {
    let (mut client, id, sent) = far_ahead(Stage::default()).await;
    client.stage.go.notify_one();
    client.send("exec_pipe.stdin", json!({"id": id, "data": bytes::encode(b"y")})).await;
    client.send("exec_pipe.stdin_eof", json!({"id": id})).await;
    assert_eq!(text(&client.line().await["params"]["data"]), (sent + 1).to_string());
    client.answer(id).await.unwrap();
    assert!(client.end().await.is_empty());
}

#[tokio::test]
async fn a_program_that_takes_nothing_is_given_up_in_the_end() {
    let stall_limit = Some(Duration::from_secs(1));
    let (mut client, id, _) = far_ahead(Stage { stall_limit, ..Stage::default() }).await;
    assert_eq!(client.answer(id).await, Err(EXEC));
    client.run("echo").await.unwrap();
    assert!(client.end().await.is_empty());
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_though_nothing_is_read() {
    let (mut client, id, _) = far_ahead(Stage::default()).await;
    client.stage.hang_up.notify_one();
    assert_eq!(client.answer(id).await, Err(CANCELLED));
    assert!(client.end().await.is_empty());
}

#[tokio::test]
async fn cancelling_drops_the_stream_and_answers_once() {
    let mut client = Client::with_vm().await;
    for method in ["exec", "exec_stream", "exec_pipe", "exec_tty"] {
        let id = client.send(method, json!({"command": format!("hang {method}")})).await;
        if method.ends_with("pipe") || method.ends_with("tty") {
            client.line().await;
        }
        let cancel = client.send("cancel", json!({"id": id})).await;
        assert_eq!(client.answer(id).await, Err(CANCELLED));
        assert_eq!(client.answer(cancel).await, Ok(json!({"cancelled": true})));
        assert_eq!(client.call("cancel", json!({"id": id})).await, Ok(json!({"cancelled": false})));
    }
    // One of the two had reached the guest.
    let id = client.send("exec", json!({"command": "hang at last"})).await;
    assert!(client.run("echo").await.is_ok());
    client.send("cancel", json!({"id": id})).await;
    client.hung_up("hang at last").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_its_program_only() {
    let mut client = Client::with_vm().await;
    client.read(false);
    let id = client.send("exec_stream", json!({"command": "flood"})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let cancel = client.send("cancel", json!({"id": id})).await;
    client.hung_up("flood").await;
    let exec = client.send("exec", json!({"command": "echo"})).await;
    client.read(true);
    let mut bytes = 0;
    let line = loop {
        let line = client.line().await;
        match line["params"]["data"].as_str() {
            Some(data) => bytes += data.len(),
            None => break line,
        }
    };
    assert_eq!((&line["id"], &line["error"]["code"]), (&json!(id), &json!(CANCELLED)));
    assert!(bytes < 8 << 20, "{bytes}");
    assert!(client.answer(cancel).await.is_ok() && client.answer(exec).await.is_ok());
}

#[tokio::test]
async fn what_is_asked_while_a_sandbox_is_made_waits() {
    let mut client = Client::new(Stage { ready: Some(Notify::new()), ..Stage::default() });
    let create = client.send("create", json!({"image": "any"})).await;
    let exec = client.send("exec", json!({"command": "echo"})).await;
    let never = client.send("exec", json!({"command": "panic"})).await;
    let again = client.send("create", json!({"image": "any"})).await;
    let late = client.send("exec", json!({"command": "echo late"})).await;
    let cancel = client.send("cancel", json!({"id": never})).await;
    assert_eq!(client.answer(never).await, Err(CANCELLED));
    assert_eq!(client.answer(cancel).await, Ok(json!({"cancelled": true})));
    client.stage.ready.as_ref().unwrap().notify_one();
    assert_eq!(client.answer(create).await.unwrap()["id"], "vm-00000000");
    client.answer(exec).await.unwrap();
    client.stage.ready.as_ref().unwrap().notify_one();
    assert_eq!(client.answer(again).await.unwrap()["id"], "vm-00000001");
    client.answer(late).await.unwrap();
    assert!(client.end().await.is_empty());
}

#[tokio::test]
async fn a_sandbox_that_is_being_made_can_be_cancelled() {
    let mut client = Client::new(Stage { ready: Some(Notify::new()), ..Stage::default() });
    let create = client.send("create", json!({"image": "any"})).await;
    let exec = client.send("exec", json!({"command": "echo"})).await;
    let again = client.send("create", json!({"image": "any"})).await;
    let cancel = client.send("cancel", json!({"id": create})).await;
    assert_eq!(client.answer(create).await, Err(CANCELLED));
    // The requests that waited for it go on.
    assert_eq!(client.answer(exec).await, Err(VM));
    assert_eq!(client.answer(cancel).await, Ok(json!({"cancelled": true})));
    client.stage.ready.as_ref().unwrap().notify_one();
    assert_eq!(client.answer(again).await.unwrap()["id"], "vm-00000001");
    client.run("echo").await.unwrap();
    assert!(client.end().await.is_empty());
}

#[tokio::test]
async fn close_cuts_everything_short_and_may_come_twice() {
    // Hangs up while the sandbox is made.
    let mut client = Client::new(Stage { ready: Some(Notify::new()), ..Stage::default() });
    let create = client.send("create", json!({"image": "any"})).await;
    let exec = client.send("exec", json!({"command": "echo"})).await;
    let (close, again) = (client.send("close", json!({})).await, client.send("close", Value::Null).await);
    assert_eq!(client.answer(create).await, Err(CANCELLED));
    assert_eq!(client.answer(exec).await, Err(CANCELLED));
    assert_eq!((client.answer(close).await, client.answer(again).await), (Ok(json!({})), Ok(json!({}))));
    assert_eq!(client.run("echo").await, Err(VM));
    assert!(client.end().await.is_empty());
    // Hangs up while a request is at work.
    let mut client = Client::with_vm().await;
    let hang = client.send("exec", json!({"command": "hang"})).await;
    let close = client.send("close", json!({"timeout_seconds": 5})).await;
    assert_eq!(client.answer(hang).await, Err(CANCELLED));
    assert_eq!(client.answer(close).await, Ok(json!({})));
    assert_eq!(client.call("create", json!({"image": "any"})).await.unwrap()["id"], "vm-00000001");
    client.run("echo").await.unwrap();
    // The answer to a `close` before the hang-up is not lost.
    let close = client.send("close", json!({})).await;
    let rest = client.end().await;
    assert_eq!((rest.len(), &rest[0]["id"], &rest[0]["result"]), (1, &json!(close), &json!({})));
}

#[tokio::test]
async fn another_sandbox_takes_the_place_of_the_first() {
    let mut client = Client::with_vm().await;
    let hang = client.send("exec", json!({"command": "hang first"})).await;
    let create = client.send("create", json!({"image": "any"})).await;
    assert_eq!(client.answer(hang).await, Err(CANCELLED));
    assert_eq!(client.answer(create).await.unwrap()["id"], "vm-00000001");
    client.hung_up("hang first").await;
    client.run("echo").await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_sandbox_is_told_with_its_reason() {
    let mut client = Client::with_vm().await;
    // The sandbox dies: streams end, and the answers give the reason.
    let dying = client.send("exec", json!({"command": "die"})).await;
    client.run("echo").await.unwrap();
    client.stage.fakes.lock().unwrap()[0].end(Why::Failed(Arc::new(sandbox::Error::Ended {
        how: "the guest panicked".into(),
        last_words: None,
    })));
    let line = client.line().await;
    assert_eq!(
        (&line["id"], &line["error"]),
        (&json!(dying), &json!({"code": EXEC, "message": "the guest panicked"}))
    );
    client.send("exec", json!({"command": "echo"})).await;
    let message = "VM vm-00000000 is not running: the guest panicked";
    assert_eq!(client.line().await["error"], json!({"code": VM, "message": message}));
    // The sandbox is ended: its requests are answered at once, whatever their programs do.
    client.call("create", json!({"image": "any"})).await.unwrap();
    let hang = client.send("exec", json!({"command": "hang"})).await;
    client.run("echo").await.unwrap();
    client.stage.fakes.lock().unwrap()[1].end(Why::TimeLimit(Duration::from_secs(1)));
    let line = client.line().await;
    assert_eq!(
        (&line["id"], &line["error"]),
        (&json!(hang), &json!({"code": EXEC, "message": "the sandbox reached its time limit of 1 s"}))
    );
    client.hung_up("hang").await;
    assert_eq!(client.run("echo").await, Err(VM));
    assert_eq!(client.call("close", json!({})).await, Ok(json!({})));
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_is_an_error() {
    let mut client = Client::with_vm().await;
    for method in ["exec", "exec_stream"] {
        assert_eq!(client.call(method, json!({"command": "garbage"})).await, Err(EXEC));
    }
    assert_eq!(client.call("read_file", json!({"path": "/"})).await, Err(-32002));
    client.run("echo").await.unwrap();
}

#[tokio::test]
async fn there_is_an_end_to_requests_in_flight() {
    let mut client = Client::new(Stage { ready: Some(Notify::new()), ..Stage::default() });
    client.send("create", json!({"image": "any"})).await;
    for _ in 1..MAX_IN_FLIGHT {
        client.send("hello", json!({})).await;
    }
    assert_eq!(client.call("hello", json!({})).await, Err(-32600));
    // `close` makes room for itself.
    let close = client.send("close", json!({})).await;
    let rest = client.end().await;
    assert_eq!(rest.len(), MAX_IN_FLIGHT + 1);
    assert!(rest.iter().any(|line| line["id"] == close && line["result"] == json!({})));
}

/// A client that sends anything at any time.
#[test]
fn every_request_is_answered_once() {
    let program = prop_oneof![
        Just("echo x"),
        Just("lines 5"),
        Just("hang"),
        Just("cat"),
        Just("garbage"),
        Just("flood"),
        Just("split"),
    ];
    let exec = (prop_oneof![Just("exec_stream"), Just("exec_pipe"), Just("exec_tty")], program)
        .prop_map(|(method, command)| (method, json!({"command": command})));
    let about = |methods: &'static [&'static str]| {
        (proptest::sample::select(methods), 1u64..40)
            .prop_map(|(method, id)| (method, json!({"id": id, "data": "aGk="})))
    };
    let any = prop_oneof![
        6 => exec,
        3 => about(&["cancel"]),
        3 => about(&["exec_pipe.stdin", "exec_pipe.stdin_eof", "exec_tty.stdin", "exec_tty.resize"]),
        2 => Just(("create", json!({"image": "any"}))),
        1 => Just(("close", json!({"timeout_seconds": 5}))),
        1 => Just(("read_file", json!({"path": "/x"}))),
        1 => Just(("nonsense", json!([]))),
        1 => Just(("exec", json!({"command": 7}))),
    ];
    let config =
        Config { cases: 150, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = |requests: Vec<(&'static str, Value)>| {
        runtime.block_on(async {
            let mut client = Client::new(Stage::default());
            let mut expected = Vec::new();
            for (method, params) in requests {
                let id = client.send(method, params).await;
                if !method.contains('.') {
                    expected.push(id);
                }
                if id % 5 == 0 {
                    task::yield_now().await;
                }
            }
            let mut lines = Vec::new();
            while let Ok(line) = client.lines.try_recv() {
                lines.push(line);
            }
            lines.extend(client.end().await);
            let mut answered = Vec::new();
            for line in lines {
                let about = line["params"]["id"].as_u64();
                assert!(about.is_none_or(|id| !answered.contains(&id)), "after the answer: {line}");
                answered.extend(line["id"].as_u64());
            }
            answered.sort_unstable();
            assert_eq!(answered, expected);
        });
        Ok(())
    };
    TestRunner::new(config).run(&proptest::collection::vec(any, 0..40), run).unwrap();
}
