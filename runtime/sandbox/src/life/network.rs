//! The network of a sandbox: a TAP for its machine, and the process that carries what arrives there
//! (`matchlock-egress`), both made while the rest is prepared.
//!
//! If that process ends, its guest has no way out any more, and the sandbox goes on. Not here: packets (`arrival`), what
//! may leave (`egress_policy`), and the process itself (`outlet`).

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrival::{ReceiveError, addresses};
use guest_protocol::Ends;
use machine::MachineError;
use outlet::{Lists, Outlet, Spec};
use policy::network::{Access, Arrival, Network as Wanted};
use tokio::io::Interest;
use tokio::task::spawn_blocking;

use crate::agent::descriptors;
use crate::agent::detached::Log;
use crate::control::allow_list::{AllowList, Doorkeeper, Gate, ListChange, UNAVAILABLE};
use crate::life::error::{Error, Result};
use crate::records;
use crate::records::history::Step;

/// The programs.
const ARRIVAL: &str = "matchlock-arrival";
const EGRESS: &str = "matchlock-egress";

/// The port of DNS.
const DNS: u16 = 53;

/// The network of a sandbox, as far as there is one.
#[derive(Debug, Default)]
pub(crate) enum Network {
    /// None is wanted, or none is made yet.
    #[default]
    None,
    /// The host gives none, though one would have been taken; the text says why.
    Lacking(String),
    /// A network.
    Open(Open),
}

/// A network.
#[derive(Debug)]
pub(crate) struct Open {
    tap: OwnedFd,
    mtu: u16,
    way: Arc<WayOut>,
}

/// The process that carries a network.
#[derive(Debug)]
struct WayOut {
    outlet: Mutex<Option<Outlet>>,
    /// Why the process ended, if it did before it was to.
    failure: Mutex<Option<String>>,
    /// Whether there is a list to change.
    has_list: bool,
}

impl Network {
    /// Makes the network that is wanted, if the host gives one. Blocks.
    pub(crate) fn make(wanted: &Wanted, audit: &Path, log: OwnedFd) -> Result<Self> {
        if wanted.arrival == Arrival::None {
            return Ok(Self::None);
        }
        match Open::make(wanted, audit, log) {
            Ok(open) => Ok(Self::Open(open)),
            Err(error) if wanted.is_needed() => Err(error),
            Err(Error::NoNetwork { why }) => Ok(Self::Lacking(why)),
            Err(error) => Ok(Self::Lacking(error.to_string())),
        }
    }

    /// Why there is no network, where one would have been taken.
    pub(crate) fn lack(&self) -> Option<String> {
        match self {
            Self::Lacking(why) => Some(why.clone()),
            Self::None | Self::Open(_) => None,
        }
    }

    fn open(&self) -> Option<&Open> {
        match self {
            Self::Open(open) => Some(open),
            Self::None | Self::Lacking(_) => None,
        }
    }

    /// The machine's device.
    pub(crate) fn device(&self) -> Result<Option<machine::Network>> {
        let device = |Open { tap, mtu, .. }: &Open| {
            let tap = tap.try_clone()?;
            Ok(machine::Network { tap, station: addresses::GUEST_STATION, mtu: *mtu })
        };
        self.open().map(device).transpose().map_err(Error::system("network device"))
    }

    /// The network as the guest's agent is told of it.
    pub(crate) fn told(&self) -> Option<guest_protocol::Network> {
        use addresses::{GATEWAY_STATION, GATEWAY4, GATEWAY6, GUEST4, GUEST6, PREFIX4, PREFIX6};
        self.open().map(|open| guest_protocol::Network {
            mtu: open.mtu,
            gateway_station: GATEWAY_STATION,
            v4: Ends { guest: GUEST4, prefix: PREFIX4, gateway: GATEWAY4 },
            v6: Ends { guest: GUEST6, prefix: PREFIX6, gateway: GATEWAY6 },
        })
    }

    /// Lets `gate` lead to the network, and tells of a way out that ends by itself. Needs a tokio runtime.
    pub(crate) fn watch(&self, gate: &Gate, log: Log) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Lacking(why) => {
                log.add(format!("matchlock: the sandbox has no network: {why}\n").as_bytes());
                Ok(())
            }
            Self::Open(Open { way, .. }) => {
                gate.open(Arc::clone(way) as _);
                way.watch(log)
            }
        }
    }

    /// Ends the way out; the step says how it had ended before, if it had. To be called once the machine is gone.
    pub(crate) async fn end(self) -> Option<Step> {
        let Self::Open(Open { way, tap, .. }) = self else { return None };
        drop(tap);
        let failure = spawn_blocking(move || way.end()).await.unwrap_or_else(|error| Some(error.to_string()));
        Some(Step::done("network", failure))
    }
}

impl Open {
    fn make(wanted: &Wanted, audit: &Path, log: OwnedFd) -> Result<Self> {
        let (arrival, egress) = (find(ARRIVAL)?, find(EGRESS)?);
        let spec = spec(wanted)?;
        let has_list = spec.lists.allow.is_some() || spec.lists.intercept;
        let audit = audit_file(audit)?;
        let arrival::Arrival { tap, sockets } = arrival::start(&arrival).map_err(no_network)?;
        let outlet = Outlet::start(&egress, &spec, sockets.into(), &audit, Some(log)).map_err(no_network)?;
        let (outlet, failure) = (Mutex::new(Some(outlet)), Mutex::default());
        Ok(Self { tap: tap.into(), mtu: wanted.mtu, way: Arc::new(WayOut { outlet, failure, has_list }) })
    }
}

/// Makes a network as a sandbox gets it, which goes at once: whether this host gives one. Blocks.
pub(crate) fn probe() -> Result<(), Lacking> {
    let program = find(ARRIVAL).map_err(|error| Lacking { what: None, why: error.to_string() })?;
    match arrival::start(&program) {
        Ok(_) => Ok(()),
        Err(ReceiveError::Refused(refusal)) => {
            Err(Lacking { what: Some(refusal.lack), why: refusal.to_string() })
        }
        Err(error) => Err(Lacking { what: None, why: error.to_string() }),
    }
}

/// Why a host gives no network.
#[derive(Debug)]
pub struct Lacking {
    /// The thing that is missing, if it is a known one.
    pub what: Option<arrival::Lack>,
    /// The same in words.
    pub why: String,
}

fn no_network(error: impl ToString) -> Error {
    Error::NoNetwork { why: error.to_string() }
}

fn find(program: &str) -> Result<PathBuf> {
    let missing = || MachineError::Program { program: program.to_owned() }.into();
    process::find_program(program).ok_or_else(missing)
}

/// The file that the process appends to, and does nothing else with.
fn audit_file(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    Ok(opened.map_err(records::Error::io(path))?)
}

/// The network in the process' own terms, with the facts of the host that it needs.
fn spec(wanted: &Wanted) -> Result<Spec> {
    let Access { allowed, denied, passthrough, intercept, private_open } = wanted.access.clone();
    let facts = |error| no_network(format!("the host's own network cannot be looked at: {error}"));
    let host_addresses = outlet::host_addresses().map_err(facts)?;
    let resolvers = match wanted.nameservers.as_slice() {
        [] => outlet::resolvers().map_err(facts)?,
        given => given.iter().map(|address| SocketAddr::new(*address, DNS)).collect(),
    };
    Ok(Spec {
        lists: Lists {
            allow: Some(allowed).filter(|allowed| !allowed.is_empty()),
            deny: denied,
            passthrough,
            intercept,
            private_open,
        },
        resolvers,
        add_hosts: wanted.add_hosts.clone(),
        ipv6: host_addresses.iter().any(is_outside),
        host_addresses,
    })
}

/// Whether an address of the host's is one by which it may reach others over IPv6.
fn is_outside(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

impl WayOut {
    fn outlet(&self) -> MutexGuard<'_, Option<Outlet>> {
        self.outlet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(self: &Arc<Self>, log: Log) -> Result<()> {
        let ended = match self.outlet().as_ref() {
            Some(outlet) => outlet.ended().try_clone_to_owned(),
            None => return Ok(()),
        };
        let ended = ended.and_then(|ended| descriptors::watched(ended, Interest::READABLE));
        let ended = ended.map_err(Error::system("network"))?;
        let way = Arc::downgrade(self);
        tokio::spawn(async move {
            // An error means that nothing can be watched; the end of the sandbox tells then.
            let _ = ended.readable().await;
            let Some(way) = way.upgrade() else { return };
            let Ok(Some(why)) = spawn_blocking(move || way.fail()).await else { return };
            tracing::warn!("the sandbox has no network any more: {why}");
            log.add(format!("matchlock: the sandbox has no network any more: {why}\n").as_bytes());
        });
        Ok(())
    }

    /// Reaps the process that has ended by itself, and says why; `None` if it was ended.
    fn fail(&self) -> Option<String> {
        let mut outlet = self.outlet();
        let why = outlet.as_mut()?.wait();
        *outlet = None;
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        Some(why)
    }

    /// Ends the process; returns why it had ended before, if it had.
    fn end(&self) -> Option<String> {
        drop(self.outlet().take());
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Doorkeeper for WayOut {
    fn change(&self, change: &ListChange) -> Result<AllowList, String> {
        let is_closed = self.has_list;
        let none = &[][..];
        let (add, delete) = match change {
            ListChange::Nothing if !is_closed => return Ok(AllowList::default()),
            ListChange::Nothing => (none, none),
            _ if !is_closed => return Err(UNAVAILABLE.to_owned()),
            ListChange::Add(hosts) => (hosts.as_slice(), none),
            ListChange::Delete(hosts) => (none, hosts.as_slice()),
        };
        let outlet = self.outlet();
        let outlet = outlet.as_ref().ok_or_else(|| "the sandbox has no network any more".to_owned())?;
        let now = |add, delete| outlet.change(add, delete).map_err(|error| error.to_string());
        let before = now(none, none)?;
        let allowed = now(add, delete)?;
        let (from, to) = if add.is_empty() { (&before, &allowed) } else { (&allowed, &before) };
        let changed = from.iter().filter(|host| !to.contains(host)).cloned().collect();
        Ok(AllowList { changed, allowed, is_closed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_log() -> OwnedFd {
        std::io::pipe().unwrap().1.into()
    }

    #[test]
    fn what_is_wanted_becomes_what_the_process_is_told() {
        let access = Access { denied: vec!["evil.test".into()], private_open: true, ..Access::default() };
        let wanted = Wanted {
            access,
            add_hosts: vec![("db".into(), [203, 0, 113, 7].into())],
            nameservers: vec![[203, 0, 113, 53].into()],
            ..Wanted::default()
        };
        let told = spec(&wanted).unwrap();
        // An allow list that never was is no list that was emptied.
        assert_eq!((told.lists.allow, told.lists.deny), (None, vec!["evil.test".to_owned()]));
        assert_eq!(told.resolvers, ["203.0.113.53:53".parse().unwrap()]);
        assert!(told.lists.private_open && told.host_addresses.iter().any(IpAddr::is_loopback));
        assert_eq!(told.add_hosts, wanted.add_hosts);
        let listed = Access { allowed: vec!["ok.test".into()], ..Access::default() };
        let told = spec(&Wanted { access: listed, ..Wanted::default() }).unwrap();
        assert_eq!(told.lists.allow, Some(vec!["ok.test".to_owned()]));
    }

    #[test]
    fn a_sandbox_that_wants_none_has_none() {
        let wanted = Wanted { arrival: Arrival::None, ..Wanted::default() };
        let made = Network::make(&wanted, Path::new("/nowhere/audit"), open_log()).unwrap();
        assert!(made.lack().is_none() && made.told().is_none() && made.device().unwrap().is_none());
    }

    #[test]
    fn a_lack_is_an_error_only_where_a_network_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        // Nothing can be made in a directory that is not there.
        let nowhere = directory.path().join("no/audit.jsonl");
        let made = Network::make(&Wanted::default(), &nowhere, open_log()).unwrap();
        assert!(made.lack().is_some_and(|why| !why.is_empty()));
        let access = Access { allowed: vec!["ok.test".into()], ..Access::default() };
        for wanted in
            [Wanted { access, ..Wanted::default() }, Wanted { arrival: Arrival::Tap, ..Wanted::default() }]
        {
            Network::make(&wanted, &nowhere, open_log()).unwrap_err();
        }
    }
}
