//! The thing that a transport holds: a device, or a link to one that another process serves.
//!
//! Behind a link the other process takes care of the queues and their kicks. This process keeps the registers, and
//! passes interrupts on. Not here: the dialogue over the link (crate `vhost_user`).

use std::os::fd::BorrowedFd;

use crate::{ActivateError, Activation, Device, Identity, Interrupt};

/// The other process is gone, or breaks the protocol. The transport then sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process that serves the device is gone")]
pub struct LinkLost;

/// A link to a virtio device in another process. One thread at a time calls a link.
pub trait Link: Send {
    /// The part of the device that its driver sees from the start, which never changes.
    fn identity(&self) -> Identity<'_>;
    /// Reads the configuration space; bytes past its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; writes past its end, or to read-only fields, are dropped.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), LinkLost>;
    /// Hands memory, queues and kicks over, after the driver has set `DRIVER_OK`.
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError>;
    /// A descriptor that becomes readable when the other process has news for the driver, or is gone.
    fn event(&self) -> BorrowedFd<'_>;
    /// Passes the other process's news on to the driver. Must not wait.
    fn forward(&mut self, interrupt: &dyn Interrupt) -> Result<(), LinkLost>;
    /// Takes the queues back, which the other process then no longer uses.
    fn reset(&mut self);
}

/// The device or link that a transport holds.
pub enum Attached {
    /// A device of this process.
    Device(Box<dyn Device>),
    /// A link to a device of another process.
    Link(Box<dyn Link>),
}

impl Attached {
    /// The part of the device that its driver sees from the start.
    #[must_use]
    pub fn identity(&self) -> Identity<'_> {
        match self {
            Self::Device(device) => device.identity(),
            Self::Link(link) => link.identity(),
        }
    }

    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        match self {
            Self::Device(device) => device.read_config(offset, data),
            Self::Link(link) => link.read_config(offset, data),
        }
    }

    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), LinkLost> {
        match self {
            Self::Device(device) => {
                device.write_config(offset, data);
                Ok(())
            }
            Self::Link(link) => link.write_config(offset, data),
        }
    }

    pub(crate) fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        match self {
            Self::Device(device) => device.activate(activation),
            Self::Link(link) => link.activate(activation),
        }
    }

    /// A descriptor that becomes readable when the device's host side, or the other process, has something to do.
    pub(crate) fn host_event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Device(device) => device.host_event(),
            Self::Link(link) => Some(link.event()),
        }
    }

    pub(crate) fn reset(&mut self) {
        match self {
            Self::Device(device) => device.reset(),
            Self::Link(link) => link.reset(),
        }
    }
}
