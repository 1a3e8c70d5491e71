//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use fuse::{Errno, Handle, NodeId, Result};

use crate::below::BelowOpen;
use crate::locks::{alone, shared};
use crate::node::Node;

/// Most files and directories that are open at once; each takes some 100 bytes.
const MAX_HANDLES: usize = 1 << 17;

/// An open file or directory: the node stays even if nobody else has it.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) node: Arc<Node>,
    /// Its contents may be changed.
    pub(crate) is_writable: bool,
    /// The same below, if the contents were there when it was opened.
    pub(crate) below: Option<BelowOpen>,
}

/// Everything that is open.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    open: RwLock<HashMap<Handle, Arc<Open>>>,
    next: AtomicU64,
}

impl Handles {
    /// Refuses to open one more before it is made.
    pub(crate) fn check_room(&self) -> Result<()> {
        if shared(&self.open).len() >= MAX_HANDLES { Err(Errno::EMFILE) } else { Ok(()) }
    }

    pub(crate) fn keep(&self, open: Open) -> Result<Handle> {
        let mut all = alone(&self.open);
        if all.len() >= MAX_HANDLES {
            return Err(Errno::EMFILE);
        }
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed));
        all.insert(handle, Arc::new(open));
        Ok(handle)
    }

    pub(crate) fn get(&self, node: NodeId, handle: Handle) -> Result<Arc<Open>> {
        let open = shared(&self.open).get(&handle).cloned();
        open.filter(|open| open.node.id == node).ok_or(Errno::EBADF)
    }

    pub(crate) fn close(&self, handle: Handle) {
        let open = alone(&self.open).remove(&handle);
        drop(open);
    }

    pub(crate) fn close_all(&self) {
        let open = std::mem::take(&mut *alone(&self.open));
        drop(open);
    }
}
