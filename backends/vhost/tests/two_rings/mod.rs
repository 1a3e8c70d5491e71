//! A driver of two rings whose buffers are all the same.

use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;

use driven::{BUFFERS, Setup, descriptors, feature};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vm_memory::{Bytes, GuestAddress};

pub(crate) const QUEUE_SIZE: u16 = 128;

/// Two rings.
pub(crate) struct Rings(pub(crate) driven::Rings);

impl Deref for Rings {
    type Target = driven::Rings;
    fn deref(&self) -> &driven::Rings {
        &self.0
    }
}

impl DerefMut for Rings {
    fn deref_mut(&mut self) -> &mut driven::Rings {
        &mut self.0
    }
}

impl Rings {
    /// Up to the point where the rings may start. `features` are what the device has; the driver takes none of them.
    pub(crate) fn connect(stream: UnixStream, features: u64) -> Self {
        let setup = Setup { queues: 2, queue_size: QUEUE_SIZE, features: 0, memory: 2 << 20 };
        let rings = driven::Rings::connect(stream, setup);
        let always = feature::VERSION_1 | feature::EVENT_INDEX | feature::PROTOCOL;
        assert_eq!((rings.offer.features, rings.offer.queues), (features | always, 2));
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        assert!(rings.offer.protocol.contains(wanted));
        Self(rings)
    }

    /// Makes `count` more chains available, each of the 16 bytes at [`BUFFERS`].
    pub(crate) fn offer(&self, queue: usize, count: u16) {
        let index: u16 = self.ram.read_obj(GuestAddress(driven::available(queue) + 2)).unwrap();
        let heads = (0..count).map(|more| index.wrapping_add(more) % QUEUE_SIZE);
        for head in heads.clone() {
            let descriptor = descriptors(queue) + 16 * u64::from(head);
            self.ram.write_obj(BUFFERS, GuestAddress(descriptor)).unwrap();
            self.ram.write_obj([16u32, 2], GuestAddress(descriptor + 8)).unwrap();
        }
        self.0.offer(queue, heads);
    }
}
