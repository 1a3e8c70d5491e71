//! `matchlock-broker`: stays root's while matchlock, called with sudo, is the user's. Started by matchlock, not by people.

use std::process::ExitCode;

fn main() -> ExitCode {
    let served = process::parent_channel().and_then(broker::serve);
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
