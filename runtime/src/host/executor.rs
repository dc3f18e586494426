//! The executor of an export: caches, masks and angles here, products elsewhere.

use dlx_ir::Mask;
use half::f16;

use super::manifest::{Entry, EntryKind, Manifest, Role};
use crate::exec::{CacheRow, ExecError, Executor, Limits, RowStats, Span, rows_of};
use crate::mapped::Mapped;

/// Runs the graphs of an export, usually in a library of whoever made the device.
pub trait Backend {
    /// Runs an entry. Inputs and outputs are in the order of the entry's ports, row-major and little-endian; outputs have their
    /// lengths already.
    ///
    /// # Errors
    /// Whatever the library says.
    fn run(&mut self, entry: &Entry, inputs: &[Vec<u8>], outputs: &mut [Vec<u8>]) -> Result<(), String>;
}

/// An [`Executor`] over a [`Backend`].
pub struct HostExecutor {
    manifest: Manifest,
    mask: Mask,
    embeddings: Mapped,
    backend: Box<dyn Backend + Send>,
    buckets: Vec<usize>,
    /// Per slot, keys and values of each layer in turn.
    slots: Vec<Vec<Vec<u8>>>,
    /// Hidden states of the last step, a row after the other.
    hidden: Vec<u8>,
    live: usize,
}

/// Bytes of an f16.
const F16: usize = 2;

impl HostExecutor {
    pub(super) fn new(manifest: Manifest, embeddings: Mapped, backend: Box<dyn Backend + Send>) -> Self {
        let steps = manifest.entries.iter().filter(|e| e.kind == EntryKind::Step);
        let mut buckets: Vec<usize> = steps.map(|e| e.rows).collect();
        buckets.sort_unstable();
        let mask = manifest.model.mask.parse().unwrap_or(Mask::Full);
        let (slots, hidden) = (Vec::new(), Vec::new());
        let mut made = HostExecutor { manifest, mask, embeddings, backend, buckets, slots, hidden, live: 0 };
        made.slots = vec![made.slot()];
        made
    }

    /// Empty caches of one sequence.
    fn slot(&self) -> Vec<Vec<u8>> {
        let m = &self.manifest.model;
        vec![vec![0; m.kv_heads * m.head_dim * m.max_seq * F16]; 2 * m.layers]
    }

    fn entry(&self, kind: EntryKind, rows: usize) -> Result<Entry, ExecError> {
        let found = self.manifest.entries.iter().filter(|e| e.kind == kind && e.rows >= rows).min_by_key(|e| e.rows);
        found.cloned().ok_or(ExecError::NoEntry(if kind == EntryKind::Step { "step" } else { "head" }))
    }

    fn call(&mut self, entry: &Entry, inputs: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, ExecError> {
        let mut outputs: Vec<Vec<u8>> = entry.outputs.iter().map(|port| vec![0; port.bytes()]).collect();
        let failed = |e| ExecError::Device(format!("{}: {e}", entry.name));
        self.backend.run(entry, inputs, &mut outputs).map_err(failed)?;
        for (port, made) in entry.outputs.iter().zip(&outputs) {
            if made.len() != port.bytes() {
                return Err(failed(format!("gave {} bytes for `{}`, not {}", made.len(), port.name, port.bytes())));
            }
        }
        Ok(outputs)
    }

    /// Feeds one span and keeps its keys, values and hidden states.
    fn span(&mut self, span: &Span<'_>) -> Result<(), ExecError> {
        let entry = self.entry(EntryKind::Step, span.ids.len())?;
        let inputs = entry.inputs.iter().map(|port| match port.role {
            Role::Embeddings => self.embedded(span, entry.rows),
            Role::RopeCos => self.angles(span, entry.rows, libm::cos, 1.0),
            Role::RopeSin => self.angles(span, entry.rows, libm::sin, -1.0),
            Role::Mask => self.masked(span, entry.rows, port.masked_value.unwrap_or(-10000.0)),
            _ => self.slots[span.slot][cache(port.role, port.layer)].clone(),
        });
        let inputs: Vec<Vec<u8>> = inputs.collect();
        let outputs = self.call(&entry, &inputs)?;
        let hidden = self.manifest.model.hidden * F16;
        for (port, made) in entry.outputs.iter().zip(outputs) {
            match port.role {
                Role::Hidden => self.hidden.extend_from_slice(&made[..span.ids.len() * hidden]),
                _ => self.keep(span, entry.rows, port.role, port.layer, &made),
            }
        }
        Ok(())
    }

    /// Writes the rows of a span to its slot. Keys lie with rows along the last dimension, values along the middle one.
    fn keep(&mut self, span: &Span<'_>, bucket: usize, role: Role, layer: Option<usize>, made: &[u8]) {
        let m = &self.manifest.model;
        let (rows, at, max_seq) = (span.ids.len() * F16, span.at * F16, m.max_seq * F16);
        let cache = &mut self.slots[span.slot][cache(role, layer)];
        if role == Role::KNew {
            for (cache, made) in cache.chunks_exact_mut(max_seq).zip(made.chunks_exact(bucket * F16)) {
                cache[at..at + rows].copy_from_slice(&made[..rows]);
            }
        } else {
            let hd = m.head_dim;
            for (cache, made) in cache.chunks_exact_mut(max_seq * hd).zip(made.chunks_exact(bucket * F16 * hd)) {
                cache[at * hd..(at + rows) * hd].copy_from_slice(&made[..rows * hd]);
            }
        }
    }

    /// Rows that only fill up repeat the first one.
    fn embedded(&self, span: &Span<'_>, rows: usize) -> Vec<u8> {
        let width = self.manifest.model.hidden * F16;
        let id = |row: usize| *span.ids.get(row).unwrap_or(&span.ids[0]) as usize;
        (0..rows).flat_map(|row| &self.embeddings.bytes()[id(row) * width..][..width]).copied().collect()
    }

    fn angles(&self, span: &Span<'_>, rows: usize, of: fn(f64) -> f64, first: f64) -> Vec<u8> {
        let m = &self.manifest.model;
        let half = m.head_dim / 2;
        let base = |i: usize| libm::pow(f64::from(m.rope_theta), -(i as f64) / half as f64);
        let bases: Vec<f64> = (0..half).map(base).collect();
        let mut out = Vec::with_capacity(rows * m.head_dim * F16);
        for row in 0..rows {
            let position = f64::from(*span.pos.get(row).unwrap_or(&span.pos[0]));
            let values: Vec<f64> = bases.iter().map(|b| of(position * b)).collect();
            let both = values.iter().map(|v| first * v).chain(values.iter().copied());
            // By way of f32: what `half` makes of an f64 depends on the processor, and is not always the nearest.
            out.extend(both.flat_map(|v| f16::from_f32(v as f32).to_le_bytes()));
        }
        out
    }

    /// What is added to the scores: cache rows first, then the rows of the step.
    fn masked(&self, span: &Span<'_>, rows: usize, no: f32) -> Vec<u8> {
        let (max_seq, live) = (self.manifest.model.max_seq, span.ids.len());
        let (yes, no) = (f16::ZERO.to_le_bytes(), f16::from_f32(no).to_le_bytes());
        let new = span.at..span.at + live;
        let mut out = Vec::with_capacity(rows * (max_seq + rows) * F16);
        for row in 0..rows {
            let row = span.at + if row < live { row } else { 0 };
            let sees = |key: usize| key >= span.from && self.mask.sees(row, key);
            let cached = (0..max_seq).map(|key| key < span.visible && !new.contains(&key) && sees(key));
            let fresh = (0..rows).map(|n| n < live && sees(span.at + n));
            out.extend(cached.chain(fresh).flat_map(|sees| if sees { yes } else { no }));
        }
        out
    }

    /// Calls `take` with the number and the logits of each of these rows of the last step.
    fn each_logits(&mut self, rows: &[usize], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), ExecError> {
        rows_of(rows, self.live)?;
        let width = self.manifest.model.hidden * F16;
        let largest = self.manifest.entries.iter().filter(|e| e.kind == EntryKind::Head).map(|e| e.rows).max();
        let piece = largest.ok_or(ExecError::NoEntry("head"))?;
        for (n, part) in rows.chunks(piece).enumerate() {
            let entry = self.entry(EntryKind::Head, part.len())?;
            let all = (0..entry.rows).map(|i| part.get(i).unwrap_or(&part[0]));
            let input = all.flat_map(|row| &self.hidden[row * width..][..width]).copied().collect();
            let output = self.call(&entry, &[input])?.pop().unwrap_or_default();
            let logits: Vec<f32> = output.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let vocab = self.manifest.model.vocab;
            for (i, logits) in logits.chunks_exact(vocab).take(part.len()).enumerate() {
                take(n * piece + i, logits);
            }
        }
        Ok(())
    }
}

/// Where a layer's keys or values are in a slot.
fn cache(role: Role, layer: Option<usize>) -> usize {
    2 * layer.unwrap_or(0) + usize::from(matches!(role, Role::VCache | Role::VNew))
}

/// What a head says of a row.
fn stats(logits: &[f32], ban: i32) -> RowStats {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, v) in logits.iter().enumerate() {
        if *v > best.0 && id as i32 != ban {
            best = (*v, id);
        }
    }
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut second = f32::NEG_INFINITY;
    let (mut sum, mut weighted) = (0.0, 0.0);
    for (id, v) in logits.iter().enumerate() {
        let below = f64::from(v - top);
        let e = libm::exp(below);
        (sum, weighted) = (sum + e, weighted + e * below);
        if id != best.1 {
            second = second.max(*v);
        }
    }
    let of = |v: f32| libm::exp(f64::from(v - top)) / sum;
    RowStats {
        best: best.1 as i32,
        prob: of(best.0) as f32,
        margin: (of(best.0) - of(second)) as f32,
        entropy: (libm::log(sum) - weighted / sum) as f32,
    }
}

impl Executor for HostExecutor {
    fn max_seq(&self) -> usize {
        self.manifest.model.max_seq
    }

    fn vocab(&self) -> usize {
        self.manifest.model.vocab
    }

    fn step_buckets(&self) -> &[usize] {
        &self.buckets
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        if slots > self.slots.len() {
            let one = self.slot();
            self.slots = vec![one; slots];
        }
        Ok(())
    }

    fn copy_unit(&self) -> Option<usize> {
        self.mask.prefix_unit()
    }

    fn copy_rows(&mut self, from: CacheRow, to: CacheRow, rows: usize) -> Result<(), ExecError> {
        self.limits().check_copy(self.mask.prefix_unit(), self.copy_unit(), [from, to], rows)?;
        let m = &self.manifest.model;
        for index in 0..2 * m.layers {
            // Rows along the last dimension are an element each, along the middle one as wide as a head.
            let row = if index % 2 == 0 { F16 } else { m.head_dim * F16 };
            let source = self.slots[from.slot][index].clone();
            let (at, to_at, bytes) = (from.row * row, to.row * row, rows * row);
            let lines = self.slots[to.slot][index].chunks_exact_mut(m.max_seq * row);
            for (line, source) in lines.zip(source.chunks_exact(m.max_seq * row)) {
                line[to_at..to_at + bytes].copy_from_slice(&source[at..at + bytes]);
            }
        }
        Ok(())
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        self.limits().bucket_of(spans)?;
        self.hidden.clear();
        self.live = 0;
        for span in spans {
            self.span(span)?;
        }
        self.live = spans.iter().map(|s| s.ids.len()).sum();
        Ok(())
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        if out.len() != rows.len() {
            return Err(ExecError::Shape(format!("{} rows, but room for {}", rows.len(), out.len())));
        }
        let ban = self.manifest.decode.mask_id;
        self.each_logits(rows, &mut |n, logits| out[n] = stats(logits, ban))
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        let vocab = self.vocab();
        if out.len() != rows.len() * vocab {
            return Err(ExecError::Shape(format!("{} rows of {vocab}, but room for {}", rows.len(), out.len())));
        }
        self.each_logits(rows, &mut |n, logits| out[n * vocab..][..vocab].copy_from_slice(logits))
    }
}

impl HostExecutor {
    fn limits(&self) -> Limits<'_> {
        let (max_seq, vocab) = (self.manifest.model.max_seq, self.manifest.model.vocab);
        Limits { buckets: &self.buckets, max_seq, slots: self.slots.len(), vocab }
    }
}
