//! `matchlock rpc`: JSON-RPC over standard input and output, for the SDKs. One sandbox at a time.
//!
//! Not here: the JSON types (`wire`), and what a sandbox does (`sandbox`).
