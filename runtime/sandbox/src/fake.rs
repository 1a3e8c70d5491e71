//! For tests: messages as guests of `stand_in` read and write them, and an owner of such a guest.
//!
//! Not here: the guest itself.

use std::sync::Arc;
use std::time::Duration;

use guest_protocol::frame::{self, Head, Kind};
use guest_protocol::{Answer, FileEntry, Program, ProgramControl, Request, Stdio};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::Id;
use crate::agent::command::Exec;
use crate::agent::detached::Log;
use crate::agent::frames::read_frame;
use crate::control::allow_list::{Gate, Remembered};
use crate::control::owner::{self, Shared};
use crate::guest::Guest;
use crate::records::home::{Home, OwnedVm};
use crate::stand_in;

/// Runs a future with a time limit, so that a hang fails the test.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.unwrap() })
}

/// The configuration of property tests: this many cases, the same ones each time.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Default::default() }
}

/// A guest that answers every stream in a task of its own.
pub(crate) fn guest_with<F>(serve: impl Fn(UnixStream) -> F + Send + 'static) -> Guest
where
    F: Future<Output = ()> + Send + 'static,
{
    stand_in::guest(move |stream| drop(tokio::spawn(serve(stream))))
}

/// Runs `client` on a blocking thread inside the runtime, beside an owner whose guest calls `guest` with every
/// service stream. Also returns whether the owner was asked to stop.
pub(crate) fn with_owner<T>(
    serve: impl Fn(UnixStream) + Send + 'static,
    client: impl FnOnce(&Home, &Id) -> T + Send + 'static,
) -> (T, bool)
where
    T: Send + 'static,
{
    let directory = tempfile::tempdir().unwrap();
    let home = Home::at(directory.path());
    let owned = OwnedVm::create(&home).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let guest = stand_in::own(Log::new(|_| {}), serve);
        guest.refill().await.unwrap();
        let gate = Arc::new(Gate::default());
        gate.open(Arc::new(Remembered::default()));
        let shared = Arc::new(Shared {
            keeper: std::sync::Mutex::default(),
            gate,
            guest: watch::Sender::new(Some(guest)),
            stop: watch::Sender::new(false),
            stop_limit: Duration::from_secs(30),
        });
        let listener = tokio::net::UnixListener::from_std(owner::bind(&owned.paths).unwrap()).unwrap();
        tokio::spawn(owner::serve(listener, Arc::clone(&shared)));
        let id = owned.id.clone();
        let handle = tokio::runtime::Handle::current();
        let result = tokio::task::spawn_blocking(move || {
            let _inside = handle.enter();
            client(&home, &id)
        });
        // The least that an owner does when it is asked to stop: it lets go of its lock.
        let mut stop = shared.stop.subscribe();
        let stopping = tokio::spawn(async move {
            stop.wait_for(|stop| *stop).await.unwrap();
            drop(owned);
        });
        let result = result.await.unwrap();
        stopping.abort();
        (result, *shared.stop.borrow())
    })
}

/// A request for a program.
pub(crate) fn exec(argv: &[&str]) -> Exec {
    let program = Program::Argv(argv.iter().map(|arg| (*arg).to_owned()).collect());
    let env = vec![("B".to_owned(), "exec".to_owned())];
    Exec { program, env, working_dir: None, user: None, stdio: Stdio::Null, detached: false, first: false }
}

/// Reads the request of a stream; `None` if the stream is a spare that ends unused.
pub(crate) async fn request(stream: &mut UnixStream) -> Option<Request> {
    heard(stream).await
}

/// Reads a control message to a program; `None` at the stream's end.
pub(crate) async fn control(stream: &mut UnixStream) -> Option<ProgramControl> {
    heard(stream).await
}

async fn heard<T: DeserializeOwned>(stream: &mut UnixStream) -> Option<T> {
    match read_frame(stream, &mut Vec::new()).await.ok()?? {
        (Kind::Message, payload) => Some(frame::decode(payload).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Sends an answer to the host.
pub(crate) async fn say(stream: &mut UnixStream, answer: &impl Answer) {
    stream.write_all(&frame::encode_reply(answer).unwrap()).await.unwrap();
}

/// A file as a guest describes it.
pub(crate) fn entry(name: &str) -> FileEntry {
    FileEntry {
        name: name.into(),
        size: 1,
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        mtime_s: 1,
        mtime_ns: 2,
        target: Vec::new(),
    }
}

/// A frame of data.
pub(crate) fn data(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    [&Head::bytes(kind, bytes.len()).unwrap()[..], bytes].concat()
}
