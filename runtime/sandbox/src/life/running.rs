//! A machine that runs, and the watch for its end.

use std::sync::Arc;
use std::time::Duration;

use machine::shares::Shares;
use machine::tsc::Calibration;
use machine::{Ending, Kind, Machine, MachineError};
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::stages::joined;
use crate::agent;
use crate::agent::descriptors;
use crate::life::error::{Error, Result};
use crate::records::console::Console;

/// How long a machine that has ended may take to signal it, and its last console bytes to arrive.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Most bytes of the console that are read at once: the capacity of a pipe.
const CONSOLE_CHUNK: usize = 64 << 10;

/// A machine that was just made.
pub(super) struct Booted {
    machine: Box<dyn Machine>,
    ended: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

impl std::fmt::Debug for Booted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Booted").field(&self.machine.kind()).finish()
    }
}

impl Booted {
    /// Boots a machine of this kind, beside the process of its shared directories if it has any. Blocks, and needs a tokio
    /// runtime around it.
    pub(super) fn boot(
        kind: Kind,
        config: machine::Config,
        clock: Calibration,
        shares: Option<Shares>,
    ) -> Result<Self> {
        let machine = boot(kind, config, clock);
        Self::watched(match shares {
            Some(shares) => shares.beside(machine)?,
            None => machine?,
        })
    }

    /// Watches a machine; one that cannot be watched is stopped.
    pub(super) fn watched(mut machine: Box<dyn Machine>) -> Result<Self> {
        let descriptor = machine.ended().try_clone_to_owned();
        match descriptor.and_then(|descriptor| descriptors::watched(descriptor, Interest::READABLE)) {
            Ok(ended) => Ok(Self { machine, ended }),
            Err(error) => {
                machine.stop();
                machine.wait();
                Err(Error::system("machine")(error))
            }
        }
    }
}

fn boot(kind: Kind, config: machine::Config, clock: Calibration) -> Result<Box<dyn Machine>, MachineError> {
    Ok(match kind {
        Kind::Kvm => Box::new(machine::native::Native::boot(config)?),
        Kind::Software => Box::new(machine::software::Software::boot(config, clock)?),
        Kind::Hvf => return Err(MachineError::Refused("machine hvf is not built yet".to_owned())),
    })
}

/// A machine that runs or has ended by itself.
pub(super) struct Running {
    machine: Box<dyn Machine>,
    ended: watch::Receiver<bool>,
    console: JoinHandle<()>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("kind", &self.machine.kind()).finish_non_exhaustive()
    }
}

impl Running {
    /// Watches for the end of a machine whose console is read by the task `console`.
    pub(super) fn new(booted: Booted, console: JoinHandle<()>) -> Self {
        let (sender, ended) = watch::channel(false);
        let Booted { machine, ended: descriptor } = booted;
        tokio::spawn(async move {
            tokio::select! {
                _ = descriptor.readable() => {
                    sender.send_replace(true);
                }
                // No receiver is left.
                () = sender.closed() => {}
            }
        });
        Self { machine, ended, console }
    }

    /// Returns once the machine has ended.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.clone();
        async move {
            if ended.wait_for(|ended| *ended).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The result of `work`, or [`agent::Error::HangUp`] if the machine ends first.
    pub(super) fn or_hang_up<T, F: Future<Output = Result<T>>>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T>> + use<T, F> {
        let ended = self.ended();
        async move {
            tokio::select! {
                biased;
                result = work => result,
                () = ended => Err(agent::Error::HangUp.into()),
            }
        }
    }

    /// Stops the machine and waits for its end.
    pub(super) async fn stop(mut self) {
        self.machine.stop();
        let ending = joined(
            spawn_blocking(move || {
                let ending = self.machine.wait();
                self.console.abort();
                ending
            })
            .await,
        );
        tracing::debug!("machine ended: {ending:?}");
    }

    /// Reaps a machine that has ended by itself, and returns the error that says how; `when` is a phrase such as
    /// "before the sandbox was ready". A machine that still runs is given back.
    pub(super) async fn why(mut self, console: &Arc<Console>, when: &str) -> Result<Error, Self> {
        if timeout(LAST_WORDS_LIMIT, self.ended()).await.is_err() {
            return Err(self);
        }
        let ending = joined(spawn_blocking(move || self.machine.wait()).await);
        // The pipe holds the console's last bytes and then its end.
        let _ = timeout(LAST_WORDS_LIMIT, &mut self.console).await;
        Ok(explained(ending, console.last_words(), when))
    }
}

fn explained(ending: Ending, last_words: Option<String>, when: &str) -> Error {
    let panicked = last_words.as_ref().is_some_and(|words| words.contains("Kernel panic"));
    let how = match ending {
        Ending::Reset if panicked => format!("the guest kernel panicked {when}"),
        Ending::Reset => format!("the guest reset itself {when}"),
        Ending::PowerOff => format!("the guest powered off {when}"),
        Ending::Failed(reason) => format!("the machine failed {when}: {reason}"),
    };
    Error::Ended { how, last_words }
}

/// Gives everything that comes out of a pipe to `take`, one piece at a time, on a thread that may wait for a disk, so
/// that a guest that floods its console keeps nothing else waiting.
pub(super) async fn read_pipe(pipe: std::io::PipeReader, take: impl Fn(&[u8]) + Send + Sync + 'static) {
    let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe.into()) else { return };
    let take = Arc::new(take);
    let mut buffer = vec![0; CONSOLE_CHUNK];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let take = Arc::clone(&take);
        let taken = spawn_blocking(move || {
            take(buffer.get(..length).unwrap_or_default());
            buffer
        });
        match taken.await {
            Ok(emptied) => buffer = emptied,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::fd::{AsFd, BorrowedFd};

    use super::*;

    /// A machine without a processor, which can only end.
    #[derive(Debug)]
    pub(in super::super) struct Pretended {
        /// Readable once the machine has ended.
        end: std::io::PipeReader,
        writer: Option<std::io::PipeWriter>,
        ending: Ending,
    }

    impl Pretended {
        pub(in super::super) fn new() -> Self {
            let (end, writer) = std::io::pipe().unwrap();
            Self { end, writer: Some(writer), ending: Ending::PowerOff }
        }

        /// A machine that ends by itself once the returned switch is dropped.
        pub(in super::super) fn with_power_switch() -> (Self, std::io::PipeWriter) {
            let machine = Self::new();
            let power = machine.writer.as_ref().unwrap().try_clone().unwrap();
            (Self { writer: None, ..machine }, power)
        }

        /// A machine that has ended by itself.
        pub(in super::super) fn dead(ending: Ending) -> Self {
            Self { writer: None, ending, ..Self::new() }
        }
    }

    impl Machine for Pretended {
        fn kind(&self) -> Kind {
            Kind::Software
        }

        fn pause(&mut self) -> Result<(), MachineError> {
            Ok(())
        }

        fn resume(&mut self) -> Result<(), MachineError> {
            Ok(())
        }

        fn stop(&mut self) {
            self.writer = None;
        }

        fn ended(&self) -> BorrowedFd<'_> {
            self.end.as_fd()
        }

        fn wait(&mut self) -> Ending {
            assert!(self.writer.is_none(), "nobody waits for a machine that runs");
            self.ending.clone()
        }
    }

    pub(in super::super) fn running(machine: Pretended) -> Running {
        Running::new(Booted::watched(Box::new(machine)).unwrap(), tokio::spawn(std::future::ready(())))
    }

    /// The runtime has only one thread.
    #[tokio::test]
    async fn a_console_that_waits_for_its_disk_keeps_nobody_else_waiting() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (disk, gate) = std::sync::mpsc::channel();
        let gate = std::sync::Mutex::new(gate);
        let (seen, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let reading = tokio::spawn(read_pipe(reader, move |bytes| {
            gate.lock().unwrap().recv().unwrap();
            seen.send(bytes.to_vec()).unwrap();
        }));
        std::io::Write::write_all(&mut writer, b"flood").unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(taken.try_recv().is_err());
        disk.send(()).unwrap();
        assert_eq!(taken.recv().await.unwrap(), b"flood");
        drop(writer);
        reading.await.unwrap();
    }

    fn console() -> (tempfile::TempDir, Arc<Console>) {
        let directory = tempfile::tempdir().unwrap();
        let console = Console::create(&directory.path().join("logs")).unwrap();
        (directory, Arc::new(console))
    }

    #[tokio::test]
    async fn the_end_of_a_machine_says_how_it_came() {
        let (_directory, console) = console();
        for (ending, said) in [
            (Ending::Reset, "the guest reset itself by itself"),
            (Ending::PowerOff, "the guest powered off by itself"),
            (Ending::Failed("no more".into()), "the machine failed by itself: no more"),
        ] {
            let error = running(Pretended::dead(ending)).why(&console, "by itself").await.unwrap();
            assert_eq!(error.to_string(), said);
        }
        console.console(b"Kernel panic - not syncing: x\n");
        let panicked = running(Pretended::dead(Ending::Reset)).why(&console, "early").await.unwrap();
        assert!(panicked.to_string().starts_with("the guest kernel panicked early; its console said: "));
    }

    #[tokio::test]
    async fn a_machine_that_runs_on_is_given_back() {
        let (_directory, console) = console();
        tokio::time::pause();
        let running = running(Pretended::new()).why(&console, "").await.unwrap_err();
        running.stop().await;
    }

    #[tokio::test]
    async fn the_end_of_a_machine_hangs_up() {
        let machine = running(Pretended::dead(Ending::Reset));
        let result = machine.or_hang_up(std::future::pending::<Result<()>>()).await;
        assert!(matches!(result, Err(Error::Agent(agent::Error::HangUp))));
        let living = running(Pretended::new());
        assert_eq!(living.or_hang_up(async { Ok(7) }).await.unwrap(), 7);
        living.stop().await;
    }
}
