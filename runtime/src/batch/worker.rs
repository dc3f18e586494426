//! The thread that owns the executor: admits requests, runs rounds, lets requests go.
//!
//! Invariant: between two steps every request that was cancelled, is overdue, has nobody listening or has ended gives its
//! slots back. A slot belongs to one request at a time. An error of the executor ends those that took part in the step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::turns::{Want, choose};
use super::{Job, Listener, Place, Shared, Update};
use crate::decode::{Active, DecodeError, Driver, Moment, Noise, Observer, Resolved, Sequence};
use crate::exec::{ExecError, Executor};
use crate::session::{Call, SessionError};
use dlx_ir::MAX_SPANS;

/// See the module.
pub(super) struct Worker {
    executor: Box<dyn Executor + Send>,
    prefill_rows: usize,
    shared: Arc<Shared>,
    free: Vec<usize>,
    slots: usize,
    waiting: VecDeque<Waiting>,
    /// In the order in which they are served.
    running: Vec<Running>,
}

/// A request and who is told of it.
struct Told {
    call: Call,
    listener: Listener,
    _place: Place,
}

/// A request that waits for slots.
struct Waiting {
    told: Told,
    resolved: Resolved,
    max_new: usize,
}

/// A request in slots of its own.
struct Running {
    told: Told,
    sequence: Sequence,
    slots: Vec<usize>,
    credit: i64,
}

/// The worker is gone: no handle sends it anything more.
impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
    }
}

impl Told {
    fn observe(&mut self, moment: Moment<'_>) -> std::ops::ControlFlow<crate::decode::FinishReason> {
        let listener = &mut self.listener;
        self.call.observe(moment, &mut |event, tokens| listener(Update::Event { event, tokens }))
    }

    /// Tells what a decode made, or why there is none.
    fn end(self, ended: Result<Ended, SessionError>) {
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
enum Ended {
    Decoded(crate::decode::Decoded),
    /// Before it was given slots.
    Never(crate::decode::FinishReason),
}

impl Worker {
    pub(super) fn new(
        executor: Box<dyn Executor + Send>,
        slots: usize,
        prefill_rows: usize,
        shared: Arc<Shared>,
    ) -> Self {
        let free = (0..slots).rev().collect();
        Self { executor, prefill_rows, shared, free, slots, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Runs until every handle is gone and every request has ended, or the device is lost.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut open = true;
        while open || !self.running.is_empty() || !self.waiting.is_empty() {
            while open {
                let idle = self.running.is_empty() && self.waiting.is_empty();
                let job = if idle { jobs.recv().map_err(|_| TryRecvError::Disconnected) } else { jobs.try_recv() };
                match job {
                    Ok(job) => self.arrive(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            self.leave();
            self.admit();
            self.count();
            let ran = self.round();
            self.count();
            if let Err(lost) = ran {
                self.stop(&lost);
                return;
            }
        }
    }

    /// Checks a request; what cannot be answered ends before anybody waits for it.
    fn arrive(&mut self, job: Job) {
        let Job { call, policy, max_new, mut listener, place } = job;
        let checked = policy.resolve(&*self.executor).map_err(DecodeError::from).and_then(|resolved| {
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
            Sequence::new(resolved.clone(), &*self.executor, call.prompt(), max_new, 0, slots, noise)?;
            Ok(resolved)
        });
        match checked {
            Ok(resolved) => {
                if listener(Update::Waiting).is_continue() {
                    let told = Told { call, listener, _place: place };
                    self.waiting.push_back(Waiting { told, resolved, max_new });
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

    /// Gives free slots to those who have waited longest.
    fn admit(&mut self) {
        while self.waiting.front().is_some_and(|w| w.resolved.slots() <= self.free.len()) {
            let Some(Waiting { mut told, resolved, max_new }) = self.waiting.pop_front() else { return };
            let slots = self.free.split_off(self.free.len() - resolved.slots());
            let noise = Noise::Seeded(resolved.policy.seed);
            let prompt = told.call.prompt();
            match Sequence::new(resolved, &*self.executor, prompt, max_new, 0, slots.clone(), noise) {
                Ok(mut sequence) => {
                    let listener = &mut told.listener;
                    told.call.begin(&mut |event, tokens| listener(Update::Event { event, tokens }));
                    sequence.want(&mut |moment| told.observe(moment));
                    self.running.push(Running { told, sequence, slots, credit: 0 });
                }
                Err(error) => {
                    self.free.extend(slots);
                    told.end(Err(error.into()));
                }
            }
        }
    }

    /// Runs one step of those whose turn it is.
    ///
    /// # Errors
    /// A lost device, after which nothing can be run.
    fn round(&mut self) -> Result<(), ExecError> {
        let spans = |sequence: &Sequence| sequence.wanted().map_or(0, |pass| pass.spans().len());
        let rows = |sequence: &Sequence| sequence.wanted().map_or(0, |pass| pass.spans().map(|s| s.ids.len()).sum());
        let wants = self.running.iter().map(|Running { sequence, credit, .. }| Want {
            rows: rows(sequence),
            spans: spans(sequence),
            credit: *credit,
        });
        let mut wants: Vec<Want> = wants.collect();
        let largest = self.executor.step_buckets().last().copied().unwrap_or(0);
        let chosen = choose(&mut wants, largest, MAX_SPANS);
        let served: usize = chosen.iter().map(|&i| wants[i].rows).sum();
        for (running, want) in self.running.iter_mut().zip(&wants) {
            running.credit = want.credit;
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
        match outcome {
            Ok(_) => {
                self.shared.steps.fetch_add(u64::from(served > 0), Ordering::Relaxed);
                self.shared.rows.fetch_add(served as u64, Ordering::Relaxed);
                self.running.extend(now.into_iter().map(|(_, running)| running));
                Ok(())
            }
            Err(error) => {
                for (_, running) in now {
                    self.free.extend(running.slots);
                    running.told.end(Err(DecodeError::from(again(&error)).into()));
                }
                if matches!(error, ExecError::DeviceLost(_)) { Err(error) } else { Ok(()) }
            }
        }
    }

    fn count(&self) {
        self.shared.running.store(self.running.len(), Ordering::Relaxed);
        self.shared.slots_taken.store(self.slots - self.free.len(), Ordering::Relaxed);
    }

    /// Ends every request with what made running on impossible.
    fn stop(&mut self, lost: &ExecError) {
        self.shared.stopped.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|w| w.told);
        let running = std::mem::take(&mut self.running).into_iter().map(|r| r.told);
        for told in running.chain(waiting) {
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
