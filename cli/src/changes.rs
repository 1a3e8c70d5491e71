//! `matchlock diff`, `apply` and `discard`: what a sandbox changed of its overlays, shown, taken over and thrown away.
//!
//! Names and contents are the guest's: a terminal is shown what it would act on. Not here: changes themselves (`sandbox`).

use std::io::{self, IsTerminal};
use std::time::Duration;

use sandbox::changes::{Base, Change, Kind, Overlay, There, What};
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
            let facts = facts(change.kind, change.was.as_ref(), change.now.as_ref());
            show(facts.map(|facts| format!("  {facts}\n")).unwrap_or_default().as_bytes());
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

/// The type and the permissions that a change brings, as far as they are not those of a file that was there.
fn facts(kind: Kind, was: Option<&Base>, now: Option<&There>) -> Option<String> {
    let before = was.map(type_before);
    let Some(there) = now else { return before.filter(|before| *before != "file").map(str::to_owned) };
    let mut facts = Vec::new();
    match (before, type_now(&there.what)) {
        (Some(before), now) if before != now => facts.push(format!("{before} -> {now}")),
        (None, now) if now != "file" => facts.push(now.to_owned()),
        _ => {}
    }
    match &there.what {
        What::Link(target) => facts.push(format!("target {}", quoted(&String::from_utf8_lossy(target)))),
        What::Special if kind != Kind::Renamed => facts.push("not taken over".to_owned()),
        What::Special => {}
        What::Directory | What::File(_) => match was.map(|was| permissions(was.mode)) {
            Some(was) if was == permissions(there.mode) => {}
            Some(was) => facts.push(format!("mode {was} -> {}", permissions(there.mode))),
            None => facts.push(format!("mode {}", permissions(there.mode))),
        },
    }
    Some(facts.join(", ")).filter(|facts| !facts.is_empty())
}

fn type_now(what: &What) -> &'static str {
    match what {
        What::Directory => "directory",
        What::File(_) => "file",
        What::Link(_) => "symbolic link",
        What::Special => "special file",
    }
}

fn type_before(was: &Base) -> &'static str {
    match was.kind() {
        changes::kind::DIRECTORY => "directory",
        changes::kind::FILE => "file",
        changes::kind::LINK => "symbolic link",
        _ => "special file",
    }
}

/// The permission bits that are taken over, in octal.
fn permissions(mode: u32) -> String {
    format!("{:03o}", mode & 0o777)
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
        file_type: change.now.as_ref().map(|now| type_now(&now.what).to_owned()),
        file_type_before: change.was.as_ref().map(|was| type_before(was).to_owned()),
        mode: change.now.as_ref().map(|now| permissions(now.mode)),
        mode_before: change.was.as_ref().map(|was| permissions(was.mode)),
        target: change.now.as_ref().and_then(|now| match &now.what {
            What::Link(target) => Some(String::from_utf8_lossy(target).into_owned()),
            What::Directory | What::File(_) | What::Special => None,
        }),
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

    #[test]
    fn types_targets_and_permissions_are_told() {
        use changes::{Place, Time, kind};
        let was = |kind, mode| {
            let time = Time::default();
            Base { mode: kind | mode, ino: 1, size: 0, mtime: time, ctime: time }
        };
        let there = |what: What, mode| There {
            place: Place::new(b"x").unwrap(),
            origin: None,
            was: None,
            file: 1,
            mode,
            mtime: Time::default(),
            what,
        };
        let link = || What::Link(b"../a\n".to_vec());
        let (file, directory) = (was(kind::FILE, 0o644), was(kind::DIRECTORY, 0o755));
        for (kind, was, now, expected) in [
            (Kind::Added, None, Some(there(What::Directory, 0o40_700)), Some("directory, mode 700")),
            (Kind::Added, None, Some(there(link(), 0o777)), Some("symbolic link, target \"../a\\n\"")),
            (
                Kind::Modified,
                Some(file),
                Some(there(link(), 0)),
                Some("file -> symbolic link, target \"../a\\n\""),
            ),
            (Kind::Added, None, Some(there(What::Special, 0o644)), Some("special file, not taken over")),
            (
                Kind::Attributes,
                Some(directory),
                Some(there(What::Directory, 0o4711)),
                Some("mode 755 -> 711"),
            ),
            (Kind::Renamed, Some(directory), Some(there(What::Directory, 0o755)), None),
            (Kind::Deleted, Some(file), None, None),
            (Kind::Deleted, Some(directory), None, Some("directory")),
        ] {
            assert_eq!(facts(kind, was.as_ref(), now.as_ref()).as_deref(), expected);
        }
    }
}
