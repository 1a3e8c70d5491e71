//! The conformance suite on this host's KVM.
//!
//! Without a usable `/dev/kvm` every case is ignored, with the reason; `REQUIRE=kvm` makes that a failure.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::process::ExitCode;
use std::sync::Arc;

use hypervisor::Hypervisor;
use hypervisor_conformance::{Case, cases};
use hypervisor_kvm::Kvm;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    let kvm = Arc::new(Kvm::open("/dev/kvm").map_err(|error| error.to_string()));
    let require = std::env::var("REQUIRE").is_ok_and(|needs| needs.split(',').any(|need| need == "kvm"));
    let trials = cases().into_iter().map(|case| {
        let kvm = Arc::clone(&kvm);
        Trial::ignorable_test(case.name, move || run(&case, kvm.as_ref().as_ref(), require))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn run(case: &Case<Kvm>, kvm: Result<&Kvm, &String>, require: bool) -> Result<Completion, Failed> {
    let unmet = match kvm {
        Ok(kvm) => match case.unmet(kvm.capabilities()) {
            None => {
                case.run(kvm);
                return Ok(Completion::Completed);
            }
            Some(reason) => reason,
        },
        Err(error) if require => return Err(error.into()),
        Err(error) => error,
    };
    Ok(Completion::ignored_with(unmet))
}
