//! Admission of requests: each begins, waits or is refused.
//!
//! `create` and `close` work alone: requests that come meanwhile wait behind them, in their order. Pure; work goes by
//! its number. Not here: the work, and the answers.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use wire::rpc::ErrorCode;

use crate::budget::{Budget, Held};
use crate::failure::Failure;
use crate::request::Request;

/// The requests of one client. `N` is the number of a piece of work.
pub(crate) struct Admission<N> {
    most: usize,
    /// The budget that a request's parameters count against until the request is answered.
    budget: Budget,
    /// Ids in use: by a piece of work, or by a request that waits.
    ids: HashMap<u64, Option<N>>,
    at_work: usize,
    waiting: VecDeque<Admitted>,
    alone: Option<(N, Alone)>,
}

/// A request that works alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    Create,
    Close,
}

/// A request that may begin, and its part of the budget.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) request: Request,
    pub(crate) held: Held,
}

/// The owner of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<N> {
    /// A piece of work.
    AtWork(N),
    /// A request that waited, and was given up.
    Waited,
    /// Neither.
    Unknown,
}

impl<N: Copy + Eq + Hash> Admission<N> {
    pub(crate) fn new(most: usize, budget: Budget) -> Self {
        Self { most, budget, ids: HashMap::new(), at_work: 0, waiting: VecDeque::new(), alone: None }
    }

    /// Judges a new request: it may begin, or it waits (`None`).
    pub(crate) fn admit(&mut self, request: Request) -> Result<Option<Admitted>, (Option<u64>, Failure)> {
        let refused =
            |request: &Request, why: String| Err((request.id, Failure::new(ErrorCode::InvalidRequest, why)));
        if let Some(id) = request.id.filter(|id| self.ids.contains_key(id)) {
            return refused(&request, format!("request id {id} is in use"));
        }
        let closing = matches!(self.alone, Some((_, Alone::Close)));
        // `close` waits only for another one, and makes room for itself.
        let at_once = request.method == "close" && !closing;
        let mut held = self.budget.hold();
        let many = self.at_work + self.waiting.len() >= self.most;
        if !at_once && (many || !held.grow(request.params.len())) {
            return refused(&request, "too many requests in flight".to_owned());
        }
        if self.alone.is_none() || at_once {
            return Ok(Some(Admitted { request, held }));
        }
        if let Some(id) = request.id {
            self.ids.insert(id, None);
        }
        self.waiting.push_back(Admitted { request, held });
        Ok(None)
    }

    /// Notes that the request with this id has become a piece of work.
    pub(crate) fn begun(&mut self, number: N, id: Option<u64>, alone: Option<Alone>) {
        self.at_work += 1;
        if let Some(id) = id {
            self.ids.insert(id, Some(number));
        }
        if let Some(alone) = alone {
            self.alone = Some((number, alone));
        }
    }

    /// Notes that a piece of work has ended, and its request is answered.
    pub(crate) fn ended(&mut self, number: N, id: Option<u64>) {
        self.at_work -= 1;
        if let Some(id) = id {
            self.ids.remove(&id);
        }
        self.alone = self.alone.filter(|(alone, _)| *alone != number);
    }

    /// The next waiting request, once nothing works alone.
    pub(crate) fn next(&mut self) -> Option<Admitted> {
        if self.alone.is_some() {
            return None;
        }
        let admitted = self.waiting.pop_front()?;
        if let Some(id) = admitted.request.id {
            self.ids.remove(&id);
        }
        Some(admitted)
    }

    /// Gives up all waiting requests, and returns their ids.
    pub(crate) fn give_up_waiting(&mut self) -> Vec<Option<u64>> {
        let given_up: Vec<_> =
            std::mem::take(&mut self.waiting).into_iter().map(|admitted| admitted.request.id).collect();
        for id in given_up.iter().flatten() {
            self.ids.remove(id);
        }
        given_up
    }

    /// Finds the owner of an id to cancel; a request that waits is given up.
    pub(crate) fn cancel(&mut self, id: u64) -> Target<N> {
        match self.ids.get(&id) {
            Some(Some(number)) => Target::AtWork(*number),
            Some(None) => {
                self.waiting.retain(|admitted| admitted.request.id != Some(id));
                self.ids.remove(&id);
                Target::Waited
            }
            None => Target::Unknown,
        }
    }

    /// The number of the piece of work with this id.
    pub(crate) fn at_work(&self, id: u64) -> Option<N> {
        self.ids.get(&id).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 3;

    fn request(id: u64, method: &str) -> Request {
        Request { id: Some(id), method: method.to_owned(), params: Default::default() }
    }

    fn admission() -> Admission<u32> {
        Admission::new(MOST, Budget::new(100))
    }

    fn id(admitted: Option<Admitted>) -> Option<u64> {
        admitted.and_then(|admitted| admitted.request.id)
    }

    /// Admits a request and begins it.
    fn begin(admission: &mut Admission<u32>, number: u32, method: &str, alone: Option<Alone>) {
        let id = u64::from(number);
        assert!(admission.admit(request(id, method)).unwrap().is_some(), "{method} waits");
        admission.begun(number, Some(id), alone);
    }

    #[test]
    fn an_id_is_used_once_at_a_time() {
        let mut admission = admission();
        begin(&mut admission, 1, "exec", None);
        let (id, failure) = admission.admit(request(1, "exec")).unwrap_err();
        assert_eq!((id, failure.message.as_str()), (Some(1), "request id 1 is in use"));
        admission.ended(1, Some(1));
        begin(&mut admission, 1, "exec", None);
    }

    #[test]
    fn what_comes_during_create_waits_in_its_order() {
        let mut admission = admission();
        begin(&mut admission, 1, "create", Some(Alone::Create));
        assert!(admission.admit(request(2, "exec")).unwrap().is_none());
        assert!(admission.admit(request(3, "exec")).unwrap().is_none());
        assert!(admission.admit(request(2, "exec")).is_err(), "an id that waits is in use");
        assert!(admission.next().is_none(), "create is at work");
        admission.ended(1, Some(1));
        assert_eq!(id(admission.next()), Some(2));
        admission.begun(2, Some(2), Some(Alone::Close));
        assert!(admission.next().is_none(), "what came first works alone now");
        admission.ended(2, Some(2));
        assert_eq!((id(admission.next()), id(admission.next())), (Some(3), None));
    }

    #[test]
    fn close_waits_for_nothing_but_another_one() {
        let mut admission = admission();
        for number in 1..=3 {
            begin(&mut admission, number, "exec", None);
        }
        let (_, failure) = admission.admit(request(4, "exec")).unwrap_err();
        assert_eq!(failure.message, "too many requests in flight");
        begin(&mut admission, 5, "close", Some(Alone::Close));
        assert!(admission.admit(request(6, "close")).is_err(), "the second one has its place to wait for");
        (1..=3).for_each(|number| admission.ended(number, Some(number.into())));
        assert!(admission.admit(request(6, "close")).unwrap().is_none());
        admission.ended(5, Some(5));
        assert_eq!(id(admission.next()), Some(6));
    }

    #[test]
    fn waiting_requests_are_given_up() {
        let mut admission = admission();
        begin(&mut admission, 1, "create", Some(Alone::Create));
        assert!(admission.admit(request(2, "exec")).unwrap().is_none());
        assert!(admission.admit(request(3, "exec")).unwrap().is_none());
        assert_eq!(admission.cancel(2), Target::Waited);
        assert_eq!((admission.cancel(2), admission.cancel(1)), (Target::Unknown, Target::AtWork(1)));
        assert_eq!((admission.at_work(1), admission.at_work(3)), (Some(1), None));
        assert_eq!(admission.give_up_waiting(), [Some(3)]);
        assert_eq!(admission.cancel(3), Target::Unknown);
        admission.ended(1, Some(1));
        assert!(admission.next().is_none());
    }

    #[test]
    fn parameters_count_until_the_answer() {
        let mut admission = Admission::<u32>::new(MOST, Budget::new(10));
        let sized = |id: u64| {
            let line = format!(r#"{{"id":{id},"method":"exec","params":{{"a":1}}}}"#);
            crate::request::read(&crate::line::Line::Whole(line.into_bytes())).unwrap()
        };
        let first = admission.admit(sized(1)).unwrap();
        assert!(first.is_some() && admission.admit(sized(2)).is_err());
        drop(first);
        assert!(admission.admit(sized(2)).is_ok());
    }
}
