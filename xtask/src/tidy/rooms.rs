//! Which room of a large crate may use which, as `layers` does for whole crates.

use super::Source;

/// A crate's folder, and its rooms: each room may use those before it, and the modules that are in no room.
const ROOMS: &[(&str, &[&str])] = &[("runtime/sandbox", &["records", "agent", "control", "guest", "life"])];

/// The findings: paths from a room to one that stands after it.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    ROOMS
        .iter()
        .flat_map(|(folder, rooms)| sources.iter().flat_map(|source| upward(folder, rooms, source)))
        .collect()
}

fn upward(folder: &str, rooms: &[&str], source: &Source) -> Vec<String> {
    let below = source.path.strip_prefix(folder).and_then(|path| path.strip_prefix("src"));
    let Some(room) = below.ok().and_then(|path| path.iter().next()?.to_str()) else { return Vec::new() };
    let Some(number) = rooms.iter().position(|known| *known == room) else { return Vec::new() };
    let later = rooms.iter().skip(number + 1);
    // Tests may use any room.
    let code = source.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = || code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let used = later.filter(|later| code().any(|line| line.contains(&format!("crate::{later}::"))));
    used.map(|later| {
        format!("{}: room {room} uses room {later}, which stands above it", source.path.display())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_use_those_below_them() {
        let found = |path: &str, text: &str| {
            check(&[Source { path: format!("runtime/sandbox/src/{path}").into(), text: text.to_owned() }])
                .len()
        };
        assert_eq!(found("life/a.rs", "use crate::records::home;"), 0);
        assert_eq!(found("records/a.rs", "use crate::life::Spec;"), 1);
        assert_eq!(found("records/a.rs", "//! See [`crate::life::Spec`]."), 0);
        assert_eq!(found("records/a.rs", "#[cfg(test)]\nmod tests {\n    use crate::life::Spec;\n}"), 0);
        assert_eq!(found("fuzz.rs", "use crate::life::Spec;"), 0);
    }
}
