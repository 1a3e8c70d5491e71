//! Black-box tests of sandboxes: `matchlock` in, status and output out, nothing left behind.
//!
//! The suite has a harness of its own, so that a test that cannot run here gives its reason. With `REQUIRE=kvm`, a
//! skip for want of KVM is a failure. Tests that need no guest run first; one sandbox serves every test that needs
//! any sandbox.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod added;
mod archive;
mod arguments;
mod broken;
mod caching;
mod cases;
mod changes;
mod disks;
mod ends;
mod exhausted;
mod first;
mod images;
mod interrupted;
mod kernels;
mod lifecycle;
mod log;
mod masks;
mod memory;
mod mounts;
mod network;
mod port_forward;
mod programs;
mod records;
mod root;
mod rpc;
mod shares;
mod space;
mod streams;
mod sudo;
mod walls;
mod wiped;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

type Test = (&'static str, fn());

/// The needs of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Only the program.
    Program,
    /// A machine that runs guests.
    Guest,
    /// A machine, and packages to make the built-in image from.
    Packages,
    /// The program, and images to pull and import.
    Images,
    /// The program, and a builder of images.
    Builder,
    /// A machine, and such images.
    GuestOfImages,
    /// A machine, and a user who may use sudo.
    Sudo,
    /// A machine, and a network namespace with a TAP.
    Network,
    /// A machine, and the program with the cases of shared folders.
    Cases,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut sets: Vec<(Needs, &[Test])> = Vec::new();
    // Tests without a machine run once, and not on each machine; so do those that are long and of no machine in particular.
    if blackbox::machine() == "software" {
        sets.extend([
            (Needs::Builder, images::TESTS_OF_BUILDS),
            (Needs::Images, images::TESTS_WITHOUT_GUEST),
            (Needs::Program, arguments::TESTS),
            (Needs::Program, streams::TESTS_WITHOUT_GUEST),
            (Needs::Program, records::TESTS_WITHOUT_GUEST),
            (Needs::Program, port_forward::TESTS_WITHOUT_GUEST),
            (Needs::Program, kernels::TESTS_WITHOUT_GUEST),
            (Needs::Program, rpc::TESTS_WITHOUT_GUEST),
            (Needs::Guest, lifecycle::TESTS_OF_EMULATION),
            (Needs::Program, disks::TESTS_WITHOUT_GUEST),
            (Needs::Program, shares::TESTS_WITHOUT_GUEST),
            (Needs::Program, masks::TESTS_WITHOUT_GUEST),
            (Needs::Guest, wiped::TESTS),
            (Needs::Cases, cases::TESTS),
        ]);
    }
    sets.extend::<[(Needs, &[Test]); _]>([
        (Needs::Guest, streams::TESTS),
        (Needs::Guest, programs::TESTS),
        (Needs::GuestOfImages, images::TESTS),
        (Needs::Guest, images::TESTS_OF_OWN),
        (Needs::Guest, first::TESTS),
        (Needs::Guest, ends::TESTS),
        (Needs::Guest, exhausted::TESTS),
        (Needs::Guest, lifecycle::TESTS),
        (Needs::Guest, walls::TESTS),
        (Needs::GuestOfImages, walls::TESTS_OF_IMAGES),
        (Needs::Guest, root::TESTS),
        (Needs::Guest, space::TESTS),
        (Needs::Guest, memory::TESTS),
        (Needs::Guest, records::TESTS),
        (Needs::Guest, log::TESTS),
        (Needs::Guest, port_forward::TESTS),
        (Needs::Network, network::TESTS),
        (Needs::Guest, disks::TESTS),
        (Needs::Guest, shares::TESTS),
        (Needs::Guest, caching::TESTS),
        (Needs::Guest, mounts::TESTS),
        (Needs::Guest, masks::TESTS),
        (Needs::Guest, added::TESTS),
        (Needs::Guest, changes::TESTS),
        (Needs::Guest, kernels::TESTS),
        (Needs::Sudo, sudo::TESTS),
        (Needs::Guest, interrupted::TESTS),
        (Needs::Guest, broken::TESTS),
        (Needs::Packages, broken::TESTS_THAT_FETCH),
        (Needs::Packages, kernels::TESTS_THAT_FETCH),
    ]);
    sets.extend(rpc::TESTS.iter().map(|tests| (Needs::Guest, *tests)));
    let mut trials = Vec::new();
    for (needs, tests) in sets {
        let missing = missing(needs);
        for (name, test) in tests {
            if let Some(reason) = &missing {
                eprintln!("SKIP {name}: {reason}");
            }
            let (name, test) = (*name, *test);
            let trial = Trial::test(name, move || Ok(blackbox::within_limit(name, test)?));
            trials.push(trial.with_ignored_flag(missing.is_some()));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Needed if a filter left out the test that ends it.
    programs::end_shared();
    conclusion.exit_code()
}

/// The reason why a test with these needs cannot run here; ends the program if the need was required.
fn missing(needs: Needs) -> Option<String> {
    if blackbox::program().is_none() {
        return Some("MATCHLOCK_BIN names no program".to_owned());
    }
    if needs == Needs::Program {
        return None;
    }
    if let (Needs::Images | Needs::GuestOfImages, Err(reason)) = (needs, images::fixtures()) {
        return Some(reason);
    }
    if needs == Needs::Builder {
        return images::no_builder();
    }
    if needs == Needs::Images {
        return None;
    }
    if needs == Needs::Packages && !blackbox::fetches_packages() {
        return Some("apt-get is not installed, so no package can be fetched".to_owned());
    }
    if needs == Needs::Cases && cases::program().is_none() {
        return Some("MATCHLOCK_TEST_CASES names no program".to_owned());
    }
    if let Some(reason) = sudo::missing().filter(|_| needs == Needs::Sudo) {
        return Some(reason);
    }
    if let Some(reason) = network::missing().filter(|_| needs == Needs::Network) {
        return Some(reason);
    }
    // The program itself knows what the machine under test lacks; a command that starts no guest asks it.
    let home = blackbox::Home::new();
    let probe = home.matchlock([
        "run",
        "--machine",
        &blackbox::machine(),
        "--image",
        "127.0.0.1:1/no-such-image:at-all",
        "true",
    ]);
    let probe = blackbox::done(&mut { probe });
    let reason = probe.stderr.lines().next()?.strip_prefix("matchlock: machine ")?.to_owned();
    let required = std::env::var("REQUIRE").unwrap_or_default();
    if required.split(',').any(|name| name == blackbox::machine()) {
        eprintln!("required machine {reason}");
        std::process::exit(101);
    }
    Some(format!("machine {reason}"))
}
