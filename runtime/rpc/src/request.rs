//! A line from the client as a request.
//!
//! The reader thread parses the envelope, which costs the session nothing; parameters stay text until their method is
//! called. Not here: the methods.

use std::cell::Cell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use wire::rpc::ErrorCode;

use crate::failure::Failure;
use crate::line::{Line, MAX_LINE};

/// A request, not yet admitted.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: Option<u64>,
    pub(crate) method: String,
    pub(crate) params: Params,
}

/// A line that is no request, and its presumed id.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) id: Option<u64>,
    pub(crate) failure: Failure,
}

/// Parameters that are not parsed yet.
#[derive(Debug, Default)]
pub(crate) struct Params(Option<Box<RawValue>>);

/// Parses a line.
pub(crate) fn read(line: &Line) -> Result<Request, Refused> {
    match line {
        Line::Whole(bytes) => whole(bytes)
            .ok_or_else(|| Refused { id: None, failure: Failure::new(ErrorCode::Parse, "Parse error") }),
        Line::TooLong(head) => {
            let message = format!("the request is over {MAX_LINE} bytes; write files in pieces, by offset");
            Err(Refused { id: id_in(head), failure: Failure::new(ErrorCode::InvalidRequest, message) })
        }
    }
}

fn whole(bytes: &[u8]) -> Option<Request> {
    // serde would take an array for the members of a request in their order.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return None;
    }
    let request: wire::rpc::Request<'_> = serde_json::from_slice(bytes).ok()?;
    Some(Request {
        id: request.id,
        method: request.method.map(Into::into).unwrap_or_default(),
        params: Params(request.params.map(ToOwned::to_owned)),
    })
}

impl Params {
    /// Bytes of the parameters' text.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |params| params.get().len())
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.0.is_none()
    }

    /// Parses the parameters as a method's own type.
    pub(crate) fn parse<T: DeserializeOwned>(self) -> Result<T, Failure> {
        let text = self.0.as_ref().map_or("{}", |params| params.get());
        if !text.starts_with('{') {
            return Err(Failure::new(ErrorCode::InvalidParams, "invalid params: expected an object"));
        }
        let mut json = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let (path, what) = (error.path().to_string(), expectation(&error.inner().to_string()));
            Failure::new(ErrorCode::InvalidParams, format!("invalid params: {path}: {what}"))
        })
    }
}

/// The expected type. The rest of serde's message repeats the input, which may be large, or a secret.
fn expectation(error: &str) -> String {
    let error = error.rsplit_once(" at line ").map_or(error, |(error, _)| error);
    match error.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => error.to_owned(),
    }
}

/// The id at the top level of JSON text that has been cut off, if it comes before the cut.
fn id_in(head: &[u8]) -> Option<u64> {
    struct Members<'a>(&'a Cell<Option<u64>>);

    impl<'de> Visitor<'de> for Members<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
            let mut id = None;
            while let Some(name) = members.next_key::<String>()? {
                // Set only now, as the cut may have been within the number.
                self.0.set(id);
                match name.as_str() {
                    "id" => id = members.next_value::<Option<u64>>()?,
                    _ => drop(members.next_value::<IgnoredAny>()?),
                }
            }
            Ok(())
        }
    }

    let id = Cell::new(None);
    let mut json = serde_json::Deserializer::from_slice(head);
    // Parsing ends in an error at the cut.
    let _ = (&mut json).deserialize_map(Members(&id));
    id.get()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::rpc::{CreateParams, ExecParams, WriteFileParams};

    use super::*;

    fn request(text: &str) -> Result<Request, Refused> {
        read(&Line::Whole(text.into()))
    }

    fn params(text: &str) -> Params {
        request(&format!(r#"{{"params":{text}}}"#)).unwrap().params
    }

    #[test]
    fn what_is_no_request() {
        let bad = [
            "",
            "{",
            "nonsense",
            "null",
            "7",
            "[]",
            "\"text\"",
            r#"[{"jsonrpc":"2.0","id":1,"method":"exec"}]"#,
            r#"[1,"exec",{}]"#,
            r#"{"id":"7","method":"exec"}"#,
            r#"{"id":-1,"method":"exec"}"#,
            r#"{"id":1.0}"#,
            r#"{"id":18446744073709551616}"#,
            r#"{"id":[1]}"#,
            r#"{"id":true}"#,
            r#"{"id":{}}"#,
            r#"{"method":7}"#,
            r#"{"id":1}x"#,
            r#"{"id":1,}"#,
            "{\"id\":1,\"method\":\"\u{1}\"}",
        ];
        for text in bad {
            let Refused { id, failure } = request(text).unwrap_err();
            assert_eq!(
                (id, failure.code, failure.message.as_str()),
                (None, ErrorCode::Parse, "Parse error"),
                "{text}"
            );
        }
        assert!(read(&Line::Whole(b"{\"method\":\"\xff\"}".to_vec())).is_err());
        let deep = format!("{{\"x\":{}", "[".repeat(1 << 20));
        assert!(request(&deep).is_err());
    }

    #[test]
    fn what_is_one() {
        for (text, id, method) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"exec","params":{}}"#, Some(1), "exec"),
            (r#" {"id":0,"method":"a\u0062"} "#, Some(0), "ab"),
            (r#"{"id":18446744073709551615}"#, Some(u64::MAX), ""),
            (r#"{"jsonrpc":null,"id":null,"method":null,"params":null,"more":[{}]}"#, None, ""),
        ] {
            let request = request(text).unwrap();
            assert_eq!((request.id, request.method.as_str()), (id, method), "{text}");
        }
    }

    #[test]
    fn a_cut_line_may_still_tell_its_id() {
        for (head, id) in [
            (
                r#"{"jsonrpc": "2.0", "method": "write_file", "id": 12, "params": {"path": "/a", "conte"#,
                Some(12),
            ),
            (r#"{"params": {"id": 7, "content": "AAAA"#, None),
            (r#"{"id": 12"#, None),
            (r#"{"id": 12, "meth"#, None),
            (r#"{"id": 12, "method":"#, Some(12)),
            (r#"{"id": "12", "x"#, None),
            (r#"["id", 12, "#, None),
            ("", None),
        ] {
            let refused = read(&Line::TooLong(head.into())).unwrap_err();
            assert_eq!((refused.id, refused.failure.code), (id, ErrorCode::InvalidRequest), "{head}");
        }
    }

    #[test]
    fn wrong_parameters_are_named_and_not_repeated() {
        let message = |text| params(text).parse::<CreateParams>().unwrap_err().message;
        assert_eq!(message("[]"), "invalid params: expected an object");
        assert_eq!(message("7"), "invalid params: expected an object");
        assert_eq!(message(r#"{"image":7}"#), "invalid params: image: expected a string");
        let secret = r#"{"network":{"secrets":{"KEY":"hunter2, expected to be secret"}}}"#;
        assert_eq!(message(secret), "invalid params: network.secrets.KEY: expected struct Secret");
        let secret = r#"{"network":{"secrets":{"KEY":{"value":31337}}}}"#;
        assert_eq!(message(secret), "invalid params: network.secrets.KEY.value: expected a string");
        let long = format!(r#"{{"resources":"{}"}}"#, "x".repeat(1 << 20));
        assert!(message(&long).len() < 200);
        let deep = format!(
            r#"{{"vfs":{{"mounts":{{"/a":{{"upper":{}{}}}}}}}}}"#,
            "[".repeat(5000),
            "]".repeat(5000)
        );
        assert!(message(&deep).contains("recursion limit"), "{}", message(&deep));
        assert!(params(r#"{"command":"\ud800"}"#).parse::<ExecParams>().is_err());
        assert!(params(r#"{"mode":4294967296}"#).parse::<WriteFileParams>().is_err());
        assert!(Params::default().parse::<ExecParams>().is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&Line::Whole(bytes.clone()));
            let _ = read(&Line::TooLong(bytes));
        }

        /// Text that resembles a request.
        #[test]
        fn any_json_like_text(text in r#"\{("(id|method|params|jsonrpc)":(-?[0-9]{1,21}|"[a-z\\u0-9]{0,8}"|null|\{.{0,20}\}|\[.{0,9}\]),?){0,4}\}?"#) {
            if let Ok(request) = read(&Line::Whole(text.clone().into())) {
                let _ = request.params.parse::<CreateParams>();
            }
            let _ = read(&Line::TooLong(text.into()));
        }
    }
}
