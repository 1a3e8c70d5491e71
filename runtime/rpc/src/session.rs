//! The session: one client, one sandbox at a time, many requests in flight.
//!
//! ```text
//! input ─▶ reader thread ─▶ session ─▶ a task for each request ─▶ outbox ─▶ writer thread ─▶ output
//!                             │  ▲              │
//!                             │  └── answers ───┘
//!                             └─ cancel, input for programs: at once
//! ```
//!
//! Only the session answers, so that a request is answered once: by its task, or when it is cut short. Cutting it short
//! drops the task and its streams, which makes the guest end the program. Nothing here waits for the client or for the
//! guest, with one exception: input for a program that is far behind holds up the requests after it, as long as the
//! program takes any. Not here: the methods.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use guest_protocol::TerminalSize;
use policy::machine::WantedMachine;
use sandbox::{Home, Id, Spec};
use tokio::sync::mpsc;
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use wire::rpc::{CancelParams, CancelResult, CloseParams, ErrorCode, IdParams, ResizeParams, StdinParams};

use crate::admission::{Admission, Admitted, Alone, Target};
use crate::budget::{Budget, Held};
use crate::failure::Failure;
use crate::methods::{self, Answer, Call, Inside, Run, bytes, close, create};
use crate::outbox::Outbox;
use crate::request::{Params, Refused, Request};
use crate::stdin::{Input, Stdin};
use crate::vm::Vm;
use crate::{Setup, encode, file_events};

/// Most requests in flight, including those that wait for `create` or `close`.
const MAX_IN_FLIGHT: usize = 4096;

/// Memory for the parameters, the buffered output and the input of all requests together.
const BUDGET: usize = 1 << 30;

/// How long `close` may take unless the client says.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// How long the last answers may take to be read.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// Bytes of input that a client may be ahead of a program before nothing more is read.
const MAX_AHEAD: usize = 64 << 20;

/// How long a program that is so far behind may take none of its input.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Makes a sandbox.
pub(crate) type Make = Box<dyn Fn(&Spec) -> Result<Arc<Vm>, Failure> + Send>;

/// The state of one client's session.
pub(crate) struct Session {
    home: Home,
    machine: WantedMachine,
    /// The kernel of a sandbox that names none.
    kernel: String,
    make: Make,
    outbox: Outbox,
    budget: Budget,
    vm: Option<Arc<Vm>>,
    /// The sandbox was cut short, and its requests have been answered.
    is_cut: bool,
    /// The sandbox whose log may be read, even if it is gone.
    logged: Option<Id>,
    /// Sandboxes that are being ended.
    retiring: Vec<Arc<Vm>>,
    tasks: JoinSet<Result<Answer, Failure>>,
    admission: Admission<task::Id>,
    flights: HashMap<task::Id, Flight>,
    /// Input without room. Nothing is read until it has some.
    ahead: Option<Ahead>,
    max_ahead: usize,
    stall_limit: Duration,
}

/// Input that is too far ahead of its program.
struct Ahead {
    id: u64,
    stdin: Arc<Stdin>,
    input: Input,
    /// The time at which its program is given up.
    by: Instant,
}

/// A request in flight.
struct Flight {
    id: Option<u64>,
    /// Set for `create` and `close`.
    alone: Option<Alone>,
    /// The sandbox that the request needs.
    vm: Option<Arc<Vm>>,
    /// The code of its failures.
    code: ErrorCode,
    stdin: Option<Arc<Stdin>>,
    abort: AbortHandle,
    _params: Held,
}

/// The reason for requests that are cut short at the session's end.
const AT_THE_END: &str = "cancelled: the session ends";

impl Session {
    pub(crate) fn new(setup: Setup, outbox: Outbox) -> Self {
        let Setup { home, machine, kernel } = setup;
        let state = home.clone();
        let make = move |spec: &Spec| {
            Vm::start(&state, spec.clone()).map_err(|error| Failure::vm(error.to_string()))
        };
        Self { kernel, ..Self::with(home, machine, Box::new(make), outbox) }
    }

    fn with(home: Home, machine: WantedMachine, make: Make, outbox: Outbox) -> Self {
        let budget = Budget::new(BUDGET);
        Self {
            home,
            machine,
            kernel: String::new(),
            make,
            outbox,
            vm: None,
            is_cut: false,
            logged: None,
            retiring: Vec::new(),
            tasks: JoinSet::new(),
            admission: Admission::new(MAX_IN_FLIGHT, budget.clone()),
            budget,
            flights: HashMap::new(),
            ahead: None,
            max_ahead: MAX_AHEAD,
            stall_limit: STALL_LIMIT,
        }
    }

    /// Serves until the client is gone or `end` completes; then ends everything. `hang_up` completes when the client
    /// can send nothing more, for the time in which nothing is read.
    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Result<Request, Refused>>,
        hang_up: impl Future<Output = ()>,
        end: impl Future<Output = ()>,
    ) {
        let (mut hang_up, mut end) = (std::pin::pin!(hang_up), std::pin::pin!(end));
        let mut broken = self.outbox.clone();
        loop {
            // A program that has ended needs no more input.
            self.ahead = self.ahead.take().filter(|ahead| self.program(ahead.id).is_some());
            tokio::select! {
                biased;
                () = &mut end => break,
                () = broken.broken() => break,
                Some(done) = self.tasks.join_next_with_id() => self.done(done),
                why = cut(self.vm.as_deref()), if !self.is_cut => self.cut_vm(&why),
                taken = taken(self.ahead.as_ref()) => self.go_ahead(taken),
                () = &mut hang_up, if self.ahead.is_some() => break,
                line = next(&self.outbox, &mut requests), if self.ahead.is_none() => match line {
                    Some(Ok(request)) => self.take(request),
                    Some(Err(refused)) => self.refuse(refused.id, &refused.failure),
                    None => break,
                },
            }
        }
        self.end().await;
    }

    fn refuse(&self, id: Option<u64>, failure: &Failure) {
        self.outbox.answer(encode::error(id, failure), None);
    }

    /// Handles a new request.
    fn take(&mut self, request: Request) {
        match request.method.as_str() {
            "cancel" => self.cancel(request.id, request.params),
            "exec_pipe.stdin" | "exec_tty.stdin" => self.stdin(request.params),
            "exec_pipe.stdin_eof" | "exec_tty.stdin_eof" => self.stdin_eof(request.params),
            "exec_tty.resize" => self.resize(request.params),
            _ => self.admit(request),
        }
    }

    /// Begins a request now, or queues it behind one that works alone.
    fn admit(&mut self, request: Request) {
        match self.admission.admit(request) {
            Ok(Some(admitted)) => self.start(admitted),
            Ok(None) => {}
            Err((id, failure)) => self.refuse(id, &failure),
        }
    }

    fn start(&mut self, Admitted { request, held }: Admitted) {
        let id = request.id;
        let started = match request.method.as_str() {
            "create" => self.create(request, held),
            "close" => self.close(request, held),
            _ => self.call(request, held),
        };
        if let Err(failure) = started {
            self.refuse(id, &failure);
        }
    }

    fn call(&mut self, request: Request, held: Held) -> Result<(), Failure> {
        let method = methods::find(&request.method)
            .ok_or_else(|| Failure::new(ErrorCode::MethodNotFound, "Method not found"))?;
        if method.needs_id && request.id.is_none() {
            let message = format!("{} needs an id", request.method);
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        let stdin = method.stdin.then(|| Arc::new(Stdin::new(&self.budget, self.max_ahead)));
        let call = Call {
            id: request.id,
            params: request.params,
            outbox: self.outbox.clone(),
            budget: self.budget.clone(),
            stdin: stdin.clone(),
            arrived: Instant::now(),
        };
        let (task, vm) = match method.run {
            Run::Alone(run) => (run(call), None),
            Run::Log(run) => {
                let id = self.logged.clone().ok_or_else(Failure::no_vm)?;
                (run(call, self.log_of(&id)), self.vm.clone())
            }
            Run::Inside(run) => {
                let vm = self.vm.clone().ok_or_else(Failure::no_vm)?;
                let guest = vm.running()?.guest;
                let task = run(call, Inside { vm: Arc::clone(&vm), guest });
                let task = told_before(Arc::clone(&vm), task);
                (if method.stream { in_turn(Arc::clone(&vm), task) } else { task }, Some(vm))
            }
        };
        let flight = |abort| Flight {
            id: request.id,
            alone: None,
            vm,
            code: method.code,
            stdin,
            abort,
            _params: held,
        };
        self.fly(task, flight);
        Ok(())
    }

    fn log_of(&self, id: &Id) -> methods::LogOf {
        methods::LogOf { home: self.home.clone(), id: id.clone(), vm: self.vm.clone() }
    }

    /// Begins a request's task.
    fn fly(
        &mut self,
        task: impl Future<Output = Result<Answer, Failure>> + Send + 'static,
        flight: impl FnOnce(AbortHandle) -> Flight,
    ) {
        let abort = self.tasks.spawn(task);
        let number = abort.id();
        let flight = flight(abort);
        self.admission.begun(number, flight.id, flight.alone);
        self.flights.insert(number, flight);
    }

    fn create(&mut self, request: Request, held: Held) -> Result<(), Failure> {
        let mut spec = create::plan(request.params.parse()?, self.machine)?;
        if spec.kernel.is_empty() {
            spec.kernel.clone_from(&self.kernel);
        }
        let vm = (self.make)(&spec)?;
        if let Some(files) = vm.sandbox.files().filter(|_| spec.watch.events) {
            tokio::spawn(file_events::tell(files, self.outbox.clone()));
        }
        let task = create::run(request.id, spec, Arc::clone(&vm));
        let flight = |abort| Flight {
            id: request.id,
            alone: Some(Alone::Create),
            vm: Some(vm),
            code: ErrorCode::Vm,
            stdin: None,
            abort,
            _params: held,
        };
        self.fly(task, flight);
        Ok(())
    }

    /// Cuts all other requests short, and answers when the sandbox has ended or the time is up.
    fn close(&mut self, request: Request, held: Held) -> Result<(), Failure> {
        let params: CloseParams = request.params.parse()?;
        let seconds = params.timeout_seconds.filter(|seconds| *seconds > 0.0);
        let limit = seconds.map_or(CLOSE_LIMIT, |seconds| {
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(close::MAX_LIMIT)
        });
        self.cut_all("cancelled: the sandbox is being closed");
        let vms = self.retire(Some(limit));
        let task = close::run(request.id, vms, limit);
        let flight = |abort| Flight {
            id: request.id,
            alone: Some(Alone::Close),
            vm: None,
            code: ErrorCode::Vm,
            stdin: None,
            abort,
            _params: held,
        };
        self.fly(task, flight);
        Ok(())
    }

    /// Begins the end of the sandbox, within `limit` if there is one; returns all sandboxes that are being ended.
    fn retire(&mut self, limit: Option<Duration>) -> Vec<Arc<Vm>> {
        if let Some(vm) = self.vm.take() {
            vm.stop(Instant::now() + limit.unwrap_or(vm.patience), false);
            self.retiring.push(vm);
        }
        self.retiring.clone()
    }

    /// Handles the end of a task.
    fn done(&mut self, done: Result<(task::Id, Result<Answer, Failure>), JoinError>) {
        let (number, result) = match done {
            Ok((number, result)) => (number, result),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The request was cut short, and has been answered.
            Err(_) => return,
        };
        let Some(flight) = self.land(number) else { return };
        match result {
            Ok(answer) => {
                if flight.alone == Some(Alone::Create) {
                    self.replace(flight.vm);
                }
                self.outbox.answer(answer.line, answer.held);
            }
            Err(failure) => self.refuse(flight.id, &failure),
        }
        self.go_on();
    }

    /// Takes a new sandbox; an earlier one ends.
    fn replace(&mut self, vm: Option<Arc<Vm>>) {
        if self.vm.is_some() {
            self.cut_where("cancelled: create has replaced the sandbox", |flight| flight.alone.is_none());
            self.retire(None);
        }
        self.retiring.retain(|vm| !vm.is_gone());
        self.logged = vm.as_ref().map(|vm| vm.id.clone());
        (self.vm, self.is_cut) = (vm, false);
    }

    /// Begins waiting requests that may begin.
    fn go_on(&mut self) {
        while let Some(admitted) = self.admission.next() {
            self.start(admitted);
        }
    }

    fn land(&mut self, number: task::Id) -> Option<Flight> {
        let flight = self.flights.remove(&number)?;
        self.admission.ended(number, flight.id);
        Some(flight)
    }

    /// Ends a flight, and answers its request.
    fn cut_short(&mut self, number: task::Id, failure: &Failure) {
        let Some(flight) = self.land(number) else { return };
        flight.abort.abort();
        if let (Some(Alone::Create), Some(vm)) = (flight.alone, flight.vm) {
            vm.stop(Instant::now() + CLOSE_LIMIT, true);
            self.retiring.push(vm);
        }
        self.refuse(flight.id, failure);
    }

    fn cut_where(&mut self, why: &str, which: impl Fn(&Flight) -> bool) {
        let numbers = self.flights.iter().filter(|(_, flight)| which(flight)).map(|(number, _)| *number);
        for number in numbers.collect::<Vec<_>>() {
            self.cut_short(number, &Failure::cancelled(why));
        }
    }

    /// Cuts every request short but `close`, waiting ones included.
    fn cut_all(&mut self, why: &str) {
        self.cut_where(why, |flight| flight.alone != Some(Alone::Close));
        for id in self.admission.give_up_waiting() {
            self.refuse(id, &Failure::cancelled(why));
        }
    }

    /// Handles the end of a sandbox by its time limit or by somebody else.
    fn cut_vm(&mut self, why: &str) {
        let Some(vm) = self.vm.clone() else { return };
        self.is_cut = true;
        let of_it = |flight: &Flight| flight.vm.as_ref().is_some_and(|other| Arc::ptr_eq(other, &vm));
        let cut: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| of_it(flight))
            .map(|(number, f)| (*number, f.code))
            .collect();
        for (number, code) in cut {
            self.cut_short(number, &Failure::new(code, why));
        }
        // Later calls are still told of this sandbox.
        self.retiring.push(vm);
    }

    fn cancel(&mut self, id: Option<u64>, params: Params) {
        if params.is_absent() {
            return self.outbox.answer(encode::result(id, &CancelResult { cancelled: false }), None);
        }
        let target = match params.parse::<CancelParams>() {
            Ok(params) => params.id,
            Err(failure) => return self.refuse(id, &failure),
        };
        let cancelled = target.is_some_and(|target| self.cancel_one(target));
        self.outbox.answer(encode::result(id, &CancelResult { cancelled }), None);
    }

    fn cancel_one(&mut self, target: u64) -> bool {
        let failure = Failure::cancelled("cancelled");
        match self.admission.cancel(target) {
            Target::AtWork(number) => {
                // The work of `close` cannot be taken back.
                let flight = self.flights.get(&number);
                let ended = flight.is_some_and(|flight| flight.alone != Some(Alone::Close));
                if ended {
                    self.cut_short(number, &failure);
                    self.go_on();
                }
                ended
            }
            Target::Waited => {
                self.refuse(Some(target), &failure);
                true
            }
            Target::Unknown => false,
        }
    }

    fn stdin(&mut self, params: Params) {
        // Bad base64 and unknown ids are dropped silently.
        let Ok(StdinParams { id: Some(id), data: Some(data) }) = params.parse() else { return };
        if self.program(id).is_some()
            && let Some(data) = bytes::decode(&data)
            && !data.is_empty()
        {
            self.push(id, Input::Data(data));
        }
    }

    fn stdin_eof(&mut self, params: Params) {
        if let Ok(IdParams { id: Some(id) }) = params.parse() {
            self.push(id, Input::End);
        }
    }

    fn resize(&mut self, params: Params) {
        let Ok(ResizeParams { id: Some(id), rows: Some(rows), cols: Some(cols) }) = params.parse() else {
            return;
        };
        // Sizes out of range are dropped as well.
        let (Ok(rows), Ok(cols)) = (rows.try_into(), cols.try_into()) else { return };
        self.push(id, Input::Resize(TerminalSize { rows, cols }));
    }

    /// The flight that takes input for this id.
    fn program(&self, id: u64) -> Option<(task::Id, &Arc<Stdin>)> {
        let number = self.admission.at_work(id)?;
        let stdin = self.flights.get(&number)?.stdin.as_ref()?;
        Some((number, stdin))
    }

    fn push(&mut self, id: u64, input: Input) {
        let Some((_, stdin)) = self.program(id) else { return };
        if let Err(input) = stdin.push(input) {
            self.ahead =
                Some(Ahead { id, stdin: Arc::clone(stdin), input, by: Instant::now() + self.stall_limit });
        }
    }

    /// A program that was far behind has taken some of its input, or is given up.
    fn go_ahead(&mut self, taken: bool) {
        let Some(Ahead { id, input, .. }) = self.ahead.take() else { return };
        if taken {
            return self.push(id, input);
        }
        if let Some((number, _)) = self.program(id) {
            let seconds = self.stall_limit.as_secs();
            let message =
                format!("the program took none of its input for {seconds} s, and no more of it can be kept");
            self.cut_short(number, &Failure::new(ErrorCode::Exec, message));
        }
    }

    /// Ends everything in order, as the client is gone or has to go.
    async fn end(mut self) {
        self.cut_all(AT_THE_END);
        // A `close` at work has a limit of its own, and its client may be waiting for the answer.
        while !self.flights.is_empty()
            && let Some(done) = self.tasks.join_next_with_id().await
        {
            self.done(done);
        }
        self.tasks.shutdown().await;
        for vm in self.retire(None) {
            let _ = vm.gone().await;
        }
        self.outbox.end(LAST_WORDS_LIMIT).await;
    }
}

/// Lets a task wait for its turn to have a stream of the guest's.
fn in_turn(vm: Arc<Vm>, task: methods::Task) -> methods::Task {
    Box::pin(async move {
        let _turn = vm.streams.acquire().await;
        task.await
    })
}

/// Has the client told of everything that a request did to files before the request is answered: a client that acts on
/// events would else take its own acts for others'.
fn told_before(vm: Arc<Vm>, task: methods::Task) -> methods::Task {
    Box::pin(async move {
        let result = task.await;
        vm.sandbox.files_settled().await;
        result
    })
}

/// Whether the program took some input before it was given up; never returns if no input waits.
async fn taken(ahead: Option<&Ahead>) -> bool {
    match ahead {
        Some(ahead) => timeout_at(ahead.by, ahead.stdin.taken()).await.is_ok(),
        None => std::future::pending().await,
    }
}

/// The next request, unless answers pile up.
async fn next(
    outbox: &Outbox,
    requests: &mut mpsc::Receiver<Result<Request, Refused>>,
) -> Option<Result<Request, Refused>> {
    outbox.uncrowded().await;
    requests.recv().await
}

async fn cut(vm: Option<&Vm>) -> String {
    match vm {
        Some(vm) => vm.sandbox.cut().await.to_string(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
