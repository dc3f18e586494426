//! What the self-test asks of the wgpu executor.

use super::executor::{Source, WgpuExecutor};
use super::plan::Range;
use crate::exec::{ExecError, Executor, Limits, Span};
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
        let probe = self.plan.entries[entry].first_layer.clone().ok_or(ExecError::NoEntry("first layer of a step"))?;
        self.record_step(entry, spans, probe.after)?;
        let row = probe.value.bytes / self.plan.entries[entry].rows as u64;
        let range = Range { offset: probe.value.offset, bytes: row * self.live as u64 };
        let bytes = self.read(Source::Arena, &[range])?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
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
