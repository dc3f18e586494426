//! What the self-test asks of the CPU executor.

use super::CpuExecutor;
use crate::exec::{ExecError, Executor, Span};
use crate::selftest::Probes;
use dlx_ir::EntryKind;

impl Probes for CpuExecutor {
    /// Kernels agree bit for bit on every CPU, but the sines and cosines come from the platform's mathematics library.
    fn tolerance(&self) -> f32 {
        1e-3
    }

    fn blame(&self) -> String {
        format!("{} kernels; set DLX_ISA to another instruction set, and report this machine's CPU", self.isa())
    }

    /// All are the same graph, as loading has shown.
    fn whole_steps(&self) -> Vec<usize> {
        self.step_buckets().first().copied().into_iter().collect()
    }

    fn depth_tolerance(&self) -> f32 {
        self.tolerance()
    }

    fn whole_step(&mut self, _: usize, span: Span<'_>) -> Result<(), ExecError> {
        self.step(&[span])
    }

    fn first_layer(&mut self, rows: usize, span: Span<'_>) -> Result<Vec<f32>, ExecError> {
        let entry = self.entries.iter().find(|e| e.entry.kind == EntryKind::Step && e.entry.rows == rows);
        let nodes = entry.map_or(0, |e| e.first_layer);
        let (live, mut last) = (span.ids.len(), Vec::new());
        self.step_observed(&[span], nodes, &mut |seen| {
            let value = seen.value;
            if !value.is_empty() {
                last.clear();
                last.extend_from_slice(&value[value.len() / live * (live - 1)..]);
            }
        })?;
        Ok(last)
    }

    fn set_hidden(&mut self, rows: usize, value: &dyn Fn(usize) -> f32) -> Result<(), ExecError> {
        let largest = self.step_buckets().last().copied().unwrap_or(0);
        if rows == 0 || rows > largest {
            return Err(ExecError::Shape(format!("{rows} rows do not fit a step of {largest}")));
        }
        let hidden = self.hidden.map(|s| &mut self.states[s]).ok_or(ExecError::NoEntry("hidden"))?;
        let width = hidden.width();
        hidden.floats_mut()[..rows * width].iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
        self.live = rows;
        Ok(())
    }
}
