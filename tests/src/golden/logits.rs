//! Cases that compare logits: whole-sequence forward passes and sequences of cached ones.

use dlx_runtime::exec::{Executor, StepCall};

use super::{Case, LOGIT_TOLERANCE};

/// Feeds the whole sequence, in as few chunks of whole mask blocks as the compiled steps allow.
pub(super) fn forward(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    let ids = case.ints("input_ids")?;
    let vocab = executor.vocab();
    let largest = executor.step_buckets().last().copied().unwrap_or(0);
    let chunk = match case.block() {
        Some(block) => largest / block * block,
        None => largest,
    };
    if chunk == 0 || (case.block().is_none() && ids.len() > largest) {
        return Err(format!("a sequence of {} does not fit steps of {largest}", ids.len()));
    }
    let expected = case.floats("logits")?;
    for (index, ids) in ids.chunks(chunk).enumerate() {
        let at = index * chunk;
        let rows = &expected[at * vocab..(at + ids.len()) * vocab];
        step(executor, ids, at, rows).map_err(|error| format!("rows from {at}: {error}"))?;
    }
    Ok(())
}

/// SDAR: prefill, then twice a block that is denoised once and committed.
pub(super) fn kv(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    if case.text("family") != "sdar" {
        return Err(format!("no check for the caches of family `{}`", case.text("family")));
    }
    let mut past = 0;
    for (name, keep) in [("prefill", true), ("block0", false), ("commit0", true), ("block1", false), ("commit1", true)]
    {
        let ids = case.ints(&format!("{name}_ids"))?;
        let expected = case.floats(&format!("{name}_logits"))?;
        step(executor, ids, past, expected).map_err(|error| format!("{name}: {error}"))?;
        if keep {
            past += ids.len();
        }
    }
    Ok(())
}

fn step(executor: &mut dyn Executor, ids: &[i32], at: usize, expected: &[f32]) -> Result<(), String> {
    let pos: Vec<i32> = (0..).skip(at).take(ids.len()).collect();
    let call = StepCall { ids, pos: &pos, at, from: 0, visible: at + ids.len() };
    executor.step(call).map_err(|error| error.to_string())?;
    let rows: Vec<usize> = (0..ids.len()).collect();
    let mut logits = vec![0.0; ids.len() * executor.vocab()];
    executor.logits(&rows, &mut logits).map_err(|error| error.to_string())?;
    close(&logits, expected, LOGIT_TOLERANCE)
}

/// Whether two tensors agree elementwise; equal infinities do.
pub(super) fn close(ours: &[f32], reference: &[f32], tolerance: f32) -> Result<(), String> {
    if ours.len() != reference.len() {
        return Err(format!("{} elements instead of {}", ours.len(), reference.len()));
    }
    for (index, (a, b)) in ours.iter().zip(reference).enumerate() {
        if a != b && ((a - b).abs() > tolerance || !(a - b).is_finite()) {
            return Err(format!("element {index} is {a} instead of {b}"));
        }
    }
    Ok(())
}
