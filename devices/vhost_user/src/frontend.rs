//! The link to a device in a back end, and the vhost-user dialogue over it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use guest_memory::GuestRam;
use rustix::event::{Timespec, epoll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend as Peer, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::{ActivateError, Activation, DeviceKind, Event, Identity, Interrupt, Link, LinkLost};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Features that every transport offers, so the back end must know them.
const TRANSPORT: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
/// VIRTIO 1.3 §6: "0 to 23 […] Feature bits for the specific device type". Of all other features a front end may pass
/// on only those that need nothing of the transport.
pub(crate) const PASSED_ON: u64 = ((1 << 24) - 1) | (1 << VIRTIO_RING_F_INDIRECT_DESC);
/// Protocol features that are used if the back end offers them.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);
/// Most events taken in one call; the others make the set readable again.
const BATCH: usize = 8;
/// The token of the connection itself. A queue's token is its index.
const CONNECTION: u64 = u64::MAX;

/// Why a back end cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The back end hung up, broke the protocol or refused.
    #[error("vhost-user {request}: {source}")]
    Request {
        /// The request that failed.
        request: &'static str,
        /// The cause of the failure.
        source: vhost::Error,
    },
    /// The back end lacks a feature that every driver here may use.
    #[error("vhost-user back end lacks {0}")]
    Missing(&'static str),
    /// The back end has fewer queues than the device.
    #[error("vhost-user back end has {has} queues, the device {needs}")]
    Queues {
        /// The number of queues that the back end has.
        has: u64,
        /// The number of queues that the device has.
        needs: usize,
    },
    /// The host refused an event or a descriptor.
    #[error("vhost-user event: {0}")]
    Host(#[from] io::Error),
}

/// A link to a device that a back end serves.
pub struct Frontend {
    kind: DeviceKind,
    sizes: Vec<u16>,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    config: Vec<u8>,
    peer: Peer,
    connection: UnixStream,
    /// Events that the back end signals: queue i has used buffers.
    calls: Vec<Event>,
    /// Readable when a call is signalled or the back end hangs up.
    events: OwnedFd,
    /// Queues that the back end has started.
    started: Vec<usize>,
    hung_up: bool,
}

impl Frontend {
    /// Negotiates with the back end at the other end of `connection` to serve a device of `kind` with queues of at most
    /// `sizes`.
    pub fn new(connection: UnixStream, kind: DeviceKind, sizes: &[u16]) -> Result<Self, Error> {
        let mut peer = Peer::from_stream(connection.try_clone()?, sizes.len() as u64);
        request("SET_OWNER", peer.set_owner())?;
        let offered = request("GET_FEATURES", peer.get_features())?;
        let protocol = agree(&mut peer, offered, sizes.len())?;
        let config = read_config(&mut peer, protocol, config_len(kind))?;

        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let add = |fd: BorrowedFd<'_>, number, flags| {
            epoll::add(&events, fd, epoll::EventData::new_u64(number), flags).map_err(io::Error::from)
        };
        let calls = sizes.iter().map(|_| Event::new()).collect::<io::Result<Vec<_>>>()?;
        for (number, call) in (0..).zip(&calls) {
            add(call.as_fd(), number, epoll::EventFlags::IN)?;
        }
        // The connection is not watched for IN: each request reads its own reply.
        add(connection.as_fd(), CONNECTION, epoll::EventFlags::RDHUP)?;
        Ok(Self {
            kind,
            sizes: sizes.to_vec(),
            features: offered & PASSED_ON,
            protocol,
            config,
            peer,
            connection,
            calls,
            events,
            started: Vec::new(),
            hung_up: false,
        })
    }

    /// Tells the back end all it needs. Only the last message is acknowledged, which acknowledges the messages before
    /// it, too.
    fn start(&mut self, activation: &Activation<'_>, queues: &[(usize, Ring)]) -> vhost::Result<()> {
        self.peer.set_features(activation.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())?;
        let regions = activation.memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region);
        self.peer.set_mem_table(&regions.collect::<vhost::Result<Vec<_>>>()?)?;
        for ((index, ring), left) in queues.iter().zip((0..queues.len()).rev()) {
            let index = *index;
            // From here on the queue must be stopped, even if a later request fails.
            self.started.push(index);
            self.peer.set_vring_num(index, ring.config.queue_size)?;
            self.peer.set_vring_base(index, ring.base)?;
            self.peer.set_vring_addr(index, &ring.config)?;
            self.peer.set_vring_call(index, self.calls[index].as_ref())?;
            self.peer.set_vring_kick(index, activation.kicks[index].as_ref())?;
            if left == 0 {
                self.peer.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            self.peer.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> vhost::Result<()> {
        self.peer.set_hdr_flags(VhostUserHeaderFlag::empty());
        for index in self.started.drain(..) {
            self.peer.set_vring_enable(index, false)?;
            // vhost-user, "Ring states": "stop a ring upon receiving VHOST_USER_GET_VRING_BASE". The reply means that
            // the back end has stopped using it.
            self.peer.get_vring_base(index)?;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
            self.peer.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            self.peer.reset_device()?;
            self.peer.set_hdr_flags(VhostUserHeaderFlag::empty());
        }
        Ok(())
    }

    fn state(&self) -> Result<(), LinkLost> {
        if self.hung_up { Err(LinkLost) } else { Ok(()) }
    }

    fn hang_up(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.hung_up, true) {
            tracing::warn!(device = ?self.kind, %why, "vhost-user back end is gone");
            // A lost connection stays readable for ever, so it leaves the set. ENOENT is impossible: the connection was
            // added, and is deleted only here.
            let _ = epoll::delete(&self.events, &self.connection);
        }
    }
}

impl Link for Frontend {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: self.kind, features: self.features, queue_sizes: &self.sizes }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        let (known, past_end) = data.split_at_mut(len);
        known.copy_from_slice(&rest[..len]);
        past_end.fill(0);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), LinkLost> {
        let fits = offset.checked_add(data.len() as u64).is_some_and(|end| end <= self.config.len() as u64);
        let (true, Ok(offset)) = (fits && !self.hung_up, u32::try_from(offset)) else { return self.state() };
        let flags = VhostUserConfigFlags::WRITABLE;
        let written = request("SET_CONFIG", self.peer.set_config(offset, flags, data));
        // The configuration is read back: only the back end knows which fields the driver may write, and what a write
        // changes.
        match written.and_then(|()| read_config(&mut self.peer, self.protocol, self.config.len())) {
            Ok(config) => self.config = config,
            Err(error) => self.hang_up(&error),
        }
        self.state()
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        if self.hung_up {
            return Err(ActivateError::Host("vhost-user back end is gone".into()));
        }
        let ready = activation.queues.iter().enumerate().filter(|(_, queue)| queue.ready());
        let queues = ready.map(|(index, queue)| {
            let ring = Ring::new(queue, activation.memory).ok_or(ActivateError::Queue(index))?;
            Ok((index, ring))
        });
        let queues = queues.collect::<Result<Vec<_>, ActivateError>>()?;
        self.start(activation, &queues).map_err(|error| match error {
            vhost::Error::InvalidGuestMemoryRegion => {
                ActivateError::Host("guest memory is not shared".into())
            }
            error => ActivateError::Host(format!("vhost-user back end: {error}")),
        })
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn forward(&mut self, interrupt: &dyn Interrupt) -> Result<(), LinkLost> {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut happened = [none; BATCH];
        let count = epoll::wait(&self.events, &mut happened, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        // With a valid set and buffer the only error is EINTR, which a call that does not wait never returns.
        for event in happened.iter().take(count.unwrap_or(0)) {
            let number = event.data.u64();
            match usize::try_from(number).ok().and_then(|index| Some((index, self.calls.get(index)?))) {
                Some((index, call)) => {
                    call.take();
                    interrupt.queue(index);
                }
                None => self.hang_up(&"connection closed"),
            }
        }
        self.state()
    }

    fn reset(&mut self) {
        if !self.hung_up
            && let Err(error) = self.stop()
        {
            self.hang_up(&error);
        }
        self.started.clear();
        for call in &self.calls {
            call.take();
        }
    }
}

/// A ring, in the form in which the back end is told of it.
struct Ring {
    config: VringConfigData,
    base: u16,
}

impl Ring {
    /// The ring of a queue; `None` if the driver put a part of it outside guest memory.
    fn new(queue: &Queue, memory: &GuestRam) -> Option<Self> {
        if !queue.is_valid(memory) {
            return None;
        }
        let host = |address| Some(memory.get_host_address(GuestAddress(address)).ok()?.addr() as u64);
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host(queue.desc_table())?,
            used_ring_addr: host(queue.used_ring())?,
            avail_ring_addr: host(queue.avail_ring())?,
            log_addr: None,
        };
        Some(Self { config, base: queue.next_avail() })
    }
}

fn request<T>(request: &'static str, result: vhost::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Request { request, source })
}

/// Negotiates protocol features, and checks that the back end can do what the device needs.
fn agree(peer: &mut Peer, offered: u64, queues: usize) -> Result<VhostUserProtocolFeatures, Error> {
    if offered & TRANSPORT != TRANSPORT {
        return Err(Error::Missing("VIRTIO_F_VERSION_1 or VIRTIO_RING_F_EVENT_IDX"));
    }
    if offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
        return Err(Error::Missing("VHOST_USER_F_PROTOCOL_FEATURES"));
    }
    let protocol = PROTOCOL & request("GET_PROTOCOL_FEATURES", peer.get_protocol_features())?;
    request("SET_PROTOCOL_FEATURES", peer.set_protocol_features(protocol))?;
    let has = match protocol.contains(VhostUserProtocolFeatures::MQ) {
        true => request("GET_QUEUE_NUM", peer.get_queue_num())?,
        // Without MQ the protocol has no way to ask; activation refuses a queue too many.
        false => queues as u64,
    };
    if has < queues as u64 { Err(Error::Queues { has, needs: queues }) } else { Ok(protocol) }
}

fn read_config(peer: &mut Peer, protocol: VhostUserProtocolFeatures, len: usize) -> Result<Vec<u8>, Error> {
    if len == 0 {
        return Ok(Vec::new());
    }
    if !protocol.contains(VhostUserProtocolFeatures::CONFIG) {
        return Err(Error::Missing("VHOST_USER_PROTOCOL_F_CONFIG"));
    }
    let size = u32::try_from(len).map_err(|_| Error::Missing("so large a configuration space"))?;
    let (_, config) =
        request("GET_CONFIG", peer.get_config(0, size, VhostUserConfigFlags::empty(), &vec![0; len]))?;
    Ok(config)
}

/// Bytes of the configuration space: VIRTIO 1.3 §5.x.4, "Device configuration layout".
fn config_len(kind: DeviceKind) -> usize {
    match kind {
        DeviceKind::Net => 24,
        DeviceKind::Block => 60,
        DeviceKind::Console => 12,
        DeviceKind::Entropy => 0,
        DeviceKind::Balloon => 16,
        DeviceKind::Vsock => 8,
        DeviceKind::FileSystem => 40,
    }
}
