//! How much the files may take, and who takes how much of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse::{Errno, Result};

/// Bytes that may be taken, and that are.
#[derive(Debug)]
pub(crate) struct Space {
    limit: u64,
    used: AtomicU64,
}

impl Space {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Takes space until the charge is dropped.
    pub(crate) fn charge(self: &Arc<Self>, amount: u64) -> Result<Charge> {
        let mut charge = Charge { space: self.clone(), amount: 0 };
        charge.grow(amount)?;
        Ok(charge)
    }
}

/// Space that is taken.
#[derive(Debug)]
pub(crate) struct Charge {
    space: Arc<Space>,
    amount: u64,
}

impl Charge {
    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Takes more, if there is as much.
    pub(crate) fn grow(&mut self, by: u64) -> Result<()> {
        let more = |used: u64| used.checked_add(by).filter(|used| *used <= self.space.limit);
        self.space
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Errno::ENOSPC)?;
        self.amount += by;
        Ok(())
    }

    /// All of the charge, as one of its own.
    pub(crate) fn split(&mut self) -> Self {
        Self { space: self.space.clone(), amount: std::mem::take(&mut self.amount) }
    }

    /// Gives some back.
    pub(crate) fn shrink(&mut self, by: u64) {
        let by = by.min(self.amount);
        self.amount -= by;
        self.space.used.fetch_sub(by, Ordering::Relaxed);
    }

    /// Takes `amount` in all, be there as much or not.
    pub(crate) fn become_amount(&mut self, amount: u64) {
        self.shrink(u64::MAX);
        self.space.used.fetch_add(amount, Ordering::Relaxed);
        self.amount = amount;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back() {
        let space = Space::new(10);
        let mut charge = space.charge(4).unwrap();
        assert_eq!(space.charge(7).err(), Some(Errno::ENOSPC));
        assert_eq!(
            (charge.grow(7), charge.grow(6), charge.grow(1)),
            (Err(Errno::ENOSPC), Ok(()), Err(Errno::ENOSPC))
        );
        assert_eq!((charge.amount(), space.free()), (10, 0));
        charge.shrink(3);
        assert_eq!(space.free(), 3);
        charge.become_amount(12);
        assert_eq!((space.free(), space.charge(1).err()), (0, Some(Errno::ENOSPC)));
        charge.become_amount(1);
        assert_eq!(space.free(), 9);
        drop(charge);
        assert_eq!(space.free(), 10);
        assert_eq!(space.charge(u64::MAX).err(), Some(Errno::ENOSPC));
    }
}
