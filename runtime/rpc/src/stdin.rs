//! Input on its way to a program: the client sends and the program takes at its own pace.
//!
//! Input is kept up to a limit; input beyond that is given back, so that none is lost silently. Not here: waiting for
//! room, and the guest's stream.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_protocol::TerminalSize;
use tokio::sync::Notify;

use crate::budget::{Budget, Held};

/// Bytes that a kept piece costs beside its own.
const PIECE: usize = 64;

/// A piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes.
    Data(Vec<u8>),
    /// The end of input.
    End,
    /// The terminal's new size.
    Resize(TerminalSize),
}

/// The input of one program.
#[derive(Debug)]
pub(crate) struct Stdin {
    queue: Mutex<Queue>,
    more: Notify,
    fewer: Notify,
    max_ahead: usize,
}

#[derive(Debug)]
struct Queue {
    pieces: VecDeque<Input>,
    held: Held,
    ended: bool,
}

impl Stdin {
    /// Keeps at most `max_ahead` bytes.
    pub(crate) fn new(budget: &Budget, max_ahead: usize) -> Self {
        let queue = Queue { pieces: VecDeque::new(), held: budget.hold(), ended: false };
        Self { queue: Mutex::new(queue), more: Notify::new(), fewer: Notify::new(), max_ahead }
    }

    /// Queues input, or gives it back if there is no room. Data after the end is dropped.
    pub(crate) fn push(&self, input: Input) -> Result<(), Input> {
        let mut queue = self.queue();
        let ended = queue.ended;
        match (&input, queue.pieces.back_mut()) {
            (Input::Data(_) | Input::End, _) if ended => return Ok(()),
            // Only the last of several sizes matters.
            (Input::Resize(size), Some(Input::Resize(last))) => *last = *size,
            _ => {
                let cost = input.cost();
                if queue.held.bytes() + cost > self.max_ahead || !queue.held.grow(cost) {
                    return Err(input);
                }
                queue.ended |= input == Input::End;
                queue.pieces.push_back(input);
            }
        }
        drop(queue);
        self.more.notify_one();
        Ok(())
    }

    /// Waits for the next input. The call may be dropped and made again: nothing is lost.
    pub(crate) async fn next(&self) -> Input {
        loop {
            let more = self.more.notified();
            {
                let mut queue = self.queue();
                if let Some(input) = queue.pieces.pop_front() {
                    queue.held.shrink(input.cost());
                    self.fewer.notify_one();
                    return input;
                }
            }
            more.await;
        }
    }

    /// Returns once the program has taken some input since the last call.
    pub(crate) async fn taken(&self) {
        self.fewer.notified().await;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Input {
    fn cost(&self) -> usize {
        match self {
            Self::Data(bytes) => PIECE + bytes.len(),
            Self::End | Self::Resize(_) => PIECE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: &[u8]) -> Input {
        Input::Data(bytes.to_vec())
    }

    fn size(rows: u16) -> Input {
        Input::Resize(TerminalSize { rows, cols: 80 })
    }

    #[tokio::test]
    async fn in_order_and_sizes_in_one() {
        let stdin = Stdin::new(&Budget::new(1 << 20), 1 << 20);
        for input in
            [data(b"a"), size(1), size(2), data(b"b"), Input::End, data(b"late"), Input::End, size(3)]
        {
            stdin.push(input).unwrap();
        }
        for expected in [data(b"a"), size(2), data(b"b"), Input::End, size(3)] {
            assert_eq!(stdin.next().await, expected);
        }
        let (input, pushed) = tokio::join!(stdin.next(), async { stdin.push(size(4)) });
        assert_eq!((input, pushed), (size(4), Ok(())));
    }

    #[tokio::test]
    async fn a_client_cannot_be_too_far_ahead() {
        let budget = Budget::new(1 << 30);
        let max_ahead = 8 << 20;
        let stdin = Stdin::new(&budget, max_ahead);
        let piece = vec![0; 1 << 20];
        let mut taken = 0;
        while stdin.push(data(&piece)).is_ok() {
            taken += piece.len();
        }
        assert!(taken < max_ahead && taken + 2 * piece.len() > max_ahead, "{taken}");
        stdin.next().await;
        stdin.push(data(&piece)).unwrap();
        // Empty pieces count as well.
        while stdin.push(data(b"")).is_ok() {}
        drop(stdin);
        assert!(budget.hold().grow(1 << 30));
    }

    #[test]
    fn all_programs_together_have_a_limit() {
        let budget = Budget::new(1000);
        let (one, other) = (Stdin::new(&budget, 1000), Stdin::new(&budget, 1000));
        one.push(data(&[0; 800])).unwrap();
        assert_eq!(other.push(data(&[0; 200])), Err(data(&[0; 200])));
        drop(one);
        other.push(data(&[0; 200])).unwrap();
    }
}
