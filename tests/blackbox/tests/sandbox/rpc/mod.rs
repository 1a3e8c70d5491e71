//! `matchlock rpc`: raw lines in, raw lines out.

mod changes;
mod files;
mod input;
mod life;
mod programs;

use crate::Test;

/// Tests that need no guest.
pub(crate) const TESTS_WITHOUT_GUEST: &[Test] = input::TESTS;

/// Tests that need a guest each.
pub(crate) const TESTS: &[&[Test]] = &[programs::TESTS, files::TESTS, changes::TESTS, life::TESTS];

const PARSE: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const VM: i64 = -32000;
const EXEC: i64 = -32001;
const FILE: i64 = -32002;
const CANCELLED: i64 = -32003;
