//! What the ops of [`Level::State`](crate::Level::State) do to the states, which live from call to call.

use super::data::{Tensor, round_all};
use super::model::attend;
use super::not_computed;
use super::tensor::arg;
use crate::arena::StateId;
use crate::attr::Mask;
use crate::module::Module;
use crate::op::Op;
use crate::quant::int8_rounded;
use crate::spans::SpanRows;
use crate::types::{DType, Type};
use std::collections::BTreeMap;

/// The states of a module; caches hold a number of slots.
pub(super) struct States<'m> {
    module: &'m Module,
    slots: usize,
    held: BTreeMap<StateId, Vec<f32>>,
}

/// The states that one node names.
pub(super) struct Bound<'s, 'm> {
    states: &'s mut States<'m>,
    ids: &'s [StateId],
    /// Rows of the first one, of a slot if it is a cache.
    rows: usize,
    /// Features of a row.
    width: usize,
}

impl<'m> States<'m> {
    pub(super) fn new(module: &'m Module, slots: usize) -> Self {
        States { module, slots, held: BTreeMap::new() }
    }

    /// The states of a node, zeroed when they are met for the first time.
    pub(super) fn bind<'s>(&'s mut self, ids: &'s [StateId]) -> Result<Bound<'s, 'm>, String> {
        for &s in ids {
            let ty = &self.module.states[s].ty;
            let slots = if ty.dims.len() == 3 { self.slots } else { 1 };
            let len = ty.elements().and_then(|n| n.checked_mul(slots)).ok_or("a state needs static dimensions")?;
            self.held.entry(s).or_insert_with(|| vec![0.0; len]);
        }
        let first = ids.first().ok_or("a state is missing")?;
        let ty = &self.module.states[*first].ty;
        let rows = ty.shape().and_then(|s| s.first().copied()).ok_or("a state needs rows")?;
        let width = ty.elements().unwrap_or(0) / rows;
        Ok(Bound { states: self, ids, rows, width })
    }
}

impl Bound<'_, '_> {
    /// Evaluates an op of this level.
    pub(super) fn compute(&mut self, op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        match op {
            Op::CachedAttention { head_dim, mask } => self.cached_attention(args, *head_dim as usize, *mask),
            Op::KvWrite {} => self.kv_write(args),
            Op::StoreRows {} => self.store_rows(args),
            Op::TakeRows {} => self.take_rows(args),
            other => not_computed(other),
        }
    }

    fn ty(&self, s: usize) -> &Type {
        &self.states.module.states[self.ids[s]].ty
    }

    /// What a state holds of a row: int8 has one scale per head, so a state's last dimension.
    fn as_held(&self, s: usize, row: &[f32]) -> Vec<f32> {
        let (dtype, head_dim) = (self.ty(s).dtype, self.ty(s).shape().and_then(|d| d.last().copied()).unwrap_or(1));
        if dtype == DType::CACHE_Q8 { int8_rounded(row, head_dim) } else { round_all(row, dtype) }
    }

    fn held(&self, s: usize) -> &[f32] {
        &self.states.held[&self.ids[s]]
    }

    fn held_mut(&mut self, s: usize) -> &mut [f32] {
        self.states.held.get_mut(&self.ids[s]).expect("bound states are held")
    }

    pub(super) fn kv_write(&mut self, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let width = self.width;
        for span in self.spans(arg(args, 2)?, args[0].shape[0])? {
            let first = (span.slot * self.rows + span.at) * width;
            for (s, x) in args.iter().take(2).enumerate() {
                let new = &x.floats()?[span.rows.start * width..span.rows.end * width];
                for (i, row) in new.chunks(width).enumerate() {
                    let row = self.as_held(s, row);
                    self.held_mut(s)[first + i * width..][..width].copy_from_slice(&row);
                }
            }
        }
        Ok(vec![])
    }

    pub(super) fn store_rows(&mut self, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let x = arg(args, 0)?.floats()?;
        if x.len() > self.held(0).len() {
            return Err(format!("{} rows do not fit a state of {}", args[0].shape[0], self.rows));
        }
        let x = self.as_held(0, x);
        self.held_mut(0)[..x.len()].copy_from_slice(&x);
        Ok(vec![])
    }

    pub(super) fn take_rows(&self, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let picked = arg(args, 0)?.ints()?.iter().map(|&r| {
            let row = usize::try_from(r).ok().filter(|r| *r < self.rows).ok_or(format!("there is no row {r}"))?;
            Ok(&self.held(0)[row * self.width..][..self.width])
        });
        let data = picked.collect::<Result<Vec<_>, String>>()?.concat();
        Ok(vec![Tensor::f32(&[args[0].shape[0], self.width], data)])
    }

    pub(super) fn cached_attention(
        &self,
        args: &[&Tensor],
        head_dim: usize,
        mask: Mask,
    ) -> Result<Vec<Tensor>, String> {
        let (q, features) = (arg(args, 0)?.floats()?, args[0].cols());
        let (k, v) = (self.held(0), self.held(1));
        let mut out = vec![0.0; q.len()];
        for span in self.spans(arg(args, 1)?, args[0].shape[0])? {
            let here = span.rows.start * features..span.rows.end * features;
            let first = span.slot * self.rows;
            let used = first * self.width..(first + span.visible) * self.width;
            let q = Tensor::f32(&[span.rows.len(), features], q[here.clone()].to_vec());
            let sees = |i: usize, j: usize| j >= span.from && j < mask.end(span.at + i);
            let rows = attend(&q, &k[used.clone()], &v[used], self.width, head_dim, &sees)?;
            out[here].copy_from_slice(rows.floats()?);
        }
        Ok(vec![Tensor::f32(&args[0].shape, out)])
    }

    /// The spans of a step, each inside a slot of the caches.
    fn spans(&self, table: &Tensor, step_rows: usize) -> Result<Vec<SpanRows>, String> {
        let rows = self.rows;
        let spans = SpanRows::read(table.ints()?, step_rows)?;
        for s in &spans {
            if s.slot >= self.states.slots {
                return Err(format!("slot {} is beyond the cache's {} slots", s.slot, self.states.slots));
            }
            if s.at + s.rows.len() > rows || s.visible > rows {
                return Err(format!(
                    "rows {}+{} with {} visible are beyond the cache's {rows} rows",
                    s.at,
                    s.rows.len(),
                    s.visible
                ));
            }
        }
        Ok(spans)
    }
}
