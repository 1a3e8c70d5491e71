//! The connections of one guest, bounded: where there are too many, the one that was silent for longest makes room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Most connections.
pub(super) const MAX_FLOWS: usize = 1024;

/// How long a connection has to be silent until it makes room for another. It is longer than judging and connecting take
/// together, so that only connections that are carried make room.
const LEAST_SILENCE: Duration = Duration::from_secs(60);

/// No seat is left.
#[derive(Debug)]
pub(super) struct Full;

/// The seats.
#[derive(Debug)]
pub(super) struct Table {
    start: Instant,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: BTreeMap<u64, Arc<State>>,
}

#[derive(Debug)]
struct State {
    /// When bytes were carried last, in milliseconds since the table's start.
    last: AtomicU64,
    cut: Notify,
}

/// A connection's seat.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    table: &'a Table,
    number: u64,
    state: Arc<State>,
}

/// The clock of a seat, for a part of its connection that lives elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    start: Instant,
    state: Arc<State>,
}

impl Clock {
    /// Bytes are carried.
    pub(crate) fn touch(&self) {
        self.state.last.store(millis_since(self.start), Ordering::Relaxed);
    }
}

fn millis_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Table {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), seats: Mutex::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.seats().taken.len()
    }

    /// Takes a seat.
    pub(super) fn seat(&self) -> Result<Seat<'_>, Full> {
        let now = self.now();
        let mut seats = self.seats();
        if seats.taken.len() >= MAX_FLOWS {
            let last = |state: &State| state.last.load(Ordering::Relaxed);
            let (number, silent) = seats.taken.iter().min_by_key(|(_, state)| last(state)).ok_or(Full)?;
            if u128::from(now.saturating_sub(last(silent))) < LEAST_SILENCE.as_millis() {
                return Err(Full);
            }
            silent.cut.notify_one();
            let number = *number;
            seats.taken.remove(&number);
        }
        seats.next += 1;
        let number = seats.next;
        let state = Arc::new(State { last: AtomicU64::new(now), cut: Notify::new() });
        seats.taken.insert(number, state.clone());
        Ok(Seat { table: self, number, state })
    }

    fn now(&self) -> u64 {
        millis_since(self.start)
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        // Nothing panics while the seats are locked.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat<'_> {
    /// Ends when the seat is given to another.
    pub(super) async fn cut(&self) {
        self.state.cut.notified().await;
    }

    /// Bytes are carried.
    pub(super) fn touch(&self) {
        self.state.last.store(self.table.now(), Ordering::Relaxed);
    }

    /// The last time at which bytes were carried.
    pub(super) fn last(&self) -> Instant {
        self.table.start + Duration::from_millis(self.state.last.load(Ordering::Relaxed))
    }

    /// The seat's clock.
    pub(super) fn clock(&self) -> Clock {
        Clock { start: self.table.start, state: self.state.clone() }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.table.seats().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_cut(seat: &Seat<'_>) -> bool {
        pin!(seat.cut()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_was_silent_for_longest_makes_room() {
        let table = Table::new();
        let mut seats: Vec<_> = (0..MAX_FLOWS).map(|_| table.seat().unwrap()).collect();
        assert!(table.seat().is_err());
        tokio::time::advance(Duration::from_secs(30)).await;
        for (number, seat) in seats.iter().enumerate() {
            if number != 7 {
                seat.touch();
            }
        }
        assert!(table.seat().is_err());
        tokio::time::advance(Duration::from_secs(31)).await;
        let late = table.seat().unwrap();
        assert!(is_cut(&seats[7]) && !is_cut(&seats[0]));
        assert!(table.seat().is_err());
        drop(seats.remove(7));
        assert_eq!(table.len(), MAX_FLOWS);
        drop((seats, late));
        assert_eq!(table.len(), 0);
    }
}
