//! The parts of a glob, as Go's `path.Match` reads them.
//!
//! ```text
//! *        any characters      [a-z]  a character of these      \c   c itself
//! ?        one character       [^a-z] a character of no others
//! ```
//!
//! Not here: where a glob matches, which differs between the paths of requests and those of files.

use std::str::Chars;

/// A part of a glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// This character, escaped or not.
    Exactly(char),
    /// A character.
    One,
    /// Any number of characters.
    Many,
    /// A character of a class.
    Class(CharacterClass),
}

/// A class of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CharacterClass {
    /// Whether the class has the characters that are in none of the ranges.
    pub others: bool,
    /// First and last characters of ranges, as they are written; never empty.
    pub ranges: Vec<(char, char)>,
}

impl CharacterClass {
    /// Whether one of the ranges has a character.
    #[must_use]
    pub fn lists(&self, character: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&character))
    }
}

/// A fault of a glob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The glob ends with a backslash.
    #[error("it ends with a backslash")]
    Escape,
    /// A class of characters is empty, not closed, or has a dash without both ends.
    #[error("its [...] is empty or not closed")]
    Class,
}

/// Reads a glob.
///
/// # Errors
///
/// If the glob is malformed.
pub fn tokens(glob: &str) -> Result<Vec<Token>, Malformed> {
    let mut tokens = Vec::new();
    let mut rest = glob.chars();
    while let Some(character) = rest.next() {
        tokens.push(match character {
            '*' => Token::Many,
            '?' => Token::One,
            '[' => Token::Class(class(&mut rest)?),
            '\\' => Token::Exactly(rest.next().ok_or(Malformed::Escape)?),
            character => Token::Exactly(character),
        });
    }
    Ok(tokens)
}

/// Reads a class behind its bracket.
fn class(rest: &mut Chars<'_>) -> Result<CharacterClass, Malformed> {
    let mut ranges = Vec::new();
    let others = rest.as_str().starts_with('^');
    if others {
        rest.next();
    }
    loop {
        if rest.as_str().starts_with(']') && !ranges.is_empty() {
            rest.next();
            return Ok(CharacterClass { others, ranges });
        }
        let low = of_class(rest)?;
        let mut high = low;
        if rest.as_str().starts_with('-') {
            rest.next();
            high = of_class(rest)?;
        }
        ranges.push((low, high));
    }
}

/// A character of a class.
fn of_class(rest: &mut Chars<'_>) -> Result<char, Malformed> {
    match rest.next() {
        None | Some('-' | ']') => Err(Malformed::Class),
        Some('\\') => rest.next().ok_or(Malformed::Class),
        Some(character) => Ok(character),
    }
}
