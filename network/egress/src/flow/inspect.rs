//! Connections that are looked into: their requests are judged one by one, by the proxy.

use egress_policy::Reason;
use tokio::net::TcpStream;

use super::first::{First, Kind};
use super::{Case, Flows, carry, refuse, table};
use crate::audit::{End, FlowOutcome};
use crate::http::{self, Guest, Site, Way};

impl Flows {
    /// Serves a connection's requests until it ends.
    pub(super) async fn inspect(
        &self,
        stream: TcpStream,
        case: &Case<'_>,
        first: First,
        reason: Reason,
        seat: &table::Seat<'_>,
    ) {
        let way = match first.kind {
            Kind::Tls(name) if self.proxy.has_tls() => Way::Tls(name),
            Kind::Http(_) => Way::Plain,
            _ => {
                case.tell(FlowOutcome::NotLookedInto, &reason);
                return refuse::answer(stream, &first, &reason).await;
            }
        };
        case.tell(FlowOutcome::LookedInto, &reason);
        let flow = &case.flow;
        let site = Site::new(self.proxy.clone(), flow.number, flow.destination, flow.names.clone(), way);
        let guest = Guest::new(stream, first.bytes, seat.clock());
        let watch = guest.watch();
        let _held = self.shared.hold(flow.destination.ip());
        let cut = async {
            let cut = tokio::select! {
                biased;
                denial = self.shared.denial_of(|policy| site.denial(policy)) => (End::Policy, Some(denial)),
                () = seat.cut() => (End::Reclaimed, None),
                () = carry::silence(seat) => (End::Idle, None),
            };
            // An end that the guest has not asked for is a reset.
            watch.reset();
            cut
        };
        let (end, denial) = tokio::select! {
            biased;
            cut = cut => cut,
            end = http::serve(&site, guest) => (end, None),
        };
        // An upgraded connection that nobody carries any more would keep its site.
        drop(site.tunnel());
        let reason = denial.as_ref().map_or(&reason, |denial| &denial.reason);
        case.tell(FlowOutcome::Ended { end, sent: watch.sent(), received: watch.received() }, reason);
    }
}
