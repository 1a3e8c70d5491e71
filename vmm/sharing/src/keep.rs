//! Changes of overlays, written down when the supervisor asks for it, and when it is gone.

use std::sync::{Arc, Mutex, PoisonError};

use machine::shares::{Keep, Kept};
use overlay::Files;
use process::Channel;

/// The overlays of this process, and the channel on which their lists are asked for.
pub(crate) struct Keeping {
    overlays: Vec<Arc<Files>>,
    channel: Channel,
    /// Taken while lists are written.
    writing: Mutex<()>,
}

impl Keeping {
    pub(crate) fn new(overlays: Vec<Arc<Files>>, channel: Channel) -> Self {
        Self { overlays, channel, writing: Mutex::new(()) }
    }

    /// Writes the lists, and tells of it.
    pub(crate) fn keep(&self) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.overlays.iter().try_for_each(|overlay| overlay.keep());
        let kept = Kept(kept.map_err(|error| format!("changes of an overlay: {error}")));
        if let Err(why) = &kept.0 {
            crate::say(why);
        }
        // If the supervisor is gone, the report is lost with it.
        let _ = self.channel.send(&kept, &[]);
    }

    /// Writes the lists as often as the supervisor asks for it, until it hangs up.
    pub(crate) fn serve(&self) {
        while let Ok(Some((Keep {}, _))) = self.channel.recv() {
            self.keep();
        }
    }
}
