//! The loop between a running program and the host: input, output, signals, the end of either.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::frame::{self, DATA_CHUNK, FrameError, HEAD, Head, Kind, Splitter};
use guest_protocol::{Exit, ProgramControl, ProgramEvent, TerminalSize, Usage};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::spawn::{self, Child, Streams};
use crate::sending;
use crate::service::Counted;
use crate::signals;

/// How long a cancelled program may take to end by itself. Users are promised that it is gone within a second.
const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// Most bytes of frames that wait for the host.
const FRAMES_LIMIT: usize = HEAD + DATA_CHUNK;

/// No output is read unless this much fits.
const LEAST_READ: usize = 4096;

/// Most bytes that are taken from the stream at once.
const INPUT_CHUNK: usize = 16 << 10;

/// Highest signal number of Linux.
const LAST_SIGNAL: i32 = 64;

/// Most bytes that a detached program can have left in an output: the largest pipe that it may make without privilege
/// (/proc/sys/fs/pipe-max-size). Without a bound, its descendants could put off its `Exited` for ever.
const LEFT_LIMIT: usize = 1 << 20;

/// An output of the program.
struct Output {
    source: OwnedFd,
    kind: Kind,
    /// Bytes of this output that may still precede a detached program's `Exited`.
    left: usize,
}

/// The destination of input.
enum Sink {
    /// There is no input, or its reader closed it.
    None,
    Pipe(OwnedFd),
    /// The controlling side of the program's terminal.
    Terminal(OwnedFd),
}

/// The meaning of a polled descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Stream,
    Sink,
    Output(usize),
    Process,
    Namespace,
}

pub(super) struct Relay<'a> {
    /// `None` once the host is gone, after which output is dropped.
    stream: Option<BorrowedFd<'a>>,
    input: Splitter,
    sink: Sink,
    /// Input that the sink has not taken. Until it does, nothing is read from the stream.
    pending: Vec<u8>,
    outputs: [Option<Output>; 2],
    /// Frames for the host, sent up to `sent`.
    frames: Vec<u8>,
    sent: usize,
    child: Child<'a>,
    /// The program's exit, once it has ended.
    exit: Option<Exit>,
    /// Whether every process that could write output is dead.
    deserted: bool,
    /// Whether `Exited` is among the frames, or sent.
    told: bool,
    /// Whether the program's descendants outlive it.
    detached: bool,
    /// Counts the program until it ends.
    program: Option<Counted<'a>>,
    kill_at: Option<Instant>,
    arrived: Instant,
    usage: Usage,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        stream: BorrowedFd<'a>,
        input: Splitter,
        child: Child<'a>,
        streams: Streams,
        arrived: Instant,
        detached: bool,
        program: Counted<'a>,
    ) -> Self {
        let output = |source: OwnedFd, kind: Kind| Some(Output { source, kind, left: LEFT_LIMIT });
        let (sink, outputs) = match streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                let sink = stdin.map_or(Sink::None, Sink::Pipe);
                (sink, [output(stdout, Kind::Stdout), output(stderr, Kind::Stderr)])
            }
            Streams::Terminal { input, output: shown } => {
                (Sink::Terminal(input), [output(shown, Kind::Stdout), None])
            }
        };
        Self {
            stream: Some(stream),
            input,
            sink,
            pending: Vec::new(),
            outputs,
            frames: Vec::with_capacity(FRAMES_LIMIT),
            sent: 0,
            child,
            exit: None,
            deserted: false,
            told: false,
            detached,
            program: Some(program),
            kill_at: None,
            arrived,
            usage: Usage { spawn_us: micros(arrived), wall_us: 0 },
        }
    }

    /// Runs until the program has ended and the host has all of its output, or the host is gone and the program is
    /// killed. The rest of its namespace ends with `self`.
    pub(super) fn run(mut self) {
        self.queue(&ProgramEvent::Started);
        self.take_frames();
        while !self.is_over() {
            self.round();
        }
    }

    fn is_over(&self) -> bool {
        match self.stream {
            Some(_) => {
                let nothing_left = !self.detached || self.deserted && !self.is_open();
                self.told && nothing_left && self.sent == self.frames.len()
            }
            None => self.exit.is_some(),
        }
    }

    /// Whether any output may still come.
    fn is_open(&self) -> bool {
        self.outputs.iter().any(Option::is_some)
    }

    /// Waits for events and handles them.
    fn round(&mut self) {
        for (source, events) in self.wait() {
            match source {
                Source::Stream if events.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) => {
                    self.cancel()
                }
                Source::Stream if events.contains(PollFlags::IN) => self.read_stream(),
                Source::Stream => {}
                Source::Sink => self.write_sink(),
                Source::Output(index) => self.read_output(index),
                Source::Process => self.process_ended(),
                Source::Namespace => self.deserted = true,
            }
        }
        if let Some(exit) = self.exit {
            self.finish(exit);
        }
        if self.kill_at.is_some_and(|time| Instant::now() >= time) {
            self.kill_at = None;
            self.child.kill();
        }
        self.flush();
    }

    /// The ready events. Only events that can be handled now are polled for.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let mut sources = Vec::with_capacity(5);
        let mut fds = Vec::with_capacity(5);
        let mut add = |source, fd, events| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, events));
        };
        if let Some(stream) = self.stream {
            let mut events = PollFlags::RDHUP;
            events.set(PollFlags::IN, self.pending.is_empty());
            events.set(PollFlags::OUT, self.sent < self.frames.len());
            add(Source::Stream, stream, events);
        }
        match &self.sink {
            Sink::Pipe(fd) | Sink::Terminal(fd) if !self.pending.is_empty() => {
                add(Source::Sink, fd.as_fd(), PollFlags::OUT);
            }
            _ => {}
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output.as_ref().filter(|_| self.has_room()) {
                add(Source::Output(index), output.source.as_fd(), PollFlags::IN);
            }
        }
        match self.exit {
            None => add(Source::Process, self.child.pidfd.as_fd(), PollFlags::IN),
            Some(_) if !self.deserted => add(Source::Namespace, self.child.namespace.init(), PollFlags::IN),
            Some(_) => {}
        }
        let timeout = match self.kill_at.map(|time| time.saturating_duration_since(Instant::now())) {
            // Output that a program left is read without polling, as none of it need be readable.
            _ if self.is_taking_what_is_left() && self.has_room() => Some(Duration::ZERO),
            left => left,
        };
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            // Every round polls anew, so an interruption, or a lack of memory, costs one more round.
            Err(_) => return Vec::new(),
        }
        let events = fds.iter().map(PollFd::revents);
        sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect()
    }

    fn has_room(&self) -> bool {
        self.stream.is_none() || self.frames.len() + HEAD + LEAST_READ <= FRAMES_LIMIT
    }

    /// Reads from the stream, once.
    fn read_stream(&mut self) {
        let Some(stream) = self.stream else { return };
        let mut buffer = [MaybeUninit::uninit(); INPUT_CHUNK];
        match rustix::net::recv(stream, &mut buffer, RecvFlags::DONTWAIT) {
            Ok(((bytes, _), _)) if !bytes.is_empty() => {
                self.input.push(bytes);
                self.take_frames();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => self.cancel(),
        }
    }

    /// Handles the frames that are there, until one has to wait for the program to take input.
    fn take_frames(&mut self) {
        while self.pending.is_empty() && self.stream.is_some() {
            match self.take_frame() {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => self.cancel(),
            }
        }
    }

    fn take_frame(&mut self) -> Result<bool, FrameError> {
        let Some((kind, payload)) = self.input.next_frame()? else { return Ok(false) };
        match kind {
            Kind::Stdin => {
                if let Some(rest) = feed(&mut self.sink, payload) {
                    self.pending.extend_from_slice(rest);
                }
            }
            Kind::Message => match frame::decode(payload)? {
                ProgramControl::Resize(size) => self.resize(size),
                ProgramControl::Signal(signal) => self.signal(signal),
            },
            Kind::Stdout | Kind::Stderr => return Err(FrameError::Kind(kind as u8)),
        }
        Ok(true)
    }

    /// Writes to the sink, which takes input again.
    fn write_sink(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let Some(rest) = feed(&mut self.sink, &pending) {
            self.pending = rest.to_vec();
        }
        self.take_frames();
    }

    fn resize(&self, size: TerminalSize) {
        if let Sink::Terminal(controller) = &self.sink {
            let _ = spawn::resize_terminal(controller, size);
        }
    }

    /// Signals the program's process group. Until the program is reaped, its id cannot mean another process.
    fn signal(&self, signal: i32) {
        if self.exit.is_none() && (1..=LAST_SIGNAL).contains(&signal) {
            signals::send(-self.child.pid.as_raw_nonzero().get(), signal);
        }
    }

    /// Reads an output, once. After a program is cancelled, its output is dropped.
    fn read_output(&mut self, index: usize) {
        let Some(Some(output)) = self.outputs.get_mut(index) else { return };
        let start = self.frames.len();
        // `has_room` was true when this output was polled, but the other one may have been read since.
        let space = FRAMES_LIMIT.saturating_sub(start + HEAD);
        if self.stream.is_some() && space < LEAST_READ {
            return;
        }
        self.frames.resize(start + HEAD, 0);
        let spare = self.frames.spare_capacity_mut();
        let spare_len = spare.len().min(space.max(LEAST_READ));
        let read = || rustix::io::read(&output.source, &mut spare[..spare_len]).map(|(bytes, _)| bytes.len());
        let taken = match rustix::io::retry_on_intr(read) {
            Ok(taken) => taken,
            Err(Errno::AGAIN) if !self.deserted => {
                self.frames.truncate(start);
                output.left = 0;
                return;
            }
            // EIO: the terminal's last user is gone. EAGAIN without a writer: no more output will come.
            Err(_) => 0,
        };
        output.left = output.left.saturating_sub(taken);
        match Head::bytes(output.kind, taken).filter(|_| taken > 0) {
            Some(head) if self.stream.is_some() => {
                // SAFETY: `taken` bytes behind the head's place have just been initialized by the kernel.
                unsafe { self.frames.set_len(start + HEAD + taken) };
                self.frames[start..start + HEAD].copy_from_slice(&head);
            }
            head => {
                self.frames.truncate(start);
                if head.is_none() {
                    self.outputs[index] = None;
                }
            }
        }
    }

    fn process_ended(&mut self) {
        self.usage.wall_us = micros(self.arrived);
        self.exit = Some(super::reap(self.child.pidfd.as_fd()));
        self.program = None;
        for output in self.outputs.iter_mut().flatten() {
            output.left = LEFT_LIMIT;
        }
    }

    /// Whether a detached program has ended, and some of its output may still precede the report of that.
    fn is_taking_what_is_left(&self) -> bool {
        let left = self.outputs.iter().flatten().any(|output| output.left > 0);
        self.detached && self.exit.is_some() && !self.told && left
    }

    /// After the program's end: reads the rest of its output, ends the rest of its namespace if that holds an output
    /// open and may not outlive the program, and reports the exit once all output is on its way.
    fn finish(&mut self, exit: Exit) {
        if self.told && !self.deserted {
            return;
        }
        for index in 0..self.outputs.len() {
            self.read_output(index);
        }
        if !self.detached && self.is_open() {
            self.child.kill();
        } else if !self.told && !self.is_taking_what_is_left() && self.stream.is_some() {
            self.told = true;
            self.queue(&ProgramEvent::Exited(exit, self.usage));
        }
    }

    /// Cancels the program, as the host is gone or breaks the protocol.
    fn cancel(&mut self) {
        self.stream = None;
        self.frames.clear();
        self.sent = 0;
        self.pending.clear();
        if self.exit.is_none() {
            if matches!(self.sink, Sink::Terminal(_)) {
                // The signal of a terminal's end; shells ignore SIGTERM.
                self.signal(libc::SIGHUP);
            }
            self.signal(libc::SIGTERM);
            self.kill_at = Some(Instant::now() + CANCEL_GRACE);
        }
    }

    fn queue(&mut self, event: &ProgramEvent) {
        if let Ok(bytes) = frame::encode_reply(event) {
            self.frames.extend_from_slice(&bytes);
        }
    }

    /// Sends the bytes that the host takes without waiting.
    fn flush(&mut self) {
        let Some(stream) = self.stream else { return };
        while let Some(rest) = self.frames.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match sending::send(stream, rest, SendFlags::DONTWAIT) {
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.cancel(),
            }
        }
        self.frames.clear();
        self.sent = 0;
    }
}

/// Writes `bytes` to the program, and returns those that it does not take now. Empty input closes a pipe; on a
/// terminal the end of input is ^D, which the host sends.
fn feed<'b>(sink: &mut Sink, bytes: &'b [u8]) -> Option<&'b [u8]> {
    let target = match sink {
        Sink::None => return None,
        Sink::Pipe(_) if bytes.is_empty() => {
            *sink = Sink::None;
            return None;
        }
        Sink::Pipe(target) | Sink::Terminal(target) => target,
    };
    match rustix::io::write(target, bytes) {
        Ok(written) => bytes.get(written..).filter(|rest| !rest.is_empty()),
        Err(Errno::AGAIN | Errno::INTR) => Some(bytes).filter(|rest| !rest.is_empty()),
        // The program has closed its input; a terminal is still needed for its size.
        Err(_) => {
            if let Sink::Pipe(_) = sink {
                *sink = Sink::None;
            }
            None
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
