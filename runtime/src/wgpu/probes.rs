//! What is seen of the values inside a step: by the self-test, and by those who look for a difference.

use super::executor::{Source, WgpuExecutor, floats};
use super::plan::{Entry, Range};
use crate::exec::{ExecError, Executor, HIDDEN, Limits, See, Span};
use crate::selftest::Probes;
use dlx_ir::EntryKind;

impl WgpuExecutor {
    /// Runs a call in the step bucket of `rows` rows as far as [`dlx_ir::first_layer`] and gives the live rows
    /// of its value.
    ///
    /// # Errors
    /// No such bucket, or a call that does not fit it or the caches.
    pub fn probe_step(&mut self, rows: usize, spans: &[Span<'_>]) -> Result<Vec<f32>, ExecError> {
        Limits { buckets: &[rows], ..self.limits() }.bucket_of(spans)?;
        let entry = self.plan.entries.iter().position(|e| e.kind == EntryKind::Step && e.rows == rows);
        let entry = entry.ok_or(ExecError::NoEntry("step"))?;
        let first = self.plan.entries[entry].first_layer.ok_or(ExecError::NoEntry("first layer of a step"))?;
        self.record_step(entry, spans, self.plan.entries[entry].values[first].after)?;
        self.value(entry, first)
    }

    /// Runs a step dispatch by dispatch, since values take each other's place, and shows them in order. Every one costs a
    /// submit and a wait.
    pub(super) fn observe_step(&mut self, spans: &[Span<'_>], see: See<'_>) -> Result<(), ExecError> {
        let bucket = self.limits().bucket_of(spans)?;
        let entry = self.entry(EntryKind::Step, bucket).ok_or(ExecError::NoEntry("step"))?;
        self.record_step(entry, spans, 0)?;
        let mut ran = 0;
        for i in 0..self.plan.entries[entry].values.len() {
            let after = self.plan.entries[entry].values[i].after;
            self.encode(entry, ran..after);
            ran = after;
            let rows = self.value(entry, i)?;
            see(&self.plan.entries[entry].values[i].name, &rows);
        }
        self.encode(entry, ran..usize::MAX);
        if let Some(hidden) = self.plan.hidden {
            let largest = self.step_buckets().last().copied().unwrap_or(0).max(1);
            let bytes = self.plan.states[hidden].bytes / largest as u64 * self.live as u64;
            let rows = floats(&self.read(Source::State(hidden), &[Range { offset: 0, bytes }])?);
            see(HIDDEN, &rows);
        }
        Ok(())
    }

    /// The live rows of a value that has just been computed.
    fn value(&mut self, entry: usize, value: usize) -> Result<Vec<f32>, ExecError> {
        let Entry { rows, values, .. } = &self.plan.entries[entry];
        let Range { offset, bytes } = values[value].value;
        let range = Range { offset, bytes: bytes / *rows as u64 * self.live as u64 };
        Ok(floats(&self.read(Source::Arena, &[range])?))
    }
}

impl Probes for WgpuExecutor {
    /// Devices add in other orders than the CPU that recorded the numbers. Where activations become int8 codes, small
    /// differences decide which of two codes is nearer, and after two layers results differ by about as much as rounding
    /// to codes changes them at all: one or two parts in a hundred of the largest.
    fn tolerance(&self) -> f32 {
        if self.plan.kernels.iter().any(|k| k.role.starts_with("quantize")) { 5e-2 } else { 5e-3 }
    }

    fn blame(&self) -> String {
        format!(
            "the kernels of {}; update its driver, choose another --device, or use the cpu target",
            self.adapter().name
        )
    }

    /// The dispatches of each bucket are its own.
    fn whole_steps(&self) -> Vec<usize> {
        self.step_buckets().to_vec()
    }

    /// Every further layer rounds to codes again.
    fn depth_tolerance(&self) -> f32 {
        6.0 * self.tolerance()
    }

    fn whole_step(&mut self, rows: usize, span: Span<'_>) -> Result<(), ExecError> {
        Limits { buckets: &[rows], ..self.limits() }.bucket_of(&[span])?;
        let entry = self.plan.entries.iter().position(|e| e.kind == EntryKind::Step && e.rows == rows);
        self.record_step(entry.ok_or(ExecError::NoEntry("step"))?, &[span], usize::MAX)
    }

    fn first_layer(&mut self, rows: usize, span: Span<'_>) -> Result<Vec<f32>, ExecError> {
        let values = self.probe_step(rows, &[span])?;
        let row = values.len() / span.ids.len().max(1);
        Ok(values[values.len() - row..].to_vec())
    }

    fn set_hidden(&mut self, rows: usize, value: &dyn Fn(usize) -> f32) -> Result<(), ExecError> {
        let largest = self.step_buckets().last().copied().unwrap_or(0);
        if rows == 0 || rows > largest {
            return Err(ExecError::Shape(format!("{rows} rows do not fit a step of {largest}")));
        }
        let hidden = self.plan.hidden.ok_or(ExecError::NoEntry("hidden"))?;
        let bytes = usize::try_from(self.plan.states[hidden].bytes).unwrap_or(usize::MAX);
        let values: Vec<u8> = (0..bytes / 4 / largest * rows).flat_map(|i| value(i).to_le_bytes()).collect();
        self.write_state(hidden, &values);
        self.live = rows;
        Ok(())
    }
}
