//! The fuzz body of a back end's answers to the front end; a guest may have taken the back end over.
//!
//! `cargo test` runs the body a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here:
//! rings, which the front end never reads.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use virtio::{DeviceKind, Identity, Link};

use crate::Frontend;

/// Answers that are all there before the front end asks; the first byte picks the device. Features and configuration
/// must be ones that the device may have.
pub fn answers(data: &[u8]) {
    let Some((&kind, answers)) = data.split_first() else { return };
    let kinds = [DeviceKind::Entropy, DeviceKind::Block, DeviceKind::FileSystem];
    let kind = kinds[usize::from(kind) % kinds.len()];
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    let said = theirs.set_nonblocking(true).and_then(|()| theirs.write_all(answers));
    if said.and_then(|()| theirs.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let Ok(mut device) = Frontend::new(ours, kind, &[128, 8]) else { return };
    let Identity { kind: is, features, queue_sizes } = device.identity();
    assert_eq!((is, queue_sizes), (kind, &[128, 8][..]));
    assert_eq!(features & !crate::frontend::PASSED_ON, 0, "{features:#x}");
    let mut config = [0xaa; 128];
    device.read_config(0, &mut config);
    // A back end that breaks the protocol is lost, which later calls must bear.
    let _ = device.write_config(4, &config[..4]);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 128]);
    device.reset();
}

#[cfg(test)]
mod tests {
    /// vhost-user, "Message format": request, flags (version 1, reply), size, payload.
    fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap_or_default();
        [&[request, 5, size].map(u32::to_le_bytes).concat(), payload].concat()
    }

    #[test]
    fn answers() {
        let number = |request, value: u64| reply(request, &value.to_le_bytes());
        // Features (version 1, event indexes, protocol features), protocol features, number of queues.
        let features = number(1, 1 << 32 | 1 << 30 | 1 << 29);
        let common = [features, number(15, 1 << 0 | 1 << 3 | 1 << 9 | 1 << 13), number(17, 2)].concat();
        let config = |len: u32| {
            let header = [0, len, 0].map(u32::to_le_bytes).concat();
            reply(24, &[header, vec![7; usize::try_from(len).unwrap_or_default()]].concat())
        };
        let examples = [
            [&[0], &common[..], &number(34, 0)].concat(),
            [&[1], &common[..], &config(60), &config(60), &number(34, 0)].concat(),
            [&[2], &common[..], &config(40)].concat(),
        ];
        fuzzed::run("vhost_user_answers", 2000, &examples, &["\x05\0\0\0", "\x08\0\0\0"], super::answers);
    }
}
