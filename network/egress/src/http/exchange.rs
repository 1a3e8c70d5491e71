//! One request and its response: judged, sent to the address that the guest chose, and carried back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use egress_policy::{Phase, Request as Fate, Status};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;

use super::account::Account;
use super::body::{Answer, Download, Upload};
use super::head::{self, Heard};
use super::site::{Judged, Site};
use super::tunnel::Tunnel;
use super::upstream::Line;
use crate::audit::RequestOutcome;
use crate::shared::may_dial;

/// How long a request waits for its place among those that are under way.
const PLACE_LIMIT: Duration = Duration::from_secs(30);

/// A refusal of a request.
struct Refused {
    status: StatusCode,
    outcome: RequestOutcome,
    words: String,
}

impl Refused {
    fn new(status: StatusCode, outcome: RequestOutcome, words: impl Into<String>) -> Self {
        Self { status, outcome, words: words.into() }
    }

    fn by_policy(status: Status, reason: &egress_policy::Reason) -> Self {
        let status = match status {
            Status::Forbidden => StatusCode::FORBIDDEN,
            Status::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        };
        Self::new(status, RequestOutcome::Denied, format!("Blocked by policy: {reason}"))
    }

    fn failed(words: String) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, RequestOutcome::Failed, words)
    }
}

impl From<head::Bad> for Refused {
    fn from(bad: head::Bad) -> Self {
        Self::new(bad.status(), RequestOutcome::Malformed, bad.words())
    }
}

/// The answer to a request.
pub(super) async fn answer(site: Arc<Site>, mut request: Request<Incoming>) -> Response<Answer> {
    let guest = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    site.is_unread.store(!body.is_end_stream(), Ordering::Relaxed);
    let mut account = Account::new(site.clone(), &head);
    match carried(&site, &mut account, head, body).await {
        Ok(exchange) => exchange.answer(&site, account, guest),
        Err(refused) => page(account, &refused),
    }
}

/// A request that was sent, with its response.
struct Exchange {
    response: Response<Incoming>,
    line: Line,
    place: OwnedSemaphorePermit,
}

async fn carried(
    site: &Arc<Site>,
    account: &mut Account,
    head: Parts,
    body: Incoming,
) -> Result<Exchange, Refused> {
    let heard = head::read(&head, site.is_tls(), site.destination)?;
    account.heard(&heard);
    let (method, http2) = (head.method.as_str().to_owned(), head.version == Version::HTTP_2);
    let judged = Arc::new(Judged { heard, method, http2 });
    // A change of the policy from here on is noticed by the connection.
    account.under_way(site.begin(judged.clone()));
    judge(site, account, &judged)?;
    let requests = site.proxy.requests.clone();
    let Ok(Ok(place)) = timeout(PLACE_LIMIT, requests.acquire_owned()).await else {
        let words = "Too many requests are under way";
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, RequestOutcome::TooMany, words));
    };
    let (response, line) = send(site, account, &judged.heard, head, body).await?;
    let verdict = site.judge(&site.proxy.shared.policy(), &judged, Phase::After);
    if let Fate::Deny(status) = verdict.decision {
        account.judged(verdict.reason.clone());
        return Err(Refused::by_policy(status, &verdict.reason));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !judged.heard.upgrade {
        return Err(Refused::failed("The server changes to a protocol that it was not asked for".into()));
    }
    Ok(Exchange { response, line, place })
}

fn judge(site: &Site, account: &mut Account, judged: &Judged) -> Result<(), Refused> {
    let policy = site.proxy.shared.policy();
    let verdict = site.judge(&policy, judged, Phase::Before);
    account.judged(verdict.reason.clone());
    match verdict.decision {
        Fate::Deny(status) => return Err(Refused::by_policy(status, &verdict.reason)),
        // Rules that change requests are not built yet, and must not be left out.
        Fate::Forward(forward) if !forward.rules.is_empty() => {
            let words = "Rules that change requests are not applied yet";
            return Err(Refused::new(StatusCode::NOT_IMPLEMENTED, RequestOutcome::Failed, words));
        }
        Fate::Forward(_) => {}
    }
    let stated = judged.heard.host.name().filter(|name| site.names.contains(name));
    may_dial(&policy, site.destination, &site.names, stated).map_err(|denial| {
        account.judged(denial.clone());
        Refused::by_policy(Status::Forbidden, &denial)
    })
}

/// Sends a request, once more where a connection that was used before has ended meanwhile.
async fn send(
    site: &Arc<Site>,
    account: &Account,
    heard: &Heard,
    mut head: Parts,
    body: Incoming,
) -> Result<(Response<Incoming>, Line), Refused> {
    let (upstream, server) = (&site.proxy.upstream, site.server());
    let http2 = head.version == Version::HTTP_2;
    let is_chunked = !body.is_end_stream() && body.size_hint().exact().is_none();
    let is_safe = body.is_end_stream() && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let unreached = |error| Refused::failed(format!("Failed to connect: {error}"));
    let unanswered = |error: hyper::Error| Refused::failed(format!("Failed to get a response: {error}"));

    let mut line = upstream.line(site, &server, http2, false).await.map_err(unreached)?;
    let form = line.form(is_chunked);
    head::send_on(&mut head, heard, site.is_tls(), form)?;
    let (wants, wanted) = waits(&head);
    let spare = (line.is_used && is_safe).then(|| head.clone());
    let mut request =
        Request::from_parts(head, Upload::new(body, account.sent(), site.is_unread.clone(), wanted));
    if let Some(wants) = wants {
        hyper::ext::on_informational(&mut request, move |response| wants.told(response.status()));
    }
    let mut error = match line.send(request).await {
        Ok(response) => return Ok((response, line)),
        Err(error) => error,
    };
    let again = error.take_message().or_else(|| {
        let is_gone =
            error.error().is_incomplete_message() || error.error().is_closed() || error.error().is_canceled();
        spare.filter(|_| is_gone).map(|head| Request::from_parts(head, Upload::nothing()))
    });
    let Some(again) = again.filter(|_| line.is_used) else { return Err(unanswered(error.into_error())) };
    let mut line = upstream.line(site, &server, http2, true).await.map_err(unreached)?;
    if line.form(is_chunked) != form {
        return Err(unanswered(error.into_error()));
    }
    match line.send(again).await {
        Ok(response) => Ok((response, line)),
        Err(error) => Err(unanswered(error.into_error())),
    }
}

/// The server's end of a wait for it to want a body.
struct Wants(std::sync::Mutex<Option<oneshot::Sender<()>>>);

impl Wants {
    fn told(&self, status: StatusCode) {
        let sender = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if status != StatusCode::CONTINUE {
            *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = sender;
        } else if let Some(sender) = sender {
            // The body may be gone by now.
            let _ = sender.send(());
        }
    }
}

/// Both ends of a wait, where a request asks the server whether it wants the body.
fn waits(head: &Parts) -> (Option<Wants>, Option<oneshot::Receiver<()>>) {
    let expect = head.headers.get(header::EXPECT);
    if !expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return (None, None);
    }
    let (sender, receiver) = oneshot::channel();
    (Some(Wants(std::sync::Mutex::new(Some(sender)))), Some(receiver))
}

impl Exchange {
    fn answer(self, site: &Site, mut account: Account, guest: OnUpgrade) -> Response<Answer> {
        let Self { mut response, line, place } = self;
        account.status(response.status(), RequestOutcome::BrokenOff);
        let server = hyper::upgrade::on(&mut response);
        let (mut head, body) = response.into_parts();
        head::send_back(&mut head);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            site.become_tunnel(Tunnel { guest, server, account, line });
            return Response::from_parts(head, Answer::Nothing);
        }
        let download = Download::new(body, account, line, place);
        Response::from_parts(head, Answer::Carried(Box::new(download)))
    }
}

/// A page that says why a request is refused.
fn page(mut account: Account, refused: &Refused) -> Response<Answer> {
    account.status(refused.status, refused.outcome);
    if refused.outcome != RequestOutcome::Denied {
        account.fault(&refused.words);
    }
    let text = format!("{}\n", refused.words);
    let mut response = Response::new(Answer::Page(Some(text.into())));
    *response.status_mut() = refused.status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
