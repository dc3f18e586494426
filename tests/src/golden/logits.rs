//! Cases that compare logits: whole-sequence forward passes and sequences of cached ones.

use std::ops::Range;

use dlx_ir::Mask;
use dlx_runtime::exec::{Executor, Span};

use super::{Case, LOGIT_TOLERANCE};

/// Feeds the whole sequence in as few chunks as the compiled steps and the mask allow.
pub(super) fn forward(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    let ids = case.ints("input_ids")?;
    if let Ok(mask) = case.floats("pad_mask") {
        return left_padded(executor, case, ids, mask);
    }
    if case.param("attention").is_ok_and(|attention| attention == "block staircase") {
        return staircase(executor, case, ids);
    }
    let vocab = executor.vocab();
    let largest = executor.step_buckets().last().copied().unwrap_or(0);
    let chunk = match case.mask()? {
        Mask::BlockCausal(block) => largest / block as usize * block as usize,
        Mask::Causal => largest,
        Mask::Full if ids.len() > largest => 0,
        Mask::Full => largest,
        Mask::Local(_) => return Err("a cache is not attended under a local mask".into()),
    };
    if chunk == 0 {
        return Err(format!("a sequence of {} does not fit steps of {largest}", ids.len()));
    }
    let expected = case.floats("logits")?;
    for (index, ids) in ids.chunks(chunk).enumerate() {
        let at = index * chunk;
        let rows = &expected[at * vocab..(at + ids.len()) * vocab];
        step(executor, ids, at, at + ids.len(), rows).map_err(|error| format!("rows from {at}: {error}"))?;
    }
    Ok(())
}

/// Dream with padding on the left: the padded cache rows are never attended.
fn left_padded(executor: &mut dyn Executor, case: &Case, ids: &[i32], mask: &[f32]) -> Result<(), String> {
    let from = mask.iter().position(|&real| real != 0.0).ok_or("nothing but padding")?;
    let pos = &case.ints("tok_idx")?[from..];
    let call = Span { slot: 0, ids: &ids[from..], pos, at: from, from, visible: ids.len() };
    compare(executor, call, case.floats("logits_valid")?)
}

/// A mask of blocks over padded columns, on a model with full attention: one pass per block, padding left out.
fn staircase(executor: &mut dyn Executor, case: &Case, ids: &[i32]) -> Result<(), String> {
    let (block, vocab) = (case.count("block_size")?, executor.vocab());
    let padding = case.ints("valid").ok();
    let valid = |column: &usize| padding.is_none_or(|valid| valid[*column] != 0);
    let expected = case.floats("logits")?;
    let mut at = 0;
    for start in (0..ids.len()).step_by(block) {
        let columns: Vec<usize> = (start..ids.len().min(start + block)).filter(valid).collect();
        let fed: Vec<i32> = columns.iter().map(|&column| ids[column]).collect();
        let rows: Vec<f32> =
            columns.iter().flat_map(|&column| &expected[column * vocab..(column + 1) * vocab]).copied().collect();
        if !fed.is_empty() {
            step(executor, &fed, at, at + fed.len(), &rows).map_err(|error| format!("block at {start}: {error}"))?;
        }
        at += fed.len();
    }
    Ok(())
}

/// Sequences of passes on one cache: name of the tensors (ids, logits), first row, and what is visible.
pub(super) fn kv(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    let mut run = |ids: &str, logits: &str, at: usize, visible: Option<usize>| {
        let ids = case.ints(&format!("{ids}_ids")).or_else(|_| case.ints(ids))?;
        let expected = case.floats(logits)?;
        let end = visible.unwrap_or(at + ids.len());
        step(executor, ids, at, end, expected).map_err(|error| format!("{logits}: {error}"))
    };
    match case.text("family") {
        "sdar" => {
            let (prefill, block) = (case.ints("prefill_ids")?.len(), case.ints("block0_ids")?.len());
            run("prefill", "prefill_logits", 0, None)?;
            for (index, at) in [prefill, prefill + block].into_iter().enumerate() {
                run(&format!("block{index}"), &format!("block{index}_logits"), at, None)?;
                run(&format!("commit{index}"), &format!("commit{index}_logits"), at, None)?;
            }
            Ok(())
        }
        "llada" | "llada-gqa" | "dream" => {
            let (start, end) = (case.count("block_start")?, Some(case.ints("full_ids")?.len()));
            run("full", "full_logits", 0, None)?;
            run("suffix", "suffix_logits", start, end)?;
            // The suffix has overwritten what the dual cache needs.
            run("full", "full_logits", 0, None)?;
            run("dual_block", "dual_block_logits", start, end)?;
            run("dual_block_ids_2", "dual_block_logits_2", start, end)
        }
        "fast-dllm-v2" => {
            let (at, block) = (case.count("prefill_len")?, case.count("block_size")?);
            let (sub, end) = (at + case.count("sub_block_start")?, Some(at + block));
            run("prefill", "prefill_logits", 0, None)?;
            run("block", "block_logits", at, None)?;
            run("block", "block_refresh_logits", at, None)?;
            run("sub", "sub_logits", sub, end)?;
            run("sub_ids_2", "sub_logits_2", sub, end)?;
            run("commit", "commit_logits", at, None)
        }
        other => Err(format!("no check for the caches of family `{other}`")),
    }
}

/// Autoregressive verification: a prefix, then two drafts after it, and how many tokens of the second are accepted.
pub(super) fn verify(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    let (prefix, vocab) = (case.ints("prefix_ids")?, executor.vocab());
    step(executor, prefix, 0, prefix.len(), case.floats("prefix_logits")?).map_err(|e| format!("prefix: {e}"))?;
    let best = |executor: &mut dyn Executor, row: usize| {
        let mut logits = vec![0.0; vocab];
        executor.logits(&[row], &mut logits).map_err(|error| error.to_string())?;
        let best = (0..vocab).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        i32::try_from(best).map_err(|error| error.to_string())
    };
    let mut expected = best(executor, prefix.len() - 1)?;
    for name in ["draft", "draft2"] {
        let ids = case.ints(&format!("{name}_ids"))?;
        let logits = case.floats(&format!("{name}_logits"))?;
        step(executor, ids, prefix.len(), prefix.len() + ids.len(), logits).map_err(|e| format!("{name}: {e}"))?;
    }
    let mut accepted = 0;
    for &id in case.ints("draft2_ids")? {
        if id != expected {
            break;
        }
        expected = best(executor, accepted)?;
        accepted += 1;
    }
    match case.count("greedy_accepted_of_draft2")? {
        count if count == accepted => Ok(()),
        count => Err(format!("{accepted} tokens are accepted instead of {count}")),
    }
}

fn step(executor: &mut dyn Executor, ids: &[i32], at: usize, visible: usize, expected: &[f32]) -> Result<(), String> {
    let pos: Vec<i32> = (0..).skip(at).take(ids.len()).collect();
    compare(executor, Span { visible, ..Span::new(ids, &pos, at) }, expected)
}

fn compare(executor: &mut dyn Executor, span: Span<'_>, expected: &[f32]) -> Result<(), String> {
    executor.step(&[span]).map_err(|error| error.to_string())?;
    let rows: Range<usize> = 0..span.ids.len();
    let mut logits = vec![0.0; rows.len() * executor.vocab()];
    executor.logits(&rows.collect::<Vec<_>>(), &mut logits).map_err(|error| error.to_string())?;
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
