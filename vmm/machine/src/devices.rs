//! Descriptions of devices, which travel to a machine's processes, and the devices made from them, by the VMM and by
//! the device process alike.
//!
//! Not here: the files behind a disk, and devices that only the VMM has (console, balloon, network).

use std::os::fd::OwnedFd;

use disk::{DiskError, Segment};
use serde::{Deserialize, Serialize};
use virtio::blk::BlockDevice;
use virtio::rng::Entropy;
use virtio::vsock::{GUEST_CID, Vsock};
use virtio::{Device, DeviceKind};

use crate::descriptors::{Fd, Incoming, MissingDescriptor, Outgoing};
use crate::{Disk, LISTENING};

/// A device that a process of the machine serves.
#[derive(Debug, Serialize, Deserialize)]
pub enum DeviceSpec {
    /// A block device.
    Block {
        /// The disk's serial number.
        id: String,
        /// The disk's contents.
        disk: DiskSpec,
    },
    /// The socket device: the device end of its port channel.
    Vsock(Fd),
    /// The entropy device.
    Entropy,
}

/// The contents of a disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Contents, in order.
    pub segments: Vec<SegmentSpec>,
    /// Whether the guest's writes are refused.
    pub readonly: bool,
}

/// A run of a disk's contents: [`Segment`] with its file by index.
#[derive(Debug, Serialize, Deserialize)]
pub enum SegmentSpec {
    /// A part of a file.
    File {
        /// The file.
        file: Fd,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Literal bytes, read-only.
    Bytes(Vec<u8>),
    /// Zeroes, read-only.
    Zeroes(u64),
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The spec names a descriptor that did not come with it.
    #[error(transparent)]
    Descriptor(#[from] MissingDescriptor),
    /// A disk's segments do not make a disk.
    #[error("{id}: {source}")]
    Disk {
        /// The disk's serial number.
        id: String,
        /// The fault.
        source: DiskError,
    },
    /// The port channel's descriptor cannot serve as one.
    #[error("vsock: {0}")]
    Vsock(std::io::Error),
}

impl DeviceSpec {
    /// Descriptions of a sandbox's own devices, in guest order: disks, sockets, entropy.
    pub(crate) fn describe(disks: Vec<Disk>, ports: OwnedFd, descriptors: &mut Outgoing) -> Vec<Self> {
        let mut devices = Vec::with_capacity(disks.len() + 2);
        for (index, disk) in disks.into_iter().enumerate() {
            devices.push(Self::Block { id: format!("disk{index}"), disk: DiskSpec::new(disk, descriptors) });
        }
        devices.extend([Self::Vsock(descriptors.add(ports)), Self::Entropy]);
        devices
    }

    /// The device's name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Block { id, .. } => id,
            Self::Vsock(_) => "vsock",
            Self::Entropy => "entropy",
        }
    }

    /// The end of the longest writable file among the device's.
    #[must_use]
    pub fn writable_end(&self) -> u64 {
        let Self::Block { disk: DiskSpec { segments, readonly: false }, .. } = self else { return 0 };
        let end = |segment: &SegmentSpec| match segment {
            SegmentSpec::File { offset, len, .. } => offset.saturating_add(*len),
            SegmentSpec::Bytes(_) | SegmentSpec::Zeroes(_) => 0,
        };
        segments.iter().map(end).max().unwrap_or(0)
    }

    /// Makes the device.
    pub fn make(self, descriptors: &mut Incoming) -> Result<Box<dyn Device>, DeviceError> {
        Ok(match self {
            Self::Block { id, disk } => {
                let segments = disk.segments.into_iter().map(|segment| segment.open(descriptors));
                let disk = disk::Disk::new(segments.collect::<Result<_, _>>()?, disk.readonly);
                let disk = disk.map_err(|source| DeviceError::Disk { id: id.clone(), source })?;
                Box::new(BlockDevice::new(Box::new(disk), &id))
            }
            Self::Vsock(ports) => {
                let ports = descriptors.take(ports)?;
                Box::new(Vsock::new(ports, LISTENING.to_vec(), GUEST_CID).map_err(DeviceError::Vsock)?)
            }
            Self::Entropy => Box::new(Entropy::new()),
        })
    }
}

impl DiskSpec {
    fn new(disk: Disk, descriptors: &mut Outgoing) -> Self {
        let segments = disk.segments.into_iter().map(|segment| match segment {
            Segment::File { file, offset, len } => {
                SegmentSpec::File { file: descriptors.add(file), offset, len }
            }
            Segment::Bytes(bytes) => SegmentSpec::Bytes(bytes),
            Segment::Zeroes(len) => SegmentSpec::Zeroes(len),
        });
        Self { segments: segments.collect(), readonly: disk.readonly }
    }
}

impl SegmentSpec {
    fn open(self, descriptors: &mut Incoming) -> Result<Segment, MissingDescriptor> {
        Ok(match self {
            Self::File { file, offset, len } => Segment::File { file: descriptors.take(file)?, offset, len },
            Self::Bytes(bytes) => Segment::Bytes(bytes),
            Self::Zeroes(len) => Segment::Zeroes(len),
        })
    }
}

/// A device that a process outside the machine serves over vhost-user. In guest order such devices come after the
/// machine's own.
#[derive(Debug)]
pub struct BackEnd {
    /// The front end's end of the connection.
    pub socket: OwnedFd,
    /// The device that is served at the other end.
    pub device: Elsewhere,
}

/// A device that a process outside the machine serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Elsewhere {
    /// An entropy device.
    Entropy,
    /// A file system.
    FileSystem {
        /// The name by which the guest mounts the file system.
        tag: String,
        /// Queues besides the one for urgent requests.
        request_queues: u16,
    },
}

impl Elsewhere {
    /// The kind of the device.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Entropy => DeviceKind::Entropy,
            Self::FileSystem { .. } => DeviceKind::FileSystem,
        }
    }

    /// The largest size of each queue of the device.
    #[must_use]
    pub fn queue_sizes(&self) -> Vec<u16> {
        match self {
            Self::Entropy => Entropy::new().identity().queue_sizes.to_vec(),
            Self::FileSystem { request_queues, .. } => {
                vec![FILE_SYSTEM_QUEUE; usize::from(*request_queues) + 1]
            }
        }
    }
}

/// Size of a file system's queues; Linux cuts a request to the size of a queue.
pub const FILE_SYSTEM_QUEUE: u16 = 1024;
