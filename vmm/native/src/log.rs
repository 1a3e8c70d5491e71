//! Log lines on standard error, which is the supervisor's pipe.
//!
//! A guest must not fill the host's log, so lines after the first `LIMIT` are dropped. Not here: levels finer than
//! info, timestamps (the reader adds them), spans.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// Most log lines of one process.
const LIMIT: u32 = 1000;

/// Writes tracing's events to standard error, one per line.
pub fn install() {
    // This call fails only if a subscriber is already set, and then that one serves.
    let _ = tracing::subscriber::set_global_default(Stderr { lines: AtomicU32::new(0) });
}

struct Stderr {
    lines: AtomicU32,
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.is_event()
    }

    fn event(&self, event: &Event<'_>) {
        let lines = self.lines.fetch_add(1, Ordering::Relaxed);
        if lines >= LIMIT {
            return;
        }
        let mut line = Line(format!("matchlock-vmm: {}:", event.metadata().level().as_str().to_lowercase()));
        event.record(&mut line);
        line.0.push_str(if lines + 1 == LIMIT { " (no more lines follow)\n" } else { "\n" });
        // An error cannot be reported: standard error is the only place for it.
        let _ = std::io::stderr().write_all(line.0.as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
