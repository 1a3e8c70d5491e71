//! Advice on errors, in words of the command line.
//!
//! Not here: printing it (`failure`).

use sandbox::{AgentError, ControlError, Error, GuestError, RecordsError};

/// An error about which the user may do something.
pub(crate) trait Hint {
    /// The advice, if there is any.
    fn hint(&self) -> Option<&str>;
}

impl Hint for Error {
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Records(error) => error.hint(),
            Self::Agent(error) => error.hint(),
            Self::Control(error) => error.hint(),
            Self::Guest(error) => error.hint(),
            Self::Kernel(error) => of_kernel(error),
            Self::NoMachine(refusal) => Some(&refusal.hint),
            Self::NoAgent => {
                Some("install matchlock-guest beside matchlock, or set MATCHLOCK_GUEST_INIT to its path")
            }
            error if error.is_about_a_program() => {
                Some("install all of matchlock's programs in one directory; see matchlock diagnose")
            }
            Self::Image(images::Error::LayerLost { .. }) => {
                Some("remove the image with matchlock image rm, and import it again")
            }
            Self::NoNetwork { .. } => {
                Some("--no-network runs it without one; matchlock diagnose says what this host lacks")
            }
            Self::NeverReady { .. } | Self::Ended { .. } => Some(SEE_CONSOLE),
            _ => None,
        }
    }
}

/// For a guest that does not come up or ends by itself.
const SEE_CONSOLE: &str = "--log-level debug shows the guest's console";

impl Hint for RecordsError {
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Schema(_) => Some("use the newer matchlock, or remove ~/.matchlock/state.db"),
            Self::StillRunning(_) => Some("end it first: matchlock kill"),
            _ => None,
        }
    }
}

impl Hint for AgentError {
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Boot { .. } => Some(SEE_CONSOLE),
            Self::MountBusy(_) => {
                Some("end the programs that use it, or add --force: what they have open there fails then")
            }
            _ => None,
        }
    }
}

impl Hint for ControlError {
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Records(error) => error.hint(),
            Self::Agent(error) => error.hint(),
            Self::Version { .. } => Some("use the matchlock that started the sandbox"),
            Self::NoAnswer(_) | Self::NotEnding { .. } => Some(
                "its owner may be suspended: resume that process (see matchlock list), or matchlock gc --force-running",
            ),
            _ => None,
        }
    }
}

impl Hint for GuestError {
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Agent(error) => error.hint(),
            Self::Control(error) => error.hint(),
            _ => None,
        }
    }
}

fn of_kernel(error: &kernels::Error) -> Option<&'static str> {
    match error {
        kernels::Error::Package(_) => Some(
            "MATCHLOCK_DEBIAN_MIRROR names another mirror; --kernel file:///path takes a kernel of your own",
        ),
        kernels::Error::InUse(_) => {
            Some("end the sandboxes that run on it first; see matchlock list --running")
        }
        kernels::Error::Registry { .. } => Some("a file is given as file:///path"),
        kernels::Error::Unknown(_) => Some("see matchlock kernel ls"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_hint_whichever_room_it_comes_through() {
        let suspended = || ControlError::NoAnswer("vm-00000001".parse().unwrap());
        let hint = suspended().hint().map(str::to_owned).unwrap();
        assert!(hint.starts_with("its owner may be suspended"), "{hint}");
        assert_eq!(GuestError::from(suspended()).hint(), Some(hint.as_str()));
        assert_eq!(Error::from(GuestError::from(suspended())).hint(), Some(hint.as_str()));

        let newer = || RecordsError::Schema(99);
        let hint = newer().hint().map(str::to_owned).unwrap();
        assert_eq!(ControlError::from(newer()).hint(), Some(hint.as_str()));
        assert_eq!(Error::from(ControlError::from(newer())).hint(), Some(hint.as_str()));
        assert_eq!(AgentError::HangUp.hint(), None);
    }
}
