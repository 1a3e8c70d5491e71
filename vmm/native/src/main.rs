//! `matchlock-vmm`: receives a machine over the process channel and runs it.
//!
//! Only `machine::native` starts this program. Not here: options, files and environment variables, for the program
//! takes none.

use std::process::ExitCode;

use machine::native::protocol::{End, Report, Request, Timeline, exit};
use process::Channel;
use vmm::events::Outcome;
use vmm::{log, sys};

fn main() -> ExitCode {
    let process_ns = sys::now_ns();
    sys::frugal_allocator();
    log::install();
    std::panic::set_hook(Box::new(|panic| {
        // A panic aborts the process in every build: other threads would otherwise wait for the one that unwound.
        tracing::error!("{panic}");
        std::process::abort();
    }));
    let channel = match process::parent_channel() {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!("{error}; this program is started by matchlock");
            return ExitCode::from(exit::FAILED);
        }
    };
    ExitCode::from(match run(&channel, process_ns) {
        Ok(Outcome::Ended(end)) => {
            let code = match end {
                End::PowerOff => exit::POWER_OFF,
                End::Reset => exit::RESET,
                End::Crashed(_) => exit::FAILED,
            };
            // A supervisor that is gone needs no report.
            let _ = channel.send(&Report::Ended(end), &[]);
            code
        }
        Ok(Outcome::HungUp) => exit::POWER_OFF,
        Err(error) => {
            let _ = channel.send(&Report::Refused(format!("{error:#}")), &[]);
            exit::FAILED
        }
    })
}

fn run(channel: &Channel, process_ns: u64) -> anyhow::Result<Outcome> {
    let Some((request, descriptors)) = channel.recv::<Request>()? else { return Ok(Outcome::HungUp) };
    let Request::Boot(spec) = request else { anyhow::bail!("the first request must be to boot") };
    let timeline = Timeline { process_ns, received_ns: sys::now_ns(), ..Timeline::default() };
    Ok(vmm::machine::run(channel, *spec, descriptors, sys::hypervisor, timeline)?)
}
