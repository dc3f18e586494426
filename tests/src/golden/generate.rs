//! Cases that replay a whole generation: final ids, the sequence before every forward pass, and the passes themselves.

use std::ops::ControlFlow;

use dlx_runtime::decode::policy::StopAt;
use dlx_runtime::decode::{DecodePolicy, Decoded, FinishReason, Moment, decode};
use dlx_runtime::exec::Executor;

use super::Case;
use super::policies::{max_new, policy};
use super::trace::{self, Pass};

pub(super) fn run(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    let policy = policy(case)?;
    let noise = trace::noise(case, &policy)?;
    let mut ours: Vec<Pass> = Vec::new();
    let mut observe = |moment: Moment<'_>| {
        if let Moment::Forward(f) = moment {
            let (kind, before) = (trace::kind_name(f.kind), f.ids.to_vec());
            ours.push(Pass { kind, q_start: f.q_start, q_len: f.q_len, past_len: f.past_len, before });
        }
        ControlFlow::Continue(())
    };
    let prompt = case.ints("prompt_ids")?;
    let resolved = policy.clone().resolve(executor).map_err(|error| error.to_string())?;
    let decoded = decode(executor, resolved, prompt, max_new(case)?, 0, noise, &mut observe)
        .map_err(|error| error.to_string())?;

    if let Some(reference) = trace::reference(case, &policy)? {
        let ours = trace::join_prefills(ours);
        for (index, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
            if !ours.matches(reference, policy.mask_id) {
                return Err(format!("forward pass {index}:\n  ours      {ours:?}\n  reference {reference:?}"));
            }
        }
        if ours.len() != reference.len() {
            return Err(format!("{} forward passes instead of {}", ours.len(), reference.len()));
        }
    }
    let expected = &case.ints("final_ids")?[trace::left_pad(case)..];
    let ids = as_returned(case, &policy, prompt.len(), &decoded);
    if !trace::extends(&ids, expected, policy.mask_id) {
        return Err(format!("final ids:\n  ours      {ids:?}\n  reference {expected:?}"));
    }
    Ok(())
}

/// What Fast_dLLM v2's functions return after a stop token: one cuts there, the other pads up to the end of the block.
fn as_returned(case: &Case, policy: &DecodePolicy, prompt: usize, decoded: &Decoded) -> Vec<i32> {
    let mut ids = decoded.ids.clone();
    if case.text("family") == "fast-dllm-v2" && decoded.finish == FinishReason::StopId {
        let generated = ids.iter().skip(prompt).take_while(|id| !policy.stop_ids.contains(id)).count();
        ids.truncate(prompt + generated + 1);
        if policy.stop_at == StopAt::Block {
            let pad = case.json["params"]["pad_token_id"].as_i64().and_then(|id| i32::try_from(id).ok()).unwrap_or(-1);
            ids.resize(decoded.settled, pad);
        }
    }
    ids
}
