//! Lines to the client.
//!
//! Lines are pure ASCII: clients decode by their locale, and a client that cannot decode a line may never read
//! another. Not here: sending.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use wire::rpc::{JSONRPC, Notification, Response};

use crate::failure::Failure;

/// A result.
pub(crate) fn result<T: Serialize>(id: Option<u64>, result: &T) -> Vec<u8> {
    line(&Response { jsonrpc: JSONRPC, id, result: Some(result), error: None })
}

/// An error.
pub(crate) fn error(id: Option<u64>, failure: &Failure) -> Vec<u8> {
    line(&Response::<()> { jsonrpc: JSONRPC, id, result: None, error: Some(failure.object()) })
}

/// A notification.
pub(crate) fn notification<T: Serialize>(method: &'static str, params: &T) -> Vec<u8> {
    line(&Notification { jsonrpc: JSONRPC, method, params })
}

/// A notification with bytes: as [`notification`] with `DataParams`, but the bytes are read only once.
pub(crate) fn data(method: &'static str, id: u64, bytes: &[u8]) -> Vec<u8> {
    let mut text = format!(r#"{{"jsonrpc":"{JSONRPC}","method":"{method}","params":{{"id":{id},"data":""#);
    text.reserve(bytes.len().div_ceil(3) * 4 + 4);
    STANDARD.encode_string(bytes, &mut text);
    text.push_str("\"}}\n");
    text.into_bytes()
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Ascii);
    // Data with text keys serializes into memory without errors.
    if value.serialize(&mut serializer).is_err() {
        bytes.clear();
    }
    bytes.push(b'\n');
    bytes
}

/// Compact JSON in which every character beyond ASCII is escaped.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return CompactFormatter.write_string_fragment(writer, fragment);
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
            } else {
                // RFC 8259 §7: "a 12-character sequence, encoding the UTF-16 surrogate pair"
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use wire::rpc::{DataParams, ErrorCode};

    use super::*;

    fn text(line: Vec<u8>) -> String {
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn shapes() {
        assert_eq!(
            text(result(Some(7), &json!({"a": "ü\n😀\u{7f}"}))),
            concat!(r#"{"jsonrpc":"2.0","id":7,"result":{"a":"\u00fc\n\ud83d\ude00"#, "\u{7f}\"}}\n")
        );
        let failure = Failure::new(ErrorCode::Parse, "Parse error");
        let expected = "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32700,\"message\":\"Parse error\"}}\n";
        assert_eq!(text(error(None, &failure)), expected);
        let expected = "{\"jsonrpc\":\"2.0\",\"method\":\"exec_pipe.ready\",\"params\":{\"id\":3}}\n";
        assert_eq!(text(notification("exec_pipe.ready", &json!({"id": 3}))), expected);
    }

    proptest! {
        #[test]
        fn text_survives_in_ascii(value in ".{0,100}") {
            let line = result(None, &json!({ "key": &value }));
            prop_assert!(line.is_ascii());
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            let read: Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&read["result"]["key"], &Value::from(value));
        }

        #[test]
        fn data_is_what_its_type_says(id: u64, bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let params = DataParams { id, data: STANDARD.encode(&bytes) };
            prop_assert_eq!(data("exec_tty.stdout", id, &bytes), notification("exec_tty.stdout", &params));
        }
    }
}
