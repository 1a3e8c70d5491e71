//! `matchlock-arrival`: makes the network of one sandbox, hands it over, and ends. Started by matchlock, not by people.

use std::process::ExitCode;

fn main() -> ExitCode {
    let served = process::parent_channel().and_then(|channel| arrival::serve(&channel));
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
