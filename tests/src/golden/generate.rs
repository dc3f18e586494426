//! Cases that replay a whole generation: final ids, the sequence before every forward pass, and the passes themselves.

use std::ops::ControlFlow;

use dlx_runtime::decode::policy::ConfidenceStage;
use dlx_runtime::decode::{DecodePolicy, ForwardKind, Moment, Noise, Reveal, decode};
use dlx_runtime::exec::Executor;
use serde_json::Value;

use super::Case;

/// A forward pass of a trace: kind, first position, length, cache rows below, and the sequence before it.
#[derive(Clone, Debug, PartialEq)]
struct Pass {
    kind: String,
    q_start: usize,
    q_len: usize,
    past_len: usize,
    before: Vec<i32>,
}

pub(super) fn run(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    let policy = policy(case)?;
    let noise = recorded_noise(case, executor.vocab())?;
    let mut ours: Vec<Pass> = Vec::new();
    let mut observe = |moment: Moment<'_>| {
        if let Moment::Forward(f) = moment {
            let (kind, before) = (kind_name(f.kind).to_owned(), f.ids.to_vec());
            ours.push(Pass { kind, q_start: f.q_start, q_len: f.q_len, past_len: f.past_len, before });
        }
        ControlFlow::Continue(())
    };
    let prompt = case.ints("prompt_ids")?;
    let decoded = decode(executor, &policy, prompt, case.count("gen_length")?, &noise, &mut observe)
        .map_err(|error| error.to_string())?;

    let ours = join_prefills(ours);
    let reference = reference_passes(case)?;
    for (index, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
        if ours != reference {
            return Err(format!("forward pass {index}:\n  ours      {ours:?}\n  reference {reference:?}"));
        }
    }
    if ours.len() != reference.len() {
        return Err(format!("{} forward passes instead of {}", ours.len(), reference.len()));
    }
    let expected = case.ints("final_ids")?;
    if decoded.ids != expected {
        return Err(format!("final ids:\n  ours      {:?}\n  reference {expected:?}", decoded.ids));
    }
    Ok(())
}

/// The policy that describes what the case's reference function did.
///
/// # Errors
/// A family or option that no policy describes.
pub fn policy(case: &Case) -> Result<DecodePolicy, String> {
    match case.text("family") {
        "sdar" => sdar(case),
        other => Err(format!("no decode policy for family `{other}`")),
    }
}

fn sdar(case: &Case) -> Result<DecodePolicy, String> {
    let number = |key| case.number(key).map(|value| value as f32);
    let reveal = match case.param("remasking_strategy").ok().and_then(Value::as_str) {
        Some("sequential") => Reveal::new("sequential"),
        Some("low_confidence_static") => Reveal::new("static"),
        Some("low_confidence_dynamic") => Reveal::new("threshold").with("threshold", number("confidence_threshold")?),
        Some("entropy_bounded") => Reveal::new("entropy-bounded").with("bound", number("eb_threshold")?),
        Some(other) => return Err(format!("no reveal rule for `{other}`")),
        None if number("threshold")? >= 1.0 => Reveal::new("static"),
        None => Reveal::new("threshold").with("threshold", number("threshold")?),
    };
    // The published generate.py samples with its own function unless the case was run with the evaluation script's.
    let reference = &case.json["reference"];
    let evaluation_sampler = reference["file"].as_str().is_some_and(|file| file.ends_with("huggingface_bd3.py"))
        || reference["patches"].as_array().is_some_and(|patches| patches.contains(&Value::from("P3")));
    let stops = case.param("stopping_criteria_idx").ok().and_then(Value::as_array);
    let mask_id = case.json["mask_token_id"].as_i64().and_then(|id| i32::try_from(id).ok()).ok_or("no mask id")?;
    Ok(DecodePolicy {
        steps: case.count("denoising_steps")?,
        reveal,
        confidence_stage: if evaluation_sampler {
            ConfidenceStage::BeforeFilters
        } else {
            ConfidenceStage::AfterFilters
        },
        temperature: number("temperature")?,
        top_k: case.count("top_k")?,
        top_p: number("top_p")?,
        stop_ids: stops.into_iter().flatten().filter_map(|id| i32::try_from(id.as_i64()?).ok()).collect(),
        ..DecodePolicy::greedy(mask_id, case.count("block_length")?)
    })
}

/// The recorded draws of the case as one table per denoising pass. The reference's unused draws are of another shape.
fn recorded_noise(case: &Case, vocab: usize) -> Result<Noise, String> {
    let names: Vec<&String> = case.tensors.keys().filter(|name| name.starts_with("rng.")).collect();
    if names.is_empty() {
        return Ok(Noise::Seeded(0));
    }
    let calls = case.json["rng_calls"].as_array().ok_or("random draws without `rng_calls`")?;
    let draws = names.iter().zip(calls).filter(|(_, call)| call.as_str().is_some_and(|c| c.starts_with("multinomial")));
    let passes = draws.map(|(name, _)| case.floats(name).map(<[f32]>::to_vec)).collect::<Result<_, _>>()?;
    Ok(Noise::Recorded { passes, vocab })
}

fn reference_passes(case: &Case) -> Result<Vec<Pass>, String> {
    let forwards = case.json["forwards"].as_array().ok_or("no list of forward passes")?;
    let width = case.tensor("states")?.shape[1];
    let states = case.ints("states")?.chunks(width);
    let field = |forward: &Value, key: &str| {
        forward[key].as_u64().and_then(|value| usize::try_from(value).ok()).ok_or_else(|| format!("no `{key}`"))
    };
    forwards
        .iter()
        .zip(states)
        .map(|(forward, state)| {
            Ok(Pass {
                kind: forward["kind"].as_str().ok_or("no kind")?.to_owned(),
                q_start: field(forward, "q_start")?,
                q_len: field(forward, "q_len")?,
                past_len: field(forward, "past_len")?,
                before: state.iter().copied().filter(|&id| id >= 0).collect(),
            })
        })
        .collect()
}

/// Compiled steps may need several passes for a prefill that the reference does in one.
fn join_prefills(passes: Vec<Pass>) -> Vec<Pass> {
    let mut joined: Vec<Pass> = Vec::new();
    for pass in passes {
        match joined.last_mut() {
            Some(last)
                if last.kind == "prefill" && pass.kind == "prefill" && last.q_start + last.q_len == pass.q_start =>
            {
                last.q_len += pass.q_len;
            }
            _ => joined.push(pass),
        }
    }
    joined
}

fn kind_name(kind: ForwardKind) -> &'static str {
    match kind {
        ForwardKind::Prefill => "prefill",
        ForwardKind::Block => "block",
        ForwardKind::Commit => "commit",
    }
}
