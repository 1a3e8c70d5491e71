//! Paths of requests, and the globs that they are held against.
//!
//! A server may see another path than the one that was sent, once it has resolved `..` or joined slashes. A request is
//! denied for either, and allowed only for both.

use crate::glob::{self, Token};

/// Longest path that is judged, without its query.
pub const MAX_PATH: usize = 8_192;

/// The path of a request, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// As it was sent, without percent signs.
    decoded: String,
    /// Without `.`, `..`, empty segments and backslashes, where it had any.
    resolved: Option<String>,
}

/// A request's target that has no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It begins with something else than `/`, and is not `*`.
    #[error("no path")]
    Relative,
    /// A fragment, which no request has.
    #[error("a path with a fragment")]
    Fragment,
    /// A percent sign without two hexadecimal digits.
    #[error("a stray percent sign in a path")]
    Percent,
    /// The path is longer than [`MAX_PATH`].
    #[error("a path longer than {MAX_PATH} bytes")]
    TooLong,
}

impl Path {
    /// The path of a request's target; a query is left out.
    ///
    /// # Errors
    ///
    /// If the target has no path that can be judged.
    pub fn parse(target: &str) -> Result<Self, BadPath> {
        if target.contains('#') {
            return Err(BadPath::Fragment);
        }
        let path = target.split('?').next().unwrap_or_default();
        let path = if path.is_empty() { "/" } else { path };
        if path.len() > MAX_PATH {
            return Err(BadPath::TooLong);
        }
        if !path.starts_with('/') && path != "*" {
            return Err(BadPath::Relative);
        }
        let decoded = decode(path).ok_or(BadPath::Percent)?;
        let resolved = Some(resolve(&decoded)).filter(|resolved| *resolved != decoded);
        Ok(Self { decoded, resolved })
    }

    /// The path as it was sent.
    pub(crate) fn sent(&self) -> &str {
        &self.decoded
    }

    /// Each form in which a server may see the path.
    pub(crate) fn forms(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.decoded.as_str()).chain(self.resolved.as_deref())
    }
}

fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut is_folder = false;
    for segment in path.split(['/', '\\']).skip(1) {
        is_folder = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let end = if is_folder && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// A glob for paths, as Go's `path.Match` has it: `*` and `?` do not match `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob {
    parts: Vec<Part>,
    /// Leading segments that are literal, up to the first one that is not.
    folder: Vec<String>,
}

/// Some tokens of one character each, behind a `*` or not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Part {
    star: bool,
    tokens: Vec<Token>,
}

impl Glob {
    /// Takes a glob; `None` if it is malformed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = vec![Part::default()];
        for token in glob::tokens(text).ok()? {
            let last = parts.last_mut()?;
            match token {
                // A star behind a star says nothing more.
                Token::Many if last.star && last.tokens.is_empty() => {}
                Token::Many => parts.push(Part { star: true, tokens: Vec::new() }),
                token => last.tokens.push(token),
            }
        }
        parts.retain(|part| part.star || !part.tokens.is_empty());
        let folder = folder(&parts);
        Some(Self { parts, folder })
    }

    /// The literal segments that every matching path begins with, each behind a `/`.
    pub(crate) fn folder(&self) -> &[String] {
        &self.folder
    }

    /// Whether the whole path matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut name = path;
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            if part.star && part.tokens.is_empty() {
                return !name.contains('/');
            }
            // The first place that does is taken: a later one could only leave less.
            let places = std::iter::once(0)
                .chain(name.char_indices().take_while(|(_, c)| *c != '/').map(|(at, c)| at + c.len_utf8()));
            let places = places.take(if part.star { usize::MAX } else { 1 });
            let mut ends = places.filter_map(|at| part.strip(&name[at..]));
            let Some(end) = ends.find(|end| !last || end.is_empty()) else { return false };
            name = end;
        }
        name.is_empty()
    }
}

impl Part {
    /// The text behind this part's characters, if it begins with them.
    fn strip<'a>(&self, text: &'a str) -> Option<&'a str> {
        let mut rest = text.chars();
        self.tokens.iter().all(|token| rest.next().is_some_and(|c| takes(token, c))).then_some(rest.as_str())
    }
}

/// Whether a character is as a token says.
fn takes(token: &Token, c: char) -> bool {
    match token {
        Token::Exactly(own) => *own == c,
        Token::One => c != '/',
        Token::Many => false,
        Token::Class(class) => class.lists(c) != class.others,
    }
}

fn folder(parts: &[Part]) -> Vec<String> {
    let (mut text, mut is_whole) = (String::new(), true);
    for token in parts.first().filter(|part| !part.star).into_iter().flat_map(|part| &part.tokens) {
        let Token::Exactly(c) = token else {
            is_whole = false;
            break;
        };
        text.push(*c);
    }
    let mut segments: Vec<String> = text.split('/').skip(1).map(ToOwned::to_owned).collect();
    if !is_whole || parts.len() != 1 {
        segments.pop();
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        Glob::parse(glob).expect(glob).matches(path)
    }

    /// Most rows are those of Go's own test of `path.Match`.
    #[test]
    fn globs_are_those_of_go() {
        for (glob, path, expected) in [
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
            ("[\\-x]", "a", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
            ("**", "ab", true),
            ("/v1/**", "/v1/a", true),
            ("/*/x", "//x", true),
        ] {
            assert_eq!(matches(glob, path), expected, "{glob} {path}");
        }
        for glob in ["[]a]", "[-]", "[x-]", "[-x]", "a[", "[a-b-c]", "[", "[^", "[^bc", "a\\", "[]"] {
            assert_eq!(Glob::parse(glob), None, "{glob}");
        }
    }

    #[test]
    fn folders_are_what_every_match_begins_with() {
        for (glob, folder) in [
            ("/v1/users", vec!["v1", "users"]),
            ("/v1/*", vec!["v1"]),
            ("/v1/a*/b", vec!["v1"]),
            ("/v1/", vec!["v1", ""]),
            ("/v1/[a]/b", vec!["v1"]),
            ("*", vec![]),
            ("/", vec![""]),
            ("/?", vec![]),
            ("/a\\*", vec!["a*"]),
        ] {
            assert_eq!(Glob::parse(glob).expect(glob).folder(), folder, "{glob}");
        }
    }

    #[test]
    fn paths_and_what_servers_make_of_them() {
        for (target, sent, resolved) in [
            ("/a/b?c=d", "/a/b", None),
            ("", "/", None),
            ("?x", "/", None),
            ("*", "*", None),
            ("/a%2Fb", "/a/b", None),
            ("/%61", "/a", None),
            ("/a/../b", "/a/../b", Some("/b")),
            ("/a/%2e%2e/b/", "/a/../b/", Some("/b/")),
            ("//a///b", "//a///b", Some("/a/b")),
            ("/a/.", "/a/.", Some("/a/")),
            ("/../..", "/../..", Some("/")),
            ("/a\\b", "/a\\b", Some("/a/b")),
            ("/%ff", "/\u{fffd}", None),
        ] {
            let path = Path::parse(target).expect(target);
            assert_eq!((path.sent(), path.resolved.as_deref()), (sent, resolved), "{target}");
        }
        for (target, error) in [
            ("a", BadPath::Relative),
            ("http://a/", BadPath::Relative),
            ("/a#b", BadPath::Fragment),
            ("/a?b#c", BadPath::Fragment),
            ("/%", BadPath::Percent),
            ("/%4", BadPath::Percent),
            ("/%zz", BadPath::Percent),
            (&"/a".repeat(MAX_PATH), BadPath::TooLong),
        ] {
            assert_eq!(Path::parse(target), Err(error), "{target}");
        }
    }
}
