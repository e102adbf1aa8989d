//! Which requests the engine has not answered, so that users can be told what their tasks wait for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Time after which an answer is late, where nothing in the request itself takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Requests whose answers have not begun.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Path and query, and when an answer to it is late.
    requests: BTreeMap<u64, (String, Instant)>,
    last_answer: Option<Instant>,
}

/// A request that waits; one that is given up waits no longer.
pub(crate) struct Asked {
    waiting: Arc<Waiting>,
    number: Option<u64>,
}

impl Waiting {
    /// Takes note of a request.
    pub(crate) fn ask(self: &Arc<Self>, uri: &Uri, now: Instant) -> Asked {
        let number = patience(uri).map(|patience| {
            let mut state = self.state.lock();
            state.next += 1;
            let number = state.next;
            let path = uri.path_and_query().map_or_else(String::new, ToString::to_string);
            state.requests.insert(number, (path, now + patience));
            number
        });
        Asked { waiting: self.clone(), number }
    }

    /// A request with one of these words waits for too long, or any does and nobody was answered since.
    pub(crate) fn is_late(&self, words: &[&str], now: Instant) -> bool {
        let state = self.state.lock();
        let silent = state.last_answer.is_none_or(|last| now.saturating_duration_since(last) > PATIENCE);
        let mut late = state.requests.values().filter(|(_, late)| *late < now);
        late.any(|(path, _)| silent || words.iter().any(|word| !word.is_empty() && path.contains(word)))
    }
}

impl Asked {
    /// The engine has begun to answer.
    pub(crate) fn answered(&self, now: Instant) {
        self.waiting.state.lock().last_answer = Some(now);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.waiting.state.lock().requests.remove(&number);
        }
    }
}

/// How long an answer may take; `None` for what is nobody's fault: a pull begins to be answered when the registry answers.
fn patience(uri: &Uri) -> Option<Duration> {
    let path = uri.path();
    if path.ends_with("/images/create") || path.ends_with("/wait") {
        return None;
    }
    // The time that a container is given to end.
    let grace = uri.query().filter(|_| path.ends_with("/stop")).and_then(|query| {
        query.split('&').find_map(|part| part.strip_prefix("t=")?.parse().ok().map(Duration::from_secs))
    });
    Some(PATIENCE.saturating_add(grace.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(waiting: &Arc<Waiting>, uri: &str, now: Instant) -> Asked {
        waiting.ask(&uri.parse().unwrap(), now)
    }

    #[tokio::test]
    async fn only_the_own_request_counts_while_others_are_answered() {
        let (waiting, begin) = (Arc::<Waiting>::default(), Instant::now());
        let asked = ask(&waiting, "/v1.41/containers/create?name=web.1.abc", begin);
        let other = ask(&waiting, "/v1.41/info", begin);
        let late = begin + PATIENCE + Duration::from_secs(1);
        assert!(!waiting.is_late(&["web.1.abc"], begin + PATIENCE));
        other.answered(late - Duration::from_secs(1));
        drop(other);
        assert!(waiting.is_late(&["web.1.abc"], late));
        assert!(!waiting.is_late(&["web.2.def", ""], late));
        // Now nobody has been answered for long.
        assert!(waiting.is_late(&["web.2.def"], late + PATIENCE));
        drop(asked);
        assert!(!waiting.is_late(&["web.1.abc"], late + PATIENCE));
    }

    #[tokio::test]
    async fn a_stop_may_take_its_grace_period_and_a_pull_as_long_as_it_likes() {
        let (waiting, begin) = (Arc::<Waiting>::default(), Instant::now());
        let _stop = ask(&waiting, "/containers/web.1.abc/stop?t=60", begin);
        let _pull = ask(&waiting, "/images/create?fromImage=web", begin);
        assert!(!waiting.is_late(&["web"], begin + PATIENCE + Duration::from_secs(60)));
        assert!(waiting.is_late(&["web"], begin + PATIENCE + Duration::from_secs(61)));
    }
}
