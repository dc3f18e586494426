//! Clients of a batch: what they ask, when, and what they see of their answers.
//!
//! Invariant: requests with the same number are the same, whoever answers them, so that two ways of serving do the same work.
//! A client sees what a listener is told, on the same clock; nothing is sent over a network.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use dlx_ir::Error;
use dlx_runtime::batch::{Batch, Listener, Update};
use dlx_runtime::session::{Event, Prompt, Report, Request};

use crate::cli::{Failure, terminal};

/// Longest wait for an answer between two looks at whether the user wants to stop.
const POLL: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Tokens of a prompt, and how many of them, from the first, all prompts share.
    pub(super) prompt: usize,
    pub(super) shared: usize,
    /// Tokens of an answer.
    pub(super) new: usize,
    /// Tokens that there are.
    pub(super) vocab: usize,
}

impl Shape {
    /// Request `number`: as long as it may be, whatever is generated.
    fn request(&self, number: usize) -> Request {
        // Ordinary tokens: special ones stand at the end of vocabularies.
        let ordinary = (self.vocab / 2).max(1);
        let id = |i: usize| {
            let own = if i < self.shared { 0 } else { number.wrapping_add(1).wrapping_mul(104_729) };
            i32::try_from(i.wrapping_mul(7919).wrapping_add(own).wrapping_add(13) % ordinary).unwrap_or(0)
        };
        let mut request = Request::new(Prompt::Ids((0..self.prompt).map(id).collect()), self.new);
        request.overrides.stop_ids = Some(Vec::new());
        request
    }
}

/// When requests come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrivals {
    /// So many clients, each of whom asks again as soon as it has its answer.
    Closed(usize),
    /// So many a second, at random times, whether or not earlier ones are answered.
    Open(f64),
}

/// Passes by their rows and by how many of these were looked at.
pub(super) type Passes = BTreeMap<(usize, usize), usize>;

/// What became of some requests.
#[derive(Default)]
pub(super) struct Served {
    /// From the first request to the last answer.
    pub(super) time: Duration,
    pub(super) requests: usize,
    pub(super) tokens: usize,
    /// Tokens of prompts that were there already.
    pub(super) held: usize,
    /// From each request to the first text of its answer, and to its end.
    pub(super) first: Vec<Duration>,
    pub(super) whole: Vec<Duration>,
    pub(super) passes: Passes,
    pub(super) steps: u64,
    pub(super) rows: u64,
    /// Answers by the numbers of their requests.
    pub(super) answers: BTreeMap<usize, Vec<i32>>,
}

impl Served {
    /// Tokens of answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// One answer.
struct Answer {
    number: usize,
    asked: Instant,
    first: Option<Instant>,
    end: Instant,
    passes: Passes,
    result: Result<Report, String>,
}

/// Asks `count` requests and waits for all answers.
///
/// # Errors
/// A request that is refused or fails; Ctrl-C.
pub(super) fn run(batch: &Batch, shape: Shape, arrivals: Arrivals, count: usize) -> Result<Served, Failure> {
    let before = batch.load();
    let (send, answers) = channel();
    let begin = Instant::now();
    let mut due = due(begin, arrivals, count).into_iter().enumerate().peekable();
    let clients = match arrivals {
        Arrivals::Closed(clients) => clients,
        Arrivals::Open(_) => count,
    };
    let (mut asking, mut served) = (0, Served::default());
    while served.requests < count {
        if terminal::interrupted() {
            return Err(Failure::Interrupted);
        }
        while let Some((number, at)) = due.next_if(|(_, at)| asking < clients && *at <= Instant::now()) {
            let asked = if matches!(arrivals, Arrivals::Open(_)) { at } else { Instant::now() };
            let refused = batch.submit(&shape.request(number), listener(number, asked, send.clone()));
            refused.map_err(|e| Error::new(format!("request {number}"), e.to_string()))?;
            asking += 1;
        }
        let next = due.peek().map(|(_, at)| at.saturating_duration_since(Instant::now()));
        let wait = if asking < clients { next.unwrap_or(POLL).min(POLL) } else { POLL };
        let Ok(Answer { number, asked, first, end, passes, result }) = answers.recv_timeout(wait) else { continue };
        let report = result.map_err(|e| Error::new(format!("request {number}"), e))?;
        asking -= 1;
        served.requests += 1;
        served.tokens += report.ids.len();
        served.held += report.held_tokens;
        served.first.extend(first.map(|first| first - asked));
        served.whole.push(end - asked);
        passes.into_iter().for_each(|(pass, n)| *served.passes.entry(pass).or_default() += n);
        served.answers.insert(number, report.ids);
        served.time = end - begin;
    }
    let after = batch.load();
    (served.steps, served.rows) = (after.steps - before.steps, after.rows - before.rows);
    Ok(served)
}

/// When each request is due.
fn due(begin: Instant, arrivals: Arrivals, count: usize) -> Vec<Instant> {
    let mut at = Duration::ZERO;
    let times = (0..count).map(|i| {
        if let Arrivals::Open(rate) = arrivals {
            // Golden-ratio steps are spread evenly over 0 to 1, so that the gaps of a short run have the right mean.
            let part = (0.5 + i as f64 * 0.618_033_988_749_895).fract();
            at += Duration::try_from_secs_f64(-libm::log(1.0 - part) / rate).unwrap_or(Duration::MAX / 2);
        }
        begin.checked_add(at).unwrap_or(begin)
    });
    times.collect()
}

fn listener(number: usize, asked: Instant, send: Sender<Answer>) -> Listener {
    let (mut first, mut passes) = (None, Passes::new());
    Box::new(move |update| {
        match update {
            Update::Event { event: Event::Text(_), .. } => {
                first.get_or_insert_with(Instant::now);
            }
            Update::Event { event: Event::Forward(forward), .. } => {
                let rows = forward.pass.spans().map(|span| span.ids.len()).sum();
                let looked = forward.pass.spans().len() * forward.pass.rows().len();
                *passes.entry((rows, looked)).or_default() += 1;
            }
            Update::End(result) => {
                let (passes, result) = (std::mem::take(&mut passes), result.map_err(|e| e.to_string()));
                let answer = Answer { number, asked, first, end: Instant::now(), passes, result };
                // Nobody waits for it any more when another request has failed.
                let _ = send.send(answer);
            }
            _ => {}
        }
        if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_begin_alike_as_far_as_they_should() {
        let shape = Shape { prompt: 20, shared: 8, new: 5, vocab: 1000 };
        let prompt = |number: usize| match shape.request(number).prompt {
            Prompt::Ids(ids) => ids,
            other => panic!("{other:?}"),
        };
        let (a, b) = (prompt(0), prompt(1));
        assert_eq!((a.len(), a[..8] == b[..8]), (20, true));
        assert!((8..20).all(|i| a[i] != b[i]) && prompt(1) == b);
        assert!(a.iter().all(|id| (0..500).contains(id)));
    }

    #[test]
    fn arrivals_at_a_rate_come_at_that_rate() {
        let begin = Instant::now();
        let times = due(begin, Arrivals::Open(10.0), 1000);
        let seconds = (times[999] - begin).as_secs_f64();
        assert!((95.0..105.0).contains(&seconds), "{seconds}");
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        let short = gaps.iter().filter(|gap| **gap < 0.1).count();
        assert!((600..660).contains(&short), "as many as of an exponential law: {short}");
        assert_eq!(due(begin, Arrivals::Closed(4), 3), [begin; 3]);
    }
}
