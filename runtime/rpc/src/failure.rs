//! The reason why a request was not carried out: a code and a bounded text.
//!
//! Not here: the codes of the sandbox's errors, which each method chooses.

use wire::rpc::{ErrorCode, ErrorObject};

/// Longest text, in bytes. Parts of it may come from the guest or an image.
const MAX_MESSAGE: usize = 4 << 10;

/// An error for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { code, message }
    }

    /// There is no sandbox.
    pub(crate) fn no_vm() -> Self {
        Self::new(ErrorCode::Vm, "VM not created")
    }

    pub(crate) fn params(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidParams, message)
    }

    pub(crate) fn vm(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Vm, message)
    }

    pub(crate) fn cancelled(why: &str) -> Self {
        Self::new(ErrorCode::Cancelled, why)
    }

    pub(crate) fn object(&self) -> ErrorObject {
        ErrorObject { code: self.code.number(), message: self.message.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bounded() {
        let failure = Failure::vm("ä".repeat(MAX_MESSAGE));
        assert!(failure.message.len() <= MAX_MESSAGE && failure.message.ends_with('ä'));
    }
}
