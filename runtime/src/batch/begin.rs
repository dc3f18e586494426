//! How a request begins: with rows that were computed for others, as far as there are any.
//!
//! They come from the slot of a running request, or from pages that are kept. Whoever begins like a request that is just
//! reading its prompt waits for those rows instead of computing them too, so that choices of one prompt read it once.
//! Invariant: only rows that do not depend on what follows them are shared, whole blocks of the mask and never one that is
//! being decoded, so an answer is the same to the bit; at least the row that decides the first token is computed.

use std::sync::atomic::Ordering;

use super::Update;
use super::pages::{PAGE, Pages, Shelf};
use super::worker::{Running, Seated, Worker};
use crate::decode::policy::Attention;
use crate::decode::{DecodeError, Moment, Noise, Resolved, Sequence};
use crate::exec::{CacheRow, ExecError, Executor};
use crate::session::{Event, common};

/// Where pages of a model lie, from slot `first` on.
///
/// # Errors
/// Why there are none.
pub(super) fn shelf(
    executor: &dyn Executor,
    resolved: &Resolved,
    rows: usize,
    first: usize,
) -> Result<Shelf, &'static str> {
    if rows == 0 {
        return Err("it was turned off");
    }
    let unit = executor.copy_unit().filter(|_| resolved.policy.attention != Attention::Full);
    let unit = unit.ok_or("with full attention every row depends on those behind it")?;
    Shelf::new(rows, first, unit, executor.max_seq()).ok_or("a page would be longer than a sequence may be")
}

/// Rows that a request may begin with.
enum Begins {
    /// So many, those of another slot.
    Like { slot: usize, rows: usize },
    /// Those of pages.
    Pages(Vec<CacheRow>),
    /// Another request is about to compute them.
    Later,
}

impl Worker {
    /// Starts the requests that have slots, but for those that wait for rows of another.
    pub(super) fn begin(&mut self) {
        for seated in std::mem::take(&mut self.seated) {
            match self.begins(&seated) {
                Begins::Later => self.seated.push(seated),
                begins => self.start(seated, &begins),
            }
        }
    }

    /// Where most rows are that a request may begin with.
    fn begins(&mut self, seated: &Seated) -> Begins {
        let (prompt, block) = (seated.told.call.prompt(), seated.resolved.policy.block);
        let alike = |ids: &[i32]| common(prompt, ids).min(seated.shared) / block * block;
        // With guidance the rows of a prompt are in two slots, one of them masked.
        let others = || self.running.iter().filter(|other| other.slots.len() == 1);
        let live = others().map(|other| (alike(other.sequence.stored()), other.slots[0])).max_by_key(|(rows, _)| *rows);
        let (live, slot) = live.unwrap_or((0, 0));
        // Who goes first does not wait for who goes last.
        let before = others().filter(|other| other.priority <= seated.priority);
        let coming = before.map(|other| alike(other.sequence.prefilled())).max().unwrap_or(0);
        let found = self.pages.as_mut().map_or_else(Vec::new, |pages| pages.find(&prompt[..seated.shared]));
        let kept = found.len() * self.page();
        let best = live.max(kept);
        if coming > best && (coming == seated.shared || coming - best >= PAGE) {
            Begins::Later
        } else if live >= kept {
            Begins::Like { slot, rows: live }
        } else {
            Begins::Pages(found)
        }
    }

    /// Tokens of a page that is kept.
    fn page(&self) -> usize {
        self.pages.as_ref().map_or(0, Pages::page)
    }

    /// Copies what a request begins with and lets it run.
    fn start(&mut self, seated: Seated, begins: &Begins) {
        let Seated { mut told, resolved, max_new, priority, slots, .. } = seated;
        let noise = Noise::Seeded(resolved.policy.seed);
        let started = self.fetch(begins, slots[0]).map_err(DecodeError::from).and_then(|held| {
            Sequence::new(resolved, &*self.executor, told.call.prompt(), max_new, held, slots.clone(), noise)
        });
        match started {
            Ok(mut sequence) => {
                let reused = sequence.stored().len();
                self.shared.reused_tokens.fetch_add(reused as u64, Ordering::Relaxed);
                let listener = &mut told.listener;
                told.call.begin(&mut |event: Event<'_>, tokens| listener(Update::Event { event, tokens }));
                sequence.want(&mut |moment: Moment<'_>| told.observe(moment));
                // It owes as little as anybody, and is owed nothing.
                let class = self.running.iter().filter(|other| other.priority == priority);
                let used = class.map(|other| other.used).min().unwrap_or(0);
                self.running.push(Running { told, sequence, slots, priority, used, kept: Some(0) });
            }
            Err(error) => {
                self.free.extend(slots);
                told.end(Err(error.into()));
            }
        }
    }

    /// Copies rows to the beginning of slot `to`, and says how many.
    fn fetch(&mut self, begins: &Begins, to: usize) -> Result<usize, ExecError> {
        let (page, to) = (self.page(), |row: usize| CacheRow { slot: to, row });
        match begins {
            Begins::Like { rows: 0, .. } | Begins::Later => Ok(0),
            &Begins::Like { slot, rows } => {
                self.executor.copy_rows(CacheRow { slot, row: 0 }, to(0), rows)?;
                Ok(rows)
            }
            Begins::Pages(pages) => {
                for (i, from) in pages.iter().enumerate() {
                    self.executor.copy_rows(*from, to(i * page), page)?;
                }
                Ok(pages.len() * page)
            }
        }
    }

    /// Keeps the pages that a request in a slot of its own has filled.
    ///
    /// # Errors
    /// What the executor reports.
    pub(super) fn keep(&mut self, running: &mut Running) -> Result<(), ExecError> {
        let (stored, executor) = (running.sequence.stored(), &mut self.executor);
        if let (Some(pages), Some(kept), &[slot]) = (&mut self.pages, running.kept, &running.slots[..])
            && stored.len() / pages.page() > kept
        {
            let rows = pages.page();
            let copy = |row: usize, place: CacheRow| executor.copy_rows(CacheRow { slot, row }, place, rows);
            running.kept = pages.keep(stored, kept, copy)?;
            self.shared.prefix_rows.store(pages.rows(), Ordering::Relaxed);
        }
        Ok(())
    }
}
