//! An executor without a model for unit tests: logits are a hash of what stands in the sequence.
//!
//! Invariant: it checks every call against the executor's contract and records it. A row's logits depend on its position
//! and on all tokens that the row may attend, so decoding with a wrong cache shows in the tokens. The last token is
//! never likely unless scripted, which makes it a stop id.

use std::collections::BTreeMap;

use crate::exec::{CacheRow, ExecError, Executor, ReadRow, RowStats, Span};
use dlx_ir::Mask;

/// A recorded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A span of a step; a step of several is recorded as several.
    Step {
        slot: usize,
        at: usize,
        len: usize,
        visible: usize,
    },
    Head(Vec<usize>),
    Logits(Vec<usize>),
}

/// The mock; see the module.
pub(crate) struct Mock {
    max_seq: usize,
    vocab: usize,
    buckets: Vec<usize>,
    mask: Mask,
    /// Logits of every row are divided by this.
    flatness: f32,
    /// Tokens that the rows of each slot were made from.
    caches: Vec<Vec<i32>>,
    /// For each row of the last step: its position, and a hash of what it saw.
    last: Vec<(usize, u64)>,
    /// Token and logit that a row at this rotary position is made to prefer.
    scripted: BTreeMap<usize, (i32, f32)>,
    calls_left: usize,
    /// Rows of logits that are shown at the same time, the last ones first.
    pub(crate) readers: usize,
    /// All calls so far.
    pub(crate) calls: Vec<Call>,
}

impl Mock {
    pub(crate) fn new(max_seq: usize, vocab: usize, buckets: &[usize]) -> Self {
        Self {
            max_seq,
            vocab,
            buckets: buckets.to_vec(),
            mask: Mask::Full,
            flatness: 1.0,
            caches: vec![vec![-1; max_seq]],
            last: Vec::new(),
            scripted: BTreeMap::new(),
            calls_left: usize::MAX,
            readers: 1,
            calls: Vec::new(),
        }
    }

    /// The same mock whose rows see no more than this mask lets them.
    pub(crate) fn masked(self, mask: Mask) -> Self {
        Self { mask, ..self }
    }

    /// The same mock, less sure of everything.
    pub(crate) fn flat(self, flatness: f32) -> Self {
        Self { flatness, ..self }
    }

    /// Makes the row at `position` prefer `token` with near certainty, even the mask.
    pub(crate) fn say(&mut self, position: usize, token: i32) {
        self.say_with(position, token, 40.0);
    }

    /// Like [`Mock::say`] with a logit of choice.
    pub(crate) fn say_with(&mut self, position: usize, token: i32, logit: f32) {
        self.scripted.insert(position, (token, logit));
    }

    /// Reports a device error after that many calls.
    pub(crate) fn fail_after(&mut self, calls: usize) {
        self.calls_left = calls;
    }

    fn count(&mut self, call: Call) -> Result<(), ExecError> {
        self.calls.push(call);
        self.calls_left = self.calls_left.checked_sub(1).ok_or_else(|| ExecError::Device("scripted".into()))?;
        Ok(())
    }

    fn row(&self, row: usize) -> Vec<f32> {
        let (position, seen) = self.last[row];
        let mut logits: Vec<f32> =
            (0..self.vocab as u64).map(|id| (mix(seen ^ (id << 32)) % 1000) as f32 / 100.0 / self.flatness).collect();
        logits[0] = logits[0].min(1.0);
        logits[self.vocab - 1] = -40.0;
        if let Some(&(token, logit)) = self.scripted.get(&position) {
            logits[token as usize] = logit;
        }
        logits
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Executor for Mock {
    fn max_seq(&self) -> usize {
        self.max_seq
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn step_buckets(&self) -> &[usize] {
        &self.buckets
    }

    fn slots(&self) -> usize {
        self.caches.len()
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        if slots > self.caches.len() {
            self.caches = vec![vec![-1; self.max_seq]; slots];
        }
        Ok(())
    }

    fn copy_unit(&self) -> Option<usize> {
        self.mask.prefix_unit()
    }

    fn copy_rows(&mut self, from: CacheRow, to: CacheRow, rows: usize) -> Result<(), ExecError> {
        let copy = self.caches[from.slot][from.row..from.row + rows].to_vec();
        assert!(copy.iter().all(|&id| id >= 0), "copies rows that were never written");
        let end = (to.row + rows).next_multiple_of(self.copy_unit().unwrap()).min(self.max_seq);
        self.caches[to.slot][to.row..end].fill(-1);
        self.caches[to.slot][to.row..to.row + rows].copy_from_slice(&copy);
        Ok(())
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        let rows: usize = spans.iter().map(|s| s.ids.len()).sum();
        assert!(rows <= *self.buckets.last().unwrap());
        self.last.clear();
        for (i, span) in spans.iter().enumerate() {
            let &Span { slot, ids, pos, at, from, visible } = span;
            let apart = |s: &Span<'_>| s.slot != slot || s.at + s.ids.len() <= at || at + ids.len() <= s.at;
            assert!(spans[..i].iter().all(apart), "a row is written once");
            let end = at + ids.len();
            assert!(!ids.is_empty() && end <= visible && visible <= self.max_seq);
            assert!(pos.iter().enumerate().all(|(row, &pos)| pos as usize == at - from + row));
            self.caches[slot][at..end].copy_from_slice(ids);
        }
        for &Span { slot, ids, at, from, visible, .. } in spans {
            let end = at + ids.len();
            let seen = &self.caches[slot][from..visible];
            assert!(seen.iter().all(|&id| id >= 0), "attends rows that were never written");
            let hash = |row: usize| {
                let seen = &seen[..self.mask.end(row).clamp(from, visible) - from];
                seen.iter().fold((row - from) as u64, |h, &id| mix(h ^ (id as u64)))
            };
            self.last.extend((at..end).map(|row| (row - from, hash(row))));
            self.count(Call::Step { slot, at, len: ids.len(), visible })?;
        }
        Ok(())
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        assert_eq!(rows.len(), out.len());
        for (&row, out) in rows.iter().zip(out) {
            let logits = self.row(row);
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let best = logits.iter().position(|&logit| logit >= max || logit.is_nan()).unwrap();
            let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
            let entropy = logits.iter().map(|logit| (logit - max).exp() / sum).map(|p| -p * (p + 1e-20).ln()).sum();
            *out = RowStats { best: best as i32, prob: 1.0 / sum, margin: 1.0 / sum, entropy };
        }
        self.count(Call::Head(rows.to_vec()))
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        assert_eq!(out.len(), rows.len() * self.vocab);
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.vocab)) {
            out.copy_from_slice(&self.row(row));
        }
        self.count(Call::Logits(rows.to_vec()))
    }
    fn readers(&self) -> usize {
        self.readers
    }

    fn read_logits(&mut self, rows: &[usize], _: &mut Vec<f32>, read: ReadRow<'_>) -> Result<(), ExecError> {
        let logits: Vec<Vec<f32>> = rows.iter().map(|&row| self.row(row)).collect();
        let readers = self.readers;
        std::thread::scope(|scope| {
            for reader in 0..readers {
                let own = logits.iter().enumerate().rev().filter(move |(i, _)| i % readers == reader);
                scope.spawn(move || own.for_each(|(i, row)| read(reader, i, row)));
            }
        });
        self.count(Call::Logits(rows.to_vec()))
    }
}
