//! `matchlock diff`, `apply` and `discard`: what a sandbox changed of its overlays, shown, taken over and thrown away.
//!
//! Names and contents are the guest's: a terminal is shown what it would act on. Not here: changes themselves (`sandbox`).

use std::io::{self, IsTerminal};
use std::time::Duration;

use sandbox::changes::{Change, Kind, Overlay};
use sandbox::{Home, Id, changes};
use similar::TextDiff;

use crate::args::{DiffArgs, TakeArgs};
use crate::block_on;
use crate::progress::Steps;
use crate::say::{self, say, tell};
use crate::tame::Tamer;

/// Most bytes of a file that is shown.
const MAX_TEXT: u64 = 1 << 20;

/// How long two texts may be compared until what differs is shown as a whole.
const COMPARING: Duration = Duration::from_secs(2);

/// Shows what a sandbox changed.
pub(crate) fn diff(args: &DiffArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse()?;
    let mut overlays = block_on(changes::overlays(home, &id, args.path.as_deref()))??;
    let mut told = Vec::new();
    for overlay in &mut overlays {
        let changes = overlay.judged()?;
        if args.json {
            told.push(wire_overlay(overlay, &changes));
        } else {
            print(overlay, &changes, !args.names);
        }
    }
    if args.json {
        say::json(&told)?;
    }
    Ok(0)
}

/// Takes over what a sandbox changed.
pub(crate) fn apply(args: &TakeArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse()?;
    let ended = changes::ended(home, &id, args.path.as_deref())?;
    let steps = Steps::new("Taking over");
    let applied = ended.apply(&mut |done, total| steps.tell(done, total))?;
    drop(steps);
    taken(applied, "applied", args.json)
}

/// Throws away what a sandbox changed.
pub(crate) fn discard(args: &TakeArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse()?;
    let discarded = changes::ended(home, &id, args.path.as_deref())?.discard()?;
    taken(discarded, "discarded", args.json)
}

fn taken(count: usize, verb: &str, json: bool) -> anyhow::Result<u8> {
    if json {
        say::json(&std::collections::BTreeMap::from([(verb, count)]))?;
    } else {
        say!("{count} changes {verb}");
    }
    Ok(0)
}

fn print(overlay: &Overlay, changes: &[Change], with_contents: bool) {
    for change in changes {
        show(format!("{}\n", line(overlay, change)).as_bytes());
        if with_contents {
            show(contents(overlay, change).as_bytes());
        }
    }
    if overlay.left_out > 0 {
        tell!("{} paths in {} are too long to be shown", overlay.left_out, overlay.guest_path);
    }
}

/// Prints what comes from a guest.
fn show(bytes: &[u8]) {
    if io::stdout().is_terminal() {
        let mut tamer = Tamer::default();
        say::bytes([tamer.piece(bytes), tamer.end()].concat().as_bytes());
    } else {
        say::bytes(bytes);
    }
}

/// A change in a line; names that are more than one are written as git does.
fn line(overlay: &Overlay, change: &Change) -> String {
    let path = |place: &changes::Place| quoted(&overlay.in_guest(place));
    let from = change.from.as_ref().map(|from| format!("{} -> ", path(from))).unwrap_or_default();
    let against = overlay.objection(change).map(|why| format!(" ({why})")).unwrap_or_default();
    format!("{} {from}{}{against}", word(change.kind), path(&change.place))
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "added",
        Kind::Modified => "modified",
        Kind::Deleted => "deleted",
        Kind::Renamed => "renamed",
        Kind::Attributes => "permissions",
    }
}

/// Contents before and after as a unified diff, if both are text and something is in them.
fn contents(overlay: &Overlay, change: &Change) -> String {
    let shows = change.has_contents() || change.kind == Kind::Deleted && !change.is_directory();
    if !shows {
        return String::new();
    }
    let text = |bytes: Result<Option<Vec<u8>>, changes::Error>| -> Result<String, String> {
        let bytes = bytes.map_err(|error| error.to_string())?.ok_or("it is too long to be shown")?;
        if bytes.contains(&0) {
            return Err("it is no text".to_owned());
        }
        String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())
    };
    let (before, after) = (text(overlay.before(change, MAX_TEXT)), text(overlay.after(change, MAX_TEXT)));
    let (before, after) = match (before, after) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(why), _) | (_, Err(why)) => return format!("  {why}\n"),
    };
    let none = || "/dev/null".to_owned();
    let name = |side: &str, place: Option<&changes::Place>| {
        place.map_or_else(none, |place| quoted(&format!("{side}/{place}")))
    };
    let old = name("a", change.origin.as_ref());
    let new = name("b", change.now.as_ref().map(|now| &now.place));
    let diff = TextDiff::configure().timeout(COMPARING).diff_lines(&before, &after);
    diff.unified_diff().header(&old, &new).to_string()
}

/// A name on one line.
fn quoted(name: &str) -> String {
    if name.chars().any(|character| character.is_control() || character == '"' || character == '\\') {
        format!("\"{}\"", name.escape_debug())
    } else {
        name.to_owned()
    }
}

fn wire_overlay(overlay: &Overlay, changes: &[Change]) -> wire::state::OverlayChanges {
    let change = |change: &Change| wire::state::OverlayChange {
        kind: word(change.kind).to_owned(),
        path: change.place.to_string(),
        from: change.from.as_ref().map(ToString::to_string),
        directory: change.is_directory(),
        modified: change.has_contents(),
        conflict: overlay.objection(change).map(|why| why.to_string()),
    };
    wire::state::OverlayChanges {
        guest_path: overlay.guest_path.clone(),
        host_path: overlay.directory.display().to_string(),
        changes: changes.iter().map(change).collect(),
        left_out: overlay.left_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_one_line() {
        for (name, expected) in [
            ("/work/a b", "/work/a b"),
            ("/work/a\n+++ b/x", "\"/work/a\\n+++ b/x\""),
            ("/work/\"", "\"/work/\\\"\""),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }
}
