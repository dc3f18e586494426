//! The thread that owns the executor: admits requests, runs rounds, lets requests go.
//!
//! Invariant: between two steps every request that was cancelled, is overdue, has nobody listening or has ended gives its
//! slots back. A slot belongs to one request at a time. An error of the executor ends those that took part in the step.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::pages::Pages;
use super::turns::{Ages, Room, Want, choose};
use super::{Capacity, Job, Listener, Place, Shared, Update};
use crate::decode::{Active, DecodeError, Driver, ForwardKind, Moment, Noise, Observer, Resolved, Sequence};
use crate::exec::{ExecError, Executor};
use crate::session::{Call, SessionError};
use dlx_ir::MAX_SPANS;

/// See the module.
pub(super) struct Worker {
    pub(super) executor: Box<dyn Executor + Send>,
    /// What a step takes.
    room: Room,
    prefill_rows: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) free: Vec<usize>,
    slots: usize,
    /// Rows that are kept for requests that begin alike.
    pub(super) pages: Option<Pages>,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    /// How often classes have waited for slots, and for steps.
    ages: [Ages; 2],
    /// In the order in which they came.
    pub(super) seated: Vec<Seated>,
    pub(super) running: Vec<Running>,
}

/// A request and who is told of it.
pub(super) struct Told {
    pub(super) call: Call,
    pub(super) listener: Listener,
    _place: Place,
}

/// A request that waits for slots.
struct Waiting {
    told: Told,
    resolved: Resolved,
    max_new: usize,
    priority: i32,
    shared: usize,
}

/// A request that has slots, and waits for its beginning.
pub(super) struct Seated {
    pub(super) told: Told,
    pub(super) resolved: Resolved,
    pub(super) max_new: usize,
    pub(super) priority: i32,
    /// Tokens of its prompt whose rows may come from others.
    pub(super) shared: usize,
    pub(super) slots: Vec<usize>,
}

/// A request that is decoded in slots of its own.
pub(super) struct Running {
    pub(super) told: Told,
    pub(super) sequence: Sequence,
    pub(super) slots: Vec<usize>,
    pub(super) priority: i32,
    /// Rows that it has had since all were served.
    pub(super) used: u64,
    /// Pages of it that were kept; `None` when no more will be.
    pub(super) kept: Option<usize>,
}

/// The worker is gone: no handle sends it anything more.
impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
    }
}

impl Told {
    pub(super) fn observe(&mut self, moment: Moment<'_>) -> std::ops::ControlFlow<crate::decode::FinishReason> {
        let listener = &mut self.listener;
        self.call.observe(moment, &mut |event, tokens| listener(Update::Event { event, tokens }))
    }

    /// Tells what a decode made, or why there is none.
    pub(super) fn end(self, ended: Result<Ended, SessionError>) {
        let Told { call, mut listener, _place } = self;
        let mut events = |event: crate::session::Event<'_>, tokens: usize| listener(Update::Event { event, tokens });
        let result = match ended {
            Ok(Ended::Decoded(decoded)) => call.finish(decoded, &mut events),
            Ok(Ended::Never(reason)) => call.unanswered(reason, &mut events),
            Err(error) => Err(error),
        };
        // A place is free before anybody hears of it.
        drop(_place);
        let _ = listener(Update::End(Box::new(result)));
    }
}

/// How a request ended.
pub(super) enum Ended {
    Decoded(crate::decode::Decoded),
    /// Before it was given slots.
    Never(crate::decode::FinishReason),
}

impl Worker {
    pub(super) fn new(
        executor: Box<dyn Executor + Send>,
        slots: usize,
        pages: Option<Pages>,
        capacity: Capacity,
        shared: Arc<Shared>,
    ) -> Self {
        let (waiting, ages, seated, running) = Default::default();
        let (free, prefill_rows) = ((0..slots).rev().collect(), capacity.prefill_rows);
        let rows = executor.step_buckets().last().copied().unwrap_or(0);
        let room = Room { knee: capacity.step_rows.unwrap_or(rows), rows, spans: MAX_SPANS };
        Self { executor, room, prefill_rows, shared, free, slots, pages, waiting, ages, seated, running }
    }

    /// Runs until every handle is gone and every request has ended, or the device is lost.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut open = true;
        while open || !self.is_idle() {
            while open {
                let idle = self.is_idle();
                let job = if idle { jobs.recv().map_err(|_| TryRecvError::Disconnected) } else { jobs.try_recv() };
                match job {
                    Ok(job) => self.arrive(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            self.leave();
            self.admit();
            self.begin();
            self.count();
            let ran = self.round();
            self.count();
            if let Err(lost) = ran {
                self.stop(&lost);
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.seated.is_empty() && self.waiting.is_empty()
    }

    /// Checks a request; what cannot be answered ends before anybody waits for it.
    fn arrive(&mut self, job: Job) {
        let Job { call, policy, max_new, priority, logprobs, mut listener, place } = job;
        let resolved = policy.resolve(&*self.executor).and_then(|r| r.telling(logprobs, &*self.executor));
        let checked = resolved.map_err(DecodeError::from).and_then(|resolved| {
            let resolved = match call.constraint() {
                None => resolved,
                Some(constraint) => resolved.constrained(constraint, &*self.executor)?,
            };
            let resolved = Resolved { prefill_rows: self.prefill_rows, ..resolved };
            if resolved.slots() > self.slots {
                let (wanted, slots) = (resolved.slots(), self.slots);
                let text =
                    format!("it needs {wanted} slots of the caches, and there are {slots}: allow more sequences");
                return Err(ExecError::Shape(text).into());
            }
            let slots = (0..resolved.slots()).collect();
            let noise = Noise::Seeded(resolved.policy.seed);
            // Of rows of all its tokens it would use so many.
            let (prompt, all) = (call.prompt(), self.executor.copy_unit().map_or(0, |_| call.prompt().len()));
            let sequence = Sequence::new(resolved.clone(), &*self.executor, prompt, max_new, all, slots, noise)?;
            Ok((resolved, sequence.stored().len()))
        });
        match checked {
            Ok((resolved, shared)) => {
                if listener(Update::Waiting).is_continue() {
                    let told = Told { call, listener, _place: place };
                    self.waiting.push_back(Waiting { told, resolved, max_new, priority, shared });
                }
            }
            Err(error) => Told { call, listener, _place: place }.end(Err(error.into())),
        }
    }

    /// Lets go whoever has ended, was cancelled or is overdue.
    fn leave(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting.told.call.overdue() {
                Some(reason) => waiting.told.end(Ok(Ended::Never(reason))),
                None => self.waiting.push_back(waiting),
            }
        }
        for seated in std::mem::take(&mut self.seated) {
            match seated.told.call.overdue() {
                Some(reason) => {
                    self.free.extend(seated.slots);
                    seated.told.end(Ok(Ended::Never(reason)));
                }
                None => self.seated.push(seated),
            }
        }
        for mut running in std::mem::take(&mut self.running) {
            let told = &mut running.told;
            let wants = running.sequence.want(&mut |moment| told.observe(moment)).is_some();
            // A pass that was announced before may have waited for its turn since.
            let overdue = told.call.overdue().filter(|_| wants);
            if wants && overdue.is_none() {
                self.running.push(running);
                continue;
            }
            self.free.extend(running.slots);
            let ended = running.sequence.finish().map(|mut decoded| {
                decoded.finish = overdue.unwrap_or(decoded.finish);
                Ended::Decoded(decoded)
            });
            running.told.end(ended.map_err(SessionError::from));
        }
    }

    /// Gives free slots to those of the class whose turn it is who have waited longest.
    fn admit(&mut self) {
        let [ages, _] = &mut self.ages;
        loop {
            let present: BTreeSet<i32> = self.waiting.iter().map(|waiting| waiting.priority).collect();
            let Some(class) = ages.first(&present) else { return };
            let next = self.waiting.iter().position(|waiting| waiting.priority == class);
            let fits = next.filter(|next| self.waiting[*next].resolved.slots() <= self.free.len());
            let Some(Waiting { told, resolved, max_new, priority, shared }) =
                fits.and_then(|next| self.waiting.remove(next))
            else {
                return;
            };
            ages.served(class, &present);
            let slots = self.free.split_off(self.free.len() - resolved.slots());
            self.seated.push(Seated { told, resolved, max_new, priority, shared, slots });
        }
    }

    /// Runs one step of those whose turn it is.
    ///
    /// # Errors
    /// A lost device, after which nothing can be run.
    fn round(&mut self) -> Result<(), ExecError> {
        let wants = self.running.iter().map(|&Running { ref sequence, priority, used, .. }| {
            let pass = sequence.wanted();
            let (spans, rows) = pass.map_or((0, 0), |p| (p.spans().len(), p.spans().map(|s| s.ids.len()).sum()));
            let prefill = pass.is_some_and(|pass| pass.kind() == ForwardKind::Prefill);
            Want { rows, spans, prefill, priority, used }
        });
        let mut wants: Vec<Want> = wants.collect();
        let chosen = choose(&mut wants, self.room, &mut self.ages[1]);
        let served: usize = chosen.iter().map(|&i| wants[i].rows).sum();
        for (running, want) in self.running.iter_mut().zip(&wants) {
            running.used = want.used;
        }
        let (mut now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().enumerate().partition(|(i, _)| chosen.contains(i));
        let mut round = |now: &mut [(usize, Running)]| {
            let (mut sequences, mut observers): (Vec<_>, Vec<_>) = now
                .iter_mut()
                .map(|(_, Running { told, sequence, .. })| (sequence, move |moment: Moment<'_>| told.observe(moment)))
                .unzip();
            let actives = sequences.iter_mut().zip(&mut observers);
            let mut actives: Vec<Active<'_, '_>> = actives
                .map(|(sequence, observer)| Active { sequence, observer: observer as &mut Observer<'_> })
                .collect();
            Driver::new(&mut *self.executor).round(&mut actives)
        };
        let outcome = if now.is_empty() { Ok(false) } else { round(&mut now) };
        self.running.extend(later.into_iter().map(|(_, running)| running));
        if outcome.is_ok() {
            self.shared.steps.fetch_add(u64::from(served > 0), Ordering::Relaxed);
            self.shared.rows.fetch_add(served as u64, Ordering::Relaxed);
        }
        let mut lost = Ok(());
        for (_, mut running) in now {
            match outcome.as_ref().map_err(again).and_then(|_| self.keep(&mut running)) {
                Ok(()) => self.running.push(running),
                Err(error) => {
                    self.free.extend(running.slots);
                    running.told.end(Err(DecodeError::from(again(&error)).into()));
                    lost = if matches!(error, ExecError::DeviceLost(_)) { Err(error) } else { lost };
                }
            }
        }
        lost
    }

    fn count(&self) {
        self.shared.running.store(self.running.len() + self.seated.len(), Ordering::Relaxed);
        self.shared.slots_taken.store(self.slots - self.free.len(), Ordering::Relaxed);
    }

    /// Ends every request with what made running on impossible.
    fn stop(&mut self, lost: &ExecError) {
        self.shared.stopped.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|w| w.told);
        let seated = std::mem::take(&mut self.seated).into_iter().map(|s| s.told);
        let running = std::mem::take(&mut self.running).into_iter().map(|r| r.told);
        for told in running.chain(seated).chain(waiting) {
            told.end(Err(DecodeError::from(again(lost)).into()));
        }
    }
}

/// The same error for another request.
fn again(error: &ExecError) -> ExecError {
    match error {
        ExecError::DeviceLost(what) => ExecError::DeviceLost(what.clone()),
        ExecError::OutOfMemory(what) => ExecError::OutOfMemory(what.clone()),
        ExecError::Device(what) => ExecError::Device(what.clone()),
        other => ExecError::Device(other.to_string()),
    }
}
