//! Patterns of paths, as Go's `path.Match` has them (`egress_policy::glob`).
//!
//! Nothing but a slash matches a slash, so a pattern is a list of patterns of names. A name's byte that is no text is a
//! character of no class.

use egress_policy::glob::{self, Malformed, Token};

/// Longest pattern, in bytes.
pub const MAX_GLOB_LEN: usize = 1024;

/// A pattern of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    names: Vec<NameGlob>,
}

/// A pattern of one name of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameGlob(Vec<Token>);

/// A pattern that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// The pattern is longer than [`MAX_GLOB_LEN`].
    #[error("it is longer than {MAX_GLOB_LEN} bytes")]
    Long,
    /// The pattern ends with a backslash.
    #[error("it ends with a backslash")]
    Escape,
    /// A class of characters is malformed.
    #[error("its [...] is empty, not closed, or has a range that ends before it begins")]
    Class,
    /// Two asterisks are one to Go, and every directory below to most people.
    #[error("** is not supported: * stops at /")]
    TwoStars,
    /// No name has the character.
    #[error("it has a NUL")]
    Nul,
}

/// Whether capital letters of ASCII are others than small ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Told,
    Ignored,
}

impl Glob {
    /// Reads a pattern.
    pub fn new(pattern: &str) -> Result<Self, GlobError> {
        if pattern.len() > MAX_GLOB_LEN {
            return Err(GlobError::Long);
        }
        let mut names = vec![NameGlob(Vec::new())];
        for token in glob::tokens(pattern)? {
            let Some(NameGlob(tokens)) = names.last_mut() else { break };
            match token {
                Token::Exactly('\0') => return Err(GlobError::Nul),
                Token::Exactly('/') => names.push(NameGlob(Vec::new())),
                Token::Many if tokens.last() == Some(&Token::Many) => return Err(GlobError::TwoStars),
                Token::Class(class) if class.ranges.iter().any(|(low, high)| high < low) => {
                    return Err(GlobError::Class);
                }
                token => tokens.push(token),
            }
        }
        Ok(Self { names })
    }

    /// Whether all of a path is as the pattern says.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let mut names = path.split(|byte| *byte == b'/');
        self.names.iter().all(|glob| names.next().is_some_and(|name| glob.matches(name, Case::Told)))
            && names.next().is_none()
    }

    /// Whether a path that begins with a slash can match.
    pub(super) fn is_absolute(&self) -> bool {
        self.names.len() > 1 && self.names.first().is_some_and(|first| first.matches(b"", Case::Told))
    }

    /// The patterns of the names, in order.
    pub(super) fn into_names(self) -> Vec<NameGlob> {
        self.names
    }
}

impl From<Malformed> for GlobError {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Escape => Self::Escape,
            Malformed::Class => Self::Class,
        }
    }
}

/// Whether a character of a name, if it is text, is as a token says.
fn takes(token: &Token, character: Option<char>, case: Case) -> bool {
    match token {
        Token::Exactly(wanted) => character.is_some_and(|character| match case {
            Case::Told => character == *wanted,
            Case::Ignored => character.eq_ignore_ascii_case(wanted),
        }),
        Token::One => true,
        Token::Many => false,
        Token::Class(class) => {
            let is_listed = |character: char| match case {
                Case::Told => class.lists(character),
                Case::Ignored => {
                    class.lists(character.to_ascii_lowercase()) || class.lists(character.to_ascii_uppercase())
                }
            };
            character.is_some_and(is_listed) != class.others
        }
    }
}

impl NameGlob {
    /// Whether the pattern is of no name at all.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the pattern is exactly this text.
    pub(super) fn is(&self, text: &str) -> bool {
        self.0.len() == text.chars().count()
            && self.0.iter().zip(text.chars()).all(|(token, character)| *token == Token::Exactly(character))
    }

    /// Whether all of a name is as the pattern says.
    pub(super) fn matches(&self, name: &[u8], case: Case) -> bool {
        let (mut tokens, mut rest) = (&self.0[..], name);
        // The tokens behind the last star, and the bytes they have to match if the star takes one character more.
        let mut again: Option<(&[Token], &[u8])> = None;
        loop {
            match tokens.split_first() {
                None if rest.is_empty() => return true,
                Some((Token::Many, behind)) => {
                    tokens = behind;
                    again = Some((behind, rest));
                    continue;
                }
                Some((token, behind)) if !rest.is_empty() => {
                    let (character, after) = first(rest);
                    if takes(token, character, case) {
                        (tokens, rest) = (behind, after);
                        continue;
                    }
                }
                _ => {}
            }
            let Some((behind, from)) = again.filter(|(_, from)| !from.is_empty()) else { return false };
            let (_, after) = first(from);
            again = Some((behind, after));
            (tokens, rest) = (behind, after);
        }
    }
}

/// The first character of bytes that are some, unless it is no text; and the bytes behind it.
fn first(bytes: &[u8]) -> (Option<char>, &[u8]) {
    let text = |len: usize| std::str::from_utf8(bytes.get(..len)?).ok()?.chars().next();
    let found = (1..=4).find_map(|len| Some((text(len)?, len)));
    let len = found.map_or(1, |(_, len)| len);
    (found.map(|(character, _)| character), bytes.get(len..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Glob::new(pattern).unwrap().matches(path.as_bytes())
    }

    /// The table of Go's own test (path/match_test.go), but for patterns of two stars, for names that begin in the middle
    /// of a path, and for classes that take a slash.
    #[test]
    fn as_go_does() {
        for (pattern, path, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a[^a][^a][^a]b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "x", true),
            ("[x\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("[\\-x]", "x", true),
            ("[\\-x]", "-", true),
            ("[\\-x]", "a", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
            ("a[^b]c", "a/c", false),
            ("\\/a\\b", "/ab", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn malformed_ones_are_refused() {
        for (pattern, why) in [
            ("[]a]", GlobError::Class),
            ("[-]", GlobError::Class),
            ("[x-]", GlobError::Class),
            ("[-x]", GlobError::Class),
            ("[a-b-c]", GlobError::Class),
            ("[", GlobError::Class),
            ("[^", GlobError::Class),
            ("[^]", GlobError::Class),
            ("[^bc", GlobError::Class),
            ("a[", GlobError::Class),
            ("[b-a]", GlobError::Class),
            ("[a\\", GlobError::Class),
            ("\\", GlobError::Escape),
            ("a\\", GlobError::Escape),
            ("/a/**", GlobError::TwoStars),
            ("a\0", GlobError::Nul),
        ] {
            assert_eq!(Glob::new(pattern), Err(why), "{pattern}");
        }
        assert_eq!(Glob::new(&"a".repeat(MAX_GLOB_LEN + 1)), Err(GlobError::Long));
        // An asterisk that stands for itself is no second one.
        assert!(matches("*\\*", "ab*") && matches("\\**", "*ab") && matches("[*]*", "*"));
    }

    #[test]
    fn names_that_are_no_text() {
        let matches = |pattern: &str, name: &[u8]| Glob::new(pattern).unwrap().matches(name);
        assert!(matches("a?b", b"a\xffb") && matches("a??b", b"a\xff\xfeb") && matches("a*b", b"a\xff\xfeb"));
        assert!(matches("a[^x]b", b"a\xffb") && !matches("a[x]b", b"a\xffb"));
        // A character that stands for what is no text is not that.
        assert!(!matches("\u{fffd}", b"\xff") && matches("\u{fffd}", "\u{fffd}".as_bytes()));
        // Half of a character is no text.
        assert!(!matches("?", &"☺".as_bytes()[..2]) && matches("??", &"☺".as_bytes()[..2]));
    }

    #[test]
    fn the_time_it_takes_is_bounded() {
        let pattern = "a*".repeat(MAX_GLOB_LEN / 2);
        assert!(!matches(&pattern, &"a".repeat(255)));
        assert!(!matches(&format!("{}b", "*a".repeat(100)), &"a".repeat(255)));
    }

    #[test]
    fn case_is_ignored_where_that_is_asked_for() {
        let name = |pattern: &str| Glob::new(pattern).unwrap().into_names().remove(0);
        for (pattern, text) in [(".git", ".GIT"), (".Git", ".gIT"), ("[a-c]x", "BX"), ("[A-C]x", "bX")] {
            assert!(name(pattern).matches(text.as_bytes(), Case::Ignored), "{pattern}");
            assert!(!name(pattern).matches(text.as_bytes(), Case::Told), "{pattern}");
        }
        assert!(!name("[^a]").matches(b"A", Case::Ignored));
    }
}
