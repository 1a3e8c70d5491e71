//! A sandbox's id: `vm-` and 8 hex digits.

use std::fmt;
use std::str::FromStr;

use crate::records::error::{Error, Result};

/// A well-formed id; it is safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(String);

impl Id {
    /// A new, random id.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).map_err(|_| Error::Entropy)?;
        Ok(Self(format!("vm-{:08x}", u32::from_be_bytes(bytes))))
    }

    /// The id's digits as a number.
    pub(crate) fn number(&self) -> u32 {
        // An id has eight of them.
        self.0.strip_prefix("vm-").and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default()
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("vm-").filter(|digits| digits.len() == 8);
        let hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        match digits {
            Some(digits) if digits.bytes().all(hex) => Ok(Self(text.into())),
            // No sandbox has a malformed id, so the answer is that of any other unknown id.
            _ => Err(Error::UnknownVm(text.into())),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_random_makes_is_an_id() {
        let id = Id::random().unwrap();
        assert_eq!(id.as_str().parse::<Id>().unwrap(), id);
        assert_eq!("vm-00ffee01".parse::<Id>().unwrap().number(), 0x00ff_ee01);
        for text in
            ["", "vm-", "vm-1234567", "vm-123456789", "vm-1234567G", "vm-ABCDEF01", "../x", "vm-../../a"]
        {
            assert!(text.parse::<Id>().is_err(), "{text}");
        }
    }
}
