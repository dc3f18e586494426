//! Golden generations side by side: what a sequence decodes must not depend on which others share its steps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use dlx_runtime::decode::{Active, FinishReason, Forward, Moment, Noise, Resolved, Sequence};
use dlx_runtime::decode::{DecodePolicy, Driver};
use dlx_runtime::exec::Executor;

use super::policies::{max_new, policy};
use super::{Case, trace};

/// A generation to run.
pub struct Call {
    name: String,
    policy: DecodePolicy,
    prompt: Vec<i32>,
    max_new: usize,
    noise: Noise,
}

/// What happened to a sequence: every moment, and what it became.
#[derive(PartialEq)]
struct Told {
    moments: Vec<String>,
    ids: Vec<i32>,
    finish: FinishReason,
}

/// The generation of a case, and one like it with a shorter prompt.
///
/// # Errors
/// A case that is no generation.
pub fn calls(case: &Case) -> Result<[Call; 2], String> {
    let policy = policy(case)?;
    let (prompt, max_new) = (case.ints("prompt_ids")?.to_vec(), max_new(case)?);
    let shorter = prompt[..prompt.len() - prompt.len().min(3) / 2].to_vec();
    let noise = trace::noise(case, &policy)?;
    let other = Call {
        name: format!("{}, shorter", case.name),
        policy: policy.clone(),
        prompt: shorter,
        max_new: max_new + 2,
        noise: Noise::Seeded(7),
    };
    Ok([Call { name: case.name.clone(), policy, prompt, max_new, noise }, other])
}

/// The first two calls of every way to use the caches.
pub fn one_of_each(calls: Vec<Call>) -> Vec<Call> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for call in calls {
        let DecodePolicy { cache, sub_block, first_row, prompt_tail, hidden_id, cfg_scale, .. } = &call.policy;
        let way = format!("{:?}", (cache, sub_block, first_row, prompt_tail, hidden_id, *cfg_scale > 0.0));
        let count = seen.entry(way).or_default();
        *count += 1;
        if *count <= 2 {
            kept.push(call);
        }
    }
    kept
}

/// Runs every call alone, then `count` at a time, and compares all that happened. Returns how many steps served several
/// sequences.
///
/// # Errors
/// The first call that went another way beside others, or what the executor says.
pub fn side_by_side(executor: &mut dyn Executor, calls: &[Call], counts: &[usize]) -> Result<usize, String> {
    let mut alone = Vec::with_capacity(calls.len());
    for call in calls {
        alone.extend(together(executor, std::slice::from_ref(call))?.0);
    }
    let mut shared = 0;
    for &count in counts {
        for (calls, alone) in calls.chunks(count).zip(alone.chunks(count)) {
            let (beside, steps) = together(executor, calls)?;
            shared += steps;
            for ((call, alone), beside) in calls.iter().zip(alone).zip(&beside) {
                if alone != beside {
                    let moments = alone.moments.iter().zip(&beside.moments);
                    let at = moments.take_while(|(a, b)| a == b).count();
                    let (a, b) = (alone.moments.get(at), beside.moments.get(at));
                    return Err(format!("{}, one of {count}, moment {at}:\n  alone  {a:?}\n  beside {b:?}", call.name));
                }
            }
        }
    }
    Ok(shared)
}

/// A moment. Of a pass everything that it feeds and reads, but not the slots, which each sequence has of its own; of a decision what
/// it changed, but not the numbers behind it, which graphics devices round otherwise in steps of another size.
fn moment_text(moment: &Moment<'_>) -> String {
    if let Moment::Revealed { ids, start, end, decision } = moment {
        return format!("{:?}", (ids, start, end, &decision.changes));
    }
    let Moment::Forward(Forward { kind, q_start, q_len, past_len, ids, pass }) = moment else {
        return format!("{moment:?}");
    };
    let spans: Vec<_> = pass.spans().map(|s| (s.ids, s.pos, s.at, s.from, s.visible)).collect();
    format!("{:?}", (kind, q_start, q_len, past_len, ids, spans, pass.rows(), pass.reads()))
}

fn together(executor: &mut dyn Executor, calls: &[Call]) -> Result<(Vec<Told>, usize), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let resolved = calls.iter().map(|c| c.policy.clone().resolve(executor).map_err(|e| text(&e)));
    let resolved = resolved.collect::<Result<Vec<Resolved>, _>>()?;
    executor.reserve(resolved.iter().map(Resolved::slots).sum()).map_err(|e| text(&e))?;
    let mut next = 0;
    let mut sequences = Vec::with_capacity(calls.len());
    for (call, resolved) in calls.iter().zip(resolved) {
        // Sequences lie in the order of the calls turned around, so that slots and rows do not run in step.
        let slots: Vec<usize> = (next..next + resolved.slots()).map(|slot| executor.slots() - 1 - slot).collect();
        next += slots.len();
        let new = Sequence::new(resolved, executor, &call.prompt, call.max_new, 0, slots, call.noise.clone());
        sequences.push(new.map_err(|e| format!("{}: {e}", call.name))?);
    }
    let mut moments: Vec<Vec<String>> = vec![Vec::new(); calls.len()];
    let tell = |told: &mut Vec<String>, moment: Moment<'_>| {
        told.push(moment_text(&moment));
        ControlFlow::Continue(())
    };
    let mut observers: Vec<_> = moments.iter_mut().map(|told| move |m: Moment<'_>| tell(told, m)).collect();
    let mut driver = Driver::new(executor);
    let mut shared = 0;
    loop {
        let active = sequences.iter_mut().zip(&mut observers);
        let mut active: Vec<_> = active.map(|(sequence, observer)| Active { sequence, observer }).collect();
        let more = driver.round(&mut active).map_err(|e| text(&e))?;
        shared += driver.shared_steps();
        if !more {
            break;
        }
    }
    let told = sequences.into_iter().zip(moments).zip(calls).map(|((sequence, moments), call)| {
        let decoded = sequence.finish().map_err(|e| format!("{}: {e}", call.name))?;
        Ok(Told { moments, ids: decoded.ids, finish: decoded.finish })
    });
    Ok((told.collect::<Result<_, String>>()?, shared))
}
