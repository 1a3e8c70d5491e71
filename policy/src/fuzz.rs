//! The fuzz body of patterns: those of a client, on paths of a guest, compared with a small model.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer.

use crate::files::{Glob, MAX_GLOB_LEN};

/// A pattern and a path, with a line feed between the two.
pub fn globs(data: &[u8]) {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return };
    let (pattern, path) = (&data[..end], &data[end + 1..]);
    let Ok(pattern) = std::str::from_utf8(pattern) else { return };
    let Ok(glob) = Glob::new(pattern) else { return };
    assert!(pattern.len() <= MAX_GLOB_LEN);
    let told = glob.matches(path);
    // The model tries everything: not for long ones.
    if pattern.len() <= 24 && path.len() <= 24 {
        let characters: Vec<char> = pattern.chars().collect();
        assert_eq!(told, matches(&characters, path), "{pattern:?} {}", path.escape_ascii());
    }
}

/// Whether a path is as a pattern in order says, read from the front with every length of every star.
fn matches(pattern: &[char], path: &[u8]) -> bool {
    let character = || {
        let len = (1..=path.len().min(4)).find(|len| std::str::from_utf8(&path[..*len]).is_ok());
        let text = len.and_then(|len| std::str::from_utf8(&path[..len]).ok());
        (text.and_then(|text| text.chars().next()), &path[len.unwrap_or(1)..])
    };
    let literal = |wanted: char, behind: &[char]| {
        !path.is_empty() && character().0 == Some(wanted) && matches(behind, character().1)
    };
    let is_in_name = !path.is_empty() && path[0] != b'/';
    match pattern {
        [] => path.is_empty(),
        ['\\', wanted, behind @ ..] => literal(*wanted, behind),
        ['*', behind @ ..] => matches(behind, path) || is_in_name && matches(pattern, character().1),
        ['?', behind @ ..] => is_in_name && matches(behind, character().1),
        ['[', behind @ ..] => {
            let (within, behind) = class(behind, if is_in_name { character().0 } else { None });
            is_in_name && within && matches(behind, character().1)
        }
        [wanted, behind @ ..] => literal(*wanted, behind),
    }
}

/// Whether a class takes a character, and what is behind it.
fn class(class: &[char], character: Option<char>) -> (bool, &[char]) {
    let others = class.first() == Some(&'^');
    let mut rest = if others { &class[1..] } else { class };
    let mut within = false;
    let one = |rest: &[char]| if rest[0] == '\\' { (rest[1], 2) } else { (rest[0], 1) };
    loop {
        let (low, len) = one(rest);
        rest = &rest[len..];
        let mut high = low;
        if rest[0] == '-' {
            let (end, len) = one(&rest[1..]);
            (high, rest) = (end, &rest[1 + len..]);
        }
        within |= character.is_some_and(|character| low <= character && character <= high);
        if rest[0] == ']' {
            return (within != others, &rest[1..]);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn globs() {
        let examples = [
            "/w/*.t?t\n/w/a.txt",
            "a*b?c*x\nabxbbxdbxebxczzx",
            "[^a-c]*/[\\]x-z]\nd/y",
            "*☺[α-ω]\\*\na☺β*",
            "/a*/*b\n/aa/bb",
        ];
        let examples = examples.map(|example| example.as_bytes().to_vec());
        let words = ["*", "?", "[", "]", "^", "-", "\\", "/", "a", "☺", "[a-z]", "[^a]", "\n", "\u{fffd}"];
        fuzzed::run("policy_globs", 8000, &examples, &words, super::globs);
    }
}
