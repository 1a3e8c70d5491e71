//! `hello`: the server's name and version.

use wire::rpc::{Empty, HelloResult, METHODS, PROTOCOL};

use super::{Answer, Call, Result};

pub(super) async fn run(mut call: Call) -> Result<Answer> {
    let Empty {} = std::mem::take(&mut call.params).parse()?;
    Ok(call.answer(&HelloResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        methods: METHODS.map(str::to_owned).to_vec(),
    }))
}
