//! The protocol's types against its contract, and the schema file against the types.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use wire::rpc::{CreateParams, ErrorCode, ExecParams, FileEvent, Request, schema};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/rpc.json");

/// `UPDATE_SCHEMA=1 cargo test -p wire` writes the file instead.
#[test]
fn the_schema_file_is_that_of_the_types() {
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        let mut text = serde_json::to_string_pretty(&schema()).unwrap();
        text.push('\n');
        std::fs::write(SCHEMA, &text).unwrap();
    }
    let stored = std::fs::read_to_string(SCHEMA).unwrap_or_default();
    let stored: Value = serde_json::from_str(&stored).unwrap_or_default();
    // Compared as values: another crate's features may change the order in which members are written.
    assert!(stored == schema(), "sdk/wire/schema/rpc.json is stale: run UPDATE_SCHEMA=1 cargo test -p wire");
}

#[test]
fn every_reference_in_the_schema_leads_somewhere() {
    fn walk(value: &Value, definitions: &Value, seen: &mut usize) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    let name = reference.strip_prefix("#/$defs/").unwrap();
                    assert!(definitions.get(name).is_some(), "{reference}");
                    *seen += 1;
                }
                object.values().for_each(|value| walk(value, definitions, seen));
            }
            Value::Array(array) => array.iter().for_each(|value| walk(value, definitions, seen)),
            _ => {}
        }
    }
    let schema = schema();
    let mut seen = 0;
    walk(&schema, &schema["$defs"], &mut seen);
    assert!(seen > 50, "{seen}");
}

#[test]
fn null_is_absent_and_unknown_members_are_nothing() {
    let params: CreateParams = serde_json::from_value(json!({
        "image": "alpine", "network": {"allowed_hosts": null, "secrets": {"A": {"value": "x", "hosts": null}, "B": null}},
        "vfs": null, "env": {"A": "1", "B": null}, "resources": {"cpus": 2, "timeout_seconds": null, "gpus": 3},
        "surprise": [1, 2, 3],
    }))
    .unwrap();
    let network = params.network.unwrap();
    assert_eq!((network.allowed_hosts, params.vfs), (None, None));
    assert_eq!(params.resources.unwrap().cpus, Some(2.0));
    assert_eq!(params.env.unwrap()["B"], None);
    let params: ExecParams = serde_json::from_str("{}").unwrap();
    assert_eq!(params, ExecParams::default());
}

#[test]
fn requests() {
    let read = |text| serde_json::from_str::<Request<'_>>(text);
    let request =
        read(r#"{"jsonrpc":"2.0","method":"exec","id":18446744073709551615,"params":{"a":"\ud800"}}"#)
            .unwrap();
    assert_eq!((request.id, request.method.as_deref()), (Some(u64::MAX), Some("exec")));
    assert_eq!(request.params.unwrap().get(), r#"{"a":"\ud800"}"#);
    let request = read(r#"{"method":null,"id":null,"params":null}"#).unwrap();
    assert!(request.id.is_none() && request.method.is_none() && request.params.is_none());
    for bad in [
        r#"{"id":"7"}"#,
        r#"{"id":-1}"#,
        r#"{"id":1.5}"#,
        r#"{"id":18446744073709551616}"#,
        r#"{"method":1}"#,
        "{",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_secret_is_not_shown() {
    let params: CreateParams = serde_json::from_value(
        json!({"network": {"secrets": {"A": {"value": "hunter2", "placeholder": "here"}}}}),
    )
    .unwrap();
    let shown = format!("{params:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("here"), "{shown}");
}

#[test]
fn zero_ids_and_modes_of_events_are_left_out() {
    let event = FileEvent { op: "write".into(), path: "/a".into(), size: 12, mode: 420, uid: 0, gid: 0 };
    assert_eq!(
        serde_json::to_value(event).unwrap(),
        json!({"op": "write", "path": "/a", "size": 12, "mode": 420})
    );
}

#[test]
fn codes_differ() {
    let mut numbers: Vec<_> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), ErrorCode::ALL.len());
}
