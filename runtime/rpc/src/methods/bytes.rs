//! Bytes as text: padded standard base64, RFC 4648 §4.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Encodes bytes for the client.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes the client's text; `None` = it is no base64.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict() {
        assert_eq!(decode("").as_deref(), Some(&b""[..]));
        assert_eq!(decode("aGk=").as_deref(), Some(&b"hi"[..]));
        for bad in ["aGk", "aGk=\n", "aG k=", "aGl=", "_-==", "=", "ä"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(encode(b""), "");
    }
}
