//! Runs a test again, alone, in a network namespace that has the addresses of the tests.

use std::env;
use std::future::Future;
use std::process::Command;

/// Set in the namespace.
const INSIDE: &str = "EGRESS_TEST_NAMESPACE";

/// `$0` is this program and `$1` the test.
const SCRIPT: &str = "set -e
ip link set lo up
ip address add 203.0.113.10/32 dev lo
ip address add 203.0.113.20/32 dev lo
exec \"$0\" --exact \"$1\" --nocapture";

/// Runs the body of a test in a namespace.
///
/// # Panics
///
/// If the test fails there.
pub(crate) fn within(test: &str, body: impl Future<Output = ()>) {
    if env::var_os(INSIDE).is_some() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        return runtime.enable_all().build().unwrap().block_on(body);
    }
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).args(arguments);
        command
    };
    match unshare(&["ip", "link", "set", "lo", "up"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return skip::skip("namespaces", String::from_utf8_lossy(&output.stderr).trim());
        }
        Err(error) => return skip::skip("namespaces", format!("unshare: {error}")),
    }
    let program = env::current_exe().unwrap();
    let done = unshare(&["sh", "-c", SCRIPT]).arg(program).arg(test).env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    // A run in which no test has this name succeeds too.
    assert!(done.status.success() && text.contains("1 passed"), "{test}:\n{text}");
}
