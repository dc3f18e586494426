//! Many requests side by side on one loaded model.
//!
//! One thread ([`worker`]) owns the executor; a [`Batch`] is the handle that any thread submits to. Requests join and leave
//! between passes. Who takes part in a step is decided by rows ([`turns`]). What requests begin with alike is computed once
//! ([`begin`]), and kept for later ones ([`pages`]).
//!
//! Invariant: on the CPU a request's answer is, to the bit, what a [`Session`](crate::session::Session) gives for it alone,
//! whatever runs beside it. The caches of every sequence that may run are reserved before the first request, so an admitted
//! request never lacks memory; what does not fit waits, and when too many wait, a request is refused at once. It knows
//! no network and no asynchronous runtime: whoever listens is called, and must return at once.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use crate::decode::{DecodeError, DecodePolicy};
use crate::exec::Executor;
use crate::model::Model;
use crate::probe;
use crate::session::{Call, Event, Report, Request, SessionError, TextSide};
use crate::text::{ChatTemplate, Tokenizer};

mod begin;
mod pages;
mod turns;
mod worker;

/// How many requests a batch takes.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests that are decoded side by side; each has caches of its own.
    pub sequences: usize,
    /// Further requests that may wait for one of them to end.
    pub waiting: usize,
    /// Most rows of one pass over a prompt, so that a long prompt does not hold up the others' steps; a step that is filled,
    /// and whole blocks of the attention mask, may be more.
    pub prefill_rows: usize,
    /// Rows up to which a step is filled, beyond which a row costs no less beside others than without them; measured at the
    /// start where it is not given.
    pub step_rows: Option<usize>,
    /// Cache rows that are reserved for what later requests may begin with, in whole slots; 0 keeps nothing.
    pub prefix_rows: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { sequences: 8, waiting: 64, prefill_rows: 32, step_rows: None, prefix_rows: 4096 }
    }
}

/// Whether rows are kept for requests that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCache {
    /// Pages of committed blocks; the one that nobody has used for longest goes first.
    On {
        /// Tokens of a page.
        page: usize,
        /// Rows of all pages.
        rows: usize,
    },
    /// Nothing is kept, for this reason.
    Off(&'static str),
}

/// What a listener is told, in order: `Waiting`, events, and `End`; or `End` alone where a request cannot be answered.
pub enum Update<'a> {
    /// The request can be answered, and waits for its turn.
    Waiting,
    /// Something happened.
    Event {
        /// What.
        event: Event<'a>,
        /// Tokens of the answer so far.
        tokens: usize,
    },
    /// It is over.
    End(Box<Result<Report, SessionError>>),
}

/// Is told what happens to a request, by the thread that runs the model; breaking cancels the request.
pub type Listener = Box<dyn FnMut(Update<'_>) -> ControlFlow<()> + Send>;

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// As many requests wait as may.
    #[error("{0} requests are running or waiting, as many as may: try again later")]
    Full(usize),
    /// The model cannot run any more.
    #[error("the model has stopped: load it again")]
    Stopped,
    /// Aims and drafts are those of a session.
    #[error("a measured setting or a drafter is for a session alone: leave out `aim` and `speculate`")]
    Alone,
    /// The request cannot be answered.
    #[error(transparent)]
    Request(#[from] SessionError),
}

/// How busy a batch is, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests in slots of the caches.
    pub running: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
    /// Cache slots of running requests.
    pub slots_taken: usize,
    /// Cache slots.
    pub slots: usize,
    /// Steps so far.
    pub steps: u64,
    /// Rows of these steps.
    pub rows: u64,
    /// Rows that are kept for requests that begin alike.
    pub prefix_rows: usize,
    /// Tokens of prompts whose rows were there already, kept or in another request's slot.
    pub reused_tokens: u64,
}

/// What handle and worker both count.
#[derive(Default)]
struct Shared {
    requests: AtomicUsize,
    running: AtomicUsize,
    slots_taken: AtomicUsize,
    slots: AtomicUsize,
    steps: AtomicU64,
    rows: AtomicU64,
    prefix_rows: AtomicUsize,
    reused_tokens: AtomicU64,
    stopped: AtomicBool,
}

/// A request's place among those that may run or wait; leaving it makes room for another.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A listener whose panic is its own affair: the others' requests go on.
fn guarded(listener: Listener) -> Listener {
    let mut listener = Some(listener);
    Box::new(move |update| {
        let Some(mut heard) = listener.take() else { return ControlFlow::Break(()) };
        // Nobody sees the listener again after a panic.
        match catch_unwind(AssertUnwindSafe(|| heard(update))) {
            Ok(flow) => {
                listener = Some(heard);
                flow
            }
            Err(_) => ControlFlow::Break(()),
        }
    })
}

/// A request on its way to the worker.
struct Job {
    call: Call,
    policy: DecodePolicy,
    max_new: usize,
    priority: i32,
    logprobs: Option<usize>,
    listener: Listener,
    place: Place,
}

/// See the module. Its clones are handles of the same batch, which ends with the last of them, after the requests that it
/// has taken.
#[derive(Clone)]
pub struct Batch {
    inbox: Sender<Job>,
    text: Arc<TextSide>,
    shared: Arc<Shared>,
    capacity: Capacity,
    prefix_cache: PrefixCache,
    max_seq: usize,
}

impl Batch {
    /// Reserves the caches of all sequences and pages, and starts the thread that runs the model.
    ///
    /// # Errors
    /// A policy that the model cannot run, or caches that do not fit the device or the memory limit.
    pub fn new(model: Model, capacity: Capacity) -> Result<Self, SessionError> {
        let Model { manifest, executor, tokenizer, template, .. } = model;
        Self::with_executor(executor.into_executor(), tokenizer, template, manifest.policy, capacity)
    }

    /// The same with an executor of one's own.
    ///
    /// # Errors
    /// As [`Batch::new`].
    pub fn with_executor(
        mut executor: Box<dyn Executor + Send>,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        policy: DecodePolicy,
        capacity: Capacity,
    ) -> Result<Self, SessionError> {
        let resolved = policy.clone().resolve(&*executor).map_err(DecodeError::from)?;
        let sequences = capacity.sequences.max(1);
        let slots = sequences.saturating_mul(resolved.slots());
        let shelf = begin::shelf(&*executor, &resolved, capacity.prefix_rows, slots);
        let all = slots.saturating_add(shelf.map_or(0, |shelf| shelf.slots()));
        executor.reserve(all).map_err(DecodeError::from)?;
        let knee =
            capacity.step_rows.map_or_else(|| probe::knee(&mut *executor), Ok).map_err(DecodeError::from)?.max(1);
        let prefill_rows = capacity.prefill_rows.max(knee);
        let capacity = Capacity { sequences, step_rows: Some(knee), prefill_rows, ..capacity };
        let shared = Arc::new(Shared::default());
        shared.slots.store(slots, Ordering::Relaxed);
        let (max_seq, vocab) = (executor.max_seq(), executor.vocab());
        let (inbox, jobs) = channel();
        let pages = shelf.ok().map(pages::Pages::new);
        let worker = worker::Worker::new(executor, slots, pages, capacity, Arc::clone(&shared));
        std::thread::Builder::new()
            .name("dlxc-batch".into())
            .spawn(move || worker.run(&jobs))
            .map_err(|e| DecodeError::from(crate::exec::ExecError::Device(format!("no thread can be started: {e}"))))?;
        let prefix_cache = match shelf {
            Ok(shelf) => PrefixCache::On { page: shelf.page, rows: shelf.rows() },
            Err(why) => PrefixCache::Off(why),
        };
        let text = Arc::new(TextSide::new(tokenizer, template, policy, vocab));
        Ok(Self { inbox, text, shared, capacity, prefix_cache, max_seq })
    }

    /// The model's text side.
    pub fn text(&self) -> &TextSide {
        &self.text
    }

    /// Longest sequence in tokens.
    pub fn max_seq(&self) -> usize {
        self.max_seq
    }

    /// How many requests it takes, and how large steps are filled.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether rows are kept for requests that begin alike, and why not.
    pub fn prefix_cache(&self) -> PrefixCache {
        self.prefix_cache
    }

    /// Takes a request; `listener` is told what becomes of it. One that panics is told nothing more, and its request is
    /// cancelled. [`Request::keep`] means nothing here. The prompt is rendered
    /// and encoded on the calling thread.
    ///
    /// # Errors
    /// When it cannot be answered, now or at all. The listener has not been called then.
    pub fn submit(&self, request: &Request, listener: Listener) -> Result<(), Refused> {
        let begin = Instant::now();
        if request.aim.is_some() || request.speculate.is_some() {
            return Err(Refused::Alone);
        }
        let place = self.place()?;
        let policy = self.text.policy_of(&request.overrides)?;
        let call = Call::new(&self.text, request, policy.clone(), begin)?;
        let Request { max_new, logprobs, priority, .. } = *request;
        let job = Job { call, policy, max_new, priority, logprobs, listener: guarded(listener), place };
        self.inbox.send(job).map_err(|_| Refused::Stopped)
    }

    fn place(&self) -> Result<Place, Refused> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(Refused::Stopped);
        }
        let most = self.capacity.sequences.saturating_add(self.capacity.waiting);
        let one_more = |n: usize| (n < most).then_some(n + 1);
        match self.shared.requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Place(Arc::clone(&self.shared))),
            Err(requests) => Err(Refused::Full(requests)),
        }
    }

    /// Whether the model can still run.
    pub fn is_alive(&self) -> bool {
        !self.shared.stopped.load(Ordering::Acquire)
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let s = &self.shared;
        let running = s.running.load(Ordering::Relaxed);
        Load {
            running,
            waiting: s.requests.load(Ordering::Relaxed).saturating_sub(running),
            slots_taken: s.slots_taken.load(Ordering::Relaxed),
            slots: s.slots.load(Ordering::Relaxed),
            steps: s.steps.load(Ordering::Relaxed),
            rows: s.rows.load(Ordering::Relaxed),
            prefix_rows: s.prefix_rows.load(Ordering::Relaxed),
            reused_tokens: s.reused_tokens.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
