//! Presents a device in the form that `vhost-user-backend` serves.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use guest_memory::GuestRam;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringEpollHandler, VringState, VringT};
use virtio::{Activation, Device, DeviceKind, Event, Identity, Interrupt, Io};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::ring::{Memory, Ring};

/// Most queues that fit the set of interrupts to raise; no device here has so many.
pub(crate) const MAX_QUEUES: usize = 32;
/// The largest queue size that QEMU's virtio-mmio tells the driver (`VIRTQUEUE_MAX_SIZE`), whatever the device's own
/// limit; Linux takes the largest.
const QEMU_MMIO_QUEUE_SIZE: u16 = 1024;
/// Longest configuration space of the protocol (`VHOST_USER_CONFIG_SIZE`).
pub(crate) const MAX_CONFIG: u32 = 256;

type Epoll = VringEpollHandler<Arc<Mutex<Adapter>>>;

/// A device, and the front end's account of its driver.
pub(crate) struct Adapter {
    // The trait requires `Sync`; no thread ever waits for this lock, because the loop's own lock surrounds it.
    device: Mutex<Box<dyn Device>>,
    kind: DeviceKind,
    queues: usize,
    max_queue_size: usize,
    offered: u64,
    accepted: u64,
    memory: Option<Memory>,
    running: Running,
    /// Rings stopped since the device was last active, one bit each.
    stopped: u64,
    epoll: Weak<Epoll>,
    /// Events by which the device asks for another turn on a queue. The driver's kicks belong to the loop.
    turns: Vec<Event>,
    exit: (EventConsumer, EventNotifier),
}

/// The meaning of one of the loop's event numbers.
#[derive(Clone, Copy)]
enum Happened {
    /// A queue has new chains, or is to have another turn.
    Queue(usize),
    /// The device's host side has something to do.
    Host,
}

/// Whether the device is active, and whether its rings are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    /// The device waits for its driver.
    Reset,
    /// The device is active and its rings move.
    Active,
    /// The device is active and its rings stand still: because of a pause, or of a reset that will show when they start
    /// again.
    Stopped,
}

/// The features of a device, and those that every transport offers.
pub(crate) fn offered(identity: Identity<'_>) -> u64 {
    identity.features
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

pub(crate) fn max_queue_size(identity: Identity<'_>) -> usize {
    identity.queue_sizes.iter().copied().max().unwrap_or(1).max(QEMU_MMIO_QUEUE_SIZE).into()
}

pub(crate) fn protocol_features(kind: DeviceKind) -> VhostUserProtocolFeatures {
    let features = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE;
    // VIRTIO 1.3 §5.4.4: "None currently defined", and QEMU warns of a configuration space that no driver reads.
    if kind == DeviceKind::Entropy { features } else { features | VhostUserProtocolFeatures::CONFIG }
}

impl Adapter {
    pub(crate) fn new(device: Box<dyn Device>) -> io::Result<Self> {
        let identity = device.identity();
        Ok(Self {
            kind: identity.kind,
            queues: identity.queue_sizes.len(),
            max_queue_size: max_queue_size(identity),
            offered: offered(identity),
            turns: identity.queue_sizes.iter().map(|_| Event::new()).collect::<io::Result<_>>()?,
            device: Mutex::new(device),
            accepted: 0,
            memory: None,
            running: Running::Reset,
            stopped: 0,
            epoll: Weak::new(),
            exit: new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?,
        })
    }

    /// Takes the loop's epoll set, to which the device adds its own events.
    pub(crate) fn set_epoll(&mut self, epoll: &Arc<Epoll>) -> io::Result<()> {
        for (turn, number) in self.turns.iter().zip(self.host_event() + 1..) {
            epoll.register_listener(turn.as_fd().as_raw_fd(), EventSet::IN, number)?;
        }
        self.epoll = Arc::downgrade(epoll);
        Ok(())
    }

    fn device(&mut self) -> &mut dyn Device {
        self.device.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }

    /// The number of the device's own event: the loop keeps the numbers up to the number of queues for itself.
    fn host_event(&self) -> u64 {
        self.queues as u64 + 1
    }

    /// Activates the device if its driver is new, and adds its own event to the loop. Returns whether the device is
    /// active.
    fn start(&mut self, memory: &GuestRam, queues: &mut [&mut Queue]) -> bool {
        if self.running == Running::Stopped {
            let stopped = queues.iter().enumerate().filter(|(index, _)| self.stopped & 1 << index != 0);
            let (ready, next): (Vec<bool>, Vec<u16>) =
                stopped.map(|(_, queue)| (queue.ready(), queue.next_avail())).unzip();
            // Rings start one after the other; only all of them together show whether the device resumes or begins
            // anew.
            if ready.contains(&false) {
                return false;
            }
            if next.iter().all(|next| *next == 0) {
                self.device().reset();
                self.running = Running::Reset;
            }
        }
        if self.running == Running::Reset {
            let features = self.accepted & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
            // The device gets a copy: it looks at the queues as the driver set them up, and keeps nothing.
            let Ok(queues) =
                queues.iter().map(|queue| Queue::try_from(queue.state())).collect::<Result<Vec<_>, _>>()
            else {
                return false;
            };
            let device = self.device.get_mut().unwrap_or_else(PoisonError::into_inner);
            let activation = Activation { features, memory, queues: &queues, kicks: &self.turns };
            if device.activate(&activation).is_err() {
                return false;
            }
        }
        self.running = Running::Active;
        self.stopped = 0;
        self.listen(true);
        true
    }

    /// Adds the device's own event to the loop, or takes it out: while the rings stand still the device could not
    /// handle the event, and the loop would turn for nothing.
    fn listen(&mut self, listen: bool) {
        let data = self.host_event();
        let Some(epoll) = self.epoll.upgrade() else { return };
        let Some(event) = self.device().host_event().map(|event| event.as_raw_fd()) else { return };
        // The possible errors mean that the event is already in the loop, or that it is not.
        let _ = if listen {
            epoll.register_listener(event, EventSet::IN, data)
        } else {
            epoll.unregister_listener(event, EventSet::IN, data)
        };
    }

    fn process_queue(&mut self, index: usize, io: &mut Io<'_>) {
        if io.queues.get(index).is_some_and(|queue| queue.ready()) {
            self.device().process(index, io);
        }
    }

    /// The meaning of an event number of the loop: a queue's kick, the device's own event, or its wish for another
    /// turn.
    fn happened(&self, number: u16) -> Happened {
        let number = usize::from(number);
        match number.checked_sub(self.queues + 1) {
            None => Happened::Queue(number),
            Some(0) => Happened::Host,
            Some(turn) => {
                if let Some(event) = self.turns.get(turn - 1) {
                    event.take();
                }
                Happened::Queue(turn - 1)
            }
        }
    }

    fn process(&mut self, happened: Happened, vrings: &[Ring]) {
        let Some(memory) = self.memory.clone() else { return };
        let memory = memory.memory();
        let mut guards: Vec<MutexGuard<'_, VringState<Memory>>> =
            vrings.iter().map(VringT::get_mut).collect();
        let interrupts = Interrupts::default();
        {
            let mut queues: Vec<&mut Queue> = guards.iter_mut().map(|ring| ring.get_queue_mut()).collect();
            let starts = self.running != Running::Active;
            if starts && !self.start(&memory, &mut queues) {
                return;
            }
            let mut io = Io { memory: &memory, queues: &mut queues, interrupt: &interrupts };
            match happened {
                // Kicks of rings that were ready before had no effect, so every queue is served.
                _ if starts => (0..self.queues).for_each(|index| self.process_queue(index, &mut io)),
                Happened::Queue(index) => self.process_queue(index, &mut io),
                Happened::Host => self.device().process_host(&mut io),
            }
        }
        for (index, ring) in guards.iter().enumerate() {
            if interrupts.raised(index) {
                // A full counter means that the interrupt is already raised.
                let _ = ring.signal_used_queue();
            }
        }
    }
}

impl VhostUserBackendMut for Adapter {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        self.max_queue_size
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn acked_features(&mut self, features: u64) {
        self.accepted = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        protocol_features(self.kind)
    }

    fn reset_device(&mut self) {
        self.listen(false);
        self.device().reset();
        self.running = Running::Reset;
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // No work here: the loop has told the queues, which use event indexes.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = vec![0; size.min(MAX_CONFIG) as usize];
        self.device.lock().unwrap_or_else(PoisonError::into_inner).read_config(offset.into(), &mut config);
        config
    }

    fn set_config(&mut self, offset: u32, data: &[u8]) -> io::Result<()> {
        self.device().write_config(offset.into(), data);
        Ok(())
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn stop_vring(&mut self, index: u32) -> io::Result<()> {
        // The loop has checked the index against the number of queues.
        self.stopped |= 1u64.checked_shl(index).unwrap_or(0);
        if self.running == Running::Active {
            self.running = Running::Stopped;
            self.listen(false);
        }
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.0.try_clone().ok().zip(self.exit.1.try_clone().ok())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        vrings: &[Ring],
        _thread: usize,
    ) -> io::Result<()> {
        // An error would end the loop for good, and no fault of a guest is worth that.
        self.process(self.happened(event), vrings);
        Ok(())
    }
}

/// The queues whose drivers are to be notified, as soon as the rings are free again.
#[derive(Default)]
struct Interrupts(AtomicU64);

impl Interrupts {
    fn raised(&self, index: usize) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << index != 0
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, index: usize) {
        if index < MAX_QUEUES {
            self.0.fetch_or(1 << index, Ordering::Relaxed);
        }
    }

    fn config(&self) {
        // No work here: no device changes its configuration space by itself.
    }
}
