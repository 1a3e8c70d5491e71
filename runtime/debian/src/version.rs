//! The order of versions: Debian policy §5.6.12.

use std::cmp::Ordering;

/// Compares `[epoch:]upstream[-revision]`.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let ((epoch_a, a), (epoch_b, b)) = (epoch(a), epoch(b));
    let ((upstream_a, revision_a), (upstream_b, revision_b)) = (revision(a), revision(b));
    let parts = [(epoch_a, epoch_b), (upstream_a, upstream_b), (revision_a, revision_b)];
    parts
        .into_iter()
        .fold(Ordering::Equal, |order, (a, b)| order.then_with(|| part(a.as_bytes(), b.as_bytes())))
}

/// "It may be omitted, in which case zero is assumed."
fn epoch(version: &str) -> (&str, &str) {
    version.split_once(':').unwrap_or(("0", version))
}

/// "the absence of a debian_revision is equivalent to a debian_revision of 0"
fn revision(version: &str) -> (&str, &str) {
    version.rsplit_once('-').unwrap_or((version, "0"))
}

/// Compares parts that are not numbers and parts that are, by turns.
fn part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (text_a, rest_a) = split(a, |byte| byte.is_ascii_digit());
        let (text_b, rest_b) = split(b, |byte| byte.is_ascii_digit());
        let (number_a, next_a) = split(rest_a, |byte| !byte.is_ascii_digit());
        let (number_b, next_b) = split(rest_b, |byte| !byte.is_ascii_digit());
        let order = text(text_a, text_b).then_with(|| number(number_a, number_b));
        if order.is_ne() {
            return order;
        }
        (a, b) = (next_a, next_b);
    }
    Ordering::Equal
}

fn split(bytes: &[u8], ends: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().position(ends).unwrap_or(bytes.len()))
}

/// "all the letters sort earlier than all the non-letters and so that a tilde sorts before anything, even the end of a
/// part"
fn text(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => (0, 0),
        None => (1, 0),
        Some(byte) if byte.is_ascii_alphabetic() => (2, *byte),
        Some(byte) => (3, *byte),
    };
    let positions = 0..a.len().max(b.len());
    positions.fold(Ordering::Equal, |order, at| order.then_with(|| rank(a.get(at)).cmp(&rank(b.get(at)))))
}

/// Numbers of any length; "an empty string […] counts as zero".
fn number(a: &[u8], b: &[u8]) -> Ordering {
    let (_, a) = split(a, |byte| *byte != b'0');
    let (_, b) = split(b, |byte| *byte != b'0');
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_ones_come_after_older_ones() {
        for (older, newer) in [
            ("6.1.176-1", "6.1.192-2"),
            ("6.1.99-1", "6.1.176-1"),
            ("6.1.176-1", "6.1.176-2"),
            ("6.1.176-9", "6.1.176-10"),
            ("6.1.176-1~deb11u1", "6.1.176-1"),
            ("1.0~rc1", "1.0"),
            ("1.0~~", "1.0~"),
            ("1.0", "1.0a"),
            ("1.0a", "1.0+"),
            ("9", "1:0"),
            ("1.0-1", "1.0-1+b1"),
            ("1.0", "1.0-1"),
            ("99999999999999999999998", "99999999999999999999999"),
            ("", "1"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
        for (a, b) in [("1.0", "0:1.0"), ("1.0", "1.0-0"), ("1.00", "1.0"), ("1.0", "1.000"), ("", "")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }
}
