//! The paths of files in the file system below.

use std::sync::Arc;

use changes::{MAX_PLACE, Place};

/// A path there, as its last name and the path before.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The directory that the name is in; none for the root, which has no name.
    parent: Option<(Arc<Origin>, Arc<[u8]>)>,
    /// Bytes of the path.
    len: usize,
}

impl Origin {
    pub(crate) fn root() -> Arc<Self> {
        Arc::new(Self { parent: None, len: 0 })
    }

    /// The path of a name in this directory, if it is not too long.
    pub(crate) fn join(self: &Arc<Self>, name: &Arc<[u8]>) -> Option<Arc<Self>> {
        let len = self.len.saturating_add(name.len()).saturating_add(1);
        // One slash is before the first name.
        (len <= MAX_PLACE + 1).then(|| Arc::new(Self { parent: Some((self.clone(), name.clone())), len }))
    }

    /// The path, of anything but the root.
    pub(crate) fn place(&self) -> Option<Place> {
        let (mut names, mut at) = (Vec::new(), self);
        while let Some((parent, name)) = &at.parent {
            names.push(&name[..]);
            at = parent;
        }
        names.reverse();
        Place::new(&names.join(&b'/'))
    }

    /// The path of a name in this directory, if it is not too long.
    pub(crate) fn place_of(&self, name: &[u8]) -> Option<Place> {
        match &self.parent {
            None => Place::new(name),
            Some(_) => self.place()?.join(name),
        }
    }
}
