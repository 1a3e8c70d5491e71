//! The fuzz body of lists: what a sandbox's process may have written.

use crate::{List, Place};

/// A list of changes, and what it means.
pub fn list(data: &[u8]) {
    let Ok(list) = List::read(data) else { return };
    let changes = crate::changes(&list);
    for change in &changes {
        let paths = [Some(&change.place), change.from.as_ref(), change.taken(), change.on_host.as_ref()];
        for path in paths.into_iter().flatten() {
            assert_eq!(Place::new(path.as_bytes()).as_ref(), Some(path), "a path that leads elsewhere");
        }
    }
    if let Some(first) = changes.first().map(|change| change.place.clone()) {
        assert!(crate::below_with_directories(changes, &first).iter().any(|change| change.place == first));
    }
}
